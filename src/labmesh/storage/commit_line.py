"""Many threads that commit at once share what is dear: one sync, one transaction."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from itertools import takewhile
from typing import Generic, TypeVar

__all__ = ["CommitLine", "Place"]

T = TypeVar("T")


class Place(Generic[T]):
    """Somebody's place in the line."""

    def __init__(self, key: str, item: T) -> None:
        self.key = key
        self.item = item
        self.ready = False
        self.ended = False
        self.error: BaseException | None = None


class CommitLine(Generic[T]):
    """Commits items in the order in which their places were taken.

    The thread whose place comes first commits for all behind it that are ready; those that get
    ready meanwhile are the next group.

    :param commit: commits items, in order; returns for each what went wrong, or None. It is never
        called twice at a time.
    """

    def __init__(self, commit: Callable[[Sequence[T]], Sequence[BaseException | None]]) -> None:
        self._commit = commit
        self._line: deque[Place[T]] = deque()
        self._keys: set[str] = set()
        self._changed = threading.Condition()
        self._committing = False

    def join(self, key: str, make: Callable[[], T | None]) -> Place[T] | None:
        """Take the last place, once nobody in the line has the same ``key``.

        ``make`` gives the item, one call at a time, in the order of places; for None, or when it
        raises, no place is taken. Whoever has a place calls :meth:`commit` or :meth:`leave`.
        """
        with self._changed:
            self._changed.wait_for(lambda: key not in self._keys)
            item = make()
            if item is None:
                return None
            place = Place(key, item)
            self._line.append(place)
            self._keys.add(key)
            return place

    def leave(self, place: Place[T]) -> None:
        """Give a place up, uncommitted."""
        with self._changed:
            self._line.remove(place)
            self._end([place])

    def commit(self, place: Place[T]) -> None:
        """Return when the item is committed, as are all before it; raise what went wrong."""
        with self._changed:
            place.ready = True
            while not place.ended:
                self._changed.wait_for(lambda: place.ended or self._is_first_ready())
                if not place.ended:
                    self._commit_group()
        if place.error is not None:
            raise place.error

    def _is_first_ready(self) -> bool:
        return not self._committing and self._line[0].ready

    def _commit_group(self) -> None:
        """Commit what is ready at the head of the line, without the lock."""
        group = list(takewhile(lambda each: each.ready, self._line))
        self._committing = True
        self._changed.release()
        try:
            errors = self._commit([each.item for each in group])
        except BaseException as error:
            # A defect, or the program is ending: nobody may wait for ever.
            errors = [error] * len(group)
        finally:
            self._changed.acquire()
        self._committing = False
        for place, failed in zip(group, errors, strict=True):
            self._line.popleft()
            place.error = failed
        self._end(group)

    def _end(self, places: Sequence[Place[T]]) -> None:
        for place in places:
            place.ended = True
            self._keys.discard(place.key)
        self._changed.notify_all()
