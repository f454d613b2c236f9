# The daemon's parent is gone before the script ends, and it holds stdout and stderr.
# verdict: ok
import os
import time

if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.closerange(3, 256)
        time.sleep(1000)
    os._exit(0)
os.wait()
