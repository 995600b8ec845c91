"""What a server socket tells of connections before anybody is asked who may come in."""

from __future__ import annotations

import socket as stdlib_socket

import zmq
from zmq.utils.monitor import parse_monitor_message

__all__ = ["EVENTS", "Doorway", "peer_address", "peer_of"]

EVENTS = (
    zmq.EVENT_ACCEPTED
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_DISCONNECTED
    | zmq.EVENT_MONITOR_STOPPED
)


class Doorway:
    """What happens at one server socket before anybody is asked who may come in.

    The key of another network, or no key at all, breaks the handshake itself: the ZAP handler
    never hears of it.
    """

    def __init__(self, events: zmq.Socket[bytes], domain: str) -> None:
        self.events = events
        self.domain = domain
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
        elif event == zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL:
            # It does not tell whose; the next event is the end of that connection.
            self._broken = True
        elif event == zmq.EVENT_DISCONNECTED:
            address = self._addresses.pop(value, "")
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
            peer.shutdown(stdlib_socket.SHUT_RDWR)
        return str(name[0]), int(name[1])
    except OSError:
        return None
    finally:
        peer.detach()
