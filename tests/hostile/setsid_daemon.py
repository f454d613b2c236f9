# Leaves a daemon in a session of its own that writes a file later.
# verdict: ok
# leaves no: late
import os
import time

if os.fork() == 0:
    os.setsid()
    time.sleep(0.5)
    open("late", "w").write("late")
    while True:
        time.sleep(1)
