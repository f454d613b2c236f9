import threading, time
def work():
    g = open("lost", "w")
    g.write("in a daemon thread")
    time.sleep(1000)
threading.Thread(target=work, daemon=True).start()
time.sleep(0.1)
f = open("out", "w")
f.write("beside a daemon thread")
