# Files in memory that are nowhere mapped, so that no process seems to hold them.
# verdict: ok oom
import os

from tried import call, tried


def fill():
    fds = [call("memfd_create", b"x", 0) for _ in range(100)]
    for fd in fds:
        for _ in range(4):
            os.write(fd, bytes(1 << 20))
    return len(fds)


tried("memfd", fill)
tried("memfd_secret", lambda: call("memfd_secret", 0))
