"""Requests on both sides: the caller's open requests, the callee's open calls.

The caller's promise: every request ends once, by its deadline. The callee's promise: a call that
has not begun by its deadline never begins.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, field
from typing import Literal, TypeVar

from labmesh.errors import (
    Busy,
    Conflict,
    Expired,
    LabmeshError,
    LinkLost,
    NoAnswer,
    NotFound,
    NotSent,
    OutcomeUnknown,
    ProtocolError,
    StaleEpoch,
)
from labmesh.protocol.alarms import Alarms
from labmesh.protocol.messages import Alive, Call, Reply, Request

__all__ = ["Callee", "Caller", "ClockOffset", "OpenCall", "OpenRequest", "admit"]

K = TypeVar("K", bound=Hashable)

#: A callee sends the first sign of life when a call outlasts this, and then one an interval.
FIRST_SIGN_S = 0.05
SIGN_INTERVAL_S = 1.0
#: A caller gives a call up when nothing at all was heard of it for so long.
SILENCE_S = 4.0
#: How long after its deadline a call is waited for that is not known to have begun: its callee
#: refuses it at the deadline, and that word, which says that it did not run, is on its way.
LAST_WORD_S = 0.05


def admit(request: Request, *, node_id: str, epoch: str, now: float) -> None:
    """Refuse a request that is meant for another node, another incarnation, or an earlier time.

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
        if request.deadline <= now:
            raise Expired("the deadline passed on the way; it was not run and will not be")


class ClockOffset:
    """Translates a deadline into the target's monotonic clock, never later than it is.

    A pong that says ``clock`` was written before it arrived at ``received``: the target's clock is
    at least ``clock - received`` ahead of ours. The largest such lower bound is kept, so that the
    error is at most the fastest way back that was seen, and on the early side.
    """

    def __init__(self) -> None:
        self._ahead_s: float | None = None

    def learn(self, clock: float, received: float) -> None:
        """Take one pong: the target's clock, and our clock at its arrival (seconds)."""
        ahead_s = clock - received
        if self._ahead_s is None or ahead_s > self._ahead_s:
            self._ahead_s = ahead_s

    def forget(self) -> None:
        """The target was restarted; its clock may be another machine's."""
        self._ahead_s = None

    def translate(self, deadline: float) -> float | None:
        """Our deadline in the target's clock; None while no pong was seen."""
        return None if self._ahead_s is None else deadline + self._ahead_s


@dataclass(slots=True)
class OpenRequest:
    """A request that has not ended."""

    id: str
    deadline: float
    heard_at: float
    #: the driver's method, when the request moves an instrument; empty: harmless to repeat
    method: str = ""
    sent: bool = False
    state: Literal["", "queued", "running"] = ""


class Caller:
    """The open requests of one link.

    :param where: the other side, as people know it ("relay Inst-0 at tcp://10.0.0.5:5850").
    """

    def __init__(self, where: str, *, silence_s: float = SILENCE_S) -> None:
        self.where = where
        self._silence_s = silence_s
        self._open: dict[str, OpenRequest] = {}
        self._alarms = Alarms[str]()

    def __len__(self) -> int:
        return len(self._open)

    def open(self, request_id: str, *, deadline: float, now: float, method: str = "") -> None:
        """Begin to watch a request that is about to be sent."""
        self._open[request_id] = OpenRequest(request_id, deadline, now, method)
        self._alarms.set(request_id, deadline)

    def sent(self, request_id: str, now: float) -> None:
        """The request was handed to a live connection."""
        request = self._open.get(request_id)
        if request is not None:
            request.sent = True
            request.heard_at = now
            self._alarms.set(request_id, self._ends_at(request))

    def heard(self, reply: Reply, now: float) -> bool:
        """Take a reply; True: it ends its request. A reply to no open request is ignored."""
        request = self._open.get(reply.id)
        if request is None:
            return False
        if isinstance(reply, Alive):
            request.heard_at = now
            request.state = reply.state
            self._alarms.set(reply.id, self._ends_at(request))
            return False
        self.withdraw(reply.id)
        return True

    def withdraw(self, request_id: str) -> OpenRequest | None:
        """The caller no longer waits; the request as it stood, if it was still open."""
        self._alarms.drop(request_id)
        return self._open.pop(request_id, None)

    def lost(self) -> list[tuple[str, LabmeshError]]:
        """The connection broke: what was sent over it will never be answered."""
        ended = [request for request in self._open.values() if request.sent]
        return self._end(ended, self._lost_error)

    def expire(self, now: float) -> list[tuple[str, LabmeshError]]:
        """End what is over its deadline, and calls of which nothing was heard for too long."""
        ended = [self._open[request_id] for request_id in _ring(self._alarms, now)]
        return self._end(ended, self._expiry_error)

    def next_deadline(self) -> float | None:
        """When :meth:`expire` next wants to be called."""
        first = self._alarms.first()
        return None if first is None else first[0]

    def _ends_at(self, request: OpenRequest) -> float:
        if not request.method or not request.sent:
            return request.deadline
        last_word_s = 0.0 if request.state == "running" else LAST_WORD_S
        return min(request.deadline + last_word_s, request.heard_at + self._silence_s)

    def _end(
        self, ended: Iterable[OpenRequest], error: Callable[[OpenRequest], LabmeshError]
    ) -> list[tuple[str, LabmeshError]]:
        errors = [(request.id, error(request)) for request in ended]
        for request_id, _ in errors:
            self.withdraw(request_id)
        return errors

    def _lost_error(self, request: OpenRequest) -> LabmeshError:
        if request.method:
            return OutcomeUnknown(
                f"the link to {self.where} broke while {request.method} was "
                f"{request.state or 'on its way'}: it may have run; look at the instrument "
                "before you send it again",
                call=request.id,
            )
        return LinkLost(f"the link to {self.where} broke before it answered; try again")

    def _expiry_error(self, request: OpenRequest) -> LabmeshError:
        if not request.sent:
            return NotSent(f"no link to {self.where} in time; nothing was sent")
        if not request.method:
            return NoAnswer(f"no answer from {self.where} in time")
        if request.heard_at + self._silence_s < request.deadline:
            why = f"{self.where} fell silent while {request.method} was {_progress(request)}"
        else:
            why = f"{request.method} on {self.where} was {_progress(request)} at its deadline"
        return OutcomeUnknown(
            f"{why}: its outcome is unknown; look at the instrument before you send it again",
            call=request.id,
            state=request.state,
        )


def _progress(request: OpenRequest) -> str:
    return {"": "on its way", "queued": "waiting in the queue", "running": "running"}[request.state]


@dataclass(slots=True, eq=False)
class OpenCall:
    """A call that a callee has taken and not yet answered.

    ``begun`` is set by the thread that runs the driver (one attribute store, so no lock).
    """

    peer: bytes
    call: Call
    #: in the callee's clock, capped; never None
    deadline: float
    begun: bool = field(default=False)

    @property
    def state(self) -> Literal["queued", "running"]:
        return "running" if self.begun else "queued"

    def begin(self, now: float) -> bool:
        """May it begin now? False: its deadline has passed. Asked right before it runs."""
        if now >= self.deadline:
            return False
        self.begun = True
        return True


class Callee:
    """The open calls of one relay.

    :param max_open: calls that one connection may have open.
    :param limit_s: the longest that any call may wait for its turn.
    """

    def __init__(self, *, max_open: int = 4096, limit_s: float = 86_400.0) -> None:
        self._max_open = max_open
        self._limit_s = limit_s
        self._open: dict[tuple[bytes, str], OpenCall] = {}
        self._deadlines = Alarms[tuple[bytes, str]]()
        self._signs = Alarms[tuple[bytes, str]]()
        self._count: dict[bytes, int] = {}

    def __len__(self) -> int:
        return len(self._open)

    def accept(self, peer: bytes, call: Call, now: float) -> OpenCall:
        """Take a call in.

        :raises Conflict: this connection already has an open call of this id.
        :raises Busy: this connection has too many open calls.
        """
        key = (peer, call.id)
        if key in self._open:
            raise Conflict(f"call {call.id} is already open; a new call needs a new id")
        count = self._count.get(peer, 0)
        if count >= self._max_open:
            raise Busy(
                f"{count} calls of this connection are open, the limit; wait for some to end"
            )
        limit = now + self._limit_s
        deadline = limit if call.deadline is None else min(call.deadline, limit)
        open_call = OpenCall(peer, call, deadline)
        self._open[key] = open_call
        self._deadlines.set(key, deadline)
        self._signs.set(key, now + FIRST_SIGN_S)
        self._count[peer] = count + 1
        return open_call

    def find(self, peer: bytes, call_id: str) -> OpenCall:
        """:raises NotFound: this connection has no open call of this id."""
        found = self._open.get((peer, call_id))
        if found is None:
            raise NotFound(f"no call {call_id} is open here; it has ended, or never arrived")
        return found

    def finish(self, open_call: OpenCall) -> bool:
        """The call ended; False: it had been ended before (there is nobody to tell)."""
        key = (open_call.peer, open_call.call.id)
        if self._open.get(key) is not open_call:
            return False
        del self._open[key]
        self._deadlines.drop(key)
        self._signs.drop(key)
        left = self._count[open_call.peer] - 1
        if left:
            self._count[open_call.peer] = left
        else:
            del self._count[open_call.peer]
        return True

    def overdue(self, now: float) -> list[OpenCall]:
        """Calls that wait beyond their deadline, each told once.

        The shell takes them out of the queue; one that it does not find there any more is about to
        be asked whether it may begin, and may not.
        """
        over = [self._open[key] for key in _ring(self._deadlines, now)]
        return [each for each in over if not each.begun]

    def signs(self, now: float) -> list[tuple[OpenCall, Alive]]:
        """The signs of life that are due."""
        due = [(key, self._open[key]) for key in _ring(self._signs, now)]
        for key, _ in due:
            self._signs.set(key, now + SIGN_INTERVAL_S)
        return [(each, Alive(id=each.call.id, state=each.state)) for _, each in due]

    def next_deadline(self) -> float | None:
        """When :meth:`overdue` and :meth:`signs` next want to be called."""
        firsts = (self._deadlines.first(), self._signs.first())
        return min((first[0] for first in firsts if first is not None), default=None)


def _ring(alarms: Alarms[K], now: float) -> list[K]:
    """The keys whose time has come; their alarms are over."""
    keys = []
    while (first := alarms.first()) is not None and first[0] <= now:
        keys.append(first[1])
        alarms.drop(first[1])
    return keys
