# Connects to a server of the trainer's machine, listens, and reaches for the outside network.
# verdict: ok
import socket

from tried import WHERE, tried

tried("loopback", lambda: socket.create_connection(("127.0.0.1", WHERE["tcp"]), 2))
tried("loopback 6", lambda: socket.create_connection(("::1", WHERE["tcp"]), 2))
tried("outside", lambda: socket.create_connection(("1.1.1.1", 53), 2))
tried("name", lambda: socket.getaddrinfo("example.org", 80))
tried("listen", lambda: socket.create_server(("127.0.0.1", 0)))
