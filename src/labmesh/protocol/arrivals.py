"""Events on their way to a reader that may stand still: bounded, and every loss is told.

What the queue has no room for is a loss like one on the way. Losses of a topic that follow each
other are one, and of states (which nobody fetches again) also those with states in between, so that
losses cannot be what fills it, however many there are.
"""

from __future__ import annotations

from dataclasses import dataclass

from labmesh.protocol.codec import Buffer
from labmesh.protocol.inbox import MAX_BYTES, Inbox
from labmesh.protocol.messages import Event

__all__ = ["Arrivals", "Lost", "Received"]

_STATE = "state."
#: States that wait, or so many of each relay when those are more; and of other events more than
#: the broker keeps for a client that stood still.
_STATES, _STATES_OF_EACH, _OTHERS = 10_000, 20, 25_000
#: What an event takes in memory beside its topic and its payload.
_EVENT_BYTES = 512
#: Topics whose losses can be told one by one: twice as many as a subscriber counts.
_MAX_LOSSES = 20_000


@dataclass(frozen=True, slots=True)
class Received:
    """One event as it came in."""

    topic: str
    event: Event
    payload: Buffer
    #: events of this topic that were lost before it
    missed: int = 0
    #: monotonic time when it came; None: it is a last value, and nobody knows how long it was kept
    heard_at: float | None = None

    @property
    def size(self) -> int:
        """About how many bytes of memory it takes."""
        return _EVENT_BYTES + len(self.topic) + len(self.payload)


@dataclass(frozen=True, slots=True)
class Lost:
    """Events of a topic that never came: ``missed`` of the sequences ``first`` to ``last``."""

    topic: str
    epoch: str
    first: int
    last: int
    missed: int

    @classmethod
    def of(cls, received: Received) -> Lost:
        """The loss of this one event."""
        event = received.event
        return cls(received.topic, event.epoch, event.sequence, event.sequence, 1)

    def and_then(self, later: Lost) -> Lost:
        """Both losses of this topic and epoch, between which nothing came, as one."""
        return Lost(
            self.topic,
            self.epoch,
            min(self.first, later.first),
            max(self.last, later.last),
            self.missed + later.missed,
        )


@dataclass(slots=True)
class _Waiting:
    """A loss in the queue, which grows while what follows of its topic is lost as well."""

    lost: Lost


class Arrivals:
    """Events and losses in order of arrival. Not safe for use from two threads by itself.

    When there are too many, or they take more than ``max_bytes``, the newest of each state stays;
    what it replaces is not told, for a reader of states counts it by their sequences. If that makes
    no room, the oldest goes, and becomes a :class:`Lost` that comes before all that is left of its
    topic. ``untold`` counts events that were lost of more topics than anybody has: they are in no
    :class:`Lost`.
    """

    def __init__(self, *, max_bytes: int = MAX_BYTES, max_losses: int = _MAX_LOSSES) -> None:
        self._inbox: Inbox[Received | _Waiting] = Inbox(
            _STATES, of_each=_STATES_OF_EACH, most=_OTHERS, max_bytes=max_bytes
        )
        self._max_losses = max_losses
        #: topic and epoch → what was lost of them before all that is in the queue
        self._losses: dict[tuple[str, str], Lost] = {}
        #: topic → the loss in the queue that the next one is part of
        self._growing: dict[str, _Waiting] = {}
        self.untold = 0

    def __len__(self) -> int:
        return len(self._inbox) + len(self._losses)

    @property
    def conflated(self) -> int:
        """States that were replaced by newer ones."""
        return self._inbox.conflated

    @property
    def lost(self) -> int:
        """Items that found no room; each is part of a loss that is told."""
        return self._inbox.lost

    def put(self, received: Received) -> None:
        """The next event."""
        topic = received.topic
        key = topic if topic.startswith(_STATE) else None
        if key is None and self._growing:
            self._growing.pop(topic, None)
        for each in self._inbox.put(received, key=key, size=received.size):
            self._lose(each)

    def put_lost(self, lost: Lost) -> None:
        """Events never came, before the next one of their topic."""
        growing = self._growing.get(lost.topic)
        if growing is not None and growing.lost.epoch == lost.epoch:
            growing.lost = growing.lost.and_then(lost)
            return
        self._growing[lost.topic] = waiting = _Waiting(lost)
        for each in self._inbox.put(waiting, size=_EVENT_BYTES + len(lost.topic)):
            self._lose(each)

    def take(self) -> list[Received | Lost]:
        """Everything, in order of arrival; what was lost for want of room comes first."""
        told: list[Received | Lost] = list(self._losses.values())
        self._losses.clear()
        self._growing.clear()
        told += [each.lost if isinstance(each, _Waiting) else each for each in self._inbox.take()]
        return told

    def _lose(self, item: Received | _Waiting) -> None:
        if isinstance(item, Received):
            lost = Lost.of(item)
        else:
            lost = item.lost
            if self._growing.get(lost.topic) is item:
                del self._growing[lost.topic]
        place = lost.topic, lost.epoch
        known = self._losses.get(place)
        if known is not None:
            self._losses[place] = known.and_then(lost)
        elif len(self._losses) < self._max_losses:
            self._losses[place] = lost
        else:
            self.untold += lost.missed
