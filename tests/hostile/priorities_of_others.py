# Slows the trainer down: priority, scheduler, affinity and I/O class of other processes, and real time for itself.
# verdict: ok
import os

from tried import WHERE, call, tried

for pid in (WHERE["decoy"], WHERE["trainer"]):
    tried("nice", lambda: os.setpriority(os.PRIO_PROCESS, pid, 19))
    tried("scheduler", lambda: os.sched_setscheduler(pid, os.SCHED_IDLE, os.sched_param(0)))
    tried("affinity", lambda: os.sched_setaffinity(pid, {0}))
    tried("ioprio", lambda: call("ioprio_set", 1, pid, 3 << 13))
tried("real time", lambda: os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1)))
tried("nice -20", lambda: os.setpriority(os.PRIO_PROCESS, 0, -20))
try:
    os.setpriority(os.PRIO_USER, os.getuid(), 19)
except OSError:
    pass
