# Runs a shell, another Python and the tracer's tools to do what it may not.
# verdict: ok
# says: looked
import subprocess
import sys

from tried import WHERE

secret = WHERE["secrets"][0]
for program in (
    ["/bin/sh", "-c", f"cat {secret}; cat /proc/*/environ; ls -laR / >/dev/null"],
    [sys.executable, "-c", f"print(open({secret!r}).read())"],
    ["/usr/bin/env", "cat", secret],
    ["/lib64/ld-linux-x86-64.so.2", "/bin/cat", secret],
):
    try:
        done = subprocess.run(program, capture_output=True, text=True, errors="replace", timeout=20)
        print(done.stdout[:2000], done.stderr[:500])
    except (OSError, subprocess.TimeoutExpired) as error:
        print(type(error).__name__)
print("looked")
