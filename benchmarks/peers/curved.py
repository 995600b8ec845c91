"""CURVE for the programs of raw pyzmq: the server makes both key pairs, and hands one on."""

from __future__ import annotations

from collections.abc import Sequence

import zmq

__all__ = ["connect", "encrypt"]


def encrypt(sockets: Sequence[zmq.Socket[bytes]]) -> list[str]:
    """Have these (not bound yet) encrypt as servers; the words that clients need after the
    endpoint.
    """
    server, client = zmq.curve_keypair(), zmq.curve_keypair()
    for each in sockets:
        each.curve_server = True
        each.curve_publickey, each.curve_secretkey = server
    return [each.decode() for each in (server[0], *client)]


def connect(socket: zmq.Socket[bytes], address: str) -> None:
    """Connect to the first word of an address, encrypted if keys follow."""
    endpoint, *words = address.split()
    if words:
        keys = [each.encode() for each in words]
        socket.curve_serverkey, socket.curve_publickey, socket.curve_secretkey = keys
    socket.connect(endpoint)
