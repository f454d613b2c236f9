import threading, time
def work():
    time.sleep(0.1)
    g = open("out", "w")
    g.write("from a thread")
threading.Thread(target=work).start()
raise KeyError("main")
