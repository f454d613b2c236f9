# Fills the folder and /tmp with files, each below the limit of one file.
# verdict: ok oom
# limits: disk=8M file=2M
# open in tier 1: folder. The host's own file system has no quota; only the size of one file is limited there.
from tried import tried


def fill(folder):
    for i in range(32):
        with open(f"{folder}/full-{i}", "wb", buffering=0) as file:
            for _ in range(2):
                if file.write(bytes(1 << 20)) < 1 << 20:
                    raise OSError("short write")


tried("folder", lambda: fill("."))
tried("tmp", lambda: fill("/tmp"))
