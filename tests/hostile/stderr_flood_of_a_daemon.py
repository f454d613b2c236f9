# Leaves a daemon that floods stderr.
# verdict: ok output
import os

if os.fork() == 0:
    os.setsid()
    while True:
        os.write(2, b"x" * 4096)
