# Devices: GPUs, memory, disks, terminals, the kernel's log, hypervisor and tunnels.
# verdict: ok
import glob
import os

from tried import tried

names = ["mem", "kmem", "port", "kmsg", "sda", "vda", "nvme0n1", "loop0", "loop-control", "tty", "tty0", "console", "ptmx", "kvm", "fuse"]
names += ["nvidia0", "nvidiactl", "nvidia-uvm", "dri/card0", "dri/renderD128", "kfd", "net/tun", "vhost-vsock", "vsock", "uinput", "fb0"]
for name in names:
    tried(name, lambda: os.open(f"/dev/{name}", os.O_RDONLY | os.O_NONBLOCK))
for path in glob.glob("/dev/**", recursive=True) + glob.glob("/sys/**"):
    if os.path.basename(path) not in ("dev", "", "shm", "null", "zero", "full", "random", "urandom", "where.json"):
        try:
            os.open(path, os.O_RDONLY | os.O_NONBLOCK)
            print("device: DONE", path)
        except OSError:
            pass
