"""Laid beside every hostile script: an attempt that works prints DONE, which the test looks for."""
import ctypes
import json
import os

LIBC = ctypes.CDLL(None, use_errno=True)
# Where the labels lie, which sockets listen, who the trainer is: more than a real script would know.
WHERE = json.load(open("where.json"))
NUMBERS = json.load(open("calls.json"))


def tried(name, attempt):
    try:
        value = attempt()
    except (OSError, OverflowError, MemoryError, ValueError, RuntimeError, ImportError) as error:
        print(f"{name}: refused ({type(error).__name__}: {error})", flush=True)
        return None
    print(f"{name}: DONE {value!r}"[:200], flush=True)
    return value


def checked(result):
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def call(name, *arguments):
    """A system call by its name or number."""
    number = NUMBERS[name] if isinstance(name, str) else name
    return checked(LIBC.syscall(*(ctypes.c_long(a) if isinstance(a, int) else a for a in (number, *arguments))))


def read(path):
    with open(path, "rb") as file:
        return file.read(4096)


def write(path, text="x"):
    with open(path, "w") as file:
        file.write(text)


def in_child(work):
    """Runs `work` in a child, which exits, and waits for it."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
        finally:
            os._exit(0)
    return os.waitpid(pid, 0)[1]
