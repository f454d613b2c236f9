# Takes away what hides and protects: /proc, /tmp, its folder, the data, the root.
# verdict: ok
from tried import LIBC, checked, tried

for path in (b"/proc", b"/tmp", b"/dev/shm", b"/onestep", b"/onestep/data.npz", b"/", b"/dev/null", b"/usr/lib", b"/old"):
    for flags in (0, 1, 2, 8):
        tried("umount", lambda: checked(LIBC.umount2(path, flags)))
