# Fills /dev/shm.
# verdict: ok oom
from tried import tried


def fill():
    for i in range(64):
        with open(f"/dev/shm/hostile-left-{i}", "wb", buffering=0) as file:
            if file.write(bytes(1 << 20)) < 1 << 20:
                raise OSError("short write")


tried("shm", fill)
