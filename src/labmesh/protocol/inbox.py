"""A queue bounded in items and bytes that, when it is full, keeps the newest of each state."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Generic, TypeVar

__all__ = ["MAX_BYTES", "Inbox"]

#: What may wait in one queue. A reader that stands still for seconds must not cost gigabytes.
MAX_BYTES = 64 * 2**20

T = TypeVar("T")


class Inbox(Generic[T]):
    """Items in order of arrival, at most ``limit``, or ``of_each`` of each key where that is more;
    and up to ``most``, where nothing can be replaced. They take ``max_bytes`` together at most.

    An item with a key replaces older ones of its key once the queue is full (a state that nobody
    has looked at yet is worth nothing when there is a newer one). If that does not make room, the
    oldest item goes. ``conflated`` and ``lost`` count both, so that nothing vanishes unseen. No
    operation looks through the queue, so a full one costs its reader no more than an empty one.
    """

    def __init__(
        self, limit: int, *, of_each: int = 0, most: int = 0, max_bytes: int = MAX_BYTES
    ) -> None:
        self._limit = limit
        self._of_each = of_each
        self._most = most
        self._max_bytes = max_bytes
        self._bytes = 0
        self._arrived = 0
        #: number of arrival → key, bytes, item; the oldest first
        self._items: OrderedDict[int, tuple[str | None, int, T]] = OrderedDict()
        self._newest: dict[str, int] = {}
        #: items that have a newer one of their key behind them
        self._superseded: set[int] = set()
        self.conflated = 0
        self.lost = 0

    def __len__(self) -> int:
        return len(self._items)

    def put(self, item: T, *, key: str | None = None, size: int = 0) -> Sequence[T]:
        """Append an item of ``size`` bytes; what is lost for it, the oldest first."""
        self._arrived += 1
        self._items[self._arrived] = (key, size, item)
        self._bytes += size
        if key is not None:
            if key in self._newest:
                self._superseded.add(self._newest[key])
            self._newest[key] = self._arrived
        if self._bytes > self._max_bytes or (
            len(self._items) > self._limit and len(self._items) > self._room()
        ):
            return self._make_room()
        return ()

    def take(self) -> list[T]:
        """All items, oldest first; the queue is empty then."""
        items, self._items = self._items, OrderedDict()
        self._bytes = 0
        self._newest.clear()
        self._superseded.clear()
        return [item for _, _, item in items.values()]

    def pop(self) -> T:
        """The oldest item.

        :raises KeyError: there is none.
        """
        number, (key, size, item) = self._items.popitem(last=False)
        self._bytes -= size
        self._superseded.discard(number)
        if key is not None and self._newest[key] == number:
            del self._newest[key]
        return item

    def _make_room(self) -> list[T]:
        for number in self._superseded:
            self._bytes -= self._items.pop(number)[1]
        self.conflated += len(self._superseded)
        self._superseded.clear()
        lost: list[T] = []
        while self._bytes > self._max_bytes or len(self._items) > max(self._room(), self._most):
            lost.append(self.pop())
        self.lost += len(lost)
        return lost

    def _room(self) -> int:
        return max(self._limit, self._of_each * len(self._newest))
