import sys
def hook(kind, value, traceback):
    print("hooked", kind.__name__, value)
sys.excepthook = hook
f = open("out", "w")
f.write("flushed")
raise ValueError("why")
