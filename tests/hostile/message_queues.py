# POSIX message queues and System V shared memory, semaphores and queues: memory outside every process.
# verdict: ok
import ctypes

from tried import LIBC, call, checked, tried

tried("mq_open", lambda: checked(LIBC.mq_open(b"/hostile-left", 0o102, 0o600, None)))
tried("shmget", lambda: call("shmget", 4711, 1 << 24, 0o1600))
tried("semget", lambda: call("semget", 4711, 1, 0o1600))
tried("msgget", lambda: call("msgget", 4711, 0o1600))


def attached(index):
    SHM_STAT_ANY = 15
    about = ctypes.create_string_buffer(256)
    segment = call("shmctl", index, SHM_STAT_ANY, ctypes.addressof(about))
    LIBC.shmat.restype = ctypes.c_void_p
    place = LIBC.shmat(segment, None, 0)
    if place in (None, 2**64 - 1):
        raise OSError("not attached")
    return ctypes.string_at(place, 64)


for index in range(64):
    tried("the host's segments", lambda: attached(index))
