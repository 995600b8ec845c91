"""Who may connect: the ZAP handler (RFC 27), in a thread of its own.

The handler must not share a loop with anything that can block: a handshake waits for it. It is
bound before any other socket, and every server socket names a ZAP domain and enforces it, so that
without a working handler nobody gets in.
"""

from __future__ import annotations

import ipaddress
import itertools
import logging
import socket as stdlib_socket
import threading
from collections import deque

import zmq
from zmq.utils import z85
from zmq.utils.monitor import parse_monitor_message

from labmesh.transport.keys import Security

__all__ = ["Authenticator", "admits"]

log = logging.getLogger(__name__)

_ENDPOINT = "inproc://zeromq.zap.01"
_MAX_REMEMBERED = 1024
_WATCH, _STOP = b"+", b""
_EVENTS = (
    zmq.EVENT_ACCEPTED
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_DISCONNECTED
    | zmq.EVENT_MONITOR_STOPPED
)


def is_local(address: str) -> bool:
    """Is this peer address a loopback address (also as an IPv4 address inside IPv6)?"""
    parsed = _parsed(address)
    return parsed is not None and parsed.is_loopback


def _parsed(address: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """An IPv4 address also where an IPv6 socket shows it as one of its own."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return None
    return getattr(parsed, "ipv4_mapped", None) or parsed


def admits(
    security: Security, mechanism: bytes, address: str, credentials: list[bytes]
) -> tuple[bool, str]:
    """Decide about one connection; the text says why not."""
    if security.keys is not None:
        if mechanism != b"CURVE":
            return False, "this network has a password"
        if len(credentials) != 1 or z85.encode(credentials[0]) != security.keys.client.public:
            return False, "wrong network password"
        return True, "member"
    if mechanism != b"NULL":
        return False, "this node runs without a password"
    if security.insecure or is_local(address):
        return True, "local" if is_local(address) else "anonymous"
    return False, "protected mode: only this machine is admitted"


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
            self._addresses[value] = _peer_address(value)
        elif event == zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL:
            # It does not tell whose; the next event is the end of that connection.
            self._broken = True
        elif event == zmq.EVENT_DISCONNECTED:
            address = self._addresses.pop(value, "")
            broken, self._broken = self._broken, False
            return address if broken else None
        return None


def _peer_address(descriptor: int) -> str:
    """The address behind a connection of libzmq; empty when it has ended meanwhile.

    The number may even be another one's by now, of any kind: good enough for a log. But with a
    default timeout Python would change the mode of what it gets, so there nobody looks.
    """
    if stdlib_socket.getdefaulttimeout() is not None:
        return ""
    try:
        peer = stdlib_socket.socket(fileno=descriptor)
    except OSError:
        return ""
    try:
        if peer.family not in (stdlib_socket.AF_INET, stdlib_socket.AF_INET6):
            return ""
        return str(peer.getpeername()[0])
    except OSError:
        return ""
    finally:
        peer.detach()


class Authenticator:
    """Answers ZAP requests of one context until closed, and counts who is turned away."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], security: Security, name: str):
        self._context = context
        self._security = security
        self._name = name
        self._remembered: set[str] = set()
        self._arrivals: deque[Doorway] = deque()
        self._numbers = itertools.count()
        self._doorways: dict[zmq.Socket[bytes], Doorway] = {}
        #: connections that were turned away
        self.refused = 0
        self._requests = context.socket(zmq.REP)
        self._requests.linger = 0
        self._requests.bind(_ENDPOINT)
        control = f"inproc://labmesh.authenticator.{id(self)}"
        self._control = context.socket(zmq.PAIR)
        self._far = context.socket(zmq.PAIR)
        self._control.bind(control)
        self._far.connect(control)
        if security.keys is None and security.insecure:
            log.warning(
                "%s is insecure: it admits every host that reaches it, and nothing is encrypted",
                name,
            )
        self._thread = threading.Thread(target=self._run, name=f"{name}-zap", daemon=True)
        self._thread.start()

    def watch(self, socket: zmq.Socket[bytes], domain: str) -> None:
        """Count the handshakes that fail at a server socket; call it before the socket is bound.

        ``socket.disable_monitor()`` ends it, and must come before the socket is closed.
        """
        # Numbered: the name of a socket that was closed just now may not be free yet.
        endpoint = f"inproc://labmesh.doorway.{next(self._numbers)}"
        socket.monitor(endpoint, _EVENTS)
        events = self._context.socket(zmq.PAIR)
        # When it is full, libzmq stands still until it is read.
        events.linger = events.rcvhwm = 0
        events.connect(endpoint)
        self._arrivals.append(Doorway(events, domain))
        self._control.send(_WATCH)

    def close(self) -> None:
        """End the thread and close its sockets. Call it when all watched sockets are closed."""
        if self._thread.is_alive():
            self._control.send(_STOP)
            self._thread.join()
        watching = [each.events for each in (*self._doorways.values(), *self._arrivals)]
        for socket in (self._control, self._far, self._requests, *watching):
            socket.close(0)

    def _run(self) -> None:
        poller = zmq.Poller()
        poller.register(self._requests, zmq.POLLIN)
        poller.register(self._far, zmq.POLLIN)
        while True:
            ready = dict(poller.poll())
            if self._far in ready:
                if self._far.recv() == _STOP:
                    return
                doorway = self._arrivals.popleft()
                self._doorways[doorway.events] = doorway
                poller.register(doorway.events, zmq.POLLIN)
            if self._requests in ready:
                self._requests.send_multipart(self._answer(self._requests.recv_multipart()))
            for events in ready.keys() & self._doorways.keys():
                self._look_at(self._doorways[events], poller)

    def _look_at(self, doorway: Doorway, poller: zmq.Poller) -> None:
        try:
            address = doorway.take()
        except Exception:
            # As above: this thread outlives a fault of our own.
            log.exception("%s: an event of %s was not understood", self._name, doorway.domain)
            address = None
        if address is not None:
            self.refused += 1
            self._report(address, doorway.domain, self._why_broken())
        if doorway.events.closed:
            poller.unregister(doorway.events)
            del self._doorways[doorway.events]

    def _why_broken(self) -> str:
        if self._security.keys is None:
            return "it uses a network password, and this node has none"
        return "wrong network password, or none"

    def _answer(self, frames: list[bytes]) -> list[bytes]:
        if len(frames) < 6 or frames[0] != b"1.0":
            return _refusal(frames, b"500", "bad request")
        _, request_id, domain, address, _, mechanism, *credentials = frames
        where = address.decode("ascii", "replace")
        try:
            admitted, text = admits(self._security, mechanism, where, credentials)
        except Exception:
            # Without this thread nobody gets in any more: it outlives a fault of our own.
            log.exception("%s: the decision about %s failed", self._name, where)
            return _refusal(frames, b"500", "internal error")
        if admitted:
            return [b"1.0", request_id, b"200", b"OK", text.encode(), b""]
        self.refused += 1
        self._report(where, domain.decode("utf-8", "replace"), text)
        return _refusal(frames, b"400", text)

    def _report(self, address: str, domain: str, why: str) -> None:
        """One log line an address: a refused peer tries again for ever."""
        address = str(_parsed(address) or address)
        known = not address or address in self._remembered
        if known or len(self._remembered) >= _MAX_REMEMBERED:
            return
        self._remembered.add(address)
        log.warning("%s refused %s on %s: %s", self._name, address, domain, why)


def _refusal(frames: list[bytes], status: bytes, text: str) -> list[bytes]:
    request_id = frames[1] if len(frames) > 1 else b""
    return [b"1.0", request_id, status, text.encode(), b"", b""]
