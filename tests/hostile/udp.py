# Sends datagrams to the trainer's machine and outside.
# verdict: ok
import socket

from tried import WHERE, tried

for address in (("127.0.0.1", WHERE["udp"]), ("8.8.8.8", 53), ("255.255.255.255", 9)):
    tried("udp", lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"token", address))
tried("udp 6", lambda: socket.socket(socket.AF_INET6, socket.SOCK_DGRAM).sendto(b"token", ("::1", WHERE["udp"])))
