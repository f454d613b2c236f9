# Names as long as can be, inside each other until their path is longer than a path may be; names with newlines, escapes and
# bytes that are no text.
# verdict: ok
import os

for i in range(3):
    open(f"line\nbreak\x1b[31m{i}", "w").write("x")
open(b"\xff\xfe\x80", "wb").write(b"x")
open(b"submission.csv\n", "wb").write(b"x")
os.mkdir(b"\xff" * 255)
name = "n" * 255
for _ in range(20):
    os.mkdir(name)
    os.chdir(name)
    open("inside", "w").write("x")
