import sys
sys.stdout = sys.stderr = None
f = open("out", "w")
f.write("flushed")
