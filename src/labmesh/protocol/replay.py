"""The broker's short memory of events: what a subscriber lost just now can be fetched again.

States and logs have rings of their own: a thousand instruments that publish ten times a second, or
one that logs without end, must not push out the alarm of a minute ago.
"""

from __future__ import annotations

from collections import deque

from labmesh.errors import ProtocolError
from labmesh.protocol.codec import decode_event
from labmesh.protocol.messages import LastEvent

__all__ = ["MAX_EVENTS", "MAX_RING_BYTES", "Ring", "Rings"]

MAX_EVENTS = 1024
MAX_RING_BYTES = 8 * 2**20

_STATE, _LOG = b"state.", b"log."
#: Nobody asks for these again: the next one says the same, or nothing depends on them any more.
_PASSING = (b"tail.", b"mark.")


class Ring:
    """The newest events, at most ``max_events`` and ``max_bytes``."""

    def __init__(self, *, max_events: int = MAX_EVENTS, max_bytes: int = MAX_RING_BYTES) -> None:
        self._max_bytes = max_bytes
        #: topic, header, payload, and their bytes all in all; the oldest first
        self._events: deque[tuple[bytes, bytes, bytes | memoryview, int]] = deque()
        self._max_events = max_events
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._events)

    def keep(self, topic: bytes, header: bytes, payload: bytes | memoryview) -> None:
        """Remember the frames of an event; they must not change afterwards."""
        events = self._events
        size = len(topic) + len(header) + len(payload)
        events.append((topic, header, payload, size))
        self._bytes += size
        while len(events) > self._max_events or self._bytes > self._max_bytes:
            self._bytes -= events.popleft()[3]

    def between(
        self, topic: str, epoch: str, first: int, last: int, max_bytes: int
    ) -> tuple[list[LastEvent], bool]:
        """Those events of a topic and epoch whose sequences are ``first`` to ``last``, in order,
        as far as they fit: one at least. True: there are more.
        """
        wanted = topic.encode()
        found: dict[int, tuple[bytes, bytes]] = {}
        for name, header, payload, _ in self._events:
            if name == wanted:
                sequence = _sequence(header, epoch)
                if first <= sequence <= last:
                    found[sequence] = (header, bytes(payload))
        events: list[LastEvent] = []
        room = max_bytes
        for _, (header, payload) in sorted(found.items()):
            room -= len(topic) + len(header) + len(payload)
            if events and room < 0:
                return events, True
            events.append(LastEvent(topic=topic, header=header, payload=payload))
        return events, False


class Rings:
    """One ring for states, one for logs, one for the rest. Hold a lock around each call."""

    def __init__(self) -> None:
        self._states = Ring()
        self._logs = Ring()
        self._others = Ring()

    def keep(self, topic: bytes, header: bytes, payload: bytes | memoryview) -> None:
        """As :meth:`Ring.keep`."""
        if (ring := self.ring_of(topic)) is not None:
            ring.keep(topic, header, payload)

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


def _sequence(header: bytes, epoch: str) -> int:
    """The sequence in a header of this epoch; 0 for any other, and for what is no header."""
    try:
        event = decode_event(header)
    except ProtocolError:
        return 0
    return event.sequence if event.epoch == epoch else 0
