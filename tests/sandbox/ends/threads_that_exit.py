import sys, threading
def work():
    print("leaving")
    sys.exit(7)
threading.Thread(target=work).start()
