# POSIX message queues and System V shared memory, semaphores and queues: memory outside every process.
# verdict: ok
from tried import LIBC, call, checked, tried

tried("mq_open", lambda: checked(LIBC.mq_open(b"/hostile-left", 0o102, 0o600, None)))
tried("shmget", lambda: call("shmget", 4711, 1 << 24, 0o1600))
tried("semget", lambda: call("semget", 4711, 1, 0o1600))
tried("msgget", lambda: call("msgget", 4711, 0o1600))
