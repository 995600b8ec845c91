"""Ends connections that send a message without an end, before it fills the memory.

It costs next to nothing while all is well: the memory of the process is looked at 20 times a
second, the connections only when it has grown, and readers tell of those alone that brought much.
Linux tells how much a connection has brought; elsewhere nothing is done.
"""

from __future__ import annotations

import logging
import math
import mmap
import os
import time
from collections.abc import Callable

import zmq

from labmesh.protocol.seldom import Seldom
from labmesh.protocol.unfinished import Unfinished
from labmesh.transport.doorway import descriptor_of, peer_of
from labmesh.transport.tcp_facts import tcp_facts

__all__ = ["MAX_UNFINISHED_BYTES", "Breaker", "Intake"]

log = logging.getLogger(__name__)

#: What one connection may bring of a message that has not ended, by the socket's role: more than
#: the largest message that means anything there.
MAX_UNFINISHED_BYTES = {
    "directory": 2**20,
    "xsub": 4 * 2**20,
    "xpub": 2**18,
    "relay": 64 * 2**20,
    "ingest": 32 * 2**20,
    "retrieve": 2**18,
}
#: What all connections of a socket may: so much, or eight times that of one where that is more.
_ALL_BYTES = 64 * 2**20
_CONNECTIONS = 8

_REST_S, _QUICK_S = 0.05, 0.005
_GROWN_BYTES = 4 * 2**20
_PAGE_BYTES = mmap.PAGESIZE


class Intake:
    """What comes in at one server socket.

    Its reader calls :meth:`heard` with a frame of each message that it takes while there are
    :attr:`suspects`. All else is the :class:`Breaker`'s, in one thread.

    :param role: of the socket.
    """

    def __init__(self, role: str) -> None:
        limit = MAX_UNFINISHED_BYTES[role]
        self._unfinished = Unfinished(limit, max(_ALL_BYTES, _CONNECTIONS * limit))
        self.role = role
        #: connections of which the reader is to tell
        self.suspects = self._unfinished.suspects
        self._peers: dict[int, tuple[str, int]] = {}
        self._ask: Callable[[], None] | None = None

    def heard(self, frame: zmq.Frame) -> None:
        """A message was taken from the socket, this is a frame of it."""
        descriptor = descriptor_of(frame)
        if descriptor is not None:
            self._unfinished.heard(descriptor)

    def on_question(self, ask: Callable[[], None] | None) -> None:
        """Have ``ask`` called, in another thread: the reader is to look at :attr:`question`, then
        whether there is anything to take, and to call :meth:`emptied` when there is not."""
        self._ask = ask

    @property
    def question(self) -> int:
        """The number of the last one."""
        return self._unfinished.question

    def emptied(self, question: int) -> None:
        """Nothing was there to take after this question was asked."""
        self._unfinished.emptied(question)

    def accepted(self, descriptor: int) -> None:
        """A connection has come."""
        peer = peer_of(descriptor)
        if peer is not None:
            self._peers[descriptor] = peer
            self._unfinished.accepted(descriptor, time.monotonic())

    def ended(self, descriptor: int) -> None:
        """A connection is no more."""
        self._peers.pop(descriptor, None)
        self._unfinished.ended(descriptor)

    @property
    def is_idle(self) -> bool:
        """There is no connection."""
        return not self._peers

    def look(self, *, at_all: bool) -> list[tuple[str, int]]:
        """End the connections that bring too much; the address of each, and its bytes.

        :param at_all: not only at the suspects.
        """
        if not at_all and not self.suspects:
            return []
        counted = (
            (each, _brought(each)) for each in (self._peers if at_all else set(self.suspects))
        )
        brought = {descriptor: count for descriptor, count in counted if count is not None}
        ended = []
        for descriptor, size in self._unfinished.look(brought, time.monotonic()).items():
            peer = self._peers[descriptor]
            # Looked at once more: the number may have become another connection's.
            if peer_of(descriptor) == peer:
                peer_of(descriptor, cut=True)
                ended.append((peer[0], size))
            self.ended(descriptor)
        if self._unfinished.is_asking and self._ask is not None:
            self._ask()
        return ended


class Breaker:
    """Guards the memory that strangers can take at the sockets of a node; in one thread.

    :param name: the node's, for the log.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._intakes: list[Intake] = []
        self._usual = 0
        self._next_at = 0.0
        self._pause_s = _REST_S
        self._warnings = Seldom()
        #: connections that were ended
        self.cut = 0

    def add(self, intake: Intake) -> None:
        """Guard this one, too."""
        self._intakes.append(intake)

    def remove(self, intake: Intake) -> None:
        """Its socket is closed."""
        self._intakes.remove(intake)

    def look(self, now: float) -> float:
        """Look, if it is time to; in how many seconds it is again."""
        if all(each.is_idle for each in self._intakes):
            return math.inf
        if now >= self._next_at:
            self._next_at = now + self._look(now)
        return self._next_at - now

    def _look(self, now: float) -> float:
        resident = _resident()
        if resident is None:
            return _REST_S
        self._usual = min(self._usual, resident)
        has_grown = resident >= self._usual + _GROWN_BYTES
        if has_grown:
            self._usual = resident
        before = [each.question for each in self._intakes]
        for intake in self._intakes:
            for address, size in intake.look(at_all=has_grown):
                self._tell(intake.role, address, size, now)
        is_going_on = has_grown or before != [each.question for each in self._intakes]
        self._pause_s = _QUICK_S if is_going_on else min(2 * self._pause_s, _REST_S)
        return self._pause_s

    def _tell(self, role: str, address: str, size: int, now: float) -> None:
        self.cut += 1
        if self._warnings.due(now) is not None:
            log.warning(
                "%s ended a connection of %s (%d so far): %d MB of a message that does not end, "
                "on %s",
                *(self._name, address, self.cut, size // 10**6, role),
            )


def _resident() -> int | None:
    """Bytes of memory that this process has; None: the system does not tell."""
    try:
        told = os.open("/proc/self/statm", os.O_RDONLY)
    except OSError:
        return None
    try:
        return int(os.read(told, 100).split()[1]) * _PAGE_BYTES
    finally:
        os.close(told)


def _brought(descriptor: int) -> int | None:
    """How many bytes libzmq has taken from a connection so far; None: it has ended."""
    facts = tcp_facts(descriptor)
    return None if facts is None else facts.received - facts.unread
