# Leaves a submission that is a symbolic or a hard link to the labels.
# verdict: ok
import os

from tried import WHERE, tried

for i, path in enumerate(WHERE["secrets"]):
    tried("hard link", lambda: os.link(path, f"hard-{i}"))
    os.symlink(path, f"soft-{i}.csv")
os.symlink(WHERE["secrets"][0], "submission.csv")
os.symlink(os.path.dirname(WHERE["secrets"][0]), "folder")
