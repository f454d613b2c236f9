import os, sys
sys.stderr.write("no line end")
os.close(2)
