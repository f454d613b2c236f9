from concurrent.futures import ThreadPoolExecutor
import time
def work(i):
    time.sleep(0.02)
    with open(f"out{i}", "w") as f:
        f.write(str(i))
pool = ThreadPoolExecutor(2)
for i in range(4):
    pool.submit(work, i)
