# Writes into the memory of pid 1, of its parent and of the trainer.
# verdict: ok
import os

from tried import WHERE, tried


def overwrite(pid):
    fd = os.open(f"/proc/{pid}/mem", os.O_RDWR)
    return os.pwrite(fd, b"x", 0x400000)


for pid in (1, os.getppid(), WHERE["decoy"], WHERE["trainer"]):
    tried("mem", lambda: overwrite(pid))
    tried("clear_refs", lambda: open(f"/proc/{pid}/clear_refs", "w").write("1"))
    tried("oom_score_adj", lambda: open(f"/proc/{pid}/oom_score_adj", "w").write("-1000"))
tried("own oom_score_adj", lambda: open("/proc/self/oom_score_adj", "w").write("-1000"))
