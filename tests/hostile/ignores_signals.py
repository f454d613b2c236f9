# Ignores every signal it can and sleeps.
# verdict: timeout
# limits: wall=0.5
import signal
import time

for number in range(1, 65):
    try:
        signal.signal(number, signal.SIG_IGN)
    except (OSError, ValueError):
        pass
while True:
    time.sleep(1)
