"""Readings for a caller that blocks: a bounded queue between two threads, and its iterator."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Protocol, Self

from labmesh.errors import NoAnswer
from labmesh.events.reading import Gaps, Reading
from labmesh.protocol.inbox import Inbox

__all__ = ["Mailbox", "Readings"]

_QUEUE = 1000
#: Where a wait cannot be interrupted (Windows), Ctrl-C is noticed this much later at most.
_LOOK_S = 0.25


class Mailbox:
    """Readings from one thread to another, at most ``limit``; when full, the newest of each relay.

    :attr:`Reading.missed` counts those that were skipped.
    """

    def __init__(self, limit: int = _QUEUE) -> None:
        self._inbox: Inbox[Reading] = Inbox(limit)
        self._gaps = Gaps()
        self._moved = threading.Condition()
        self._closed = False

    def put(self, reading: Reading) -> None:
        """Append a reading."""
        with self._moved:
            if not self._closed:
                self._inbox.put(reading, key=reading.relay_id, size=reading.size)
                self._moved.notify()

    def close(self) -> None:
        """Nothing more will come; what is there can still be taken."""
        with self._moved:
            self._closed = True
            self._moved.notify_all()

    def take(self, timeout: float | None) -> Reading | None:
        """The next reading; None: there will be none.

        :raises TimeoutError: none came within ``timeout`` seconds.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        with self._moved:
            while not len(self._inbox):
                if self._closed:
                    return None
                left_s = _LOOK_S if deadline is None else deadline - time.monotonic()
                if left_s <= 0:
                    raise TimeoutError
                self._moved.wait(min(left_s, _LOOK_S))
            return self._gaps.told(self._inbox.pop())


class Ends(Protocol):
    """What feeds a mailbox, and can be told to stop."""

    def cancel(self) -> None:
        """Stop; in any thread."""


class Readings(Iterator[Reading]):
    """The readings of one or more relays, as they come.

    It begins with the last state of each relay, and ends when the mesh is closed, or with
    :meth:`close`, which leaving a ``for`` loop does where nothing else refers to it. A reader that
    is too slow gets the newest readings, and ``reading.missed`` tells how many it did not get.

    :param what: whose readings, for errors.
    """

    def __init__(
        self, mailbox: Mailbox, source: Ends, *, what: str, timeout: float | None = None
    ) -> None:
        self._mailbox = mailbox
        self._source = source
        self._what = what
        self._timeout = timeout

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Reading:
        try:
            reading = self._mailbox.take(self._timeout)
        except TimeoutError:
            raise NoAnswer(
                f"no state of {self._what} within {self._timeout:g} s: does its driver have a "
                "poll() method, and does its relay run?"
            ) from None
        except BaseException:
            # Ctrl-C: the notebook keeps the traceback, and with it this iterator, for long.
            self.close()
            raise
        if reading is None:
            raise StopIteration
        return reading

    def close(self) -> None:
        """Stop receiving; twice is fine."""
        self._source.cancel()
        self._mailbox.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __del__(self) -> None:
        self._source.cancel()

    def __repr__(self) -> str:
        return f"<Readings of {self._what}>"
