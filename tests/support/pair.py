"""Two machines joined by a wire that drops, repeats and reorders."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from enum import Enum
from typing import Generic, TypeVar

MessageT = TypeVar("MessageT")


class Fate(Enum):
    """What a wire does with a message that is put into it."""

    PASS = "pass"
    DROP = "drop"
    REPEAT = "repeat"
    #: it arrives before all that are under way
    OVERTAKE = "overtake"
    #: it arrives after the message that is put in next
    DAWDLE = "dawdle"


class Wire(Generic[MessageT]):
    """One direction of a link: bad for as long as ``fates`` last, and then faultless.

    So whatever the fates are, two machines that never give up must come to an end.
    """

    def __init__(self, fates: Iterable[Fate] = ()) -> None:
        self._fates: Iterator[Fate] = iter(fates)
        self._under_way: deque[MessageT] = deque()
        self._dawdling: list[MessageT] = []

    def __len__(self) -> int:
        return len(self._under_way) + len(self._dawdling)

    def put(self, message: MessageT) -> None:
        late, self._dawdling = self._dawdling, []
        match next(self._fates, Fate.PASS):
            case Fate.PASS:
                self._under_way.append(message)
            case Fate.DROP:
                pass
            case Fate.REPEAT:
                self._under_way.extend((message, message))
            case Fate.OVERTAKE:
                self._under_way.appendleft(message)
            case Fate.DAWDLE:
                self._dawdling.append(message)
        self._under_way.extend(late)

    def take(self) -> MessageT | None:
        """The next message that arrives; None: there is none."""
        if not self._under_way:
            self._under_way.extend(self._dawdling)
            self._dawdling.clear()
        return self._under_way.popleft() if self._under_way else None
