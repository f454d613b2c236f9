# Fills socket and pipe buffers in the kernel, which no process holds.
# verdict: ok oom error
import fcntl
import os
import socket

from tried import tried


def fill():
    kept, total = [], 0
    while True:
        a, b = socket.socketpair()
        kept += [a, b]
        a.setblocking(False)
        try:
            while True:
                total += a.send(bytes(1 << 16))
        except BlockingIOError:
            pass
        r, w = os.pipe()
        try:
            fcntl.fcntl(w, 1031, 1 << 20)
        except OSError:
            pass
        if total > 1 << 28:
            return total


tried("kernel buffers", fill)
