# Leaves pipes, sockets and devices in the place of a submission.
# verdict: ok
import os
import socket
import stat

from tried import tried

tried("fifo", lambda: os.mkfifo("submission.csv"))
tried("device", lambda: os.mknod("submission.csv", 0o666 | stat.S_IFCHR, os.makedev(1, 5)))
tried("block device", lambda: os.mknod("disk", 0o666 | stat.S_IFBLK, os.makedev(254, 0)))
a, _ = socket.socketpair()
try:
    a.bind("submission.csv")
except OSError:
    pass
