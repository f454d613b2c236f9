# Tries what a script should not be able to do, and prints what worked. Run once through a pool, in its own sandbox.
import json
import os
import pathlib
import socket

request = json.loads(pathlib.Path("request.json").read_text())


def works(attempt):
    try:
        attempt()
        return True
    except OSError:
        return False


def connect():
    socket.create_connection(("127.0.0.1", request["port"]), timeout=1).close()


def read_outside():
    pathlib.Path(request["readable"]).read_text()


def write_outside():
    pathlib.Path(request["outside"]).write_text("written")


answer = {"connected": works(connect), "read": works(read_outside), "wrote": works(write_outside), "pid": os.getpid()}
print(json.dumps(answer))
