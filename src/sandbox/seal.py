"""How a script is shut in: a root of its own with nothing in it but the interpreter, namespaces, Landlock, seccomp, limits.

Policy that needs a list of system calls comes from seccomp.rs as ready filters. Everything here runs in the fork-server or in the
processes of a job before the script; nothing is enforced that needs a clock (worker.rs) and nothing is run.

Tier 3: namespaces, and memory and pids cgroups. Tier 2: namespaces. Tier 1: Landlock and seccomp on the host's own tree. A step that is
not possible raises: the job fails, it never runs with less.
"""

import ctypes
import errno
import fcntl
import math
import os
import resource
import shutil
import stat

NEWNS, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET = 0x20000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000
JOB_NAMESPACES = NEWNS | NEWPID | NEWNET | NEWIPC | NEWUTS
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_BIND, MS_REC, MS_PRIVATE = 1, 2, 4, 8, 4096, 16384, 1 << 18
MNT_DETACH = 2
ATTR_RDONLY, ATTR_NOSUID, ATTR_NODEV = 1, 2, 4
AT_FDCWD, AT_RECURSIVE = -100, 0x8000
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_SECCOMP, PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS, PR_CAP_AMBIENT = 1, 4, 22, 24, 38, 47
SYS_CLONE, SYS_PIVOT_ROOT = {"x86_64": (56, 155), "aarch64": (220, 41)}.get(os.uname().machine, (None, None))
SYS_MOUNT_SETATTR, SYS_LANDLOCK_CREATE, SYS_LANDLOCK_ADD, SYS_LANDLOCK_RESTRICT = 442, 444, 445, 446

# PyDLL keeps the interpreter's lock over the call, which a clone needs.
LIBC = ctypes.PyDLL(None, use_errno=True)
UID, GID = os.getuid(), os.getgid()

# The script's folder (WORKSPACE in protocol.rs), and the host's root while it is still there. No interpreter lies below the first, which
# would cover it.
WORK, OLD = "/onestep", "/old"
DEVICES = ["null", "zero", "full", "random", "urandom"]
# Bytes from which a data file is shown to the script in place of being copied for it.
LARGE = 1 << 16
FICLONE = 0x40049409
# Of what a script leaves behind: entries, and folders inside each other, that are carried out.
MOST_ENTRIES, MOST_DEPTH = 2000, 16
# Errors in carrying out that are the host's; any other is of what the script left, a name too long, a file in a folder's place.
HOST_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EMFILE, errno.ENFILE)
INODES, SHM = 20000, "size=16m,nr_inodes=1024"

# Landlock's rights: files are read and executed; what changes them; which version knows how many.
READ, WRITE, LIST = 1 << 0 | 1 << 2 | 1 << 3, 0xFFF2, 1 << 3
RIGHTS = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}
FILE_RIGHTS = 1 << 0 | 1 << 1 | 1 << 2 | 1 << 14 | 1 << 15


def check(result, doing):
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{doing}: {os.strerror(number)}")
    return result


def syscall(number, *arguments):
    return LIBC.syscall(*(ctypes.c_long(a) if isinstance(a, int) else a for a in (number, *arguments)))


def clone(flags):
    """fork() into new namespaces."""
    if not flags:
        return os.fork()
    return check(syscall(SYS_CLONE, flags | 17, 0, 0, 0, 0), "clone")  # 17 is SIGCHLD


def mount(source, target, kind, flags, options=None):
    encode = lambda text: None if text is None else os.fsencode(text)
    check(LIBC.mount(encode(source), encode(target), encode(kind), ctypes.c_ulong(flags), encode(options)), f"mount {target}")


def set_mount_attributes(target, recursive, add):
    attributes = (ctypes.c_uint64 * 4)(add, 0, 0, 0)
    flags = AT_RECURSIVE if recursive else 0
    size = ctypes.sizeof(attributes)
    result = syscall(SYS_MOUNT_SETATTR, AT_FDCWD, os.fsencode(target), flags, ctypes.byref(attributes), size)
    check(result, f"mount_setattr {target}")


def prctl(option, value, *rest):
    return LIBC.prctl(option, *(ctypes.c_ulong(v) for v in (value, *rest, *[0] * (3 - len(rest)))))


def write(path, text):
    with open(path, "w") as file:
        file.write(text)


def open_namespaces():
    """Descriptors of this process's namespaces, as `join_pid_namespace` and `enter_namespaces` take them: its pid namespace first, and the
    one with its root last."""
    return [os.open(f"/proc/self/ns/{name}", os.O_RDONLY) for name in ("pid", "net", "ipc", "uts", "mnt")]


def join_pid_namespace(namespaces):
    """What this process forks next lives in that pid namespace."""
    check(LIBC.setns(namespaces[0], NEWPID), "setns")


def enter_namespaces(namespaces):
    for namespace in namespaces[1:]:
        check(LIBC.setns(namespace, 0), "setns")


def new_root(folders, hidden):
    """Moves the calling process, once, into a root of its own: `folders` read-only, those of them that are `hidden` empty, a few
    devices, and the host's root at OLD."""
    if SYS_CLONE is None:
        raise OSError(f"namespaces are not known for {os.uname().machine}")
    errors = []
    for flags in [NEWNS, NEWUSER | NEWNS] if UID == 0 else [NEWUSER | NEWNS]:
        if LIBC.unshare(flags) == 0:
            break
        errors.append(os.strerror(ctypes.get_errno()))
    else:
        raise OSError(f"unshare: {'; '.join(errors)}")
    if flags & NEWUSER:
        write("/proc/self/setgroups", "deny")
        write("/proc/self/uid_map", f"{UID} {UID} 1")
        write("/proc/self/gid_map", f"{GID} {GID} 1")
    mount(None, "/", None, MS_REC | MS_PRIVATE)
    root = "/tmp"  # uncovered again when the root is moved
    mount("tmpfs", root, "tmpfs", MS_NOSUID | MS_NODEV, "size=1m,nr_inodes=4096,mode=755")
    for folder in folders:
        inside = root + folder
        if os.path.lexists(inside):
            continue
        os.makedirs(os.path.dirname(inside), exist_ok=True)
        if os.path.islink(folder):
            os.symlink(os.readlink(folder), inside)
        elif os.path.isdir(folder):
            os.mkdir(inside)
            mount(folder, inside, None, MS_BIND | MS_REC)
            set_mount_attributes(inside, True, ATTR_RDONLY | ATTR_NOSUID | ATTR_NODEV)
    for folder in hidden:
        mount("tmpfs", root + folder, "tmpfs", MS_NOSUID | MS_NODEV | MS_RDONLY, "size=4k,nr_inodes=2,mode=555")
    for folder in ("/etc", "/dev", "/dev/shm", "/proc", "/tmp", WORK, OLD):
        os.makedirs(root + folder, exist_ok=True)
    if os.path.exists("/etc/ld.so.cache"):
        shutil.copyfile("/etc/ld.so.cache", root + "/etc/ld.so.cache")
    write(root + "/etc/passwd", f"agent:x:{UID}:{GID}::{WORK}:/bin/false\n")
    for device in DEVICES:
        write(f"{root}/dev/{device}", "")
        mount(f"/dev/{device}", f"{root}/dev/{device}", None, MS_BIND)
    os.chdir(root)
    check(syscall(SYS_PIVOT_ROOT, b".", os.fsencode(root + OLD)), "pivot_root")
    os.chdir("/")
    return bool(flags & NEWUSER)


def enter(folder, data, limits, uid):
    """In the keeper, the first process of a job's namespaces: mounts, and the files of `folder` and `data` laid out. Returns what `carry_out`
    needs."""
    mount("proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC | MS_RDONLY)
    disk = limits["disk_bytes"]
    mount("tmpfs", WORK, "tmpfs", MS_NOSUID | MS_NODEV, f"size={disk},nr_inodes={INODES},mode=700,uid={uid}")
    mount("tmpfs", "/tmp", "tmpfs", MS_NOSUID | MS_NODEV, f"size={disk},nr_inodes={INODES},mode=700,uid={uid}")
    mount("tmpfs", "/dev/shm", "tmpfs", MS_NOSUID | MS_NODEV, f"{SHM},mode=700,uid={uid}")
    host = os.open(OLD + folder, os.O_RDONLY | os.O_DIRECTORY)
    laid = {}
    lay_out(OLD + folder, WORK, uid, laid)
    for name, source in data:
        lay_data(OLD + source, os.path.join(WORK, name), uid, laid)
    check(LIBC.umount2(OLD.encode(), MNT_DETACH), "umount")
    set_mount_attributes("/", False, ATTR_RDONLY | ATTR_NOSUID | ATTR_NODEV)
    os.chdir(WORK)
    return host, laid


def lay_out(source, target, uid, laid):
    for entry in os.scandir(source):
        path = os.path.join(target, entry.name)
        info = entry.stat(follow_symlinks=False)
        if entry.is_symlink():
            os.symlink(os.readlink(entry.path), path)
        elif entry.is_dir():
            os.mkdir(path)
            lay_out(entry.path, path, uid, laid)
            os.chown(path, uid, -1)
        elif entry.is_file():
            shutil.copyfile(entry.path, path)
            os.chmod(path, info.st_mode & 0o777)
            os.chown(path, uid, -1)
            note(path, laid)


def lay_data(source, path, uid, laid):
    """A file that all jobs share, to be read only: by a mount, unless it is small or shut to the script's user."""
    info = os.stat(source)
    if info.st_size >= LARGE and (info.st_mode & 0o004 or info.st_uid == uid):
        write(path, "")
        mount(source, path, None, MS_BIND)
        set_mount_attributes(path, False, ATTR_RDONLY | ATTR_NOSUID | ATTR_NODEV)
    else:
        copy_data(source, path)
    note(path, laid)


def copy_data(source, path):
    """A copy of its own for one job, which shares the blocks where the file system can."""
    if os.path.lexists(path):
        os.unlink(path)  # left by a job that lost its worker
    with open(source, "rb") as whole, open(path, "xb") as copy:
        try:
            fcntl.ioctl(copy, FICLONE, whole.fileno())
        except OSError:
            shutil.copyfileobj(whole, copy, 1 << 20)
        os.fchmod(copy.fileno(), 0o444)


def note(path, laid):
    info = os.lstat(path)
    laid[path] = (info.st_size, info.st_mtime_ns)


def carry_out(host, laid, limits):
    """Copies the regular files that the script made or changed into the job's folder `host`. What is none is left behind: links, pipes,
    devices, what is too large, too deep or shut. A file that is changed meanwhile is the script's own affair."""
    device, left = os.lstat(WORK).st_dev, [MOST_ENTRIES, limits["disk_bytes"]]

    def carry_entry(path, name, outside, depth):
        info = os.lstat(path)
        if stat.S_ISDIR(info.st_mode) and depth < MOST_DEPTH:
            try:
                os.mkdir(name, dir_fd=outside)
            except FileExistsError:
                pass
            within = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=outside)
            try:
                carry_folder(path, within, depth + 1)
            finally:
                os.close(within)
        elif stat.S_ISREG(info.st_mode) and info.st_dev == device and laid.get(path) != (info.st_size, info.st_mtime_ns):
            copy_out(path, name, outside, limits["file_bytes"], left)

    def carry_folder(inside, outside, depth):
        for name in sorted(os.listdir(os.fsencode(inside))):
            left[0] -= 1
            if left[0] < 0:
                return
            try:
                carry_entry(os.path.join(inside, os.fsdecode(name)), name, outside, depth)
            except OSError as error:
                if error.errno in HOST_ERRORS:
                    raise

    try:
        carry_folder(WORK, host, 0)
    except PermissionError:
        pass  # the script has shut its own folder


def copy_out(path, name, outside, most, left):
    file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        info = os.fstat(file)
        if not stat.S_ISREG(info.st_mode) or info.st_size > min(most, left[1]):
            return
        left[1] -= info.st_size
        try:
            os.unlink(name, dir_fd=outside)
        except FileNotFoundError:
            pass
        copy = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o644, dir_fd=outside)
        remaining = info.st_size
        while remaining > 0:
            part = os.read(file, min(remaining, 1 << 20))
            if not part:
                break
            remaining -= len(part)
            while part:
                part = part[os.write(copy, part) :]
        os.close(copy)
    finally:
        os.close(file)


def limit(which, soft, hard=None):
    resource.setrlimit(which, (soft, soft if hard is None else hard))


def tasks_of_user():
    """Processes and threads of this user on the whole machine, as the kernel counts them for RLIMIT_NPROC."""
    count = 0
    for entry in os.scandir("/proc"):
        try:
            if entry.name.isdigit() and entry.stat().st_uid == UID:
                count += len(os.listdir(f"/proc/{entry.name}/task"))
        except OSError:
            pass  # it has ended
    return count


def set_limits(limits, data_bytes, processes):
    # The worker counts CPU time of the group finely; the kernel's whole seconds a process are the backstop.
    cpu = math.ceil(limits["cpu_seconds"])
    limit(resource.RLIMIT_CPU, cpu + 1, cpu + 2)
    limit(resource.RLIMIT_DATA, data_bytes + limits["memory_bytes"])
    limit(resource.RLIMIT_FSIZE, limits["file_bytes"])
    limit(resource.RLIMIT_CORE, 0)
    limit(resource.RLIMIT_NOFILE, 256)
    limit(resource.RLIMIT_MSGQUEUE, 0)
    limit(resource.RLIMIT_MEMLOCK, 0)
    limit(resource.RLIMIT_SIGPENDING, 1024)
    limit(resource.RLIMIT_NPROC, processes)


def bound_capabilities():
    """What is executed from here on gets none; what this process has stays until `drop_capabilities`."""
    for capability in range(64):
        prctl(PR_CAPBSET_DROP, capability)
    prctl(PR_CAP_AMBIENT, 4)


def drop_capabilities(kept=(), uid=None):
    """All but `kept`, for good, and all rights of root with them: as the user `uid`, when it is another."""
    if uid not in (None, UID):
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
    words = [0, 0]
    for capability in kept:
        words[capability // 32] |= 1 << capability % 32
    # effective, permitted, inheritable, for each half
    sets = (ctypes.c_uint32 * 6)(words[0], words[0], 0, words[1], words[1], 0)
    check(LIBC.capset((ctypes.c_uint32 * 2)(0x20080522, 0), sets), "capset")
    check(prctl(PR_SET_NO_NEW_PRIVS, 1), "no_new_privs")


def landlock_version():
    return max(0, syscall(SYS_LANDLOCK_CREATE, 0, 0, 1))


def around(folders, hidden):
    """`folders` as those to be listed only, since some of `hidden` lies in them, and what else is in them, to be read. What a link
    there leads to is not in them."""
    listable, readable, todo = [], [], list(folders)
    while todo:
        path = todo.pop()
        real = os.path.realpath(path)
        if not any(folder == real or folder.startswith(real + "/") for folder in hidden):
            readable.append(path)
        elif real not in hidden:
            listable.append(path)
            todo += [entry.path for entry in os.scandir(path) if not entry.is_symlink()]
    return listable, readable


def landlock(readable, writable, listable=()):
    """From here on: what lies below `readable` is read and executed, below `writable` changed too, below `listable` seen by its name;
    nothing else is reached. No TCP, no abstract sockets and no signals outside, where the kernel knows them."""
    version = landlock_version()
    if version == 0:
        raise OSError("the kernel has no Landlock")
    rights = (1 << RIGHTS.get(version, 16)) - 1
    rules = (ctypes.c_uint64 * 3)(rights, 3 if version >= 4 else 0, 3 if version >= 6 else 0)
    ruleset = check(syscall(SYS_LANDLOCK_CREATE, ctypes.byref(rules), ctypes.sizeof(rules), 0), "landlock")
    for paths, allowed in ((readable, READ), (writable, READ | WRITE), (listable, LIST)):
        for path in paths:
            try:
                fd = os.open(path, os.O_PATH)
            except FileNotFoundError:
                continue
            allowed_here = allowed & rights & (~0 if os.path.isdir(path) else FILE_RIGHTS)
            rule = (ctypes.c_char * 12).from_buffer_copy(allowed_here.to_bytes(8, "little") + fd.to_bytes(4, "little"))
            check(syscall(SYS_LANDLOCK_ADD, ruleset, 1, ctypes.byref(rule), 0), f"landlock rule for {path}")
            os.close(fd)
    check(syscall(SYS_LANDLOCK_RESTRICT, ruleset, 0), "landlock")
    os.close(ruleset)


class Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_char_p)]


def seccomp(filters):
    for code in filters:
        program = Program(len(code) // 8, code)
        check(LIBC.prctl(PR_SET_SECCOMP, 2, ctypes.byref(program), 0, 0), "seccomp")
