import contextlib
stack = contextlib.ExitStack()
f = stack.enter_context(open("out", "w"))
f.write("in a stack")
@contextlib.contextmanager
def section():
    print("enter")
    try:
        yield
    finally:
        print("leave")
kept = section()
kept.__enter__()
