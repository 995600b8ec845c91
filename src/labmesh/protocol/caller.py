"""The caller's open requests.

The caller's promise: every request ends once, by its deadline.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

from labmesh.errors import LabmeshError, LinkLost, NoAnswer, NotSent, OutcomeUnknown
from labmesh.protocol.alarms import Alarms
from labmesh.protocol.messages import Alive, Reply

__all__ = ["Caller", "ClockOffset", "OpenRequest"]

#: A caller gives a call up when nothing at all was heard of it for so long.
SILENCE_S = 4.0
#: How long after its deadline a call is waited for that is not known to have begun: its callee
#: refuses it at the deadline, and that word, which says that it did not run, is on its way.
LAST_WORD_S = 0.05


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
        ended = [self._open[request_id] for request_id in self._alarms.ring(now)]
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
