# Writes, removes, renames, links and changes modes outside its folder.
# verdict: ok
import os

from tried import WHERE, tried, write

for path in WHERE["secrets"]:
    folder = os.path.dirname(path)
    tried("write", lambda: write(path))
    tried("truncate", lambda: os.truncate(path, 0))
    tried("unlink", lambda: os.unlink(path))
    tried("chmod", lambda: os.chmod(path, 0o777))
    tried("utime", lambda: os.utime(path, (0, 0)))
    tried("chown", lambda: os.chown(path, os.getuid(), -1))
    tried("setxattr", lambda: os.setxattr(path, "user.x", b"x"))
    tried("create", lambda: write(folder + "/hostile-left"))
    tried("rename", lambda: os.rename(path, path + "-moved"))
    tried("rename in", lambda: os.rename(path, "taken"))
for folder in ("..", "/", "/usr", "/usr/lib", "/var/tmp", "/etc", "/dev", "/home", "/proc/self", "/sys"):
    if folder == os.environ["TMPDIR"]:
        continue  # where the interpreter lies below /tmp, /var/tmp is its own scratch
    tried("create in " + folder, lambda: write(folder + "/hostile-left"))
for path in ("/etc/passwd", "/etc/ld.so.cache", os.__file__, os.path.realpath("/proc/self/exe")):
    tried("append", lambda: open(path, "a").close())
