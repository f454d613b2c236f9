# Starts threads without end.
# verdict: processes error timeout oom
# limits: cpu=2 wall=5
import threading
import time

started = 0
while True:
    threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()
    started += 1
    if started == 200:
        print("threads: DONE")
