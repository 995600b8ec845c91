"""What a server socket tells of connections before anybody is asked who may come in."""

from __future__ import annotations

import socket as stdlib_socket
import struct
from typing import TYPE_CHECKING

import zmq
from zmq.utils.monitor import parse_monitor_message

if TYPE_CHECKING:
    from labmesh.transport.breaker import Intake

__all__ = ["EVENTS", "Doorway", "descriptor_of", "peer_address", "peer_of"]

EVENTS = (
    zmq.EVENT_ACCEPTED
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_DISCONNECTED
    | zmq.EVENT_MONITOR_STOPPED
)

#: What was not sent yet is dropped, and the peer is told at once.
_NO_LINGER = struct.pack("ii", 1, 0)


class Doorway:
    """What happens at one server socket before anybody is asked who may come in.

    The key of another network, or no key at all, breaks the handshake itself: the ZAP handler
    never hears of it.
    """

    def __init__(self, events: zmq.Socket[bytes], domain: str, intake: Intake) -> None:
        self.events = events
        self.domain = domain
        self.intake = intake
        self._addresses: dict[int, str] = {}
        self._broken = False

    def take(self) -> str | None:
        """Read one event; the address (empty: not known) of a peer whose handshake was refused."""
        parsed = parse_monitor_message(self.events.recv_multipart())
        event, value = int(parsed["event"]), int(parsed["value"])
        if event == zmq.EVENT_MONITOR_STOPPED:
            self.events.close(0)
        elif event == zmq.EVENT_ACCEPTED:
            self._addresses[value] = peer_address(value)
            self.intake.accepted(value)
        elif event == zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL:
            # It does not tell whose; the next event is the end of that connection.
            self._broken = True
        elif event == zmq.EVENT_DISCONNECTED:
            address = self._addresses.pop(value, "")
            self.intake.ended(value)
            broken, self._broken = self._broken, False
            return address if broken else None
        return None


def peer_address(descriptor: int) -> str:
    """The address behind a connection of libzmq; empty when it has ended meanwhile.

    The number may even be another one's by now, of any kind: good enough for a log. But with a
    default timeout Python would change the mode of what it gets, so there nobody looks.
    """
    if stdlib_socket.getdefaulttimeout() is not None:
        return ""
    peer = peer_of(descriptor)
    return "" if peer is None else peer[0]


def descriptor_of(frame: zmq.Frame) -> int | None:
    """Of the connection that this frame came over; None: it has ended."""
    try:
        return int(str(frame.get("__fd")))
    except zmq.ZMQError:  # libzmq's own message about a connection that has ended
        return None


def peer_of(descriptor: int, *, cut: bool = False) -> tuple[str, int] | None:
    """Address and port behind a connection of libzmq; None: it has ended.

    :param cut: end it. libzmq notices, and the peer's libzmq connects again: then it is asked who
        it is.
    """
    try:
        peer = stdlib_socket.socket(fileno=descriptor)
    except OSError:
        return None
    try:
        if peer.family not in (stdlib_socket.AF_INET, stdlib_socket.AF_INET6):
            return None
        name = peer.getpeername()
        if cut:
            # Else a peer that pours on would wait for its end, and its connection with it.
            peer.setsockopt(stdlib_socket.SOL_SOCKET, stdlib_socket.SO_LINGER, _NO_LINGER)
            peer.shutdown(stdlib_socket.SHUT_RDWR)
        return str(name[0]), int(name[1])
    except OSError:
        return None
    finally:
        peer.detach()
