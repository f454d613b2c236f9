# Sockets of every family and kind: netlink, packet, raw, vsock, crypto, bluetooth, CAN, XDP.
# verdict: ok
import socket

from tried import tried

for family in range(1, 46):
    for kind in (1, 2, 3, 5):
        tried("socket", lambda: socket.socket(family, kind, 0))
        if family != socket.AF_UNIX:
            tried("pair", lambda: socket.socketpair(family, kind, 0))
