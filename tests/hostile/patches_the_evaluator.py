# Replaces functions of the fork-server and of Python's modules, for whoever comes after it, and crashes.
# verdict: error
import builtins
import os
import struct
import sys

frame = sys._getframe()
while frame:
    scope = frame.f_globals
    for name in ("carry_out", "copy_out", "shut_in", "landlock", "seccomp", "first_process", "run_job", "failed", "answer"):
        if name in scope:
            scope[name] = lambda *a, **k: None
    frame = frame.f_back
os.wait = os.wait4 = os.waitpid = lambda *a: (1, 0)
struct.pack_into = lambda *a: None
sys.modules["numpy"].savetxt = lambda *a, **k: None
builtins.print = lambda *a, **k: None
sys.excepthook = lambda *a: None
raise RuntimeError("crash")
