# Makes empty files until there are no inodes left.
# verdict: ok oom
# open in tier 1: inodes. The host's own file system has no quota; what is too much is removed afterwards.
import os

from tried import tried


def make():
    os.mkdir("many")
    for i in range(21000):
        open(f"many/{i}", "w").close()


tried("inodes", make)
