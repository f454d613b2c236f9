import atexit, sys
f = open("out", "w")
f.write("flushed")
atexit.register(lambda: sys.exit(5))
