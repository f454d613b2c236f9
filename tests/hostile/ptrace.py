# Traces and reads its parent, pid 1 and the trainer.
# verdict: ok
import os

from tried import WHERE, call, tried

for pid in (1, os.getppid(), WHERE["decoy"], WHERE["trainer"]):
    tried("attach", lambda: call("ptrace", 16, pid, 0, 0))
    tried("seize", lambda: call("ptrace", 0x4206, pid, 0, 0))
    tried("process_vm_readv", lambda: call("process_vm_readv", pid, 0, 0, 0, 0, 0))
    tried("process_vm_writev", lambda: call("process_vm_writev", pid, 0, 0, 0, 0, 0))
    tried("kcmp", lambda: call("kcmp", os.getpid(), pid, 0, 0, 0))
    tried("pidfd_open", lambda: call("pidfd_open", pid, 0))
