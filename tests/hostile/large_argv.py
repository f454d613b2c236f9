# Starts programs with huge argument lists.
# verdict: ok oom
# open everywhere: argv 131072, argv 1048576. As many arguments as the kernel takes harm nobody.
import subprocess

from tried import tried

for size in (1 << 17, 1 << 20, 1 << 24):
    tried(f"argv {size}", lambda: subprocess.run(["/bin/true"] + ["x" * 1000] * (size // 1000)))
