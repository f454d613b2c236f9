# Symbolic links that lead in circles, to themselves, to / and to folders above.
# verdict: ok
import os

os.symlink("submission.csv", "submission.csv")
os.symlink("b", "a")
os.symlink("a", "b")
os.mkdir("deep")
for i in range(50):
    os.symlink("..", f"deep/up{i}")
os.symlink("/", "root")
os.symlink("/proc/self/fd/1", "out")
