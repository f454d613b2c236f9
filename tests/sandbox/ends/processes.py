import atexit, multiprocessing
def work(name):
    f = open(name, "w")
    f.write("from a process")
    f.flush()
    print("process done", flush=True)
if __name__ == "__main__":
    atexit.register(print, "parent's handler")
    process = multiprocessing.Process(target=work, args=("out",))
    process.start()
