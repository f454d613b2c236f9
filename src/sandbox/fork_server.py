"""Forks a sealed child for each job from a process that has the numerical libraries loaded.

Started by worker.rs as `python -s -c <seal.py and this text> <settings>` with a cleared environment; stdin is a SOCK_SEQPACKET socket.
A request is one JSON message with two descriptors (stdout, stderr); the answers are {"pid"} and then {"ended"}.
It enforces nothing that needs a clock: the worker outside watches wall time, CPU time and output.

Two processes, because a fork of the loaded one is what a job costs: this small one makes the namespaces of a job and lays out its files in
them (the keeper, pid 1 of them, with which everything in them dies); its child, the loader, forks the script straight into them.
"""

import atexit
import builtins
import gc
import importlib
import json
import mmap
import random
import select
import signal
import socket
import sys
import tempfile
import threading
import types

# What is loaded unless the settings say otherwise.
LIBRARIES = """
numpy scipy.stats scipy.optimize scipy.sparse
sklearn.cluster sklearn.compose sklearn.decomposition sklearn.discriminant_analysis sklearn.dummy sklearn.ensemble
sklearn.feature_extraction.text sklearn.feature_selection sklearn.impute sklearn.kernel_ridge sklearn.linear_model
sklearn.metrics sklearn.model_selection sklearn.naive_bayes sklearn.neighbors sklearn.neural_network sklearn.pipeline
sklearn.preprocessing sklearn.svm sklearn.tree
""".split()

SETTINGS = json.loads(sys.argv[1])
FOLDERS, HIDDEN = SETTINGS["folders"], SETTINGS["hidden"]
FILTERS = {name: [bytes.fromhex(code) for code in codes] for name, codes in SETTINGS["filters"].items()}
# Written by a script's process until it is sealed, and by the keeper: why the job failed. The script has no part of it.
FAILURE = mmap.mmap(-1, 4096)
# Set by a script whose uncaught exception is a MemoryError.
MEMORY_ERROR = mmap.mmap(-1, 4096)
CAP_DAC_READ_SEARCH, CAP_KILL = 2, 5
# Of the user's own new processes while a script runs, where they count with the script's.
SPARE_TASKS = 256
# How a job ended whose script has not run.
KILLED = {"exit": None, "signal": 9, "memory_error": False, "cpu_seconds": 0.0, "peak_bytes": 0, "failure": None}


def failed(error):
    text = f"{error}".encode(errors="replace")[:1024]
    FAILURE[: len(text)] = text


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
    if "numpy" in sys.modules:
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


def data_bytes():
    """Of data that a process has mapped, which a limit of its data counts."""
    proc = OLD + "/proc" if os.path.exists(OLD + "/proc/self") else "/proc"
    with open(f"{proc}/self/statm") as file:
        return int(file.read().split()[5]) * resource.getpagesize()


class Isolation:
    """What is in force: the tier, the user of this slot's scripts, bytes of data that the loaded libraries hold."""

    def __init__(self, tier, own_user):
        self.tier, self.data_bytes = tier, data_bytes()
        self.uid = SETTINGS["uid"] if own_user else UID
        self.namespaces = JOB_NAMESPACES if tier >= 2 else 0
        if tier == 1:
            self.listable, self.readable = around(FOLDERS, HIDDEN)
            self.readable += ["/etc/ld.so.cache", "/dev/urandom"]
        if tier >= 2 and new_root(FOLDERS, HIDDEN) and own_user:
            raise OSError("only a user namespace is possible, in which there is one user")
        bound_capabilities()

    def join_groups(self):
        """In the process that forks scripts: they are born in its control groups, since moving one there takes some 10 ms."""
        for group in SETTINGS["cgroups"] if self.tier >= 3 else []:
            write(OLD + group, "0")

    def shut_in(self, folder, limits):
        """In the script's own process, last before the script."""
        # In a user namespace of our own the keeper and our two processes count too. On the host's tree, as an ordinary user, all that user's
        # processes do: there the worker counts, and this only keeps a bomb small enough to be stopped.
        others = 0 if self.uid != UID else 3 if self.tier >= 2 else SPARE_TASKS + (tasks_of_user() if UID else 0)
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


def script_process(isolation, job, fds, namespaces):
    """Joins the keeper's namespaces, seals itself and becomes the script."""
    try:
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        os.setsid()
        if fds:
            os.dup2(fds[0], 1)
            os.dup2(fds[1], 2)
        folder = job["folder"]
        if isolation.tier >= 3:
            write(f"{OLD}/proc/self/oom_score_adj", "1000")  # the kernel kills it before the loader, which is in its group
        if namespaces:
            enter_namespaces(namespaces)
            folder = WORK
        os.closerange(3, 4096)
        os.chdir(folder)
        isolation.shut_in(folder, job["limits"])
    except BaseException as error:
        failed(error)
        os._exit(1)
    FAILURE.close()
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


def run_script_process(isolation, job, fds, namespaces=(), started=lambda pid: None):
    """Forks the script into the keeper's namespaces and waits for its end: how it ended, as the worker reads it."""
    FAILURE[:] = bytes(len(FAILURE))
    MEMORY_ERROR[0] = 0
    if namespaces:
        join_pid_namespace(namespaces)
    pid = os.fork()
    if pid == 0:
        script_process(isolation, job, fds, namespaces)
    started(pid)
    _, status, usage = os.wait4(pid, 0)
    return {
        "exit": os.WEXITSTATUS(status) if os.WIFEXITED(status) else None,
        "signal": os.WTERMSIG(status) if os.WIFSIGNALED(status) else None,
        "memory_error": MEMORY_ERROR[0] == 1,
        "cpu_seconds": usage.ru_utime + usage.ru_stime,
        "peak_bytes": usage.ru_maxrss * 1024,
        "failure": FAILURE[:1024].rstrip(b"\0").decode(errors="replace") or None,
    }


def keep(isolation, job, ready, stop):
    """The keeper's life: lays out the job's folder, waits for the script's end, kills what is left and carries out the files."""
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    os.setsid()
    host, laid = enter(job["folder"], job["data"], job["limits"], isolation.uid)
    namespaces = open_namespaces()
    prctl(PR_SET_DUMPABLE, 0)
    # Python makes it an exception, and the script may send it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    drop_capabilities((CAP_DAC_READ_SEARCH, CAP_KILL) if isolation.uid != UID else ())
    socket.send_fds(ready, [b"1"], namespaces)
    close_all_but(host, stop)
    woken, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    while stop not in select.select([stop, woken], [], [])[0]:
        os.read(woken, 4096)
        reap(block=False)
    try:
        os.kill(-1, signal.SIGKILL)
    except ProcessLookupError:
        pass
    reap(block=True)
    carry_out(host, laid, job["limits"])


def close_all_but(*kept):
    first = 3
    for fd in sorted(kept):
        os.closerange(first, fd)
        first = fd + 1
    os.closerange(first, 4096)


def reap(block):
    """Orphans that have ended, or all of them."""
    try:
        while os.waitpid(-1, 0 if block else os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass


def run_job(isolation, job, fds, fork_script, started=lambda pid: None):
    """Runs one job to its end. `fork_script` is `run_script_process`, or asks the loader for it."""
    if isolation.tier < 2:
        for name, source in job["data"]:
            copy_data(source, os.path.join(job["folder"], name))
        if isolation.uid != UID:
            give(job["folder"], isolation.uid)
        return fork_script(isolation, job, fds, started=started)
    FAILURE[:] = bytes(len(FAILURE))
    is_ready, ready = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    stop, stopping = os.pipe()
    pid = clone(isolation.namespaces)
    if pid == 0:
        try:
            os.close(stopping)
            keep(isolation, job, ready, stop)
            os._exit(0)
        except BaseException as error:
            failed(error)
        finally:
            os._exit(1)
    ready.close()
    os.close(stop)
    started(pid)
    ended = None
    message, namespaces, _, _ = socket.recv_fds(is_ready, 16, 5)
    is_ready.close()
    if message:
        ended = fork_script(isolation, job, fds, namespaces)
    for fd in [stopping, *namespaces]:
        os.close(fd)
    _, status, usage = os.wait4(pid, 0)
    failure = FAILURE[:1024].rstrip(b"\0").decode(errors="replace")
    ended = ended or dict(KILLED)
    # Orphans of the script were the keeper's children.
    ended["cpu_seconds"] += usage.ru_utime + usage.ru_stime
    ended["failure"] = ended["failure"] or failure or None
    return ended


def give(folder, uid):
    """The folder and what is in it to the slot's user."""
    for inside, folders, files in os.walk(folder):
        os.chown(inside, uid, -1)
        for name in files:
            os.chown(os.path.join(inside, name), uid, -1, follow_symlinks=False)


def works(*isolation):
    """None, or why this tier is not possible here: tried out whole, in a process of its own."""
    limits = {"cpu_seconds": 1, "memory_bytes": 1 << 30, "file_bytes": 1 << 20, "disk_bytes": 1 << 20, "processes": 8}
    folder = os.path.realpath(tempfile.mkdtemp())
    said, told = os.pipe()
    try:
        pid = os.fork()
        if pid == 0:
            try:
                trial = Isolation(*isolation)
                trial.join_groups()
                ended = run_job(trial, {"folder": folder, "data": [], "limits": limits}, [], run_script_process)
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


def choose_isolation():
    """The best tier that works here and is wanted, and a line for each that does not work."""
    notes = []
    for tier in (3, 2, 1, 0):
        if tier > SETTINGS["best"] or (tier == 0 and not SETTINGS["unsafe"]):
            continue
        for own_user in (True, False) if UID == 0 and tier > 0 else (False,):
            why = SETTINGS["no_cgroups"] if tier == 3 and not SETTINGS["cgroups"] else works(tier, own_user)
            user = ", a user of its own for each worker" if own_user else ""
            if why is None:
                return Isolation(tier, own_user), notes + [f"in force: {NAMES[tier]}{user}"]
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


def load(isolation, orders):
    """The loader's life: loads the libraries once, then forks scripts until its parent has gone."""
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    try:
        for module in LIBRARIES if SETTINGS["preload"] is None else SETTINGS["preload"]:
            importlib.import_module(module)
        if "sklearn.ensemble" in sys.modules:
            warm_up()
        gc.collect()
        gc.freeze()
        isolation.data_bytes = data_bytes()
        isolation.join_groups()
        orders.send(b"{}")
    except BaseException as error:
        orders.send(json.dumps({"error": f"{type(error).__name__}: {error}"}).encode())
        return
    while True:
        message, fds, _, _ = socket.recv_fds(orders, 1 << 16, 2 + 5)
        if not message:
            return
        job = json.loads(message)
        outputs, namespaces = fds[:2], fds[2:]
        # Where there is a keeper, it is what is killed.
        started = (lambda pid: None) if namespaces else (lambda pid: orders.send(json.dumps({"pid": pid}).encode()))
        try:
            ended = run_script_process(isolation, job, outputs, namespaces, started)
        except OSError as error:
            ended = {**KILLED, "failure": str(error)}
        for fd in fds:
            os.close(fd)
        orders.send(json.dumps(ended).encode())


def main():
    control = socket.socket(fileno=os.dup(0))
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.close(null)
    answer = lambda message: control.send(json.dumps(message).encode())
    sys.path[:] = [entry for entry in sys.path if entry]
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        isolation, notes = choose_isolation()
        loader = os.fork()
        if loader == 0:
            try:
                control.close()
                ours.close()
                load(isolation, theirs)
            finally:
                os._exit(0)
        theirs.close()
        loaded = json.loads(ours.recv(1 << 16) or b'{"error": "the loader has ended"}')
        if "error" in loaded:
            raise OSError(loaded["error"])
    except BaseException as error:
        answer({"error": f"{type(error).__name__}: {error}"})
        return
    answer({"ready": {"tier": isolation.tier, "loader": loader, "notes": notes}})

    def ask_loader(isolation, job, fds, namespaces=(), started=None):
        socket.send_fds(ours, [json.dumps(job).encode()], [*fds, *namespaces])
        while True:
            ended = json.loads(ours.recv(1 << 16) or b"{}")
            if not ended:
                os._exit(1)  # the loader has died: the worker sees it, and another takes its place
            if "pid" not in ended:
                return ended
            started(ended["pid"])

    while True:
        message, fds, _, _ = socket.recv_fds(control, 1 << 16, 2)
        if not message:
            return
        try:
            ended = run_job(isolation, json.loads(message), fds, ask_loader, lambda pid: answer({"pid": pid}))
        except OSError as error:
            ended = {**KILLED, "failure": str(error)}
        for fd in fds:
            os.close(fd)
        answer({"ended": ended})


main()
