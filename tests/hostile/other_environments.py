# Reads every environment, command line, memory map and memory that /proc shows.
# verdict: ok
# says: looked
import glob

from tried import WHERE, read

for folder in glob.glob("/proc/[0-9]*") + [f"/proc/{WHERE['decoy']}", f"/proc/{WHERE['trainer']}", "/proc/1"]:
    for name in ("environ", "cmdline", "maps", "auxv", "stack", "mountinfo", "status"):
        try:
            text = read(f"{folder}/{name}")
            if b"HOSTILE_TOKEN" in text:
                print("environ: DONE", text)
        except OSError:
            pass
print("looked")
