import tempfile
folder = tempfile.TemporaryDirectory(dir=".")
file = tempfile.NamedTemporaryFile(dir=".", mode="w")
file.write("x")
kept = tempfile.NamedTemporaryFile("w", dir=".", delete=False, prefix="kept")
import os
os.rename(kept.name, "kept")
kept.write("kept")
