# Forks without end.
# verdict: processes timeout
# limits: cpu=1 wall=3
import os

while True:
    try:
        os.fork()
    except OSError:
        pass
