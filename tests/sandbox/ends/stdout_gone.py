import os
f = open("out", "w")
f.write("flushed")
print("never read")
os.close(1)
