# A tree of 20,000 folders inside each other, longer than any path; built from the inside out, which is quick.
# verdict: ok
# open in tier 1: depth. The host's own file system has no quota of inodes; what is too deep is removed afterwards.
import os

os.mkdir("deep")
try:
    for depth in range(20000):
        os.mkdir("outer")
        os.rename("deep", "outer/deep")
        os.rename("outer", "deep")
    print("depth: DONE")
except OSError:
    print("refused at", depth)
