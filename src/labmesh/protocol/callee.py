"""The callee's open calls.

The callee's promise: a call that has not begun by its deadline never begins.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from labmesh.errors import Busy, Conflict, Expired, NotFound, ProtocolError, StaleEpoch
from labmesh.protocol.alarms import Alarms
from labmesh.protocol.messages import Alive, Call, Request

__all__ = ["Callee", "OpenCall", "admit"]

#: A callee sends the first sign of life when a call outlasts this, and then one an interval.
FIRST_SIGN_S = 0.05
SIGN_INTERVAL_S = 1.0


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
        over = [self._open[key] for key in self._deadlines.ring(now)]
        return [each for each in over if not each.begun]

    def signs(self, now: float) -> list[tuple[OpenCall, Alive]]:
        """The signs of life that are due."""
        due = [(key, self._open[key]) for key in self._signs.ring(now)]
        for key, _ in due:
            self._signs.set(key, now + SIGN_INTERVAL_S)
        return [(each, Alive(id=each.call.id, state=each.state)) for _, each in due]

    def next_deadline(self) -> float | None:
        """When :meth:`overdue` and :meth:`signs` next want to be called."""
        firsts = (self._deadlines.first(), self._signs.first())
        return min((first[0] for first in firsts if first is not None), default=None)
