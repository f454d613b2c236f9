# Reaches sockets of the trainer's by path and by abstract name, also from a pair of datagram sockets, which needs no socket().
# verdict: ok
import socket

from tried import WHERE, tried

stream, datagram = socket.SOCK_STREAM, socket.SOCK_DGRAM
for address in ("\0" + WHERE["abstract"], WHERE["unix"], "/run/systemd/journal/socket", "/dev/log", "/var/run/docker.sock"):
    tried("connect", lambda: socket.socket(socket.AF_UNIX, stream).connect(address))
    tried("send", lambda: socket.socket(socket.AF_UNIX, datagram).sendto(b"x", address))
    tried("send from a pair", lambda: socket.socketpair(socket.AF_UNIX, datagram)[0].sendto(b"x", address))
    tried("connect a pair", lambda: socket.socketpair(socket.AF_UNIX, datagram)[0].connect(address))
    tried("connect a stream pair", lambda: socket.socketpair(socket.AF_UNIX, stream)[0].connect(address))
    tried("send from a packet pair", lambda: socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)[0].connect(address))
    tried("raw pair", lambda: socket.socketpair(socket.AF_UNIX, socket.SOCK_RAW)[0].sendto(b"x", address))
