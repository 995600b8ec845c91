"""What a callee remembers of calls that are over, so that none of them runs once more.

Of each session it knows calls that ended, with their replies; ids that were declared as never to
run; and one number, up to which every id counts as used. Whatever is forgotten raises that number:
so to forget never lets a call run, it only makes the answer "that is too long ago".
"""

from __future__ import annotations

import math
from collections import OrderedDict, deque
from typing import NamedTuple

from labmesh.errors import Cancelled, OutcomeUnknown, ProtocolError
from labmesh.protocol.codec import Buffer
from labmesh.protocol.open_call import OpenCall, Owner

__all__ = ["Memory", "PastCalls"]

Calls = dict[tuple[Owner, str], OpenCall]


class Memory(NamedTuple):
    """How much is remembered: of all sessions together, and of one of them.

    One session has less than all of it, so that a busy one does not make others forgotten.
    """

    seconds: float = 600.0
    calls: int = 50_000
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
    """The memory of one callee.

    :param calls: the callee's calls by owner and id; those that are forgotten are taken out.
    """

    def __init__(self, calls: Calls, memory: Memory) -> None:
        self._calls = calls
        self._memory = memory
        self._sessions: dict[Owner, _Session] = {}
        #: the oldest first, as everywhere below
        self._ended: OrderedDict[OpenCall, None] = OrderedDict()
        self._size = 0
        #: with the time when it was declared
        self._withdrawn: OrderedDict[tuple[Owner, int], float] = OrderedDict()
        self._used: OrderedDict[Owner, _Used] = OrderedDict()
        #: of calls that were accepted until then, some are not even counted as used any more
        self.lost_until = -math.inf
        #: when :meth:`tidy` next has something to do, or earlier
        self.next_at = math.inf

    def __len__(self) -> int:
        """Calls that ended."""
        return len(self._ended)

    @property
    def withdrawn(self) -> int:
        """Ids that were declared as never to run."""
        return len(self._withdrawn)

    @property
    def sessions(self) -> int:
        """Sessions that something is known of."""
        return len(self._sessions) + len(self._used)

    def refuse_used(self, owner: Owner, call_id: str) -> None:
        """Refuse the id of a call that is not known, if it may not be that of a new one.

        :raises OutcomeUnknown: it is too old: whether it ran is forgotten.
        :raises Cancelled: its owner was told that it will never run.
        :raises ProtocolError: it is not what ids of a session are.
        """
        number = number_of(call_id)
        session = self._sessions.get(owner)
        if session is not None and number > session.used_until and not session.withdrawn:
            return  # as nearly always
        if number <= self._used_until(owner):
            raise OutcomeUnknown(
                f"call {call_id} is too long ago: whether it ran is not known any more"
            )
        if (owner, number) in self._withdrawn:
            raise Cancelled(f"call {call_id} was given up; it did not run and will not")

    def add(self, opened: OpenCall, reply: list[Buffer] | None) -> None:
        """A call ended. Its reply is kept if it is not too large."""
        memory, owner = self._memory, opened.owner
        session = self._sessions.get(owner) or self._session(owner)
        ended = session.ended
        ended.append(opened)
        session.last_at = opened.ended_at
        self._ended[opened] = None
        if reply is not None:
            size = len(reply[0]) if len(reply) == 1 else sum(map(len, reply))
            if size <= memory.size_of_reply:
                opened.reply = reply
                session.size += size
                self._size += size
        if self.next_at == math.inf:
            self.next_at = opened.ended_at + memory.seconds
        while len(ended) > memory.calls_of_one or session.size > memory.size_of_one:
            self._forget(ended[0], session)
        while len(self._ended) > memory.calls or self._size > memory.size:
            self._forget(next(iter(self._ended)))

    def withdraw(self, owner: Owner, call_id: str, now: float) -> None:
        """From here on a call of this id does not run. It must not be known."""
        memory, session, number = self._memory, self._session(owner), number_of(call_id)
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
        while self._ended:
            oldest = next(iter(self._ended))
            if oldest.ended_at + seconds >= now:
                firsts.append(oldest.ended_at)
                break
            self._forget(oldest)
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
        session = self._sessions.get(owner) or self._used.get(owner)
        return 0 if session is None else session.used_until

    def _session(self, owner: Owner) -> _Session:
        session = self._sessions.get(owner)
        if session is None:
            session = self._sessions[owner] = _Session()
            used = self._used.pop(owner, None)
            if used is not None:
                session.used_until = used.used_until
        return session

    def _forget(self, opened: OpenCall, session: _Session | None = None) -> None:
        """The oldest of all is the oldest of its session as well: they ended in one order."""
        owner, reply = opened.owner, opened.reply
        if session is None:
            session = self._sessions[owner]
        session.ended.popleft()
        del self._ended[opened]
        del self._calls[owner, opened.id]
        if reply is not None:
            size = len(reply[0]) if len(reply) == 1 else sum(map(len, reply))
            session.size -= size
            self._size -= size
        self._raise_used(owner, session, int(opened.id))

    def _count_as_used(self, owner: Owner, number: int) -> None:
        session = self._sessions[owner]
        del session.withdrawn[number]
        del self._withdrawn[owner, number]
        self._raise_used(owner, session, number)

    def _raise_used(self, owner: Owner, session: _Session, number: int) -> None:
        if number > session.used_until:
            session.used_until = number
        if session.ended or session.withdrawn:
            return
        del self._sessions[owner]
        self._used[owner] = _Used(session.used_until, session.last_at)
        if len(self._used) > self._memory.sessions:
            _, lost = self._used.popitem(last=False)
            self.lost_until = max(self.lost_until, lost.last_at)


class _Session:
    """What is known of one session."""

    __slots__ = ("ended", "last_at", "size", "used_until", "withdrawn")

    def __init__(self) -> None:
        self.ended: deque[OpenCall] = deque()
        #: bytes of the replies in ``ended``
        self.size = 0
        self.withdrawn: OrderedDict[int, None] = OrderedDict()
        #: every id up to this one counts as used
        self.used_until = 0
        self.last_at = -math.inf


class _Used(NamedTuple):
    """What is left of a session of which nothing else is known."""

    used_until: int
    last_at: float


def number_of(call_id: str) -> int:
    """The id of a call of a session.

    Each number has one way to be written: two would be two calls.

    :raises ProtocolError: it is none.
    """
    if len(call_id) < 20 and call_id.isdecimal() and call_id.isascii() and call_id[0] != "0":
        return int(call_id)
    raise ProtocolError(
        "with a session, ids are decimal numbers from 1 on that grow from call to call"
    )
