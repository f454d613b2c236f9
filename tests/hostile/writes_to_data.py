# Writes to the read-only data in place, after changing its mode, and through a hard link.
# verdict: ok
import os

from tried import tried

tried("write", lambda: open("data.npz", "r+b").write(b"x"))
try:
    os.chmod("data.npz", 0o666)
except OSError:
    pass
tried("write after chmod", lambda: open("data.npz", "r+b").write(b"x"))
try:
    os.link("data.npz", "linked")
except OSError:
    pass
tried("write through a link", lambda: open("linked", "r+b").write(b"x"))
