"""A bounded queue that, when it is full, keeps the newest of each state."""

from __future__ import annotations

from collections import deque
from typing import Generic, TypeVar

__all__ = ["Inbox"]

T = TypeVar("T")


class Inbox(Generic[T]):
    """Items in order of arrival, at most ``limit``.

    An item with a key replaces older ones of its key once the queue is full (a state that nobody
    has looked at yet is worth nothing when there is a newer one). If that does not make room, the
    oldest item goes. ``conflated`` and ``lost`` count both, so that nothing vanishes unseen.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._items: deque[tuple[str | None, T]] = deque()
        self.conflated = 0
        self.lost = 0

    def __len__(self) -> int:
        return len(self._items)

    def put(self, item: T, *, key: str | None = None) -> None:
        """Append an item."""
        self._items.append((key, item))
        if len(self._items) > self._limit:
            self._conflate()
            while len(self._items) > self._limit:
                self._items.popleft()
                self.lost += 1

    def take(self) -> list[T]:
        """All items, oldest first; the queue is empty then."""
        items, self._items = self._items, deque()
        return [item for _, item in items]

    def pop(self) -> T:
        """The oldest item.

        :raises IndexError: there is none.
        """
        return self._items.popleft()[1]

    def _conflate(self) -> None:
        newest: set[str] = set()
        kept: deque[tuple[str | None, T]] = deque()
        for key, item in reversed(self._items):
            if key is None or key not in newest:
                kept.appendleft((key, item))
            if key is not None:
                newest.add(key)
        self.conflated += len(self._items) - len(kept)
        self._items = kept
