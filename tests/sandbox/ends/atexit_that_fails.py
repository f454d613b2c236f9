import atexit
def fail():
    raise ValueError("at exit")
atexit.register(print, "still called")
atexit.register(fail)
f = open("out", "w")
f.write("still flushed")
