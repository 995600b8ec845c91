"""A state of a relay as readers get it: how old it is, and what was lost before it."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from labmesh.protocol.codec import decode_value
from labmesh.transport.subscriber import Received

__all__ = ["STALE_INTERVALS", "Gaps", "Reading"]

#: A state is stale when so many intervals have passed without a newer one.
STALE_INTERVALS = 3


@dataclass(frozen=True, slots=True)
class Reading:
    """One state of a relay, with what is needed to trust it.

    ``time`` is the relay's POSIX time (seconds) when it was taken; ``missed`` counts the states
    that were lost before it, or skipped because whoever reads them was too slow. The state itself
    is ``value``; ``reading["voltage"]`` looks into it.
    """

    relay_id: str
    value: Any
    time: float
    epoch: str
    sequence: int
    missed: int = 0
    #: seconds between two states of this relay; 0: not known
    interval_s: float = 0.0
    #: this machine's monotonic time when it came; None: it was kept by the broker before
    heard_at: float | None = None
    #: about how many bytes of memory it takes
    size: int = field(default=0, compare=False)

    @classmethod
    def of(cls, relay_id: str, received: Received) -> Reading:
        """The reading in a state event, with a value of its own.

        :raises ProtocolError: its payload cannot be read.
        """
        return cls(
            relay_id=relay_id,
            value=decode_value(received.payload),
            time=received.event.time,
            epoch=received.event.epoch,
            sequence=received.event.sequence,
            interval_s=received.event.interval_s,
            heard_at=received.heard_at,
            size=received.size,
        )

    @property
    def age_s(self) -> float:
        """Seconds since it was taken, by the clocks of both machines."""
        return max(0.0, time.time() - self.time)

    @property
    def stale(self) -> bool:
        """A state is due each interval, and none came for three: this one may no longer be true.

        Judged by this machine's clock alone, where the state came while it listened.
        """
        age_s = self.age_s if self.heard_at is None else time.monotonic() - self.heard_at
        return age_s > STALE_INTERVALS * self.interval_s > 0

    def __repr__(self) -> str:
        stale = ", STALE" if self.stale else ""
        missed = f", {self.missed} missed before" if self.missed else ""
        return (
            f"<Reading of {self.relay_id}, {self.age_s:.3g} s old{stale}{missed}: {self.value!r}>"
        )

    def __getitem__(self, name: str) -> Any:
        return self.value[name]

    def __contains__(self, name: object) -> bool:
        return name in self.value

    def __iter__(self) -> Iterator[str]:
        return iter(self.value)

    def keys(self) -> Iterable[str]:
        """The names in the state (so that ``dict(reading)`` works)."""
        keys: Iterable[str] = self.value.keys()
        return keys


class Gaps:
    """Counts, for one reader, the states that were published between those that it got."""

    def __init__(self) -> None:
        self._last: dict[str, Reading] = {}

    def told(self, reading: Reading) -> Reading:
        """The next reading that is handed over, with what this reader missed before it.

        What was lost at a restart of the relay, nobody can count.
        """
        last = self._last.get(reading.relay_id)
        self._last[reading.relay_id] = reading
        if last is None or last.epoch != reading.epoch:
            return replace(reading, missed=0)
        return replace(reading, missed=max(0, reading.sequence - last.sequence - 1))
