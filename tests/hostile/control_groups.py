# Leaves its control group or raises its limits.
# verdict: ok
import glob
import os

from tried import tried, write

for folder in ("/sys/fs/cgroup", "/old/sys/fs/cgroup", "/proc/1/root/sys/fs/cgroup"):
    for name in ("cgroup.procs", "memory/cgroup.procs", "pids/cgroup.procs", "memory/tasks", "release_agent"):
        tried("group", lambda: write(f"{folder}/{name}", "0"))
        tried("append", lambda: os.open(f"{folder}/{name}", os.O_WRONLY))
for path in glob.glob("/sys/fs/cgroup/**/onestep-*", recursive=True):
    print("seen: DONE", path)
