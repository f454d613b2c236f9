# Each child stays below the limit of one process; together they are far above it.
# verdict: oom
# limits: memory=128M
import os
import time

for _ in range(8):
    if os.fork() == 0:
        break
block = bytearray(b"x") * (60 << 20)
time.sleep(1000)
