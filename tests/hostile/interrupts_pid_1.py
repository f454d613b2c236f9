# SIGINT to pid 1 and to the group again and again: Python turns it into an exception there.
# verdict: ok killed
import os
import signal
import time

signal.signal(signal.SIGINT, signal.SIG_IGN)
for _ in range(200):
    for pid in (1, os.getppid(), 0):
        try:
            os.kill(pid, signal.SIGINT)
        except OSError:
            pass
    time.sleep(0.0005)
