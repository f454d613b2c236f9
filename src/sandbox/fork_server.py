"""Loads the numerical libraries once, then forks a sealed child for each job.

Started by worker.rs as `python -s -c <this text>` with a cleared environment; stdin is a SOCK_SEQPACKET socket.
A request is one JSON message with two descriptors (stdout, stderr); the answers are {"pid"} and then {"ended"}.
It enforces nothing that needs a clock: the worker outside watches wall time, CPU time and output.

A job is two processes: the first one holds the namespaces (it is pid 1 of them, so everything dies with it) and waits;
the second one is the script.
"""

import atexit
import builtins
import ctypes
import gc
import importlib
import json
import math
import mmap
import os
import random
import resource
import shutil
import signal
import socket
import struct
import sys
import tempfile
import threading
import types

PRELOAD = """
numpy scipy.stats scipy.optimize scipy.sparse
sklearn.cluster sklearn.compose sklearn.decomposition sklearn.discriminant_analysis sklearn.dummy sklearn.ensemble
sklearn.feature_extraction.text sklearn.feature_selection sklearn.impute sklearn.kernel_ridge sklearn.linear_model
sklearn.metrics sklearn.model_selection sklearn.naive_bayes sklearn.neighbors sklearn.neural_network sklearn.pipeline
sklearn.preprocessing sklearn.svm sklearn.tree
""".split()

NEWNS, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET = 0x20000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000
# What is tried, best first; the first that works is used.
ISOLATIONS = [
    ("user, mount, pid, net, ipc and uts namespaces", NEWUSER | NEWNS | NEWPID | NEWNET | NEWIPC | NEWUTS),
    ("mount, pid, net, ipc and uts namespaces", NEWNS | NEWPID | NEWNET | NEWIPC | NEWUTS),
    ("user, pid, net, ipc and uts namespaces", NEWUSER | NEWPID | NEWNET | NEWIPC | NEWUTS),
    ("user and net namespaces", NEWUSER | NEWNET),
    ("no namespaces", 0),
]

# PyDLL keeps the interpreter's lock over the call, which a clone needs.
LIBC = ctypes.PyDLL(None, use_errno=True)
SYS_CLONE = {"x86_64": 56, "aarch64": 220, "riscv64": 220}.get(os.uname().machine)
SYS_MOUNT_SETATTR = 442
MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_BIND, MS_REC, MS_PRIVATE = 2, 4, 8, 4096, 16384, 1 << 18
ATTR_RDONLY, ATTR_NOSUID, ATTR_NODEV = 1, 2, 4
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS, PR_CAP_AMBIENT = 1, 4, 24, 38, 47
AT_FDCWD, AT_RECURSIVE = -100, 0x8000

UID, GID = os.getuid(), os.getgid()
# Written by a job's processes, read here when they are dead: uncaught MemoryError, (known, wait status), why sealing failed.
SHARED = mmap.mmap(-1, 4096)
MEMORY_ERROR, STATUS, FAILURE = 0, 8, 64


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
    if SYS_CLONE is None:
        raise OSError(f"namespaces are not known for {os.uname().machine}")
    return check(syscall(SYS_CLONE, flags | signal.SIGCHLD, 0, 0, 0, 0), "clone")


def mount(source, target, kind, flags, options=None):
    encode = lambda text: None if text is None else os.fsencode(text)
    check(LIBC.mount(encode(source), encode(target), encode(kind), ctypes.c_ulong(flags), encode(options)), f"mount {target}")


def set_mount_attributes(target, recursive, add, clear):
    attributes = (ctypes.c_uint64 * 4)(add, clear, 0, 0)
    result = syscall(
        SYS_MOUNT_SETATTR, AT_FDCWD, os.fsencode(target), AT_RECURSIVE if recursive else 0,
        ctypes.byref(attributes), ctypes.sizeof(attributes),
    )
    check(result, f"mount_setattr {target}")


def prctl(option, value, *rest):
    return LIBC.prctl(option, *(ctypes.c_ulong(v) for v in (value, *rest, *[0] * (3 - len(rest)))))


def write(path, text):
    with open(path, "w") as file:
        file.write(text)


def seal(folder, limits, flags, data_bytes):
    """THE SEAM. Binds the calling process and all it will ever start: called in the first process of each job, inside
    its new namespaces, before the script's process is forked. Raises when anything cannot be had: then the job fails,
    it never runs with less. Harder isolation (a fresh root, Landlock, seccomp, a uid per slot, cgroups) belongs here;
    callers do not change.
    """
    if flags & NEWUSER:
        write("/proc/self/setgroups", "deny")
        write("/proc/self/uid_map", f"{UID} {UID} 1")
        write("/proc/self/gid_map", f"{GID} {GID} 1")
    if flags & NEWNS:
        mount(None, "/", None, MS_REC | MS_PRIVATE)
        mount(folder, folder, None, MS_BIND | MS_REC)
        if flags & NEWPID:
            mount("proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC)
        set_mount_attributes("/", True, ATTR_RDONLY, 0)
        set_mount_attributes(folder, False, ATTR_NOSUID | ATTR_NODEV, ATTR_RDONLY)
        if os.path.isdir("/dev/shm") and not folder.startswith("/dev/shm/"):
            mount("tmpfs", "/dev/shm", "tmpfs", MS_NOSUID | MS_NODEV, "size=16m,nr_inodes=1024")
    os.chdir(folder)

    def limit(which, soft, hard=None):
        resource.setrlimit(which, (soft, soft if hard is None else hard))

    # The worker counts CPU time of the group finely; the kernel's whole seconds a process are the backstop.
    cpu = math.ceil(limits["cpu_seconds"])
    limit(resource.RLIMIT_CPU, cpu + 1, cpu + 2)
    limit(resource.RLIMIT_DATA, data_bytes + limits["memory_bytes"])
    limit(resource.RLIMIT_FSIZE, limits["file_bytes"])
    limit(resource.RLIMIT_CORE, 0)
    limit(resource.RLIMIT_NOFILE, 256)

    for capability in range(64):
        prctl(PR_CAPBSET_DROP, capability)
    prctl(PR_CAP_AMBIENT, 4)
    check(LIBC.capset((ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()), "capset")
    check(prctl(PR_SET_NO_NEW_PRIVS, 1), "no_new_privs")


def run_script(folder, script):
    """What `python script` does, up to its exit."""
    os.environ.update(HOME=folder, TMPDIR=folder)
    sys.argv = [script]
    sys.path.insert(0, folder)
    main = types.ModuleType("__main__")
    main.__file__ = os.path.join(folder, script)
    main.__builtins__ = builtins
    sys.modules["__main__"] = main
    # Python ignores it; the default lets the kernel say who wrote too large a file.
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    random.seed(0)
    sys.modules["numpy"].random.seed(0)
    try:
        with open(script, "rb") as file:
            source = file.read()
    except OSError as error:
        print(f"python: can't open file '{script}': [Errno {error.errno}] {error.strerror}", file=sys.stderr)
        return 2
    try:
        exec(compile(source, script, "exec", dont_inherit=True), main.__dict__)
        return 0
    except SystemExit as error:
        if error.code is None:
            return 0
        if isinstance(error.code, int):
            return error.code & 0xFF
        print(error.code, file=sys.stderr)
        return 1
    except BaseException as error:
        if isinstance(error, MemoryError):
            SHARED[MEMORY_ERROR] = 1
        # The first frame is ours.
        error.__traceback__ = error.__traceback__.tb_next
        sys.excepthook(type(error), error, error.__traceback__)
        return 1


def script_process(folder, script):
    code = 1
    try:
        code = run_script(folder, script)
        threading._shutdown()
        atexit._run_exitfuncs()
    finally:
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except BaseException:
                pass
        os._exit(code)


def first_process(job, fds, flags, data_bytes):
    """Seals itself, starts the script, waits for it; its own end takes everything of the job with it."""
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    os.setsid()
    if fds:
        os.dup2(fds[0], 1)
        os.dup2(fds[1], 2)
    os.closerange(3, 4096)
    try:
        seal(job["folder"], job["limits"], flags, data_bytes)
    except BaseException as error:
        text = f"{error}".encode(errors="replace")[:1024]
        SHARED[FAILURE : FAILURE + len(text)] = text
        os._exit(1)
    if not job.get("script"):
        os._exit(0)
    script = os.fork()
    if script == 0:
        script_process(job["folder"], job["script"])
    prctl(PR_SET_DUMPABLE, 0)
    while True:
        pid, status = os.wait()
        if pid == script:
            struct.pack_into("<ii", SHARED, STATUS, 1, status)
            os._exit(0)


def run_job(job, fds, flags, data_bytes, started=lambda pid: None):
    """Runs one job to its end: how it ended, as the worker reads it."""
    SHARED[:] = bytes(len(SHARED))
    pid = clone(flags)
    if pid == 0:
        try:
            first_process(job, fds, flags, data_bytes)
        finally:
            os._exit(1)
    for fd in fds:
        os.close(fd)
    started(pid)
    _, status, usage = os.wait4(pid, 0)
    failure = SHARED[FAILURE : FAILURE + 1024].rstrip(b"\0").decode(errors="replace")
    known, script_status = struct.unpack_from("<ii", SHARED, STATUS)
    if known:
        status = script_status
    return {
        "exit": os.WEXITSTATUS(status) if os.WIFEXITED(status) else None,
        "signal": os.WTERMSIG(status) if os.WIFSIGNALED(status) else None,
        "memory_error": SHARED[MEMORY_ERROR] == 1,
        "cpu_seconds": usage.ru_utime + usage.ru_stime,
        "failure": failure or None,
    }


def choose_isolation(data_bytes):
    """The best isolation that works here, and a line for each that does not."""
    limits = {"cpu_seconds": 1, "memory_bytes": 1 << 30, "file_bytes": 1 << 20}
    folder = os.path.realpath(tempfile.mkdtemp())
    notes = []
    try:
        for name, flags in ISOLATIONS:
            try:
                ended = run_job({"folder": folder, "limits": limits}, [], flags, data_bytes)
                why = ended["failure"] or (None if ended["exit"] == 0 else f"ended with {ended}")
            except OSError as error:
                why = str(error)
            if why is None:
                return flags, notes + [f"in force: {name}"]
            notes.append(f"not possible here: {name} ({why})")
        raise OSError("; ".join(notes))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def warm_up():
    """Two tiny fits, so that what is loaded or searched at the first use is there before the first fork."""
    import numpy
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.linear_model import LogisticRegression

    x = numpy.arange(40.0).reshape(20, 2)
    y = numpy.arange(20) % 2
    LogisticRegression(max_iter=2000).fit(x, y).predict_proba(x)
    RandomForestClassifier(n_estimators=2, random_state=0).fit(x, y).predict(x)


def main():
    control = socket.socket(fileno=os.dup(0))
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.close(null)
    answer = lambda message: control.send(json.dumps(message).encode())
    try:
        sys.path[:] = [entry for entry in sys.path if entry]
        for module in PRELOAD:
            importlib.import_module(module)
        warm_up()
        gc.collect()
        gc.freeze()
        with open("/proc/self/statm") as file:
            data_bytes = int(file.read().split()[5]) * resource.getpagesize()
        flags, notes = choose_isolation(data_bytes)
    except BaseException as error:
        answer({"error": f"{type(error).__name__}: {error}"})
        return
    answer({"ready": {"pid_namespace": bool(flags & NEWPID), "notes": notes}})
    while True:
        message, fds, _, _ = socket.recv_fds(control, 1 << 16, 2)
        if not message:
            return
        try:
            ended = run_job(json.loads(message), fds, flags, data_bytes, lambda pid: answer({"pid": pid}))
        except OSError as error:
            ended = {"failure": str(error), "exit": None, "signal": None, "memory_error": False, "cpu_seconds": 0.0}
        answer({"ended": ended})


main()
