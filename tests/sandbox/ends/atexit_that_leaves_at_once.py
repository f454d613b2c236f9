import atexit, os
f = open("out", "w")
f.write("lost")
print("printed before")
atexit.register(os._exit, 4)
