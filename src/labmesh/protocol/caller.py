"""The caller's open requests.

The caller's promise: every request ends once, by its deadline, and a call that may have run is
never sent to another incarnation of its relay.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Generic, Literal, TypeVar

from msgspec import Struct

from labmesh.errors import LabmeshError, LinkLost, NoAnswer, NotSent, OutcomeUnknown, StaleEpoch
from labmesh.protocol.messages import Alive, Item, Reply

__all__ = ["CallProgress", "Caller", "ClockOffset", "OpenRequest", "given_up_at", "limit_of"]

#: A caller gives a call up when nothing at all was heard of it for so long.
SILENCE_S = 4.0
#: How long after its deadline a call is waited for that is not known to have begun: its callee
#: refuses it at the deadline, and that word, which says that it did not run, is on its way.
LAST_WORD_S = 0.05
#: How long after a break of the link a call waits for the link to be up again.
RESUME_S = 2.0
#: Requests that end within so long of each other are ended together.
_GRAIN_S = 0.01
#: How often a request that was refused for its epoch is sent anew; a relay that is really
#: restarted refuses it once a restart.
_REFUSALS = 3


def given_up_at(deadline: float, now: float) -> float | None:
    """When a call that leaves now is given up if nothing is heard of it; None: at its deadline."""
    silent_until = now + SILENCE_S
    return None if deadline <= silent_until else silent_until


class ClockOffset:
    """Translates a deadline into the target's monotonic clock, never later than it is.

    A pong that says ``clock`` was written before it arrived at ``received``: the target's clock is
    at least ``clock - received`` ahead of ours. The largest such lower bound is kept, so that the
    error is at most the fastest way back that was seen, and on the early side.
    """

    def __init__(self) -> None:
        #: seconds that the target's clock is ahead of ours; None while no pong was seen
        self.ahead_s: float | None = None

    def learn(self, clock: float, received: float) -> None:
        """Take one pong: the target's clock, and our clock at its arrival (seconds)."""
        ahead_s = clock - received
        if self.ahead_s is None or ahead_s > self.ahead_s:
            self.ahead_s = ahead_s

    def forget(self) -> None:
        """The target was restarted; its clock may be another machine's."""
        self.ahead_s = None

    def translate(self, deadline: float) -> float | None:
        """Our deadline in the target's clock; None while no pong was seen, or for ``inf``."""
        return None if self.ahead_s is None or deadline == math.inf else deadline + self.ahead_s

    def times_of(self, deadline: float, now: float) -> tuple[float | None, float | None]:
        """The deadline of a call that leaves now, and when it is given up: :func:`given_up_at`."""
        ahead_s, silent_until = self.ahead_s, now + SILENCE_S
        if ahead_s is None:
            return None, None
        return (
            deadline + ahead_s if deadline < math.inf else None,
            silent_until + ahead_s if deadline > silent_until else None,
        )


#: How far a call is known to have come; empty: nothing was heard of it.
CallProgress = Literal["", "queued", "running"]


class OpenRequest(Struct, eq=False):
    """A request that has not ended. There is one for every call, so it must be quick to make."""

    id: str
    deadline: float
    #: the driver's method, when the request moves an instrument; empty: harmless to repeat
    method: str = ""
    #: a call that its relay knows again when it comes a second time
    resumable: bool = False
    #: how often it was handed to a live connection
    sendings: int = 0
    #: the incarnation of the target that its first sending named
    epoch: str = ""
    sent_at: float = 0.0
    heard_at: float = 0.0
    #: when the link broke behind it, and has not been up since
    broken_at: float = math.inf
    refusals: int = 0
    state: CallProgress = ""

    @property
    def sent(self) -> bool:
        """It may have arrived."""
        return self.sendings > 0


RequestT = TypeVar("RequestT", bound=OpenRequest)
Ended = list[tuple[RequestT, LabmeshError]]


class Caller(Generic[RequestT]):
    """The open requests of one link.

    When they end at the latest is looked at all together, as seldom as possible: an open request
    costs no alarm of its own.

    :param where: the other side, as people know it ("relay Inst-0 at tcp://10.0.0.5:5850").
    :param relay: its id, and
    :param session: the caller's token, for what an error tells a program.
    """

    def __init__(
        self, where: str, *, relay: str = "", session: str = "", silence_s: float = SILENCE_S
    ) -> None:
        self.where = where
        self.relay = relay
        self.session = session
        self._silence_s = silence_s
        self._open: dict[str, RequestT] = {}
        #: nothing ends before
        self.quiet_until = math.inf

    def __len__(self) -> int:
        return len(self._open)

    @property
    def busy(self) -> bool:
        """There are open requests."""
        return bool(self._open)

    def open(self, request: RequestT) -> None:
        """Begin to watch a request that is about to be sent."""
        self._open[request.id] = request
        if request.deadline < self.quiet_until:
            self.quiet_until = request.deadline

    def sent(self, request: RequestT, now: float, epoch: str) -> None:
        """The request was handed to a live connection to this incarnation of the target."""
        self.sent_together((request,), now, epoch)

    def sent_together(self, requests: Sequence[RequestT], now: float, epoch: str) -> None:
        """:meth:`sent`, for several."""
        # Their deadlines were looked at when they were opened, and breaks are when they come.
        for request in requests:
            if not request.sendings:
                request.epoch, request.sent_at = epoch, now
            request.sendings += 1
            request.heard_at = now
        silent_at = now + self._silence_s
        if silent_at < self.quiet_until and any(request.method for request in requests):
            self.quiet_until = silent_at

    def taken_over(self, request: RequestT, now: float, epoch: str) -> None:
        """Watch a call that was sent over a connection of somebody else, which broke just now."""
        self.open(request)
        self.sent(request, now, epoch)
        self._broke(request, now)

    def silent_since(self, request: RequestT, heard_at: float) -> None:
        """Over whatever connection, nothing was heard of it since then."""
        request.heard_at = min(request.heard_at, heard_at)
        self.quiet_until = min(self.quiet_until, self._ends_at(request))

    def get(self, request_id: str) -> RequestT | None:
        """The request of this id, while it is open."""
        return self._open.get(request_id)

    def answered(self, request_id: str) -> RequestT | None:
        """Take the last reply of a request: the request that it ends, if it is open."""
        return self._open.pop(request_id, None)

    def heard(self, reply: Reply, now: float) -> RequestT | None:
        """Take a reply; the request that it ends. A reply to no open request is ignored."""
        kind = type(reply)
        if kind is not Alive and kind is not Item:
            return self._open.pop(reply.id, None)
        request = self._open.get(reply.id)
        if request is not None:
            request.heard_at = now
            request.state = reply.state if isinstance(reply, Alive) else "running"
        return None

    def refused(self, request: RequestT, refusal: StaleEpoch) -> LabmeshError | None:
        """The reply that ended this request says that the target was restarted.

        None: it is open again, to be sent anew to the new incarnation. The one that refused it has
        not run it; but one that it was sent to before may have.
        """
        if request.sendings > 1:
            return self._restarted(request)
        request.refusals += 1
        if request.refusals > _REFUSALS:
            return refusal
        request.sendings, request.epoch, request.broken_at = 0, "", math.inf
        self.open(request)
        return None

    def withdraw(self, request: RequestT) -> bool:
        """The caller no longer waits; False: the request had ended before."""
        return self._open.pop(request.id, None) is not None

    def broken(self, now: float) -> Ended[RequestT]:
        """The connection broke: questions that were sent over it will never be answered.

        Calls that can be sent again wait for :meth:`restored`.
        """
        sent = [request for request in self._open.values() if request.sendings]
        for request in sent:
            if request.resumable:
                self._broke(request, now)
        ended = [request for request in sent if not request.resumable]
        return self._end((request, self._lost(request)) for request in ended)

    def restored(self, epoch: str, now: float) -> tuple[list[RequestT], Ended[RequestT]]:
        """The link is up again: what is to be sent again, under its id, and what has ended.

        A call that was sent to another incarnation is never sent again.
        """
        broken = [each for each in self._open.values() if each.broken_at < math.inf]
        same = [each for each in broken if each.epoch == epoch]
        for request in same:
            request.broken_at, request.heard_at = math.inf, now
        restarted = [(each, self._restarted(each)) for each in broken if each.epoch != epoch]
        return same, self._end(restarted)

    def close(self) -> Ended[RequestT]:
        """Nothing will be answered any more."""
        return self._end([(each, self._lost(each)) for each in self._open.values()])

    def expire(self, now: float) -> Ended[RequestT]:
        """End what is over its deadline, and calls of which nothing was heard for too long."""
        ended = []
        earliest = math.inf
        for request in self._open.values():
            ends_at = self._ends_at(request)
            if ends_at <= now:
                ended.append((request, self._expired(request)))
            elif ends_at < earliest:
                earliest = ends_at
        self.quiet_until = max(earliest, now + _GRAIN_S)
        return self._end(ended)

    def next_deadline(self) -> float | None:
        """When :meth:`expire` next wants to be called."""
        return self.quiet_until if self._open and self.quiet_until < math.inf else None

    # ── when and how requests end ───────────────────────────────────────────────────────────────

    def _ends_at(self, request: RequestT) -> float:
        if not request.method or not request.sendings:
            return request.deadline
        last_word_s = 0.0 if request.state == "running" else LAST_WORD_S
        return min(
            request.deadline + last_word_s,
            request.heard_at + self._silence_s,
            request.broken_at + RESUME_S,
        )

    def _broke(self, request: RequestT, now: float) -> None:
        request.broken_at = min(now, request.broken_at)
        self.quiet_until = min(self.quiet_until, self._ends_at(request))

    def _end(self, ended: Iterable[tuple[RequestT, LabmeshError]]) -> Ended[RequestT]:
        ended = list(ended)
        for request, _ in ended:
            del self._open[request.id]
        return ended

    def _lost(self, request: RequestT) -> LabmeshError:
        if not request.sendings:
            return NotSent(f"the link to {self.where} was closed; nothing was sent")
        if request.method and request.resumable:
            progress = request.state or "on its way"
            return self.unknown(
                request, f"the link to {self.where} broke while {request.method} was {progress}"
            )
        if request.method:
            return LinkLost(f"the link to {self.where} broke in the middle of {request.method}")
        return LinkLost(f"the link to {self.where} broke before it answered; try again")

    def _restarted(self, request: RequestT) -> LabmeshError:
        return self.unknown(
            request,
            f"{self.where} was restarted while {request.method} was {_progress(request)}",
        )

    def _expired(self, request: RequestT) -> LabmeshError:
        if not request.sendings:
            return NotSent(f"no link to {self.where} in time; nothing was sent")
        if not request.method:
            return NoAnswer(f"no answer from {self.where} in time")
        method, progress = request.method, _progress(request)
        silent_at, given_up_at = request.heard_at + self._silence_s, request.broken_at + RESUME_S
        if request.deadline <= min(silent_at, given_up_at):
            why = f"{method} on {self.where} was {progress} at its deadline"
        elif silent_at < given_up_at:
            why = f"{self.where} fell silent while {method} was {progress}"
        else:
            why = (
                f"the link to {self.where} broke while {method} was {progress}, and was not up "
                f"again within {RESUME_S:g} s"
            )
        return self.unknown(request, why)

    def unknown(self, request: OpenRequest, why: str) -> OutcomeUnknown:
        """The error of a call that may have run; it names the way to find out."""
        if not request.resumable:
            return OutcomeUnknown(
                f"{why}: its outcome is unknown; look at the instrument before you send it again",
                call=request.id,
                relay=self.relay,
                state=request.state,
            )
        return OutcomeUnknown(
            f'{why}: it may have run; ask call_status("{request.id}"), or look at the instrument, '
            "before you send it again",
            call=request.id,
            session=self.session,
            relay=self.relay,
            state=request.state,
        )


def _progress(request: OpenRequest) -> str:
    return {"": "on its way", "queued": "waiting in the queue", "running": "running"}[request.state]


def limit_of(timeout: float | None, otherwise: float) -> float:
    """The timeout that somebody gave, seconds; ``otherwise`` when there is none.

    :raises ValueError, TypeError: it is no number.
    """
    if timeout is None:
        return otherwise
    if not isinstance(timeout, int | float):
        raise TypeError(f"a timeout is a number of seconds, or None; not {timeout!r:.100}")
    if timeout != timeout:
        raise ValueError("a timeout is a number of seconds, not NaN")
    return timeout
