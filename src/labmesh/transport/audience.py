"""Who listens at the broker: each connection that has subscribed, and whose it is.

libzmq drops a connection neither when its key is revoked nor when it has a million subscriptions.
What it sends on such a connection it sends on; so the connection itself is ended. Each subscription
tells the descriptor it came over, and the address behind it tells whether it is still the same.
"""

from __future__ import annotations

import logging
import socket as stdlib_socket
from dataclasses import dataclass, field

import zmq

from labmesh.transport.channel import proved
from labmesh.transport.doorway import peer_of
from labmesh.transport.keys import Guard

__all__ = ["MARKS_OF_ONE", "MAX_OF_ONE", "Audience"]

log = logging.getLogger(__name__)

#: Subscriptions of one key, or of one connection where no key is proved.
MAX_OF_ONE = 4096
#: And marks, which have little room all in all: each client has one at a time, for a moment.
MARKS_OF_ONE = 250

_END, _SUBSCRIBE = b"\x00", b"\x01"
_MARK = b"mark."
#: Of those that were refused so many are remembered, for who asked for them.
_REMEMBERED = 100


@dataclass(slots=True)
class _Listener:
    peer: tuple[str, int]
    user: str
    #: what it is subscribed to; what it says that it ends may never have been among it
    topics: set[bytes] = field(default_factory=set)
    marks: set[bytes] = field(default_factory=set)
    #: topics that it asked for and was refused
    refused: dict[bytes, None] = field(default_factory=dict)

    def kept(self, topic: bytes) -> set[bytes]:
        """Among which subscriptions it counts."""
        return self.marks if topic.startswith(_MARK) else self.topics


class Audience:
    """The subscriptions of one socket, counted by key, or by connection where none is proved.

    :param guard: who may listen; None: everybody who is let in.
    :param most: subscriptions of one key, or connection.
    """

    def __init__(self, guard: Guard | None, *, most: int = MAX_OF_ONE) -> None:
        self._guard = guard
        self._most = most
        self._listeners: dict[int, _Listener] = {}
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
            return self._guard is None
        descriptor, listener = found
        if self._guard is not None and self._guard.grant_of(listener.user) is None:
            self.refused += 1
            self._cut(descriptor, listener)
            return False
        kept = listener.kept(topic)
        if topic not in kept and not self._has_room(listener, topic):
            self.refused += 1
            _remember(listener, topic)
            return False
        kept.add(topic)
        listener.refused.pop(topic, None)
        return True

    def was_refused(self, frame: zmq.Frame, topic: bytes) -> None:
        """A subscription that came with this frame was not taken for another reason."""
        found = self._listener(frame)
        if found is not None:
            # It was counted before it was looked at.
            found[1].kept(topic).discard(topic)
            _remember(found[1], topic)

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
                self._cut(descriptor, listener)

    def _may_listen(self, guard: Guard, listener: _Listener) -> bool:
        try:
            guard.check(listener.user, "look")
        except PermissionError:
            return False
        return True

    def _has_room(self, listener: _Listener, topic: bytes) -> bool:
        # A mark tells what was refused; it has a limit of its own.
        most = MARKS_OF_ONE if topic.startswith(_MARK) else self._most
        if self._guard is None or len(listener.kept(topic)) >= most:
            return len(listener.kept(topic)) < most
        if self._of_user(listener.user, topic) < most:
            return True
        self.look()  # some of its connections may have ended
        return self._of_user(listener.user, topic) < most

    def _of_user(self, user: str, topic: bytes) -> int:
        mine = (each for each in self._listeners.values() if each.user == user)
        return sum(len(each.kept(topic)) for each in mine)

    def _listener(self, frame: zmq.Frame) -> tuple[int, _Listener] | None:
        """Whose subscription it is; None: nobody can tell, or the connection has ended."""
        if stdlib_socket.getdefaulttimeout() is not None and self._guard is None:
            # Python would change the mode of a descriptor that may be another one's by now.
            return None
        descriptor = _descriptor(frame)
        peer = None if descriptor is None else peer_of(descriptor)
        if descriptor is None or peer is None:
            return None
        listener = self._listeners.get(descriptor)
        if listener is None or listener.peer != peer:
            listener = self._listeners[descriptor] = _Listener(peer, proved(frame))
        return descriptor, listener

    def _ended(self, frame: zmq.Frame, topic: bytes) -> None:
        descriptor = _descriptor(frame)
        listener = None if descriptor is None else self._listeners.get(descriptor)
        if listener is None:
            return
        listener.refused.pop(topic, None)
        listener.kept(topic).discard(topic)

    def _cut(self, descriptor: int, listener: _Listener) -> None:
        self._listeners.pop(descriptor, None)
        self.cut += 1
        log.warning("broker ends a subscriber's connection: %s is not admitted", listener.user)
        # Looked at once more: the number may have become another connection's.
        if peer_of(descriptor) == listener.peer:
            peer_of(descriptor, cut=True)


def _remember(listener: _Listener, topic: bytes) -> None:
    if len(listener.refused) < _REMEMBERED:
        listener.refused[topic] = None


def _descriptor(frame: zmq.Frame) -> int | None:
    try:
        return int(str(frame.get("__fd")))
    except zmq.ZMQError:  # libzmq's own message about a connection that has ended
        return None
