"""The broker's short memory of events: what a subscriber lost just now can be fetched again.

States and logs have rings of their own: a thousand instruments that publish ten times a second, or
one that logs without end, must not push out the alarm of a minute ago.
"""

from __future__ import annotations

from collections import deque

from labmesh.errors import ProtocolError
from labmesh.protocol.codec import Buffer, decode_event
from labmesh.protocol.event_frame import outline
from labmesh.protocol.messages import LastEvent

__all__ = ["MAX_EVENTS", "MAX_RING_BYTES", "Ring", "Rings", "last_event"]

MAX_EVENTS = 1024
MAX_RING_BYTES = 8 * 2**20

_STATE, _LOG = b"state.", b"log."
#: Nobody asks for these again: the next one says the same, or nothing depends on them any more.
_PASSING = (b"tail.", b"mark.")


class Ring:
    """The newest events, at most ``max_events`` and ``max_bytes``."""

    def __init__(self, *, max_events: int = MAX_EVENTS, max_bytes: int = MAX_RING_BYTES) -> None:
        self._max_bytes = max_bytes
        #: topic and frame; the oldest first
        self._events: deque[tuple[bytes, Buffer]] = deque()
        self._max_events = max_events
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._events)

    def keep(self, topic: bytes, frame: Buffer) -> None:
        """Remember the frame of an event; it must not change afterwards."""
        events = self._events
        events.append((topic, frame))
        self._bytes += len(frame)
        while len(events) > self._max_events or self._bytes > self._max_bytes:
            self._bytes -= len(events.popleft()[1])

    def between(
        self, topic: str, epoch: str, first: int, last: int, max_bytes: int
    ) -> tuple[list[LastEvent], bool]:
        """Those events of a topic and epoch whose sequences are ``first`` to ``last``, in order,
        as far as they fit: one at least. True: there are more.
        """
        wanted = topic.encode()
        found: dict[int, Buffer] = {}
        for name, frame in self._events:
            if name == wanted:
                sequence = _sequence(frame, epoch)
                if first <= sequence <= last:
                    found[sequence] = frame
        events: list[LastEvent] = []
        room = max_bytes
        for _, frame in sorted(found.items()):
            room -= len(frame)
            if events and room < 0:
                return events, True
            events.append(last_event(frame))
        return events, False


class Rings:
    """One ring for states, one for logs, one for the rest. Hold a lock around each call."""

    def __init__(self) -> None:
        self._states = Ring()
        self._logs = Ring()
        self._others = Ring()

    def keep(self, topic: bytes, frame: Buffer) -> None:
        """As :meth:`Ring.keep`."""
        if (ring := self.ring_of(topic)) is not None:
            ring.keep(topic, frame)

    def ring_of(self, topic: bytes) -> Ring | None:
        """The ring that keeps the events of a topic, always the same; None: nobody does."""
        return None if topic.startswith(_PASSING) else self._of(topic)

    def between(
        self, topic: str, epoch: str, first: int, last: int, max_bytes: int = 128 * 2**10
    ) -> tuple[list[LastEvent], bool]:
        """As :meth:`Ring.between`."""
        return self._of(topic.encode()).between(topic, epoch, first, last, max_bytes)

    def _of(self, topic: bytes) -> Ring:
        if topic.startswith(_STATE):
            return self._states
        return self._logs if topic.startswith(_LOG) else self._others


def last_event(frame: Buffer) -> LastEvent:
    """What is told of an event to those who ask for it again."""
    topic, begin, end = outline(frame)
    return LastEvent(
        topic=topic.decode(), header=bytes(frame[begin:end]), payload=bytes(frame[end:])
    )


def _sequence(frame: Buffer, epoch: str) -> int:
    """The sequence of an event of this epoch; 0 for any other, and for what has no header."""
    try:
        _, begin, end = outline(frame)
        event = decode_event(frame[begin:end])
    except ProtocolError:
        return 0
    return event.sequence if event.epoch == epoch else 0
