# Its own script, its submission and a log grow as long as anybody lets them, in daemons that outlive it.
# verdict: ok
# limits: file=1M
import os

for name in ("train.py", "submission.csv", "log.txt"):
    r, w = os.pipe()
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            os.closerange(0, 3)
            file = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.write(file, b"#\n")
            os.write(w, b"x")
            while True:
                os.write(file, b"# more and more\n")
        os._exit(0)
    os.wait()
    os.read(r, 1)
