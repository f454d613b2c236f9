import sys
f = open("out", "w")
f.write("before")
def leave():
    g = open("inner", "w")
    g.write("in a frame")
    sys.exit(3)
leave()
