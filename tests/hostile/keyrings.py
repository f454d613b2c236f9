# Keys, which outlive their process and are shared by a user's processes.
# verdict: ok
from tried import call, tried

tried("add_key", lambda: call("add_key", b"user", b"hostile", b"x", 1, -4))
tried("request_key", lambda: call("request_key", b"user", b"hostile", b"x", -4))
tried("keyctl", lambda: call("keyctl", 0, -4, 1))
tried("join", lambda: call("keyctl", 1, b"hostile"))
