# Stops itself and its child.
# verdict: timeout
# limits: wall=0.5
import os
import signal

os.fork()
os.kill(os.getpid(), signal.SIGSTOP)
