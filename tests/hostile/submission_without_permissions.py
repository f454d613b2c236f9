# Leaves files and folders of mode 000.
# verdict: ok
import os

from tried import LIBC

os.umask(0o777)
open("submission.csv", "w").close()
os.mkdir("shut")
os.umask(0)
os.mkdir("outer")
open("outer/inside", "w").write("x")
LIBC.chmod(b"outer", 0)
LIBC.chmod(b"train.py", 0)
LIBC.chmod(b".", 0)
