# Passes a crash off as a limit, which costs less.
# gets: corner
import os
import signal

os.kill(os.getpid(), signal.SIGXCPU)
