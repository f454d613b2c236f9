import atexit, sys
atexit.register(lambda: print("__file__" in globals()))
sys.exit()
