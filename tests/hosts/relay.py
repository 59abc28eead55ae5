"""A ProxyCommand: `relay.py HOST PORT` connects its stdin and stdout to a server."""

import os
import socket
import sys
import threading

server = socket.create_connection((sys.argv[1], int(sys.argv[2])))


def to_server() -> None:
    while data := os.read(0, 1 << 16):
        server.sendall(data)
    server.shutdown(socket.SHUT_WR)


threading.Thread(target=to_server, daemon=True).start()
while data := server.recv(1 << 16):
    os.write(1, data)
