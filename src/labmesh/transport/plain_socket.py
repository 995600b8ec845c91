"""Plain sockets that speak ZeroMQ's protocol: what a thread's line and a loop's lane share."""

from __future__ import annotations

import errno
import os
import select
import socket
from collections.abc import Sequence
from typing import Final

from labmesh.protocol.addresses import Address
from labmesh.protocol.codec import Buffer
from labmesh.protocol.zmtp import Incoming, head_of

__all__ = [
    "JOINED_BYTES",
    "QUIETLY",
    "READ_BYTES",
    "behind",
    "has_plain_sockets",
    "open_socket",
    "pieces_of",
    "read",
    "send_some",
]

READ_BYTES: Final = 2**16
#: Smaller frames are put together with those before and behind them.
JOINED_BYTES: Final = 4096
_MAX_PIECES: Final = 64
#: A connection on which nothing is said is asked by the system whether its other end is still
#: there, and is over after 4 s: nobody here has to run for that.
_KEEPALIVE: Final = {"TCP_KEEPIDLE": 1, "TCP_KEEPINTVL": 1, "TCP_KEEPCNT": 3}
#: Without it, a program that has not switched SIGPIPE off ends when the other side has hung up.
QUIETLY: Final[int] = getattr(socket, "MSG_NOSIGNAL", 0)


def has_plain_sockets() -> bool:
    """Whether this system has what is needed here. Windows has not."""
    return bool(QUIETLY) and hasattr(select, "poll")


def open_socket(address: Address) -> socket.socket:
    """A socket that begins to connect, and never waits.

    :param address: its host is a number: no name is looked up here.
    :raises OSError: this process has as many files open as it may, or there is no way there.
    """
    opened = socket.socket(socket.AF_INET6 if address.is_ipv6 else socket.AF_INET)
    try:
        opened.setblocking(False)
        opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in _KEEPALIVE.items():
            if hasattr(socket, option):
                opened.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
        begun = opened.connect_ex((address.host, address.port))
        if begun not in (0, errno.EINPROGRESS):
            raise OSError(begun, os.strerror(begun))
    except OSError:
        opened.close()
        raise
    return opened


def read(opened: socket.socket, incoming: Incoming) -> bool:
    """Read some of what is there; False: nothing is.

    :raises OSError: the connection broke, or the other side has hung up.
    """
    room = incoming.room()
    try:
        if room is None:
            data = opened.recv(READ_BYTES)
            count = len(data)
            incoming.feed(data)
        else:
            count = opened.recv_into(room)
            incoming.filled(count)
    except BlockingIOError:
        return False
    if not count:
        raise ConnectionResetError(errno.ECONNRESET, "the other side has hung up")
    return True


def send_some(opened: socket.socket, pieces: list[memoryview]) -> list[memoryview]:
    """Send what there is room for; what is left.

    :raises BlockingIOError: there is no room at all.
    """
    return behind(pieces, opened.sendmsg(pieces[:_MAX_PIECES], (), QUIETLY))


def pieces_of(frames: Sequence[Buffer]) -> list[memoryview]:
    """A message as it goes over the wire; small frames are put together."""
    pieces: list[memoryview] = []
    joined = b""
    last = len(frames) - 1
    for index, frame in enumerate(frames):
        view = memoryview(frame).cast("B")
        joined += head_of(len(view), more=index < last)
        if len(view) < JOINED_BYTES:
            joined += view
        else:
            pieces += [memoryview(joined), view]
            joined = b""
    return [*pieces, memoryview(joined)] if joined else pieces


def behind(pieces: list[memoryview], sent: int) -> list[memoryview]:
    """What is left of them behind so many bytes."""
    for index, piece in enumerate(pieces):
        if sent < len(piece):
            return [piece[sent:], *pieces[index + 1 :]]
        sent -= len(piece)
    return []
