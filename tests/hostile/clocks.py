# Sets clocks and names of the machine.
# verdict: ok
import socket
import time

from tried import LIBC, call, checked, tried

tried("clock_settime", lambda: time.clock_settime(time.CLOCK_REALTIME, 0))
tried("settimeofday", lambda: call("settimeofday", bytes(16), 0))
tried("adjtimex", lambda: call("adjtimex", b"\x01" + bytes(207)))
tried("clock_adjtime", lambda: call("clock_adjtime", 0, b"\x01" + bytes(207)))
tried("hostname", lambda: socket.sethostname("x"))
tried("domain", lambda: checked(LIBC.setdomainname(b"x", 1)))
