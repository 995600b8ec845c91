"""Which connections of a socket hold messages that do not end.

ZeroMQ limits a frame, not a message: it keeps the frames of one until the last has come, and tells
nobody. What a connection has brought is known from outside, and the reader of the socket knows
whose messages it takes. So the reader tells of those that brought much; and who brings much more
while no message of it is taken, although nothing is left to take, has one that does not end.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["Unfinished"]

#: Heartbeats are no messages, and are counted all the same.
_HEARTBEAT_BYTES_S = 256
#: A reader that never finds its socket empty takes messages of all connections in turn.
_TURNS, _MORE_TURNS = 2, 100
#: Above this part of what is allowed the reader is to tell of a connection.
_SHARE = 4


@dataclass(slots=True)
class _Connection:
    #: what it had brought when it was known last that all of that may have ended
    clear: int
    at: float
    #: since when the reader is to tell of it; None: it is not
    since: float | None = None
    #: what it had brought when the reader was asked whether all was taken; None: it was not
    asked: int | None = None


class Unfinished:
    """The connections of one socket, by number.

    One thread calls everything but :meth:`heard` and :meth:`emptied`, which are the reader's.

    :param limit: bytes that one connection may bring of a message that has not ended.
    :param limit_of_all: bytes that all connections together may.
    """

    def __init__(self, limit: int, limit_of_all: int) -> None:
        self._limit = limit
        self._limit_of_all = limit_of_all
        self._connections: dict[int, _Connection] = {}
        #: connections of which the reader is to tell; nearly always none
        self.suspects: set[int] = set()
        #: the number of the last question
        self.question = 0
        self._is_answered = True
        self._turns = 0

    def __len__(self) -> int:
        return len(self._connections)

    def accepted(self, connection: int, now: float) -> None:
        """There is a new connection; the number may have been another one's."""
        self.suspects.discard(connection)
        self._connections[connection] = _Connection(0, now)

    def ended(self, connection: int) -> None:
        """A connection is no more."""
        self.suspects.discard(connection)
        self._connections.pop(connection, None)

    def heard(self, connection: int) -> None:
        """The reader has taken a message of this connection; told while there are suspects."""
        self.suspects.discard(connection)
        self._turns += 1

    def emptied(self, question: int) -> None:
        """The reader found nothing to take, after it was asked this question."""
        self._is_answered = self._is_answered or question == self.question

    @property
    def is_asking(self) -> bool:
        """The reader was asked whether all was taken, and :meth:`look` does not know yet."""
        return any(each.asked is not None for each in self._connections.values())

    def look(self, brought: Mapping[int, int], now: float) -> dict[int, int]:
        """Whose connections are to be ended, and how many bytes each left unfinished.

        :param brought: all bytes that each connection has brought so far.
        """
        held: dict[int, int] = {}
        if self.is_asking:
            all_had_turns = self._turns > _TURNS * len(self) + _MORE_TURNS
            if not self._is_answered and not all_had_turns:
                return {}
            held = self._settle()
        self._suspect(brought, now)
        cut = self._too_much(held)
        pending = {
            number: brought[number] - each.clear
            for number, each in self._connections.items()
            if number in self.suspects and number in brought and number not in cut
        }
        if self._too_much(pending):
            self._ask(brought)
        return cut

    def _settle(self) -> dict[int, int]:
        """What was unfinished when the reader was asked, by connection."""
        held = {}
        for number, each in self._connections.items():
            if each.asked is not None and number in self.suspects:
                held[number] = each.asked - each.clear
            each.asked = None
        return held

    def _suspect(self, brought: Mapping[int, int], now: float) -> None:
        """Have the reader tell of those that brought more than their share."""
        share = min(self._limit, self._limit_of_all // (len(self) or 1)) // _SHARE
        for number, each in self._connections.items():
            if number not in brought:
                continue  # its end is about to be told
            beaten = int((now - each.at) * _HEARTBEAT_BYTES_S)
            each.clear, each.at = min(brought[number], each.clear + beaten), now
            if number in self.suspects:
                continue
            if each.since is not None:  # the reader has taken a message of it
                each.clear, each.since = brought[number], None
            elif brought[number] - each.clear > share:
                # Until now messages may have ended without anybody's telling.
                each.clear, each.since = brought[number], now
                self.suspects.add(number)

    def _ask(self, brought: Mapping[int, int]) -> None:
        for number in self.suspects & brought.keys():
            self._connections[number].asked = brought[number]
        self._is_answered, self._turns = False, 0
        self.question += 1

    def _too_much(self, held: Mapping[int, int]) -> dict[int, int]:
        """Those over the limit. If the others are too much together, those that take longest."""
        cut = {number: size for number, size in held.items() if size > self._limit}
        total = sum(held.values()) - sum(cut.values())
        for number in sorted(held.keys() - cut.keys(), key=self._since):
            if total <= self._limit_of_all:
                break
            cut[number] = held[number]
            total -= held[number]
        return cut

    def _since(self, number: int) -> float:
        return self._connections[number].since or 0.0
