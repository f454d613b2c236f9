# The daemon's parent is gone before the script ends, and it holds stdout and stderr.
# verdict: ok
# leaves no: late
import os
import time

if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.closerange(3, 256)
        time.sleep(0.5)
        open("late", "w").write("late")
        time.sleep(1000)
    os._exit(0)
os.wait()
