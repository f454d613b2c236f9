# io_uring, whose requests a system call filter does not see.
# verdict: ok
from tried import call, tried

tried("setup", lambda: call("io_uring_setup", 8, bytes(120)))
tried("enter", lambda: call("io_uring_enter", 0, 1, 0, 0, 0, 0))
tried("register", lambda: call("io_uring_register", 0, 0, 0, 0))
