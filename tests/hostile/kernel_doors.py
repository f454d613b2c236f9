# bpf, perf, userfaultfd, fanotify, modules, kexec, reboot, swap, syslog, quota, ports, landlock's way out.
# verdict: ok
from tried import LIBC, call, tried

tried("bpf", lambda: call("bpf", 0, bytes(72), 72))
tried("perf", lambda: call("perf_event_open", bytes(120), 0, -1, -1, 0))
tried("userfaultfd", lambda: call("userfaultfd", 1))
tried("fanotify", lambda: call("fanotify_init", 0, 0))
tried("module", lambda: call("init_module", b"", 0, b""))
tried("kexec", lambda: call("kexec_load", 0, 0, 0, 0))
tried("reboot", lambda: call("reboot", 0xFEE1DEAD, 672274793, 0x89ABCDEF, 0))
tried("swapoff", lambda: call("swapoff", b"/swap"))
tried("syslog", lambda: call("syslog", 3, bytes(100), 100))
tried("acct", lambda: call("acct", 0))
tried("personality", lambda: call("personality", 0x0040000))
tried("vhangup", lambda: call("vhangup"))
for path in ("/proc/sysrq-trigger", "/proc/sys/kernel/core_pattern", "/proc/sys/vm/drop_caches", "/sys/kernel/uevent_helper"):
    tried(path, lambda: open(path, "w").write("1"))
