"""Events: numbered by the publisher, checked by the subscriber, remembered by the broker.

The publisher counts the events of each topic from 1. A subscriber that keeps the count sees each
event at most once and in order, and knows exactly how many it lost. The broker keeps the last
event of each state topic for those who come late.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from labmesh.protocol.codec import Buffer
from labmesh.protocol.messages import Event, LastEvent
from labmesh.protocol.replay import last_event

__all__ = ["LastValues", "Seen", "Sequencer", "Tracker"]

#: Earlier epochs of a topic that a subscriber remembers.
RETIRED_EPOCHS = 8
#: A retired epoch that publishes so much later than its successor is no backlog: it lives.
REVIVAL_S = 10.0
#: Snapshots ahead of the live stream of a topic that a subscriber remembers.
SNAPSHOTS_AHEAD = 64

_STATE = b"state."


class Sequencer:
    """The publisher's side: makes the header of each event of one incarnation of a node."""

    def __init__(self, publisher: str, epoch: str) -> None:
        self._publisher = publisher
        self._epoch = epoch
        self._last: dict[str, int] = {}

    def last(self) -> dict[str, int]:
        """The last sequence of each topic so far."""
        return dict(self._last)

    def next(self, topic: str, time: float, kind: str = "state", interval_s: float = 0.0) -> Event:
        """The header of the next event of this topic.

        :param time: POSIX seconds (UTC).
        :param interval_s: seconds after which the one behind it is due; 0: nobody can tell.
        """
        sequence = self._last[topic] = self._last.get(topic, 0) + 1
        return Event(
            publisher=self._publisher,
            epoch=self._epoch,
            sequence=sequence,
            time=time,
            kind=kind,
            interval_s=interval_s,
        )


class Seen(NamedTuple):
    """What a subscriber makes of an event.

    ``new``: deliver it; else it is a repeat or older than what was delivered. ``missed``: events of
    this topic that were lost since the one delivered before; 0 where ``new`` is false. Their
    sequences lie between that of the event and ``first``.
    """

    new: bool
    missed: int
    first: int = 0


_OLD = Seen(new=False, missed=0)


@dataclass(slots=True)
class _Stream:
    """What was seen of one epoch of a topic."""

    epoch: str
    #: of the newest event delivered, in the publisher's clock
    time: float
    #: highest sequence of the live stream: what is missing up to here was counted
    heard: int
    #: highest sequence delivered
    newest: int
    #: sequences of the snapshots that were delivered ahead of the live stream
    ahead: list[int] = field(default_factory=list)
    #: found missing, to be told with the next live event that is delivered
    lost: int = 0
    #: the sequence of the first of them
    lost_from: int = 0

    @classmethod
    def before(cls, event: Event) -> _Stream:
        """The stream of a subscriber that comes just in time for this event."""
        return cls(event.epoch, event.time, event.sequence - 1, event.sequence - 1)

    def take_snapshot(self, event: Event) -> Seen:
        if event.sequence <= self.newest:
            return _OLD
        self.newest, self.time = event.sequence, event.time
        self.ahead = [*self.ahead, event.sequence][-SNAPSHOTS_AHEAD:]
        return Seen(new=True, missed=0)

    def take_live(self, event: Event) -> Seen:
        sequence = event.sequence
        if sequence <= self.heard:
            return _OLD
        self._reach(sequence - 1)
        self.ahead = [each for each in self.ahead if each > sequence]
        self.heard = sequence
        if sequence <= self.newest:
            return _OLD
        self.newest, self.time = sequence, event.time
        return self._told(new=True)

    def take_tail(self, sequence: int) -> Seen:
        """Everything up to this one was sent before: what is not here is lost."""
        if sequence <= self.heard:
            return _OLD
        self._reach(sequence)
        self.ahead = [each for each in self.ahead if each > sequence]
        self.heard = sequence
        self.newest = max(self.newest, sequence)
        return self._told(new=False)

    def _reach(self, sequence: int) -> None:
        """Count what is missing up to this sequence."""
        known = sum(each <= sequence for each in self.ahead)
        missing = sequence - self.heard - known
        if missing and not self.lost:
            self.lost_from = self.heard + 1
        self.lost += missing

    def _told(self, *, new: bool) -> Seen:
        missed, self.lost = self.lost, 0
        return Seen(new, missed, self.lost_from if missed else 0)


@dataclass(slots=True)
class _Topic:
    """The epochs of a topic: the one that is followed, and earlier ones."""

    current: _Stream
    retired: dict[str, _Stream] = field(default_factory=dict)

    def turn_to(self, event: Event, *, snapshot: bool) -> bool:
        """Follow the epoch of this event from now on, if it is no earlier one."""
        retired = self.retired.get(event.epoch)
        later_s = event.time - self.current.time
        if snapshot:
            is_newer = retired is None and later_s > 0
        else:
            is_newer = retired is None or later_s > REVIVAL_S
        if not is_newer:
            return False
        self.retired.pop(event.epoch, None)
        self.retired[self.current.epoch] = self.current
        if len(self.retired) > RETIRED_EPOCHS:
            del self.retired[next(iter(self.retired))]
        self.current = retired or _Stream.before(event)
        return True


class Tracker:
    """The subscriber's side: which events are new, and how many are missing.

    The first event of a topic or of a new epoch misses nothing: a late joiner has lost nothing. An
    epoch that was replaced is remembered, and what comes late of it is dropped. Only when its
    events are younger than all of its successor's by ``REVIVAL_S``, it is followed again: then it
    was no backlog, but the successor was an impostor, who fell silent when the broker refused it.

    :param max_topics: topics remembered; beyond that the one unheard for longest is forgotten, and
        begins anew like that of a late joiner (refusing new ones would hide new nodes for good).
    """

    def __init__(self, *, max_topics: int = 10_000) -> None:
        self._max_topics = max_topics
        #: the one unheard for longest first
        self._topics: dict[str, _Topic] = {}

    def seen(self, topic: str, event: Event, *, snapshot: bool = False) -> Seen:
        """Take the header of an event that arrived.

        A ``snapshot`` is a last value that was fetched from the broker. It is new only if it is
        newer than all that was delivered; what was lost before it is told with the next live event.
        Snapshots of another epoch are compared by the publisher's clock, for they say nothing about
        the order.
        """
        known = self._topics.pop(topic, None)
        if known is None:
            known = _Topic(_Stream.before(event))
            if len(self._topics) >= self._max_topics:
                del self._topics[next(iter(self._topics))]
        self._topics[topic] = known
        if event.epoch != known.current.epoch and not known.turn_to(event, snapshot=snapshot):
            return _OLD
        stream = known.current
        return stream.take_snapshot(event) if snapshot else stream.take_live(event)

    def tail(self, topic: str, epoch: str, sequence: int) -> Seen:
        """The publisher says which event was its last one: what was lost at the end is known now,
        not only with the next event. A topic of which nothing came yet has lost nothing.
        """
        known = self._topics.get(topic)
        if known is None or known.current.epoch != epoch:
            return _OLD
        return known.current.take_tail(sequence)

    def forget(self, topic: str) -> None:
        """Begin anew with this topic, like a late joiner."""
        self._topics.pop(topic, None)

    def forget_all(self, prefix: str) -> None:
        """Begin anew with every topic that begins with this."""
        for topic in [each for each in self._topics if each.startswith(prefix)]:
            del self._topics[topic]

    def keep_only(self, prefixes: tuple[str, ...]) -> None:
        """Forget every topic that begins with none of these: nobody listens to it any more, and
        who listens to it again has lost nothing meanwhile.
        """
        for topic in [each for each in self._topics if not each.startswith(prefixes)]:
            del self._topics[topic]


class LastValues:
    """The broker's memory: the last event of each topic of the ``state`` family.

    Not safe for use from two threads by itself: hold a lock around each call.

    :param max_topics: topics remembered.
    :param max_bytes: bytes of events remembered. Beyond either limit the
        topic that was silent for longest is forgotten.
    """

    def __init__(self, *, max_topics: int = 10_000, max_bytes: int = 64 * 2**20) -> None:
        self._max_topics = max_topics
        self._max_bytes = max_bytes
        self._bytes = 0
        #: topic → frame; the one silent for longest first
        self._events: dict[bytes, Buffer] = {}

    def keep(self, topic: bytes, frame: Buffer) -> None:
        """Remember an event in place of the earlier one; topics of other families are ignored.

        Of an event that is over ``max_bytes`` by itself, nothing is remembered.
        """
        if not topic.startswith(_STATE):
            return
        events = self._events
        known = events.pop(topic, None)
        if known is not None:
            self._bytes -= len(known)
        size = len(frame)
        if size > self._max_bytes:
            return
        events[topic] = frame
        self._bytes += size
        while len(events) > self._max_topics or self._bytes > self._max_bytes:
            self._drop(next(iter(events)))

    def page(
        self, prefix: str, after: str, max_bytes: int = 128 * 1024
    ) -> tuple[list[LastEvent], bool]:
        """Events whose topics begin with ``prefix`` and come after ``after``, sorted by topic.

        True: there are more. A page holds at most ``max_bytes`` of frames, or one larger event.
        """
        first, behind = prefix.encode(), after.encode()
        topics = sorted(
            each
            for each in self._events
            if each.startswith(first) and each > behind and each.isascii()
        )
        page: list[LastEvent] = []
        room = max_bytes
        for topic in topics:
            frame = self._events[topic]
            room -= len(frame)
            if page and room < 0:
                return page, True
            page.append(last_event(frame))
        return page, False

    def forget_node(self, node_id: str) -> None:
        """A node has left: its last state is no longer the state of anything."""
        self._drop(_STATE + node_id.encode())

    def _drop(self, topic: bytes) -> None:
        known = self._events.pop(topic, None)
        if known is not None:
            self._bytes -= len(known)
