import os
f = open("out", "w")
f.write("lost")
print("lost")
os._exit(6)
