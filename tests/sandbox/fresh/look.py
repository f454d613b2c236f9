# Prints the state that it finds, which is the same for every job. As a submission it writes a number that depends on it.
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

LIBC = ctypes.CDLL(None, use_errno=True)
found = {}
try:
    with open("/proc/self/maps") as file:
        shared = [line.split() for line in file if line.split()[1][3] == "s"]
except PermissionError:
    shared = []  # not shown in tier 1
found["writable shared memory"] = [rights for _, rights, *_ in shared if "w" in rights]
found["shared memory"] = [hash(ctypes.string_at(int(places.split("-")[0], 16), 4096)) for places, rights, *_ in shared if "r" in rights]
maps = [value for thing in gc.get_objects() if isinstance(thing, dict) for value in thing.values() if isinstance(value, mmap.mmap)]
found["open maps"] = sum(not one.closed for one in maps)
for folder in ("/", ".", "/tmp", "/var/tmp", "/dev/shm", "/dev/mqueue", "/run", "/etc", sys.prefix, os.path.dirname(os.__file__)):
    found[folder] = os.path.exists(os.path.join(folder, "marked"))
for fd in (0, 1, 2):
    found[f"descriptor {fd}"] = fcntl.fcntl(fd, fcntl.F_GETFL), fcntl.fcntl(fd, 11)  # F_GETSIG
found["System V"] = LIBC.shmget(4711, 0, 0), LIBC.semget(4711, 0, 0), LIBC.msgget(4711, 0)
found["POSIX"] = LIBC.mq_open(b"/marked", os.O_RDONLY)
umask = os.umask(0)
found["process"] = umask, os.getpriority(os.PRIO_PROCESS, 0), os.getcwd() == os.environ["HOME"], signal.pthread_sigmask(signal.SIG_BLOCK, [])
found["limits"] = [resource.getrlimit(number) for number in range(16) if number != resource.RLIMIT_NPROC]
found["handlers"] = [str(signal.getsignal(number)) for number in sorted(signal.valid_signals())]
found["environment"] = {name: text for name, text in os.environ.items() if name not in ("HOME", "TMPDIR")}
found["modules"] = [hasattr(one, "marked") for one in (builtins, numpy, sys)], "marked" in sys.modules, "/marked" in sys.path
found["numbers"] = random.random(), numpy.random.rand(), numpy.geterr()
print(found)
open("submission.csv", "w").write(f"{hash(str(found))}\n")
