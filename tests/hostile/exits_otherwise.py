# Raises, and ends itself in an exit handler, a thread and a child, with the status of a success.
# verdict: ok error
import atexit
import os
import threading

atexit.register(lambda: open("at-exit", "w").write("x"))
atexit.register(lambda: os._exit(0))
if os.fork() == 0:
    os._exit(0)
threading.Thread(target=lambda: None).start()
raise RuntimeError("crash")
