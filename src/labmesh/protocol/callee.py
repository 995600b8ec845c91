"""The callee's calls: those that are open, and for a while how those ended that are not.

The callee's promises: a call that has not begun by its deadline never begins; and a call of a
session runs at most once, however often it is sent, over whatever connection.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from typing import Any

from labmesh.errors import (
    Busy,
    Conflict,
    Expired,
    NotFound,
    OutcomeUnknown,
    ProtocolError,
    StaleEpoch,
)
from labmesh.protocol.alarms import Alarms
from labmesh.protocol.codec import Buffer
from labmesh.protocol.messages import Alive, Invocation, Request
from labmesh.protocol.open_call import Ended, OpenCall, Owner, given_of
from labmesh.protocol.past_calls import Memory, PastCalls

__all__ = ["Callee", "admit"]

#: A callee sends the first sign of life when a call outlasts this, and then one an interval.
FIRST_SIGN_S = 0.05
SIGN_INTERVAL_S = 1.0

_MEMORY = Memory()


def admit(request: Request, *, node_id: str, epoch: str, now: float) -> None:
    """Refuse a request that is meant for another node, another incarnation, or an earlier time.

    A call of a session that comes late is let through: it may have come before, in time, and then
    "it was not run" would be wrong. Its callee knows.

    :raises NotFound: the target is another node (its port was taken over).
    :raises StaleEpoch: the target is an earlier incarnation of this node.
    :raises Expired: the deadline has passed.
    :raises ProtocolError: the deadline is not a finite number.
    """
    if request.target and request.target != node_id:
        raise NotFound(
            f"this is {node_id}, not {request.target[:128]}: its address was taken over; "
            "look it up again at the broker",
            node_id=node_id,
        )
    if request.epoch and request.epoch != epoch:
        raise StaleEpoch(
            f"{node_id} was restarted since you last spoke to it; this was not run", epoch=epoch
        )
    if request.deadline is not None:
        if not math.isfinite(request.deadline):
            raise ProtocolError("the deadline must be a finite number of seconds")
        if request.deadline <= now and not (isinstance(request, Invocation) and request.session):
            raise _late()


def _late() -> Expired:
    return Expired("the deadline passed on the way; it was not run and will not be")


class Callee:
    """The calls of one relay.

    An *owner* stands for one client: its session, or its connection when it has none. Only the
    calls of a session are remembered when they have ended. Their ids are decimal numbers that grow,
    so that one number a session tells which ids are too old to be known.

    :param max_open: calls that one owner may have open.
    :param limit_s: the longest that any call may wait for its turn.
    :param began_at: of calls that were sent earlier it knows nothing: another one had them.
    :param memory: how much it remembers of calls that have ended.
    """

    def __init__(
        self,
        *,
        max_open: int = 4096,
        limit_s: float = 86_400.0,
        began_at: float = -math.inf,
        memory: Memory = _MEMORY,
    ) -> None:
        self._max_open = max_open
        self._began_at = began_at
        self._limit_s = limit_s
        #: those that are too new for a sign of life; most calls end as such
        self._young: deque[OpenCall] = deque()
        self._deadlines = Alarms[int]()
        self._signs = Alarms[int]()
        self._lasting: dict[int, OpenCall] = {}
        self._past = PastCalls(memory)
        #: of each owner: its open calls, and those of a session that ended and are remembered
        self._known = self._past.known

    def __len__(self) -> int:
        return sum(each.open for each in self._known.values())

    @property
    def remembered(self) -> int:
        """How many calls that have ended are known."""
        return len(self._past)

    @property
    def withdrawn(self) -> int:
        """How many ids are known that will never run."""
        return self._past.withdrawn

    @property
    def sessions(self) -> int:
        """How many sessions are known that have no call open."""
        return self._past.sessions

    # ── calls come ──────────────────────────────────────────────────────────────────────────────

    def find_repeated(
        self, owner: Owner, request: Invocation, method: str, origin: Any, now: float
    ) -> OpenCall | None:
        """The call that was sent before under this id; its replies go to ``origin`` from now on.

        None: it is a new one.

        :raises Conflict: the id belongs to another call.
        :raises Cancelled: its owner was told that it will never run.
        :raises OutcomeUnknown: the id is too old: whether it ran is forgotten.
        :raises ProtocolError: the id is not what ids of a session are.
        """
        of_owner = self._known.get(owner)
        known = None if of_owner is None else of_owner.calls.get(request.id)
        if known is not None:
            if not request.session:
                raise Conflict(f"call {request.id} is already open; a new call needs a new id")
            if known.method != method:
                raise Conflict(f"call {request.id} was {known.method}; a new call needs a new id")
            if known.given and known.given != given_of(request):
                raise Conflict(
                    f"call {request.id} was {method} with other parameters; a new call needs a new "
                    "id"
                )
            known.origin = origin
            known.heard_at = now
            return known
        if request.session:
            self._past.refuse_used(of_owner, owner, request.id)
        return None

    def are_new(self, owner: Owner, requests: Sequence[Invocation]) -> bool:
        """Whether these are all new calls of one session, and there is room for them: then
        :meth:`find_repeated` has nothing to say of any of them, and :meth:`accept_all` nothing
        against them. False also where that takes a closer look at each.

        :param owner: of the first of them.
        """
        known, session = self._known.get(owner), requests[0].session
        return (
            known is not None
            and bool(session)
            and [each.session for each in requests].count(session) == len(requests)
            and known.open + len(requests) <= self._max_open
            and known.are_free([each.id for each in requests])
        )

    def has_come(self, owner: Owner, request_id: str) -> bool:
        """Whether this call is open, or has ended and is remembered."""
        return self._call(owner, request_id) is not None

    def accept(self, opened: OpenCall) -> None:
        """Take a new call in.

        :raises Busy: its owner has too many open calls.
        """
        self.accept_all(opened.owner, (opened,), opened.accepted_at)

    def accept_all(self, owner: Owner, calls: Sequence[OpenCall], now: float) -> None:
        """:meth:`accept`, for several of one owner: all of them, or none."""
        known = self._known.get(owner) or self._past.know(owner)
        if known.open + len(calls) > self._max_open:
            count = known.open
            raise Busy(f"{count} calls of this client are open, the limit; wait for some to end")
        known.open += len(calls)
        of_owner, young, soon = known.calls, self._young, now + FIRST_SIGN_S
        for opened in calls:
            of_owner[opened.id] = opened
            if opened.deadline < soon:
                self._watch(opened)
            else:
                young.append(opened)
        if self._past.next_at < now:
            self._past.tidy(now)

    def refused(self, owner: Owner, call_id: str, now: float) -> None:
        """A call of a session was refused: it must not run either when it comes once more."""
        if self._call(owner, call_id) is None:
            self._past.withdraw(owner, call_id, now)

    def deadline_of(self, deadline: float | None, now: float) -> float:
        """When a call that asks for this deadline must have begun.

        :raises Expired: it has passed.
        """
        if deadline is not None and deadline <= now:
            raise _late()
        limit = now + self._limit_s
        return limit if deadline is None or deadline > limit else deadline

    def find(self, owner: Owner, call_id: str) -> OpenCall:
        """:raises NotFound: this client has no open call of this id."""
        found = self._call(owner, call_id)
        if found is None or found.ended is not None:
            raise NotFound(f"no call {call_id} is open here; it has ended, or never arrived")
        return found

    def _call(self, owner: Owner, call_id: str) -> OpenCall | None:
        """The call, if it is open or remembered."""
        known = self._known.get(owner)
        return None if known is None else known.calls.get(call_id)

    # ── calls end ───────────────────────────────────────────────────────────────────────────────

    def finish(
        self, opened: OpenCall, outcome: Ended, reply: list[Buffer] | None, now: float
    ) -> bool:
        """The call ended; False: it had been ended before, and there is nobody to tell."""
        if opened.ended is not None:
            return False
        opened.ended, opened.ended_at = outcome, now
        if self._lasting:
            key = id(opened)
            if self._lasting.pop(key, None) is not None:
                self._deadlines.drop(key)
                self._signs.drop(key)
        self._past.end(opened, reply)
        return True

    # ── questions ───────────────────────────────────────────────────────────────────────────────

    def look_up(
        self, owner: Owner, call_id: str, age_s: float, now: float, *, kept: bool = True
    ) -> OpenCall | None:
        """What became of a call of this client; None: it never arrived, and it will not run.

        :param age_s: how long ago it was sent.
        :param kept: its calls are remembered when they have ended: it has a session.
        :raises OutcomeUnknown: it is too long ago to tell.
        """
        known = self._call(owner, call_id)
        if known is not None:
            return known
        if not kept:
            raise OutcomeUnknown(
                f"no call {call_id} is open; one that has ended is forgotten at once where its "
                "client names no session"
            )
        if now - age_s < self._began_at:
            raise OutcomeUnknown(
                f"call {call_id} was sent before this relay was started: only the one before knew "
                "whether it ran; look at the instrument"
            )
        self._past.tidy(now)
        if self._past.is_used(owner, call_id) or now - age_s <= self._past.lost_until:
            raise OutcomeUnknown(f"call {call_id} is too long ago: whether it ran is forgotten")
        self._past.withdraw(owner, call_id, now)
        return None

    # ── time ────────────────────────────────────────────────────────────────────────────────────

    def overdue(self, now: float) -> list[OpenCall]:
        """Calls that wait beyond their deadline, each told once.

        The shell takes them out of the queue; one that it does not find there any more is about to
        be asked whether it may begin, and may not.
        """
        self._grow_up(now)
        over = [self._lasting[key] for key in self._deadlines.ring(now)]
        return [each for each in over if each.begun_at is None]

    def signs(self, now: float) -> list[tuple[OpenCall, Alive]]:
        """The signs of life that are due."""
        self._grow_up(now)
        due = self._signs.ring(now)
        for key in due:
            self._signs.set(key, now + SIGN_INTERVAL_S)
        calls = [self._lasting[key] for key in due]
        return [
            (each, Alive(id=each.id, state="queued" if each.begun_at is None else "running"))
            for each in calls
        ]

    def next_deadline(self) -> float | None:
        """When :meth:`overdue` and :meth:`signs` next want to be called."""
        firsts = (self._deadlines.first(), self._signs.first())
        times = [first[0] for first in firsts if first is not None]
        if self._young:
            times.append(self._young[0].accepted_at + FIRST_SIGN_S)
        return min(times, default=None)

    def _grow_up(self, now: float) -> None:
        """Calls that have lasted for a while, and are few, get alarms of their own."""
        young = self._young
        while young and young[0].accepted_at + FIRST_SIGN_S <= now:
            opened = young.popleft()
            if opened.ended is None:
                self._watch(opened)

    def _watch(self, opened: OpenCall) -> None:
        key = id(opened)
        self._lasting[key] = opened
        self._deadlines.set(key, opened.deadline)
        self._signs.set(key, opened.accepted_at + FIRST_SIGN_S)
