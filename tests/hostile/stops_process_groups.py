# Stops whole groups of processes, its own children's and those that it may guess, and leaves the children stopped.
# verdict: ok
import os
import signal
import time

from tried import WHERE, tried

for session in (False, True):
    r, w = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.setsid() if session else os.setpgid(0, 0)
        os.fork()
        os.write(w, b"x")
        while True:
            time.sleep(1000)
    os.read(r, 1)
    os.killpg(pid, signal.SIGSTOP)
for group in (WHERE["decoy"], WHERE["trainer"]):
    tried("a group outside", lambda: os.killpg(group, signal.SIGSTOP))
    tried("its terminal", lambda: os.tcsetpgrp(0, group))
parent = os.getppid()
if parent > 1:
    tried("the parent's group", lambda: os.killpg(os.getpgid(parent), signal.SIGSTOP))
