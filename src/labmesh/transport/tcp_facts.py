"""What the operating system tells of a TCP connection of libzmq's. Linux alone tells."""

from __future__ import annotations

import socket as stdlib_socket
import struct
import sys
from typing import NamedTuple

__all__ = ["TcpFacts", "tcp_facts"]

if sys.platform == "linux":
    import fcntl
    import termios

#: The fields tcpi_bytes_acked and tcpi_bytes_received of Linux' struct tcp_info.
_BYTES = struct.Struct("120xQQ")


class TcpFacts(NamedTuple):
    """Bytes of a connection, as far as its peer and libzmq have come."""

    #: sent, and the peer's system has them
    acked: int
    #: handed to the system, and not yet acked
    unsent: int
    #: come in
    received: int
    #: of them, not yet read by libzmq
    unread: int


def tcp_facts(descriptor: int) -> TcpFacts | None:
    """The facts of a connection by its number; None: it has ended, or the system tells nothing."""
    if sys.platform != "linux":
        return None
    try:
        connection = stdlib_socket.socket(
            stdlib_socket.AF_INET, stdlib_socket.SOCK_STREAM, 0, descriptor
        )
    except OSError:
        return None
    try:
        told = connection.getsockopt(stdlib_socket.IPPROTO_TCP, stdlib_socket.TCP_INFO, _BYTES.size)
        acked, received = _BYTES.unpack(told)
        unsent, unread = (
            int.from_bytes(fcntl.ioctl(descriptor, each, bytes(4)), sys.byteorder)
            for each in (termios.TIOCOUTQ, termios.FIONREAD)
        )
    except (OSError, struct.error):
        return None
    finally:
        # It is libzmq's.
        connection.detach()
    return TcpFacts(acked, unsent, received, unread)
