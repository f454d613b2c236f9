import sys
def hook(kind, value, traceback):
    raise RuntimeError("in the hook")
sys.excepthook = hook
raise ValueError("why")
