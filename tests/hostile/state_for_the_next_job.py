# Leaves a mark in all memory that is shared, in the flags of what it has been given open, in named objects and in every folder that can be
# written, and looks first for the marks of the run before. Ends as a failure, whatever the marks say.
# verdict: error
import ctypes
import fcntl
import gc
import mmap
import os
import sys

from tried import LIBC, call, tried

MARK = b"\x01hostile-mark" * 400
KEY = 0x6F6E6531


def found(name, is_there):
    if is_there:
        print(f"{name}: DONE")


try:
    with open("/proc/self/maps") as file:
        shared = [line.split()[:2] for line in file if line.split()[1][3] == "s"]
except PermissionError:
    shared = []  # not shown in tier 1
for places, rights in shared:
    begin, end = (int(place, 16) for place in places.split("-"))
    if "r" in rights:
        found("shared memory", MARK[:13] in ctypes.string_at(begin, end - begin))
    if "w" in rights:
        ctypes.memmove(begin, MARK[: end - begin], min(end - begin, len(MARK)))
        print("memory to write: DONE")
    elif LIBC.mprotect(ctypes.c_void_p(begin), ctypes.c_size_t(end - begin), 3) == 0:
        print("memory made writable: DONE")
for thing in gc.get_objects():
    for value in list(thing.values()) if isinstance(thing, dict) else ():
        if isinstance(value, mmap.mmap) and not value.closed:
            found("an open map", True)
for fd in (0, 1, 2):
    found("flags", fcntl.fcntl(fd, fcntl.F_GETFL) & (os.O_APPEND | os.O_ASYNC))
    fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) | os.O_APPEND)
tried("shared memory", lambda: call("shmget", KEY, 4096, 0o1666))
tried("semaphores", lambda: call("semget", KEY, 1, 0o1666))
tried("messages", lambda: call("msgget", KEY, 0o1666))
for folder in ("/", "/tmp", "/var/tmp", "/dev/shm", "/dev/mqueue", "/run", "/etc", sys.prefix, ".", ".."):
    path = os.path.join(folder, "hostile-mark")
    found(path, os.path.exists(path))
    try:
        with open(path, "wb") as file:
            file.write(MARK)
    except OSError:
        pass
found("the environment", "HOSTILE_MARK" in os.environ or hasattr(sys, "hostile_mark"))
os.environ["HOSTILE_MARK"] = sys.hostile_mark = "1"
sys.exit(3)
