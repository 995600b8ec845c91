"""What a callee remembers of calls that are over, so that none of them runs once more.

Of each session it knows calls that ended, with their replies; ids that were declared as never to
run; and one number, up to which every id counts as used. Whatever is forgotten raises that number:
so to forget never lets a call run, it only makes the answer "that is too long ago".
"""

from __future__ import annotations

import math
from collections import OrderedDict, deque
from heapq import heappop, heappush, heapreplace
from typing import NamedTuple

from labmesh.errors import Cancelled, OutcomeUnknown, ProtocolError
from labmesh.protocol.codec import Buffer
from labmesh.protocol.open_call import OpenCall, Owner

__all__ = ["Known", "Memory", "PastCalls"]

#: Ids of calls have fewer digits.
_DIGITS = 20
#: A session may have so small a part of its calls too many; then it loses these at once.
_BLOCK = 128


class Memory(NamedTuple):
    """How much is remembered: of all sessions together, and of one of them.

    One session has less than all of it, so that a busy one does not make others forgotten.
    """

    seconds: float = 600.0
    calls: int = 50_000
    #: so many at least, and by the 128th part more at most
    calls_of_one: int = 16_384
    #: of replies
    size: int = 64 * 2**20
    size_of_one: int = 32 * 2**20
    #: a larger reply is not kept
    size_of_reply: int = 64 * 2**10
    #: ids that never run
    withdrawn: int = 50_000
    withdrawn_of_one: int = 4096
    #: sessions of which only the number up to which ids are used is left
    sessions: int = 32_768


class PastCalls:
    """The memory of one callee, with what is open."""

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        # Plain attributes: they are looked at with each call.
        self._calls = memory.calls
        self._most_of_one = memory.calls_of_one + memory.calls_of_one // _BLOCK
        self._size_of_all, self._size_of_one = memory.size, memory.size_of_one
        self._size_of_reply = memory.size_of_reply
        #: by owner, who it is that something is known of
        self.known: dict[Owner, Known] = {}
        #: sessions with calls that ended, by when the oldest of them did, or by an earlier time
        self._order: list[tuple[float, int, Known]] = []
        self._turn = 0
        self._count = 0
        self._size = 0
        #: with the time when it was declared; the oldest first, as below
        self._withdrawn: OrderedDict[tuple[Owner, int], float] = OrderedDict()
        self._used: OrderedDict[Owner, _Used] = OrderedDict()
        #: of calls that were accepted until then, some are not even counted as used any more
        self.lost_until = -math.inf
        #: when :meth:`tidy` next has something to do, or earlier
        self.next_at = math.inf

    def __len__(self) -> int:
        """Calls that ended."""
        return self._count

    @property
    def withdrawn(self) -> int:
        """Ids that were declared as never to run."""
        return len(self._withdrawn)

    @property
    def sessions(self) -> int:
        """Sessions of which more is known than what they have open."""
        return sum(each.is_past for each in self.known.values()) + len(self._used)

    def refuse_used(self, known: Known | None, owner: Owner, call_id: str) -> None:
        """Refuse the id of a call that is not known, if it may not be that of a new one.

        :param known: what is known of its owner.

        :raises OutcomeUnknown: it is too old: whether it ran is forgotten.
        :raises Cancelled: its owner was told that it will never run.
        :raises ProtocolError: it is not what ids of a session are.
        """
        number = number_of(call_id)
        if known is not None and number > known.used_until and not known.withdrawn:
            return  # as nearly always
        if number <= self._used_until(owner):
            raise OutcomeUnknown(
                f"call {call_id} is too long ago: whether it ran is not known any more"
            )
        if (owner, number) in self._withdrawn:
            raise Cancelled(f"call {call_id} was given up; it did not run and will not")

    def end(self, opened: OpenCall, reply: list[Buffer] | None) -> None:
        """A call ended. If it is to be kept, its reply is, too, where that is not too large."""
        known = self.known[opened.owner]
        known.open -= 1
        if not opened.kept:
            del known.calls[opened.id]
            self._let_go(known)
            return
        known.ended.append(opened)
        self._count += 1
        if not known.listed:
            self._list(known, opened.ended_at)
        if reply is not None:
            size = len(reply[0]) if len(reply) == 1 else sum(map(len, reply))
            if size <= self._size_of_reply:
                opened.reply = reply
                known.size += size
                self._size += size
        if (
            len(known.ended) > self._most_of_one
            or self._count > self._calls
            or known.size > self._size_of_one
            or self._size > self._size_of_all
        ):
            self._make_room(known)

    def withdraw(self, owner: Owner, call_id: str, now: float) -> None:
        """From here on a call of this id does not run. It must not be known."""
        memory, session, number = self._memory, self.know(owner), number_of(call_id)
        session.last_at = now
        # A second time it moves to the end, as what is young.
        session.withdrawn.pop(number, None)
        self._withdrawn.pop((owner, number), None)
        session.withdrawn[number] = None
        self._withdrawn[owner, number] = now
        if self.next_at == math.inf:
            self.next_at = now + memory.seconds
        if len(session.withdrawn) > memory.withdrawn_of_one:
            self._count_as_used(owner, next(iter(session.withdrawn)))
        if len(self._withdrawn) > memory.withdrawn:
            self._count_as_used(*next(iter(self._withdrawn)))

    def tidy(self, now: float) -> None:
        """Forget what is too long ago."""
        seconds = self._memory.seconds
        firsts = [math.inf]
        while (session := self._oldest()) is not None:
            ended_at = session.ended[0].ended_at
            if ended_at + seconds >= now:
                firsts.append(ended_at)
                break
            self._forget(session, 1)
        while self._withdrawn:
            key, at = next(iter(self._withdrawn.items()))
            if at + seconds >= now:
                firsts.append(at)
                break
            self._count_as_used(*key)
        self.next_at = min(firsts) + seconds

    def is_used(self, owner: Owner, call_id: str) -> bool:
        """Does this id count as used, without anything else being known of it?"""
        return number_of(call_id) <= self._used_until(owner)

    def _used_until(self, owner: Owner) -> int:
        session = self.known.get(owner) or self._used.get(owner)
        return 0 if session is None else session.used_until

    def know(self, owner: Owner) -> Known:
        """What is known of this owner, from now on kept."""
        known = self.known.get(owner)
        if known is None:
            known = self.known[owner] = Known(owner)
            used = self._used.pop(owner, None)
            if used is not None:
                known.used_until = used.used_until
        return known

    def _list(self, session: Known, ended_at: float) -> None:
        session.listed = True
        self._turn += 1
        heappush(self._order, (ended_at, self._turn, session))
        if self.next_at == math.inf:
            self.next_at = ended_at + self._memory.seconds

    def _oldest(self) -> Known | None:
        """The session of the call that ended first of all that are known."""
        order = self._order
        while order:
            listed_at, _, session = order[0]
            if not session.ended:
                heappop(order)
                session.listed = False
                continue
            ended_at = session.ended[0].ended_at
            if ended_at <= listed_at:
                return session
            self._turn += 1
            heapreplace(order, (ended_at, self._turn, session))
        return None

    def _make_room(self, session: Known) -> None:
        memory = self._memory
        if len(session.ended) > self._most_of_one:
            # Some at a time: one by one, they cost each call that ends as much as it does itself.
            self._forget(session, len(session.ended) - memory.calls_of_one)
        while session.size > memory.size_of_one:
            self._forget(session, 1)
        while self._count > memory.calls or self._size > memory.size:
            oldest = self._oldest()
            assert oldest is not None
            self._forget(oldest, 1)

    def _forget(self, session: Known, count: int) -> None:
        """The oldest of a session."""
        calls, ended = session.calls, session.ended
        freed = 0
        ids = []
        for _ in range(count):
            opened = ended.popleft()
            call_id, reply = opened.id, opened.reply
            ids.append(call_id)
            del calls[call_id]
            if reply is not None:
                freed += len(reply[0]) if len(reply) == 1 else sum(map(len, reply))
        session.last_at = max(session.last_at, opened.ended_at)
        self._count -= count
        session.size -= freed
        self._size -= freed
        self._raise_used(session, max(map(int, ids)))

    def _count_as_used(self, owner: Owner, number: int) -> None:
        session = self.known[owner]
        del session.withdrawn[number]
        del self._withdrawn[owner, number]
        self._raise_used(session, number)

    def _raise_used(self, session: Known, number: int) -> None:
        if number > session.used_until:
            session.used_until = number
        self._let_go(session)

    def _let_go(self, known: Known) -> None:
        """Of an owner that has nothing any more, one number is left."""
        if known.open or known.is_past:
            return
        del self.known[known.owner]
        if not known.used_until:
            return
        self._used[known.owner] = _Used(known.used_until, known.last_at)
        if len(self._used) > self._memory.sessions:
            _, lost = self._used.popitem(last=False)
            self.lost_until = max(self.lost_until, lost.last_at)


class Known:
    """What is known of one owner of calls."""

    __slots__ = (
        "calls",
        "ended",
        "last_at",
        "listed",
        "open",
        "owner",
        "size",
        "used_until",
        "withdrawn",
    )

    def __init__(self, owner: Owner) -> None:
        self.owner = owner
        #: those that are open, and those of a session that ended and are remembered
        self.calls: dict[str, OpenCall] = {}
        #: how many are open
        self.open = 0
        #: it has its place among those with calls that ended
        self.listed = False
        self.ended: deque[OpenCall] = deque()
        #: bytes of the replies in ``ended``
        self.size = 0
        self.withdrawn: OrderedDict[int, None] = OrderedDict()
        #: every id up to this one counts as used
        self.used_until = 0
        self.last_at = -math.inf

    def are_free(self, call_ids: list[str]) -> bool:
        """Whether these are all ids that new calls of this session may have, with one number of
        digits; False: that takes a look at each, with :meth:`PastCalls.refuse_used`."""
        # Of texts with as many digits the first in the alphabet is the smallest number.
        digits, least = "".join(call_ids), min(call_ids)
        return (
            len({*map(len, call_ids)}) == 1
            and len(least) < _DIGITS
            and digits.isdecimal()
            and digits.isascii()
            and least[0] != "0"
            and int(least) > self.used_until
            and len({*call_ids}) == len(call_ids)
            and self.calls.keys().isdisjoint(call_ids)
            and (not self.withdrawn or self.withdrawn.keys().isdisjoint(map(int, call_ids)))
        )

    @property
    def is_past(self) -> bool:
        """Something is known beside what is open."""
        return bool(self.ended or self.withdrawn)


class _Used(NamedTuple):
    """What is left of a session of which nothing else is known."""

    used_until: int
    last_at: float


def number_of(call_id: str) -> int:
    """The id of a call of a session.

    Each number has one way to be written: two would be two calls.

    :raises ProtocolError: it is none.
    """
    if len(call_id) < _DIGITS and call_id.isdecimal() and call_id.isascii() and call_id[0] != "0":
        return int(call_id)
    raise ProtocolError(
        "with a session, ids are decimal numbers from 1 on that grow from call to call"
    )
