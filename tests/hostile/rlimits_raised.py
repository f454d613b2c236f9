# Raises its own limits, and its parent's.
# verdict: ok
import os
import resource

from tried import WHERE, tried

for name in ("RLIMIT_DATA", "RLIMIT_FSIZE", "RLIMIT_CORE", "RLIMIT_NOFILE", "RLIMIT_CPU", "RLIMIT_MSGQUEUE", "RLIMIT_MEMLOCK"):
    tried(name, lambda: resource.setrlimit(getattr(resource, name), (resource.RLIM_INFINITY, resource.RLIM_INFINITY)))
for pid in (os.getppid() or 1, WHERE["decoy"]):
    tried("prlimit", lambda: resource.prlimit(pid, resource.RLIMIT_NOFILE, (3, 3)))
