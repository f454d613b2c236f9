# Burns CPU in short-lived children that nobody waits for, so that their time is not added up. The wall clock is the backstop.
# verdict: timeout
# limits: cpu=1 wall=3
import os
import signal
import time

signal.signal(signal.SIGCHLD, signal.SIG_IGN)
while True:
    if os.fork() == 0:
        end = time.process_time() + 0.03
        while time.process_time() < end:
            pass
        os._exit(0)
    time.sleep(0.03)
