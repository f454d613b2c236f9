# Writes into everything it can reach that might outlive its process, then ends with exit code 3, whatever it wrote.
import builtins
import ctypes
import fcntl
import gc
import mmap
import os
import random
import resource
import signal
import sys

import numpy

MARK = b"\x01marked" * 1000
LIBC = ctypes.CDLL(None, use_errno=True)


def tried(attempt):
    try:
        attempt()
    except (OSError, ValueError, TypeError, BufferError, OverflowError):
        pass


def fill(begin, size):
    ctypes.memmove(begin, (MARK * (size // len(MARK) + 1))[:size], size)


# Memory that others have mapped too: by the memory map, by Python's objects, and by mapping what can be opened.
lines = []
tried(lambda: lines.extend(open("/proc/self/maps")))  # not shown in tier 1
for line in lines:
    places, rights = line.split()[:2]
    begin, end = (int(place, 16) for place in places.split("-"))
    if rights[3] == "s":
        if rights[1] == "w" or LIBC.mprotect(ctypes.c_void_p(begin), ctypes.c_size_t(end - begin), 3) == 0:
            fill(begin, end - begin)
for thing in gc.get_objects():
    for value in list(thing.values()) if isinstance(thing, dict) else ():
        if isinstance(value, mmap.mmap):
            tried(lambda: value.seek(0) or value.write(MARK[: len(value)]))
FOLDERS = ["/", ".", "/tmp", "/var/tmp", "/dev/shm", "/dev/mqueue", "/run", "/etc", sys.prefix, os.path.dirname(os.__file__)]
for folder in FOLDERS:
    tried(lambda: open(os.path.join(folder, "marked"), "wb").write(MARK))
    names = []
    tried(lambda: names.extend(os.listdir(folder)))
    for name in names:
        path = os.path.join(folder, name)
        if os.path.isfile(path) and name != "train.py":

            def map_shared():
                with open(path, "r+b") as file, mmap.mmap(file.fileno(), 0) as memory:
                    memory[:8] = MARK[:8]

            tried(map_shared)

# What was opened before this process began: flags and owners belong to it, not to the process.
for fd in (0, 1, 2):
    tried(lambda: fcntl.fcntl(fd, fcntl.F_SETFL, os.O_APPEND | os.O_NONBLOCK | os.O_ASYNC))
    tried(lambda: fcntl.fcntl(fd, 10, signal.SIGUSR1))  # F_SETSIG
    tried(lambda: os.lseek(fd, 7, os.SEEK_SET))

# Objects with names: System V, POSIX.
LIBC.shmget(4711, 4096, 0o1666)
LIBC.semget(4711, 1, 0o1666)
LIBC.msgget(4711, 0o1666)
LIBC.mq_open(b"/marked", os.O_CREAT | os.O_RDWR, 0o666, None)

# The state of the process and of its modules.
os.environ["MARKED"] = "1"
os.umask(0)
tried(lambda: os.nice(5))
tried(lambda: os.chdir("/"))
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
signal.signal(signal.SIGTERM, signal.SIG_IGN)
signal.signal(signal.SIGVTALRM, signal.SIG_IGN)
signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))
builtins.marked = numpy.marked = sys.marked = True
sys.modules["marked"] = sys
sys.path.append("/marked")
random.seed(1)
numpy.random.seed(1)
numpy.seterr(all="raise")
print("marked")
sys.stdout.flush()
os._exit(3)
