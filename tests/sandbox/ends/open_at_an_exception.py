f = open("out", "w")
f.write("before")
def fail():
    g = open("inner", "w")
    g.write("in a frame")
    raise ValueError("why")
fail()
