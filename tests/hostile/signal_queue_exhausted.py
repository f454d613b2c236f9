# Queues real-time signals to itself until the user's limit, which the trainer may share, is reached.
# verdict: ok
import ctypes
import os
import signal

from tried import LIBC, tried

signal.pthread_sigmask(signal.SIG_BLOCK, {40})


def queue():
    for _ in range(20000):
        if LIBC.sigqueue(os.getpid(), 40, ctypes.c_void_p(0)) < 0:
            raise OSError("no more signals")


tried("signals", queue)
