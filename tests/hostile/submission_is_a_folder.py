# Leaves a folder in the place of a submission, and swaps its own script and a folder of its own.
# verdict: ok
import os
import shutil

os.mkdir("submission.csv")
os.unlink("where.json")
os.mkdir("where.json")
open("where.json/inside", "w").close()
shutil.rmtree("inner")
open("inner", "w").close()
