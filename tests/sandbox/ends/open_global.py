f = open("out", "w")
f.write("global")
