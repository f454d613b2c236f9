import atexit
f = open("out", "w")
atexit.register(f.write, "last ")
atexit.register(print, "second")
@atexit.register
def first():
    print("first")
    f.write("first ")
