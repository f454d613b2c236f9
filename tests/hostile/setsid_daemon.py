# Leaves a daemon in a session of its own.
# verdict: ok
import os
import time

if os.fork() == 0:
    os.setsid()
    while True:
        time.sleep(1)
