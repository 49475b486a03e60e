"""The unit of the large tensor: a server that receives a fixed number of bytes, copies them twice and says so.

python -m benchmarks.copies PORT SIZE
"""

from __future__ import annotations

import socket
import sys

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


def main(port: int, size: int) -> None:
    received = memoryview(bytearray(size))
    with socket.create_server(("127.0.0.1", port)) as listener:
        while True:
            connection, _ = listener.accept()
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with connection:
                while _receive(connection, received):
                    copied = bytes(received)
                    bytearray(copied)
                    connection.sendall(ANSWER)


def _receive(connection: socket.socket, into: memoryview) -> bool:
    """Fill it; False when the client has gone."""
    at = 0
    while at < len(into):
        count = connection.recv_into(into[at:])
        if not count:
            return False
        at += count
    return True


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
