# Makes a process that is no child of its own but of whoever forked it, and would outlive the script.
# verdict: ok
import os
import time

from tried import call, tried

CLONE_PARENT, SIGCHLD = 0x8000, 17


def sibling():
    pid = call("clone", CLONE_PARENT | SIGCHLD, 0, 0, 0, 0)
    if pid == 0:
        os.closerange(0, 3)
        time.sleep(1000)
        os._exit(0)
    return pid


tried("sibling", sibling)
