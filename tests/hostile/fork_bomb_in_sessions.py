# Forks without end, each child in a session of its own, so that no process group holds them.
# verdict: processes timeout
# limits: cpu=1 wall=3
import os

while True:
    try:
        if os.fork() == 0:
            os.setsid()
    except OSError:
        pass
