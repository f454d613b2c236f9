# Installs a filter of its own, which turns every refusal into a success, and one that would let a supervisor answer.
# verdict: ok killed
import os
import struct

from tried import call, tried

program = struct.pack("HBBI", 0x06, 0, 0, 0x7FFF0000)
import ctypes

code = ctypes.create_string_buffer(program)
fprog = struct.pack("HxxxxxxP", 1, ctypes.addressof(code))
try:
    call("seccomp", 1, 0, fprog)
except OSError:
    pass
tried("mount after it", lambda: call("mount", b"tmpfs", b"/tmp", b"tmpfs", 0, 0))
tried("unshare after it", lambda: call("unshare", 0x10000000))
