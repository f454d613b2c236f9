import signal, time
def interrupt(number, frame):
    raise RuntimeError("too late")
signal.signal(signal.SIGALRM, interrupt)
signal.signal(signal.SIGUSR1, interrupt)
f = open("out", "w")
f.write("flushed")
class Last:
    def __del__(self):
        print(signal.getsignal(signal.SIGUSR1) is interrupt)
last = Last()
