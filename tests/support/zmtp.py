"""ZMTP 3.0 by hand, without security: peers that libzmq would not be."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["frame", "zmtp"]

_GREETING = (
    b"\xff" + bytes(8) + b"\x7f" + b"\x03\x00" + b"NULL".ljust(20, b"\0") + b"\0" + bytes(31)
)
_MORE, _LONG, _COMMAND = 1, 2, 4
_TIMEOUT_S = 10.0


def frame(content: bytes, *, more: bool = False) -> bytes:
    """One frame of a message."""
    if len(content) < 256:
        return bytes([_MORE * more, len(content)]) + content
    return bytes([_MORE * more | _LONG]) + len(content).to_bytes(8, "big") + content


@contextmanager
def zmtp(endpoint: str, kind: str, *, receive_bytes: int = 0) -> Iterator[socket.socket]:
    """A connection that has shaken hands as this kind of socket, and does nothing by itself.

    :param receive_bytes: the size of the system's buffer for what was not read yet; 0: its own.
    """
    host, _, port = endpoint.removeprefix("tcp://").rpartition(":")
    with socket.socket() as raw:
        raw.settimeout(_TIMEOUT_S)
        if receive_bytes:
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        raw.connect((host, int(port)))
        name = kind.encode()
        ready = b"\x05READY\x0bSocket-Type" + len(name).to_bytes(4, "big") + name
        raw.sendall(_GREETING + bytes([_COMMAND, len(ready)]) + ready)
        _take(raw, len(_GREETING))
        _, size = _take(raw, 2)
        _take(raw, size)
        yield raw


def _take(raw: socket.socket, size: int) -> bytes:
    taken = b""
    while len(taken) < size:
        piece = raw.recv(size - len(taken))
        if not piece:
            raise ConnectionError("the other side hung up during the handshake")
        taken += piece
    return taken
