import sys
f = open("out", "w")
f.write("flushed")
print("printed")
sys.stdout.close()
