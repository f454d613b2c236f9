# Uses open_by_handle_at, openat2, /proc/self/fd and descriptors of folders to get out.
# verdict: ok
import os

from tried import WHERE, call, tried

for fd in range(0, 64):
    try:
        there = os.readlink(f"/proc/self/fd/{fd}")
    except OSError:
        continue
    if fd > 2 and "/proc" not in there and not there.startswith("/onestep"):
        print("descriptor: DONE", fd, there)
for fd in range(0, 64):
    try:
        os.fstat(fd)
    except OSError:
        continue
    if fd > 2:
        print("descriptor open: DONE", fd, os.fstat(fd))
for path in WHERE["secrets"]:
    for fd in range(3, 32):
        try:
            print("openat: DONE", os.read(os.open(path.lstrip("/"), os.O_RDONLY, dir_fd=fd), 100))
        except OSError:
            pass
tried("open_by_handle_at", lambda: call("open_by_handle_at", -100, b"\0" * 128, 0))
tried("name_to_handle_at", lambda: call("name_to_handle_at", -100, b"/", b"\x80" + b"\0" * 200, b"\0" * 8, 0))
if os.read(0, 10):
    print("stdin: DONE")
