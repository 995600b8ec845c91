"""One alarm a key, the earliest first."""

from __future__ import annotations

from collections.abc import Hashable
from heapq import heapify, heappop, heappush
from typing import Generic, TypeVar

__all__ = ["Alarms"]

#: Keys can be ordered, too.
Key = TypeVar("Key", bound=Hashable)

#: Outdated alarms that may stay in the heap beside as many as there are valid ones.
_SLACK = 64


class Alarms(Generic[Key]):
    """When to look at which key next; alarms that move often cost a heap push each.

    An alarm that was moved or dropped stays in the heap until it comes to the top, or until half of
    the heap is outdated: memory is bounded by the number of keys.
    """

    def __init__(self) -> None:
        self._time: dict[Key, float] = {}
        self._heap: list[tuple[float, Key]] = []

    def set(self, key: Key, time: float) -> None:
        """Set the alarm of this key, in place of the one that it had."""
        self._time[key] = time
        heappush(self._heap, (time, key))
        if len(self._heap) > 2 * len(self._time) + _SLACK:
            self._heap = [(time, key) for key, time in self._time.items()]
            heapify(self._heap)

    def drop(self, key: Key) -> None:
        """Remove the alarm of this key, if it has one."""
        self._time.pop(key, None)

    def first(self) -> tuple[float, Key] | None:
        """The earliest alarm; of equal ones, that of the first key in order."""
        while self._heap:
            time, key = self._heap[0]
            if self._time.get(key) == time:
                return time, key
            heappop(self._heap)
        return None

    def ring(self, now: float) -> list[Key]:
        """The keys whose time has come; their alarms are over."""
        keys = []
        while (first := self.first()) is not None and first[0] <= now:
            keys.append(first[1])
            self.drop(first[1])
        return keys
