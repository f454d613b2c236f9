# Types into the trainer's terminal.
# verdict: ok
import fcntl
import os

from tried import tried

for fd in (0, 1, 2):
    tried("TIOCSTI", lambda: fcntl.ioctl(fd, 0x5412, b"x"))
    tried("TIOCSTI, high bits set", lambda: fcntl.ioctl(fd, 0x5412 | 1 << 32, b"x"))
    tried("TIOCLINUX", lambda: fcntl.ioctl(fd, 0x541C, b"\x02"))
tried("tty", lambda: os.open("/dev/tty", os.O_RDWR))
tried("console", lambda: os.open("/dev/console", os.O_RDWR))
