# Leaves modules that a later Python would import: sitecustomize, usercustomize, numpy, a .pth file, here and where it can.
# verdict: ok
import os
import site
import sys

from tried import tried, write

for name in ("sitecustomize.py", "usercustomize.py", "numpy.py", "json.py", "x.pth"):
    write(name, "import sys; sys.exit(99)")
for folder in site.getsitepackages() + [os.path.dirname(os.__file__), sys.prefix]:
    for name in ("sitecustomize.py", "hostile-left.pth"):
        tried("site", lambda: write(f"{folder}/{name}", "import sys"))
        tried("site link", lambda: os.symlink("/onestep", f"{folder}/{name}"))
