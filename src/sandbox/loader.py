"""Holds the numerical libraries and forks a sealed process for each script.

Started by server.rs as `python -s -c <this text> <settings>` in the isolation of its slot; stdin is a SOCK_SEQPACKET
socket. It gives up what no script may have before it forks any. What it needs itself (joining namespaces, changing the
user) is given up last, in the script's process. A request is one JSON message: the modules to load, or the folder of a
script to fork, with descriptors: the socket at which the script's process, already sealed, waits for its job, then the
namespaces to join, then Landlock's rules. It enforces nothing that needs a clock.
"""

import _io
import _signal
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
import signal
import socket
import sys
import threading
import time
import types

# Modules to load unless the settings name others.
LIBRARIES = """
numpy scipy.stats scipy.optimize scipy.sparse
sklearn.cluster sklearn.compose sklearn.decomposition sklearn.discriminant_analysis sklearn.dummy sklearn.ensemble
sklearn.feature_extraction.text sklearn.feature_selection sklearn.impute sklearn.kernel_ridge sklearn.linear_model
sklearn.metrics sklearn.model_selection sklearn.naive_bayes sklearn.neighbors sklearn.neural_network sklearn.pipeline
sklearn.preprocessing sklearn.svm sklearn.tree
""".split()
# Parts that numpy loads at their first use, which would otherwise be in each script anew.
NUMPY = ["numpy.random", "numpy.linalg", "numpy.fft", "numpy.ma", "numpy.polynomial"]

SETTINGS = json.loads(sys.argv[1])
TIER, USER = SETTINGS["tier"], SETTINGS["user"]
# PyDLL keeps the interpreter's lock during a call, which is fine as no call here waits.
LIBC = ctypes.PyDLL(None, use_errno=True)
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_SECCOMP, PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS, PR_CAP_AMBIENT = 1, 4, 22, 24, 38, 47
# Seconds between heartbeats.
HEARTBEAT = SETTINGS["heartbeat"]
SYS_LANDLOCK_RESTRICT, NEWPID = 446, 0x20000000
# Memory in which a script's process writes why the job failed, until the script begins. It is unmapped before the
# script is read.
FAILURE = mmap.mmap(-1, 4096)
NOT_BEGUN = "its process ended before the script began"
# Names of `sys` that are None for a script's finalizers, and names of builtins that are gone: `open` and those that
# `site` adds.
GONE_OF_SYS = "path argv ps1 ps2 last_type last_value last_traceback last_exc meta_path path_hooks path_importer_cache".split()
LATER = "open exit quit copyright credits license help".split()
BUILTINS = {name: value for name, value in vars(builtins).items() if name not in LATER}
# Kinds of files, each before those that it may write to.
BUFFERS = (_io.BufferedWriter, _io.BufferedRandom)
FILES = (_io._TextIOBase, BUFFERS, _io._RawIOBase)
# Signal that a script's process dies of when its uncaught exception is a MemoryError. Only the way it ends can tell the
# loader: a script shares no memory with the loader, as the next script would see that too.
OUT_OF_MEMORY = signal.SIGVTALRM


class Program(ctypes.Structure):
    """A filter in the kernel's form: the number of its 8-byte statements, and where they are."""

    _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_char_p)]

    def __init__(self, code):
        super().__init__(len(code) // 8, code)


FILTERS, LAST = ([Program(bytes.fromhex(code)) for code in SETTINGS[name]] for name in ("filters", "last"))
# Arguments of capset: version 3 of the structures, for the calling process; no effective, permitted or inheritable
# capabilities, for each half.
CAPABILITIES = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()


def check(result, doing):
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{doing}: {os.strerror(number)}")


def prctl(option, value, *rest):
    return LIBC.prctl(option, *(ctypes.c_ulong(v) for v in (value, *rest, *[0] * (3 - len(rest)))))


def seccomp(programs):
    for program in programs:
        check(LIBC.prctl(PR_SET_SECCOMP, 2, ctypes.byref(program), 0, 0), "seccomp")


def limit(which, soft, hard=None):
    """Sets a resource limit, but never above the hard limit in force, which only some may raise."""
    most = resource.getrlimit(which)[1]
    values = soft, soft if hard is None else hard
    resource.setrlimit(which, values if most == resource.RLIM_INFINITY else tuple(min(value, most) for value in values))


def deny_from_the_start():
    """Restricts this process and all it forks: no capabilities for what is executed, no new rights, filters, constant
    limits."""
    for capability in range(64):
        prctl(PR_CAPBSET_DROP, capability)
    prctl(PR_CAP_AMBIENT, 4)
    check(prctl(PR_SET_NO_NEW_PRIVS, 1), "no_new_privs")
    limit(resource.RLIMIT_CORE, 0)
    limit(resource.RLIMIT_NOFILE, 256)
    limit(resource.RLIMIT_MSGQUEUE, 0)
    limit(resource.RLIMIT_MEMLOCK, 0)
    limit(resource.RLIMIT_SIGPENDING, 1024)
    if TIER == 1 and USER is None:
        # All of the user's processes count here, so a fork bomb has hundreds: the worker must still get its turn.
        os.nice(19)
    seccomp(FILTERS)


def data_bytes():
    """Returns the bytes of data that this process has mapped, which a limit of its data counts."""
    with open(f"{SETTINGS['old']}/proc/self/statm") as file:
        return int(file.read().split()[5]) * resource.getpagesize()


def drop_capabilities():
    """Drops all capabilities for good, and becomes the script's user, when it is another, without rights of root."""
    if USER is not None:
        os.setgroups([])
        os.setresgid(USER, USER, USER)
        os.setresuid(USER, USER, USER)
    check(LIBC.capset(*CAPABILITIES), "capset")


def fail(why):
    text = f"{why}".encode(errors="replace")[:1024] + b"\0"
    FAILURE[: len(text)] = text


def open_stdin():
    """Replaces stdin with /dev/null, opened anew."""
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.close(null)


def seal(folder, fds):
    """Restricts the script's own process, before it knows its job."""
    os.setsid()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGCHLD])
    open_stdin()  # anew, or all scripts would share the flags and locks of one open file
    if TIER >= 3:
        # The kernel then kills it before the loader, which is in its group.
        with open(f"{SETTINGS['old']}/proc/self/oom_score_adj", "w") as file:
            file.write("1000")
    for namespace in fds[2:4] if TIER >= 2 else []:
        check(LIBC.setns(namespace, 0), "setns")
    os.chdir(folder)
    drop_capabilities()
    # Both only now, since a change of user resets them.
    prctl(PR_SET_DUMPABLE, 1)
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if TIER >= 1:
        check(LIBC.syscall(SYS_LANDLOCK_RESTRICT, ctypes.c_long(fds[-1]), ctypes.c_long(0)), "landlock")
    seccomp(LAST)


def await_job(link):
    """Waits for the job, puts its stdout, stderr and limits in force, and returns the script's file name."""
    message, outputs, _, _ = socket.recv_fds(link, 1 << 16, 2)
    if not message:
        os._exit(1)  # no job will come
    script, limits = json.loads(message)
    os.dup2(outputs[0], 1)
    os.dup2(outputs[1], 2)
    link.close()
    os.closerange(3, 4096)
    # The worker counts the group's CPU time finely; the kernel's limit in whole seconds per process is the backstop.
    cpu = math.ceil(limits["cpu_seconds"])
    limit(resource.RLIMIT_CPU, cpu + 1, cpu + 2)
    limit(resource.RLIMIT_DATA, LOADED[0] + limits["memory_bytes"])
    limit(resource.RLIMIT_FSIZE, limits["file_bytes"])
    limit(resource.RLIMIT_NPROC, limits["processes"])
    return script


def settle(folder):
    """Does what `python` does before it runs a script in its folder; seeds the random generators."""
    os.environ.update(HOME=folder, TMPDIR=SETTINGS["scratch"] if TIER >= 2 else folder)
    sys.path.insert(0, folder)
    random.seed(0)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(0)


def run_script(folder, script):
    """Runs a script as `python script` does, up to its exit. Returns the exit code, or minus the signal to die of."""
    sys.argv = [script]
    main = types.ModuleType("__main__")
    main.__file__ = os.path.join(folder, script)
    main.__builtins__ = builtins
    sys.modules["__main__"] = main
    try:
        with open(script, "rb") as file:
            source = file.read()
    except OSError as error:
        complain(f"python: can't open file '{script}': [Errno {error.errno}] {error.strerror}")
        return 2
    error = None
    try:
        exec(compile(source, script, "exec", dont_inherit=True), main.__dict__)
    except BaseException as raised:
        error = raised
        error.__traceback__ = error.__traceback__.tb_next  # the first frame is ours
    for name in ("stderr", "stdout"):
        try:
            getattr(sys, name).flush()
        except BaseException:
            pass  # reported at the end, if it still fails then
    if isinstance(error, SystemExit):
        code = exit_code(error)
    else:
        code = 0 if error is None else uncaught(error)
        main.__dict__.pop("__file__", None)
    error = None  # its frames lead back here: without it, what they hold ends in order and not as garbage
    return code


def exit_code(error):
    """Returns the exit code that a SystemExit asks for."""
    code = error.code
    if code is None:
        return 0
    if isinstance(code, int):
        return code & 0xFF if -(1 << 63) <= code < 1 << 63 else 0xFF
    complain(code)
    return 1


def complain(text):
    """Prints to the script's stderr, or to that of the process where the script has put its own away."""
    stream = getattr(sys, "stderr", None)
    if stream is None:
        os.write(2, f"{text}\n".encode(errors="backslashreplace"))
    else:
        print(text, file=stream)


def uncaught(error):
    """Reports an exception that the script has not caught. Returns the exit code, or minus the signal to die of."""
    sys.last_type, sys.last_value, sys.last_traceback = type(error), error, error.__traceback__
    if sys.version_info >= (3, 12):
        sys.last_exc = error
    try:
        sys.excepthook(type(error), error, error.__traceback__)
    except SystemExit as asked:
        return exit_code(asked)
    except BaseException as failed:
        complain("Error in sys.excepthook:")
        tell(failed)
        complain("\nOriginal exception was:")
        sys.__excepthook__(type(error), error, error.__traceback__)
    if isinstance(error, MemoryError):
        return -OUT_OF_MEMORY
    return -signal.SIGINT if isinstance(error, KeyboardInterrupt) else 1


def tell(error):
    """Prints an exception without its first frame, which is ours."""
    error.__traceback__ = error.__traceback__.tb_next
    sys.__excepthook__(type(error), error, error.__traceback__)


def ignored(error, thing):
    """Reports, as Python does, that `thing` raised an exception that nobody can catch."""
    complain(f"Exception ignored in: {thing!r}")
    tell(error)


def end(code):
    """Does what Python does from a script's last line to the end of its process (Py_FinalizeEx in CPython's
    pylifecycle.c), for what the script has made: awaits threads, calls atexit handlers, flushes streams, drops its
    modules and finalizes what they held, including open files. What was loaded before the script stays, as taking that
    apart takes longer than most scripts; what it holds of the script's is finalized last."""
    for last in (lambda: threading._shutdown(), lambda: atexit._run_exitfuncs()):
        try:
            last()
        except BaseException as error:
            ignored(error, threading)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name, None)
        try:
            if stream is not None and not stream.closed:
                stream.flush()
        except BaseException as error:
            code = 120
            if name == "stdout":
                ignored(error, stream)
    stream = None
    for number in range(1, signal.NSIG):
        if callable(_signal.getsignal(number)):
            _signal.signal(number, _signal.SIG_DFL)
    try:
        gc.collect()
        drop_modules()
        gc.collect()
        finalize_the_rest()
    except BaseException as error:
        ignored(error, gc)
    for stream in (sys.__stdout__, sys.__stderr__):
        try:
            stream.flush()
        except BaseException:
            pass
    if code == -OUT_OF_MEMORY:
        run_out_of_memory()
    if code < 0:
        os.kill(os.getpid(), -code)
    os._exit(code)


def run_out_of_memory():
    """Dies of OUT_OF_MEMORY. A timer sends the signal, since a script may send none in tier 1 on older kernels. A
    process that the script has forked ends with exit code 1, as in Python."""
    if os.getpid() != SCRIPT[0]:
        os._exit(1)
    _signal.signal(OUT_OF_MEMORY, _signal.SIG_DFL)
    _signal.pthread_sigmask(_signal.SIG_UNBLOCK, [OUT_OF_MEMORY])
    _signal.setitimer(_signal.ITIMER_VIRTUAL, 1e-6)
    while True:
        pass


def drop_modules():
    """Drops the script and what it has imported, and what it has put into `sys` and `builtins`."""
    for name in GONE_OF_SYS:
        if hasattr(sys, name):
            setattr(sys, name, None)
    sys.stdin, sys.stdout, sys.stderr = sys.__stdin__, sys.__stdout__, sys.__stderr__
    imported = []
    for name in reversed(sys.modules):
        if name == LOADED_LAST[0]:
            break
        imported.append(name)
    for name in ["__main__", *reversed(imported)]:
        sys.modules[name] = None
    names = vars(builtins)
    dropped = names.copy()  # held until there are builtins again
    names.clear()
    names.update(BUILTINS)
    del dropped


def finalize_the_rest():
    """Finalizes what is left of the script's, a file before what it writes to, except what a daemon thread still
    uses."""
    rest = gc.get_objects()
    held = held_by_threads({id(thing) for thing in rest}) if len(sys._current_frames()) > 1 else ()
    finalizable = [thing for thing in rest if has_finalizer(type(thing)) and id(thing) not in held]
    rank = lambda thing: next((i for i, kind in enumerate(FILES) if issubclass(type(thing), kind)), -1)
    for thing in sorted(finalizable, key=rank):
        if not gc.is_finalized(thing):
            try:
                type(thing).__del__(thing)
            except BaseException as error:
                ignored(error, type(thing).__del__)


def has_finalizer(kind):
    try:
        return hasattr(kind, "__del__")
    except BaseException:  # raised by the script's own metaclass
        return False


def held_by_threads(known):
    """Returns those of the ids `known` whose things are reachable from other threads' frames."""
    found, todo = set(), []
    for thread, frame in sys._current_frames().items():
        while frame and thread != threading.get_ident():
            todo += [frame.f_globals, *frame.f_locals.values()]
            frame = frame.f_back
    while todo:
        thing = todo.pop()
        if id(thing) in known and id(thing) not in found:
            found.add(id(thing))
            todo += gc.get_referents(thing)
    return found


def script_process(folder, fds):
    """Seals itself, waits for a job and becomes its script."""
    try:
        link = socket.socket(fileno=fds[0])
        settle(folder)
        seal(folder, fds)
        # The first touch copies memory shared with the loader and maps code: do that ahead of the job.
        json.loads('["", {"": 1.0}]')
        run_script("", os.devnull)
        BUILTINS.copy()
        script = await_job(link)
        FAILURE[0] = 0
        FAILURE.close()
        SCRIPT[0] = os.getpid()
    except BaseException as error:
        fail(error)
        os._exit(1)
    try:
        end(run_script(folder, script))
    finally:
        os._exit(1)


def await_end(pid, alive):
    """Waits for the process `pid` as os.wait4, with heartbeats meanwhile. Returns its status and resource usage."""
    beat = time.monotonic() + HEARTBEAT
    while True:
        ended, status, usage = os.wait4(pid, os.WNOHANG)
        if ended:
            return status, usage
        # A script can cause this signal as often as it likes, by stopping and going on.
        signal.sigtimedwait([signal.SIGCHLD], max(0.0, beat - time.monotonic()))
        if time.monotonic() >= beat:
            alive()
            beat = time.monotonic() + HEARTBEAT


def run(folder, fds, answer, alive):
    """Forks the process of a script, which waits for its job, and waits for its end. Returns how it ended (`Ended` of
    server.rs)."""
    fail(NOT_BEGUN)
    if TIER >= 2:
        check(LIBC.setns(fds[1], NEWPID), "setns")  # what is forked next lives in that namespace
    pid = os.fork()
    if pid == 0:
        script_process(folder, fds)
    if TIER < 2:
        answer({"pid": pid})  # where there is a keeper, that is killed instead
    status, usage = await_end(pid, alive)
    return {
        "exit": os.WEXITSTATUS(status) if os.WIFEXITED(status) else None,
        "signal": os.WTERMSIG(status) if os.WIFSIGNALED(status) else None,
        "memory_error": os.WIFSIGNALED(status) and os.WTERMSIG(status) == OUT_OF_MEMORY,
        "cpu_seconds": usage.ru_utime + usage.ru_stime,
        "peak_bytes": usage.ru_maxrss * 1024,
        "failure": FAILURE[:].partition(b"\0")[0].decode(errors="replace") or None,
    }


def warm_up():
    """Makes two tiny fits, so that what is loaded or searched at the first use is there before the first fork."""
    import numpy
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.linear_model import LogisticRegression

    x = numpy.arange(40.0).reshape(20, 2)
    y = numpy.arange(20) % 2
    LogisticRegression(max_iter=2000).fit(x, y).predict_proba(x)
    RandomForestClassifier(n_estimators=2, random_state=0).fit(x, y).predict(x)


def load(modules):
    for module in LIBRARIES if modules is None else modules:
        importlib.import_module(module)
    for module in NUMPY if "numpy" in sys.modules else []:
        importlib.import_module(module)
    if "sklearn.ensemble" in sys.modules:
        warm_up()
    gc.collect()
    gc.freeze()
    LOADED[0], LOADED_LAST[0] = data_bytes(), next(reversed(sys.modules))


def main():
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    control = socket.socket(fileno=os.dup(0))
    open_stdin()
    sys.path[:] = [entry for entry in sys.path if entry]
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # Python ignores this signal; by default it kills a process that writes too large a file, which shows in how it
    # ended.
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    # The first use of the compiler makes its tables, which would cost each script 1 ms.
    compile("pass", "warm_up", "exec")
    answer = lambda message: control.send(json.dumps(message).encode())
    # SIGCHLD is waited for, not handled.
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCHLD])

    def alive():
        """Sends a heartbeat, or drops it when the socket is full: between jobs nobody may be listening."""
        try:
            control.send(b'"alive"', socket.MSG_DONTWAIT)
        except BlockingIOError:
            pass

    try:
        deny_from_the_start()
        answer({"ready": os.getpid()})
        while True:
            message, fds, _, _ = socket.recv_fds(control, 1 << 16, 8)
            if not message:
                return
            request = json.loads(message)
            if "load" in request:
                load(request["load"])
                answer({"ready": os.getpid()})
                continue
            try:
                ended = run(request["folder"], fds, answer, alive)
            except OSError as error:
                ended = {"exit": None, "signal": 9, "memory_error": False, "cpu_seconds": 0.0, "peak_bytes": 0, "failure": str(error)}
            for fd in fds:
                os.close(fd)
            answer({"ended": ended})
            ended = None  # not to be in the next script
    except BaseException as error:
        answer({"error": f"{type(error).__name__}: {error}"})


# Bytes of data that the loaded libraries hold.
LOADED = [data_bytes()]
# Process id of the script, in its own process.
SCRIPT = [None]
# Module that was loaded last before any script.
LOADED_LAST = [next(reversed(sys.modules))]
main()
