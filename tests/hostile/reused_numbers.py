# Makes and ends many processes, and then sends signals to their numbers, which may be others' by now; daemons take some of them again.
# verdict: ok
import os
import signal
import time

own = set()
for _ in range(100):
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    own.add(pid)
for _ in range(8):
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            time.sleep(1000)
        os._exit(0)
    os.wait()
for pid in own - {os.getpid(), os.getppid()}:
    for number in (signal.SIGSTOP, signal.SIGKILL):
        try:
            os.kill(pid, number)
        except OSError:
            pass
