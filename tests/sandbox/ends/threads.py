import threading, time
f = open("out", "w")
def work():
    time.sleep(0.1)
    f.write("from a thread")
    print("thread done")
threading.Thread(target=work).start()
print("main done")
