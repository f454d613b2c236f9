# Shared anonymous memory, which no limit on a process's data counts.
# verdict: oom
import mmap
import time

block = mmap.mmap(-1, 1 << 30)
for at in range(0, 1 << 30, 4096):
    block[at] = 1
time.sleep(1000)
