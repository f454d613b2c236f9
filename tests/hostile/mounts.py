# Mounts, moves, binds and remounts, with the old calls and the new.
# verdict: ok
from tried import LIBC, call, checked, tried

mount = lambda *a: checked(LIBC.mount(*a))
tried("tmpfs", lambda: mount(b"tmpfs", b"/tmp", b"tmpfs", 0, None))
tried("proc", lambda: mount(b"proc", b"/proc", b"proc", 0, None))
tried("bind", lambda: mount(b"/", b"/tmp", None, 4096 | 16384, None))
tried("remount", lambda: mount(None, b"/", None, 32 | 4096, None))
tried("move", lambda: mount(b"/proc", b"/tmp", None, 8192, None))
tried("overlay", lambda: mount(b"o", b"/tmp", b"overlay", 0, b"lowerdir=/,upperdir=/tmp,workdir=/tmp"))
tried("open_tree", lambda: call("open_tree", -100, b"/", 1 | 0x8000))
tried("move_mount", lambda: call("move_mount", -100, b"/proc", -100, b"/tmp", 0))
tried("fsopen", lambda: call("fsopen", b"tmpfs", 0))
tried("fspick", lambda: call("fspick", -100, b"/", 0))
tried("mount_setattr", lambda: call("mount_setattr", -100, b"/", 0, bytes(32), 32))
