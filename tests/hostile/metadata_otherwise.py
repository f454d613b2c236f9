# Changes modes, times and attributes of files outside its folder by calls that few programs make.
# verdict: ok
import ctypes
import os
import sys

from tried import LIBC, NUMBERS, WHERE, call, tried

AT_FDCWD = -100
pair = (ctypes.c_long * 4)(1, 0, 1, 0)
times = ctypes.addressof(pair)
for path in [*WHERE["secrets"], "/etc/passwd", os.path.realpath(sys.executable)]:
    path = ctypes.c_char_p(os.fsencode(path))
    tried("fchmodat2", lambda: call(452, AT_FDCWD, path, 0o777, 0))
    tried("setxattrat", lambda: call(463, AT_FDCWD, path, 0, b"user.x", 0, 0))
    tried("file_setattr", lambda: call(469, AT_FDCWD, path, times, 24, 0))
    for name in ("removexattr", "lremovexattr"):
        tried(name, lambda: call(name, path, ctypes.c_char_p(b"user.hostile")))
    for name in {"utime", "utimes"} & NUMBERS.keys():
        tried(name, lambda: call(name, path, times))
    if "futimesat" in NUMBERS:
        tried("futimesat", lambda: call("futimesat", AT_FDCWD, path, times))
