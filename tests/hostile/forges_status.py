# Crashes, and writes the status of a success into every memory shared with others, through the garbage collector's objects,
# the frames above it and the memory map itself.
# verdict: error
import ctypes
import gc
import mmap
import struct
import sys

status = struct.pack("<ii", 1, 0)
for thing in gc.get_objects():
    if isinstance(thing, dict):
        for value in list(thing.values()):
            if isinstance(value, mmap.mmap):
                try:
                    value[0:8] = status
                    value[64:70] = b"failed"
                except (ValueError, TypeError):
                    pass
frame = sys._getframe()
while frame:
    for scope in (frame.f_globals, frame.f_locals):
        for name, value in list(scope.items()):
            if name in ("SHARED", "MEMORY_ERROR", "STATUS", "FAILURE"):
                try:
                    value[0:8] = status
                except (ValueError, TypeError):
                    pass
    frame = frame.f_back
try:
    with open("/proc/self/maps") as maps:
        for line in maps:
            if "rw-s" in line:
                begin = int(line.split("-")[0], 16)
                ctypes.memmove(begin, status, 8)
                ctypes.memmove(begin + 64, b"failed", 6)
except OSError:
    pass
sys.exit(3)
