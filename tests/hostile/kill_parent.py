# Signals to pid 1, to its parent (from inside its pid namespace that has no number), and to the trainer.
# verdict: ok killed
import os
import signal

from tried import WHERE

for pid in (os.getppid() or 1, 1, WHERE["decoy"], WHERE["trainer"]):
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGSTOP, signal.SIGUSR1, signal.SIGKILL):
        try:
            os.kill(pid, number)
        except OSError:
            pass
