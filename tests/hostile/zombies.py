# Leaves dead and living children, and orphans of them, unwaited for.
# verdict: ok processes
import os
import time

for i in range(12):
    if os.fork() == 0:
        if i % 2 and os.fork() == 0:
            time.sleep(1000)
        os._exit(0)
