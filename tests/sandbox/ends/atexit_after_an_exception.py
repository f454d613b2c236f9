import atexit
f = open("out", "w")
atexit.register(lambda: f.write("handler"))
1 / 0
