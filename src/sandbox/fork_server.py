"""Loads the numerical libraries once, then forks a sealed child for each job.

Started by worker.rs as `python -s -c <seal.py and this text> <settings>` with a cleared environment; stdin is a SOCK_SEQPACKET socket.
A request is one JSON message with two descriptors (stdout, stderr); the answers are {"pid"} and then {"ended"}.
It enforces nothing that needs a clock: the worker outside watches wall time, CPU time and output.

A job is two processes: the first one holds the namespaces (it is pid 1 of them, so everything dies with it), waits, and carries out what
the script left behind; the second one is the script.
"""

import atexit
import builtins
import gc
import importlib
import json
import mmap
import random
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

SETTINGS = json.loads(sys.argv[1])
FOLDERS, HIDDEN = SETTINGS["folders"], SETTINGS["hidden"]
FILTERS = {name: [bytes.fromhex(code) for code in codes] for name, codes in SETTINGS["filters"].items()}
# Written by a job's own processes, read here when they are dead: (known, wait status), why it failed. The script has no part of it.
SHARED = mmap.mmap(-1, 4096)
STATUS, FAILURE = 0, 64
# Set by a script whose uncaught exception is a MemoryError.
MEMORY_ERROR = mmap.mmap(-1, 4096)
CAP_DAC_READ_SEARCH, CAP_KILL = 2, 5
# Of the user's own new processes while a script runs, where they count with the script's.
SPARE_TASKS = 256


def failed(error):
    text = f"{error}".encode(errors="replace")[:1024]
    SHARED[FAILURE : FAILURE + len(text)] = text


def run_script(folder, script):
    """What `python script` does, up to its exit."""
    os.environ.update(HOME=folder, TMPDIR="/tmp" if folder == WORK else folder)
    sys.argv = [script]
    sys.path.insert(0, folder)
    main = types.ModuleType("__main__")
    main.__file__ = os.path.join(folder, script)
    main.__builtins__ = builtins
    sys.modules["__main__"] = main
    signal.signal(signal.SIGINT, signal.default_int_handler)
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
            MEMORY_ERROR[0] = 1
        # The first frame is ours.
        error.__traceback__ = error.__traceback__.tb_next
        sys.excepthook(type(error), error, error.__traceback__)
        return 1


class Isolation:
    """What is in force: the tier, the user of this slot's scripts, bytes of data that the loaded libraries hold."""

    def __init__(self, tier, data_bytes, own_user):
        self.tier, self.data_bytes = tier, data_bytes
        self.uid = SETTINGS["uid"] if own_user else UID
        self.namespaces = JOB_NAMESPACES if tier >= 2 else 0
        if tier == 1:
            self.listable, self.readable = around(FOLDERS, HIDDEN)
            self.readable += ["/etc/ld.so.cache", "/dev/urandom"]
        if tier >= 2 and new_root(FOLDERS, HIDDEN) and own_user:
            raise OSError("only a user namespace is possible, in which there is one user")

    def shut_in(self, folder, limits):
        """In the script's own process, last before the script."""
        # In a user namespace of our own the fork-server and the job's first process count too. On the host's tree, as an ordinary user,
        # all that user's processes do: there the worker counts, and this only keeps a bomb small enough to be stopped.
        others = 0 if self.uid != UID else 2 if self.tier >= 2 else SPARE_TASKS + (tasks_of_user() if UID else 0)
        set_limits(limits, self.data_bytes, limits["processes"] + others)
        drop_capabilities(uid=self.uid)
        prctl(PR_SET_DUMPABLE, 1)  # a change of user takes it away
        devices = [f"/dev/{device}" for device in DEVICES]
        filters = FILTERS["all"]
        if self.tier >= 2:
            landlock(["/"], [WORK, "/tmp", "/dev/shm", *devices])
        elif self.tier == 1:
            filters = FILTERS["host"] + ([] if landlock_version() >= 6 else FILTERS["signals"]) + filters
            landlock(self.readable, [folder, "/dev/null"], self.listable)
        if self.tier >= 1:
            seccomp(filters)


def script_process(isolation, folder, job):
    try:
        isolation.shut_in(folder, job["limits"])
    except BaseException as error:
        failed(error)
        os._exit(1)
    SHARED.close()
    code = 1
    try:
        code = run_script(folder, job["script"]) if job.get("script") else 0
        threading._shutdown()
        atexit._run_exitfuncs()
    finally:
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except BaseException:
                pass
        os._exit(code)


def first_process(isolation, job, fds):
    """Lays out the job's folder, starts the script, waits for it and carries out its files; its own end takes everything with it."""
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    os.setsid()
    if fds:
        os.dup2(fds[0], 1)
        os.dup2(fds[1], 2)
    os.closerange(3, 4096)
    folder, limits, inside = job["folder"], job["limits"], isolation.tier >= 2
    for group in SETTINGS["cgroups"] if isolation.tier >= 3 else []:
        write(OLD + group, "0")
    if inside:
        host, laid = enter(folder, limits, isolation.uid)
        folder = WORK
    else:
        os.chdir(folder)
        if isolation.uid != UID:
            give(folder, isolation.uid)
    prctl(PR_SET_DUMPABLE, 0)
    # Python makes it an exception, and the script may send it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    script = os.fork()
    if script == 0:
        if inside:
            os.close(host)
        script_process(isolation, folder, job)
    drop_capabilities((CAP_DAC_READ_SEARCH, CAP_KILL) if isolation.uid != UID else ())
    while True:
        pid, status = os.wait()
        if pid == script:
            break
    if inside:
        try:
            os.kill(-1, signal.SIGKILL)
        except ProcessLookupError:
            pass
        carry_out(host, laid, limits)
    struct.pack_into("<ii", SHARED, STATUS, 1, status)


def give(folder, uid):
    """The folder and what is in it to the slot's user."""
    for inside, folders, files in os.walk(folder):
        os.chown(inside, uid, -1)
        for name in files:
            os.chown(os.path.join(inside, name), uid, -1, follow_symlinks=False)


def run_job(isolation, job, fds, started=lambda pid: None):
    """Runs one job to its end: how it ended, as the worker reads it."""
    SHARED[:] = bytes(len(SHARED))
    MEMORY_ERROR[0] = 0
    pid = clone(isolation.namespaces)
    if pid == 0:
        try:
            first_process(isolation, job, fds)
        except BaseException as error:
            failed(error)
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
        "memory_error": MEMORY_ERROR[0] == 1,
        "cpu_seconds": usage.ru_utime + usage.ru_stime,
        "peak_bytes": usage.ru_maxrss * 1024,
        "failure": failure or None,
    }


def works(*isolation):
    """None, or why this tier is not possible here: tried out whole, in a process of its own."""
    limits = {"cpu_seconds": 1, "memory_bytes": 1 << 30, "file_bytes": 1 << 20, "disk_bytes": 1 << 20, "processes": 8}
    folder = os.path.realpath(tempfile.mkdtemp())
    said, told = os.pipe()
    try:
        pid = os.fork()
        if pid == 0:
            try:
                ended = run_job(Isolation(*isolation), {"folder": folder, "limits": limits}, [])
                if ended["failure"] or ended["exit"] != 0:
                    os.write(told, (ended["failure"] or f"a trial ended with {ended}").encode())
            except BaseException as error:
                os.write(told, f"{error}".encode())
            finally:
                os._exit(0)
        os.close(told)
        os.waitpid(pid, 0)
        return os.read(said, 4096).decode(errors="replace") or None
    finally:
        os.close(said)
        shutil.rmtree(folder, ignore_errors=True)


NAMES = {
    3: "tier 3: namespaces, Landlock, seccomp, memory and pids cgroups",
    2: "tier 2: namespaces, Landlock, seccomp",
    1: "tier 1: Landlock and seccomp on the host's own tree",
    0: "tier 0: nothing, as asked for",
}


def choose_isolation(data_bytes):
    """The best tier that works here and is wanted, and a line for each that does not work."""
    notes = []
    for tier in (3, 2, 1, 0):
        if tier > SETTINGS["best"] or (tier == 0 and not SETTINGS["unsafe"]):
            continue
        for own_user in (True, False) if UID == 0 and tier > 0 else (False,):
            why = SETTINGS["no_cgroups"] if tier == 3 and not SETTINGS["cgroups"] else works(tier, data_bytes, own_user)
            user = ", a user of its own for each worker" if own_user else ""
            if why is None:
                return Isolation(tier, data_bytes, own_user), notes + [f"in force: {NAMES[tier]}{user}"]
            notes.append(f"not possible here: {NAMES[tier]}{user} ({why})")
    raise OSError("; ".join(notes + ["scripts are not run without protection; run.unsafe_no_sandbox=true runs them all the same"]))


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
        isolation, notes = choose_isolation(data_bytes)
    except BaseException as error:
        answer({"error": f"{type(error).__name__}: {error}"})
        return
    answer({"ready": {"tier": isolation.tier, "notes": notes}})
    while True:
        message, fds, _, _ = socket.recv_fds(control, 1 << 16, 2)
        if not message:
            return
        try:
            ended = run_job(isolation, json.loads(message), fds, lambda pid: answer({"pid": pid}))
        except OSError as error:
            ended = {"failure": str(error), "exit": None, "signal": None, "memory_error": False, "cpu_seconds": 0.0, "peak_bytes": 0}
        answer({"ended": ended})


main()
