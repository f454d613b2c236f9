import atexit, os
f = open(f"parent", "w")
f.write("parent")
atexit.register(lambda: open("handler" + ("" if child else " of the child"), "w").write("called"))
child = os.fork()
if child:
    os.waitpid(child, 0)
else:
    f.close()
    g = open("child", "w")
    g.write("child")
