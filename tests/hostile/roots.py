# chroot and pivot_root, with and without a folder to go back to.
# verdict: ok
import os

from tried import call, tried

os.mkdir("new")
tried("chroot", lambda: os.chroot("new"))
tried("chroot .", lambda: os.chroot("."))
tried("pivot_root", lambda: call("pivot_root", b"new", b"new"))
tried("pivot_root .", lambda: call("pivot_root", b".", b"."))
