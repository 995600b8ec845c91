"""Who listens at the broker: each connection that has subscribed, and whose it is.

libzmq drops a connection neither when its key is revoked nor when it has a million subscriptions.
What it sends on such a connection it sends on; so the connection itself is ended. Each subscription
tells the descriptor it came over, and the address behind it tells whether it is still the same.
"""

from __future__ import annotations

import logging
import socket as stdlib_socket
import time
from dataclasses import dataclass, field

import zmq

from labmesh.protocol.backlog import Backlogs, Sent, Share
from labmesh.protocol.seldom import Seldom
from labmesh.transport.channel import proved
from labmesh.transport.doorway import descriptor_of, peer_of
from labmesh.transport.forwarding import Forwarding
from labmesh.transport.keys import Guard
from labmesh.transport.tcp_facts import tcp_facts

__all__ = ["MARKS_OF_ONE", "MAX_OF_ONE", "Audience"]

log = logging.getLogger(__name__)

#: Subscriptions of one key, or of one connection where no key is proved; and the characters of all
#: their topics: ZeroMQ keeps up to 90 bytes for each, unless others begin alike.
MAX_OF_ONE = 4096
_CHARACTERS_OF_ONE = 72_000
#: And marks, which have little room all in all: each client has one at a time, for a moment.
MARKS_OF_ONE = 250

#: Bytes of events that may wait for one connection. ZeroMQ itself limits their number alone.
WAITING_BYTES = 64 * 2**20

_END, _SUBSCRIBE = b"\x00", b"\x01"
_MARK = b"mark."
#: Of those that were refused so many are remembered, for who asked for them.
_REMEMBERED = 100
#: ZeroMQ keeps a list of all that a connection asks for, also of what it is refused. So one that
#: was refused so many is ended: no client asks for that much.
_PATIENCE = 1100


@dataclass(slots=True)
class _Listener:
    peer: tuple[str, int]
    user: str
    #: what it is subscribed to; what it says that it ends may never have been among it
    topics: set[bytes] = field(default_factory=set)
    characters: int = 0
    #: how often these changed
    changes: int = 0
    marks: set[bytes] = field(default_factory=set)
    #: topics that it asked for and was refused
    refused: dict[bytes, None] = field(default_factory=dict)
    #: how often it was refused something
    refusals: int = 0

    def kept(self, topic: bytes) -> set[bytes]:
        """Among which subscriptions it counts."""
        return self.marks if topic.startswith(_MARK) else self.topics

    def keep(self, topic: bytes) -> None:
        """It is subscribed to this."""
        kept = self.kept(topic)
        if topic not in kept:
            kept.add(topic)
            self.characters += len(topic)
            self.changes += 1

    def drop(self, topic: bytes) -> None:
        """It is not, or no longer."""
        kept = self.kept(topic)
        if topic in kept:
            kept.discard(topic)
            self.characters -= len(topic)
            self.changes += 1


class Audience:
    """The subscriptions of one socket, counted by key, or by connection where none is proved.

    :param guard: who may listen; None: everybody who is let in.
    :param most: subscriptions of one key, or connection.
    """

    def __init__(self, guard: Guard | None, *, most: int = MAX_OF_ONE) -> None:
        self._guard = guard
        self._most = most
        self._listeners: dict[int, _Listener] = {}
        self._warnings = Seldom()
        self._backlogs = Backlogs(WAITING_BYTES)
        #: subscriptions that were refused, and connections that were ended
        self.refused = 0
        self.cut = 0

    def admits(self, frame: zmq.Frame, sign: bytes, topic: bytes) -> bool:
        """A subscription came, or the end of one; False: it is not to be taken."""
        if sign not in (_END, _SUBSCRIBE):
            self.refused += 1
            return False
        if sign == _END:
            # Of a connection that has ended it is told as well, without saying whose it was.
            self._ended(frame, topic)
            return True
        found = self._listener(frame)
        if found is None:
            return self._guard is None and not _can_tell()
        descriptor, listener = found
        if self._guard is not None and self._guard.grant_of(listener.user) is None:
            self.refused += 1
            self._cut(descriptor, listener, f"{listener.user} is not admitted")
            return False
        if topic not in listener.kept(topic) and not self._has_room(listener, topic):
            self.refused += 1
            self._refuse(descriptor, listener, topic)
            return False
        listener.keep(topic)
        listener.refused.pop(topic, None)
        return True

    def was_refused(self, frame: zmq.Frame, topic: bytes) -> None:
        """A subscription that came with this frame was not taken for another reason."""
        found = self._listener(frame)
        if found is not None:
            # It was counted before it was looked at.
            found[1].drop(topic)
            self._refuse(*found, topic)

    def refused_to(self, frame: zmq.Frame) -> list[bytes]:
        """What the connection that sent this frame asked for and is not subscribed to."""
        found = self._listener(frame)
        return [] if found is None else list(found[1].refused)

    def look(self) -> None:
        """Forget connections that have ended, and end those whose key is no longer admitted."""
        for descriptor, listener in list(self._listeners.items()):
            if peer_of(descriptor) != listener.peer:
                del self._listeners[descriptor]
            elif self._guard is not None and not self._may_listen(self._guard, listener):
                self._cut(descriptor, listener, f"{listener.user} is not admitted")

    def end_those_behind(self, events: Forwarding) -> None:
        """End the connections for which too many bytes wait. They come back, and count what they
        missed.
        """
        sent = {}
        for descriptor in list(self._listeners):
            facts = tcp_facts(descriptor)
            if facts is not None:
                sent[descriptor] = Sent(facts.acked, facts.unsent)

        def share_of(descriptor: int) -> Share:
            listener = self._listeners[descriptor]
            size = events.sent_under(tuple(listener.topics))
            return Share((events.generation, listener.changes), size)

        behind = self._backlogs.look(sent, events.sent_bytes, share_of)
        for descriptor, size in behind.items():
            listener = self._listeners[descriptor]
            who = listener.user or listener.peer[0]
            self._cut(descriptor, listener, f"{who} does not keep up: {size >> 20} MiB wait for it")

    def _may_listen(self, guard: Guard, listener: _Listener) -> bool:
        try:
            guard.check(listener.user, "look")
        except PermissionError:
            return False
        return True

    def _has_room(self, listener: _Listener, topic: bytes) -> bool:
        # A mark tells what was refused; it has a limit of its own.
        if self._guard is None:
            return self._fits([listener], topic)
        if self._fits(self._of_user(listener.user), topic):
            return True
        if not self._fits([listener], topic):
            return False
        self.look()  # some of its connections may have ended
        return self._fits(self._of_user(listener.user), topic)

    def _fits(self, listeners: list[_Listener], topic: bytes) -> bool:
        most = MARKS_OF_ONE if topic.startswith(_MARK) else self._most
        characters = sum(each.characters for each in listeners) + len(topic)
        count = sum(len(each.kept(topic)) for each in listeners)
        return count < most and characters <= _CHARACTERS_OF_ONE

    def _of_user(self, user: str) -> list[_Listener]:
        return [each for each in self._listeners.values() if each.user == user]

    def _listener(self, frame: zmq.Frame) -> tuple[int, _Listener] | None:
        """Whose subscription it is; None: nobody can tell, or the connection has ended."""
        if self._guard is None and not _can_tell():
            return None
        descriptor = descriptor_of(frame)
        peer = None if descriptor is None else peer_of(descriptor)
        if descriptor is None or peer is None:
            return None
        listener = self._listeners.get(descriptor)
        if listener is None or listener.peer != peer:
            listener = self._listeners[descriptor] = _Listener(peer, proved(frame))
        return descriptor, listener

    def _ended(self, frame: zmq.Frame, topic: bytes) -> None:
        descriptor = descriptor_of(frame)
        listener = None if descriptor is None else self._listeners.get(descriptor)
        if listener is None:
            return
        listener.refused.pop(topic, None)
        listener.drop(topic)

    def _refuse(self, descriptor: int, listener: _Listener, topic: bytes) -> None:
        listener.refusals += 1
        if listener.refusals > _PATIENCE:
            who = listener.user or listener.peer[0]
            self._cut(descriptor, listener, f"{who} asks for topics without end")
        elif len(listener.refused) < _REMEMBERED:
            listener.refused[topic] = None

    def _cut(self, descriptor: int, listener: _Listener, why: str) -> None:
        self._listeners.pop(descriptor, None)
        self.cut += 1
        if self._warnings.due(time.monotonic()) is not None:
            log.warning("broker ends a subscriber's connection (%d so far): %s", self.cut, why)
        # Looked at once more: the number may have become another connection's.
        if peer_of(descriptor) == listener.peer:
            peer_of(descriptor, cut=True)


def _can_tell() -> bool:
    """Whether one may look at a descriptor that may be another one's by now.

    With a default timeout, Python would change its mode.
    """
    return stdlib_socket.getdefaulttimeout() is None
