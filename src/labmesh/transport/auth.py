"""Who may connect: the ZAP handler (RFC 27), in a thread of its own.

The handler must not share a loop with anything that can block: a handshake waits for it. It is
bound before any other socket, and every server socket names a ZAP domain and enforces it, so that
without a working handler nobody gets in.
"""

from __future__ import annotations

import heapq
import ipaddress
import itertools
import logging
import math
import threading
import time
from collections import deque

import zmq
from zmq.utils import z85

from labmesh.errors import Forbidden
from labmesh.protocol.slowing import Slowing
from labmesh.transport.breaker import Breaker, Intake
from labmesh.transport.doorway import EVENTS, Doorway
from labmesh.transport.keys import Security
from labmesh.transport.witness import Witness

__all__ = ["Authenticator", "admits"]

log = logging.getLogger(__name__)

_ENDPOINT = "inproc://zeromq.zap.01"
_MAX_REMEMBERED = 1024
_WATCH, _STOP = b"+", b""
#: The thread shows that it lives so often, and is taken for dead after so long without a sign.
_BEAT_S = 1.0
_DEAD_S = 5.0
#: Refusals that wait to be told; beyond them each is told at once.
_MAX_HELD = 256
_MAX_TEXT = 255


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
    security: Security, mechanism: bytes, address: str, credentials: list[bytes], door: str = ""
) -> tuple[bool, str]:
    """Decide about one connection; the text is its user id, or says why not.

    :param door: the socket: ``directory``, ``xsub``, ``xpub``, ``relay``, ``ingest``, ``retrieve``.
    """
    guard = security.guard
    if guard is not None:
        if mechanism != b"CURVE" or len(credentials) != 1:
            return False, "this network has keys"
        try:
            return True, guard.admit(z85.encode(credentials[0]), door, address)
        except Forbidden as exc:
            return False, str(exc)
    if security.keys is not None:
        if mechanism != b"CURVE":
            return False, "this network has a password"
        if len(credentials) != 1 or z85.encode(credentials[0]) != security.keys.client.public:
            return False, "wrong network password"
        return True, "member"
    if mechanism != b"NULL" or security.is_encrypted:
        return False, "this node runs without a password"
    if security.insecure or is_local(address):
        return True, "local" if is_local(address) else "anonymous"
    return False, "protected mode: only this machine is admitted"


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
        #: told who is turned away; None: nobody keeps a record
        self.witness: Witness | None = None
        self._slowing = Slowing()
        self._breaker = Breaker(name)
        #: refusals that wait, with the time (monotonic) when they are told; the next one first
        self._held: list[tuple[float, int, list[bytes]]] = []
        #: monotonic time of the last sign of life of the thread
        self._beat_at = time.monotonic()
        # A ROUTER: one refusal that waits holds up nobody else.
        self._requests = context.socket(zmq.ROUTER)
        self._requests.linger = 0
        self._requests.bind(_ENDPOINT)
        control = f"inproc://labmesh.authenticator.{id(self)}"
        self._control = context.socket(zmq.PAIR)
        self._far = context.socket(zmq.PAIR)
        self._control.bind(control)
        self._far.connect(control)
        if not security.is_encrypted and security.insecure:
            log.warning(
                "%s is insecure: it admits every host that reaches it, and nothing is encrypted",
                name,
            )
        self._thread = threading.Thread(target=self._run, name=f"{name}-zap", daemon=True)
        self._thread.start()

    def watch(self, socket: zmq.Socket[bytes], domain: str) -> Intake:
        """Count the handshakes that fail at a server socket, and end connections that take its
        memory; call it before the socket is bound.

        ``socket.disable_monitor()`` ends it, and must come before the socket is closed.
        """
        # Numbered: the name of a socket that was closed just now may not be free yet.
        endpoint = f"inproc://labmesh.doorway.{next(self._numbers)}"
        socket.monitor(endpoint, EVENTS)
        events = self._context.socket(zmq.PAIR)
        # When it is full, libzmq stands still until it is read.
        events.linger = events.rcvhwm = 0
        events.connect(endpoint)
        intake = Intake(domain.rpartition("/")[2])
        self._arrivals.append(Doorway(events, domain, intake))
        self._control.send(_WATCH)
        return intake

    @property
    def cut(self) -> int:
        """Connections that were ended because of messages without an end."""
        return self._breaker.cut

    @property
    def is_alive(self) -> bool:
        """The thread works; without it nobody gets in any more."""
        return self._thread.is_alive() and time.monotonic() - self._beat_at < _DEAD_S

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
            ready = dict(poller.poll(self._pause_ms(self._guard_memory())))
            self._beat_at = time.monotonic()
            self._tell_held()
            if self._far in ready:
                if self._far.recv() == _STOP:
                    return
                doorway = self._arrivals.popleft()
                self._doorways[doorway.events] = doorway
                self._breaker.add(doorway.intake)
                poller.register(doorway.events, zmq.POLLIN)
            if self._requests in ready:
                self._take(self._requests.recv_multipart())
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
            self._slowing.refused(address, time.monotonic())
            self._report(address, doorway.domain, self._why_broken())
        if doorway.events.closed:
            poller.unregister(doorway.events)
            del self._doorways[doorway.events]
            self._breaker.remove(doorway.intake)

    def _guard_memory(self) -> float:
        """In how many seconds to look again."""
        try:
            return self._breaker.look(time.monotonic())
        except Exception:
            # As above.
            log.exception("%s: its memory is not guarded", self._name)
            return _BEAT_S

    def _why_broken(self) -> str:
        if self._security.guard is not None:
            return "it expects another key of this node, or comes without one"
        if self._security.keys is None:
            return "it uses a network password, and this node has none"
        return "wrong network password, or none"

    def _take(self, message: list[bytes]) -> None:
        """One request: answered at once, or, where its address is refused often, later."""
        if len(message) < 2 or message[1]:
            return  # not from a REQ socket: libzmq sends nothing like it
        envelope, frames = message[:2], message[2:]
        answer, wait_s = self._answer(frames)
        if wait_s and len(self._held) < _MAX_HELD:
            entry = (time.monotonic() + wait_s, next(self._numbers), [*envelope, *answer])
            heapq.heappush(self._held, entry)
        else:
            self._requests.send_multipart([*envelope, *answer])

    def _pause_ms(self, due_s: float) -> int:
        if self._held:
            due_s = min(due_s, self._held[0][0] - time.monotonic())
        return math.ceil(1000 * min(_BEAT_S, max(0.0, due_s)))

    def _tell_held(self) -> None:
        now = time.monotonic()
        while self._held and self._held[0][0] <= now:
            self._requests.send_multipart(heapq.heappop(self._held)[2])

    def _answer(self, frames: list[bytes]) -> tuple[list[bytes], float]:
        """The answer to a request, and how many seconds it waits."""
        if len(frames) < 6 or frames[0] != b"1.0":
            return _refusal(frames, b"500", "bad request"), 0.0
        _, request_id, domain, address, _, mechanism, *credentials = frames
        where = address.decode("ascii", "replace")
        named = domain.decode("utf-8", "replace")
        try:
            admitted, text = admits(
                self._security, mechanism, where, credentials, named.rpartition("/")[2]
            )
        except Exception:
            # Without this thread nobody gets in any more: it outlives a fault of our own.
            log.exception("%s: the decision about %s failed", self._name, where)
            return _refusal(frames, b"500", "internal error"), 0.0
        if admitted:
            return [b"1.0", request_id, b"200", b"OK", text.encode("ascii"), b""], 0.0
        self.refused += 1
        self._report(where, named, text)
        wait_s = self._slowing.refused(str(_parsed(where) or where), time.monotonic())
        return _refusal(frames, b"400", text), wait_s

    def _report(self, address: str, domain: str, why: str) -> None:
        """One log line an address: a refused peer tries again for ever."""
        address = str(_parsed(address) or address)
        if self.witness is not None:
            self.witness.turned_away(address, domain.rpartition("/")[2], why)
        known = not address or address in self._remembered
        if known or len(self._remembered) >= _MAX_REMEMBERED:
            return
        self._remembered.add(address)
        log.warning("%s refused %s on %s: %s", self._name, address, domain, why)


def _refusal(frames: list[bytes], status: bytes, text: str) -> list[bytes]:
    request_id = frames[1] if len(frames) > 1 else b""
    return [b"1.0", request_id, status, text.encode()[:_MAX_TEXT], b"", b""]
