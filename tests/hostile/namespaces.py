# New namespaces by unshare, clone, clone3 and setns.
# verdict: ok
import os

from tried import call, tried

for flag in (0x80, 0x20000, 0x2000000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000):
    tried("unshare", lambda: call("unshare", flag))
    tried("unshare with a user", lambda: call("unshare", flag | 0x10000000))
    tried("clone", lambda: call("clone", flag | 17, 0, 0, 0, 0) or os._exit(0))
    arguments = (flag).to_bytes(8, "little") + bytes(24) + (17).to_bytes(8, "little") + bytes(48)
    tried("clone3", lambda: call("clone3", arguments, 88) or os._exit(0))
    tried("setns", lambda: call("setns", 0, flag))
for name in ("mnt", "user", "net", "pid"):
    tried("setns by path", lambda: call("setns", os.open(f"/proc/1/ns/{name}", os.O_RDONLY), 0))
