"""Which subscribers let too much wait for them.

ZeroMQ limits how many messages wait for a peer, not how many bytes, and tells of neither. Its limit
must not be changed while there are connections either: a reader says only now and then how far it
has come, so that the writer takes an empty queue for a full one for ever when the limit falls.

What the operating system tells of a connection is enough: how many bytes its peer has taken, and
whether any wait. What was sent to it since and was not taken waits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

__all__ = ["Backlogs", "Sent", "Share"]


class Sent(NamedTuple):
    """What the system tells of a connection."""

    #: bytes that its peer has taken so far
    taken: int
    #: bytes that wait in the system for the peer to take them
    waiting: int


class Share(NamedTuple):
    """What a connection was to be sent."""

    #: another number whenever it is a share of something else
    of: tuple[int, int]
    #: bytes so far
    size: int


class _Backlog:
    __slots__ = ("share", "size", "taken")

    def __init__(self, taken: int) -> None:
        self.taken = taken
        #: bytes that wait at most
        self.size = 0
        self.share: Share | None = None


class Backlogs:
    """The subscribers of one socket, by number.

    As long as little waits, all that is sent to anybody is taken to be sent to each: that bounds
    what waits, and costs nothing. Only for those who seem to be behind their share is asked for.

    :param limit: bytes that may wait for one.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._total = 0
        self._backlogs: dict[int, _Backlog] = {}

    def look(
        self, sent: Mapping[int, Sent], total: int, share_of: Callable[[int], Share]
    ) -> dict[int, int]:
        """For whom too much waits, and how many bytes at most. They are forgotten.

        :param sent: of all that there are.
        :param total: bytes that were sent so far, to whomever.
        """
        for number in self._backlogs.keys() - sent.keys():
            del self._backlogs[number]
        passed, self._total = total - self._total, total
        behind = {}
        for number, told in sent.items():
            backlog = self._backlogs.get(number)
            if backlog is None or told.taken < backlog.taken:
                # New, or another connection of the same number.
                self._backlogs[number] = _Backlog(told.taken)
                continue
            share = share_of(number) if backlog.size > self._limit // 2 else None
            known, backlog.share = backlog.share, share
            is_known = known is not None and share is not None and known.of == share.of
            grown = share.size - known.size if is_known and share and known else passed
            size = max(0, backlog.size + grown - (told.taken - backlog.taken))
            backlog.taken = told.taken
            backlog.size = size if told.waiting else 0
            if backlog.size > self._limit:
                behind[number] = backlog.size
                del self._backlogs[number]
        return behind
