"""ZMTP 3.0 by hand, without security: peers that libzmq would not be."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["GREETING", "command", "frame", "message", "ping", "ready", "shake_hands", "zmtp"]

GREETING = b"\xff" + bytes(8) + b"\x7f" + b"\x03\x00" + b"NULL".ljust(20, b"\0") + b"\0" + bytes(31)
_MORE, _LONG, _COMMAND = 1, 2, 4
_TIMEOUT_S = 10.0


def frame(content: bytes, *, more: bool = False) -> bytes:
    """One frame of a message."""
    if len(content) < 256:
        return bytes([_MORE * more, len(content)]) + content
    return bytes([_MORE * more | _LONG]) + len(content).to_bytes(8, "big") + content


def message(*frames: bytes, between: bytes = b"") -> bytes:
    """A message on the wire; with some commands between its frames."""
    last = len(frames) - 1
    return between.join(frame(content, more=index < last) for index, content in enumerate(frames))


def command(body: bytes) -> bytes:
    """A command, which begins with its name and the length of that."""
    return bytes([_COMMAND, len(body)]) + body


def ready(kind: str) -> bytes:
    """What ends the handshake."""
    name = kind.encode()
    return command(b"\x05READY\x0bSocket-Type" + len(name).to_bytes(4, "big") + name)


def ping(context: bytes = b"", *, ttl_s: float = 4.0) -> bytes:
    """A question whether the other side lives; it is to doubt the sender's life after a while."""
    return command(b"\x04PING" + round(10 * ttl_s).to_bytes(2, "big") + context)


def shake_hands(connection: socket.socket) -> None:
    """As a ROUTER to which somebody connected."""
    connection.settimeout(_TIMEOUT_S)
    connection.sendall(GREETING + ready("ROUTER"))
    _take_handshake(connection)


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
        raw.sendall(GREETING + ready(kind))
        _take_handshake(raw)
        yield raw


def _take_handshake(raw: socket.socket) -> None:
    _take(raw, len(GREETING))
    _, size = _take(raw, 2)
    _take(raw, size)


def _take(raw: socket.socket, size: int) -> bytes:
    taken = b""
    while len(taken) < size:
        piece = raw.recv(size - len(taken))
        if not piece:
            raise ConnectionError("the other side hung up during the handshake")
        taken += piece
    return taken
