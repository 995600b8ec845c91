"""A subscriber that asks for far too many topics: bomber.py XPUB COUNT.

Prints ``bombed`` when it has asked for all, and asks again whenever it is hung up on, until killed.
"""

from __future__ import annotations

import secrets
import sys

import zmq


def main(endpoint: str, count: int) -> None:
    """Ask, with 60 characters each that nobody else asks for."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    socket = context.socket(zmq.SUB)
    socket.sndhwm = 0
    socket.connect(endpoint)
    for _ in range(count):
        socket.subscribe(b"state." + secrets.token_hex(27).encode())
    print("bombed", flush=True)
    while True:
        # ZeroMQ subscribes anew while somebody looks.
        socket.poll()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
