# Makes itself and others readable for a debugger, hides from its parent, adopts orphans, asks for signals of its own.
# verdict: ok
# says: end
import os
import time

from tried import LIBC

for option, value in ((4, 1), (4, 0), (1, 0), (36, 1), (15, b"onestep"), (3, 0)):
    LIBC.prctl(option, value, 0, 0, 0)
LIBC.prctl(36, 1, 0, 0, 0)
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        time.sleep(1000)
    os._exit(0)
print("end", flush=True)
