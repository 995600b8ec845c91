"""The lease desk of a relay: who may write, and what becomes of the driver when that ends.

It belongs to whoever holds the worker's lock, as :class:`~labmesh.serving.calls.CallDesk` does.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection
from functools import partial
from typing import Any, NamedTuple

from labmesh.access.audit import Audit
from labmesh.errors import Busy, LabmeshError, Stopping
from labmesh.instruments.exposure import BoundCall, MethodTable
from labmesh.instruments.jobs import Job, Outcome, Runner
from labmesh.instruments.thread_runner import RunningCall
from labmesh.instruments.worker import DriverWorker
from labmesh.protocol.leases import Ended, Leases
from labmesh.protocol.messages import Acquire, BreakLease, Done, Lease, Release, Renew
from labmesh.protocol.open_call import Owner
from labmesh.serving.served import KEY_ENDED, LEASE_ENDED, AnyServed, Served
from labmesh.transport.answering import Origin
from labmesh.transport.shared import SharedService

__all__ = ["LeaseDesk", "LeaseRequest"]

log = logging.getLogger(__name__)

LeaseRequest = Acquire | Renew | Release | BreakLease

#: Who acquires waits so long for others to end what they write, if it names no deadline.
_WAIT_S = 5.0
#: This part of its time: the answer has to arrive.
_WAITED_PART = 0.9
#: How often a safe state that must wait looks whether it still must.
_AGAIN_S = 0.001


class _Waiting(NamedTuple):
    """Who will have the lease as soon as nobody else writes any more."""

    request: Acquire
    origin: Origin
    owner: Owner
    fence: int
    since: float
    until: float


class LeaseDesk:
    """Answers requests about leases, ends those that time has run out for, and says so.

    :param relay_id: for the texts.
    :param worker: runs the driver's ``safe_state()``.
    :param served: the open calls; those that write under a lease end with it.
    :param tell: publishes news (kind of the event, value); called in any thread.
    :param on_grant: called when there is a lease whose end is to be watched for.
    """

    def __init__(
        self,
        relay_id: str,
        table: MethodTable,
        leases: Leases,
        worker: DriverWorker,
        served: Collection[AnyServed],
        tell: Callable[[str, Any], None],
        on_grant: Callable[[], None],
        audit: Audit | None = None,
    ) -> None:
        self._audit = audit
        self._relay_id = relay_id
        self._table = table
        self._leases = leases
        self._worker = worker
        self._served = served
        self._tell = tell
        self._on_grant = on_grant
        self._refusing = False
        #: who holds the lease, where the mode proves that
        self._user = ""
        self._waiting: _Waiting | None = None
        #: where the answers to those go that have waited
        self.service: SharedService

    def refuse(self) -> None:
        """Grant nothing more, and leave the driver alone: its relay is shutting down."""
        self._refusing = True
        waiting = self._waiting
        if waiting is not None:
            self._give_up(waiting, self._stopping())

    def facts(self) -> dict[str, Any] | None:
        """Who holds the lease, for the relay's status; None: nobody."""
        return self._leases.facts(time.monotonic())

    def next_deadline(self) -> float | None:
        """When (monotonic seconds) the lease runs out, or who waits for it has waited for too long;
        None: nobody holds one."""
        return self._leases.next_deadline() if self._waiting is None else self._waiting.until

    def answer(self, request: LeaseRequest, owner: Owner, origin: Origin) -> Lease | Done | None:
        """Answer a request about the lease; None: it is answered when nobody else writes any more.

        :raises Locked: somebody else holds it, or the one that is meant is over.
        :raises NotFound: there is none that could be broken.
        :raises Conflict: another one than the one to be broken is held.
        :raises Stopping: nothing is granted any more.
        """
        now = time.monotonic()
        leases = self._leases
        match request:
            case Acquire():
                return self._acquire(request, owner, origin, now)
            case Renew():
                leases.renew(owner, request.fence, now)
                return leases.message(request.id, now)
            case Release():
                ended = leases.release(owner, request.fence, now, abandoned=request.abandoned)
                if ended is not None:
                    self._ended(ended)
            case BreakLease():
                self._ended(
                    leases.break_lease(request.fence, now, by=request.by, reason=request.reason)
                )
        return Done(id=request.id)

    def expire(self, now: float) -> None:
        """End the lease if its time has run out; let it begin if nobody else writes any more."""
        if self._waiting is not None:
            self._look_at(self._waiting, now)
        ended = self._leases.expire(now)
        if ended is not None:
            self._ended(ended)

    def end_of_keys(self, is_over: Callable[[str], bool], now: float) -> None:
        """End the lease of a key that is no longer good: it could last a day, and nobody write."""
        self.expire(now)
        held = self._leases.held
        if held is None or not is_over(self._user):
            return
        log.warning("%s: the lease of %s ends: %s", self._relay_id, self._user, KEY_ENDED)
        # As if its holder had vanished: nobody is there who takes over.
        ended = self._leases.release(held.owner, held.fence, now, abandoned=True)
        if ended is not None:
            self._ended(ended)

    def _acquire(self, request: Acquire, owner: Owner, origin: Origin, now: float) -> Lease | None:
        if self._refusing:
            raise self._stopping()
        running = self._writing_beside(owner)
        held = self._leases.acquire(
            owner,
            ttl_s=request.ttl_s,
            holder=request.holder,
            note=request.note,
            now=now,
            waits=running is not None,
        )
        self._user = origin.user
        self._tell("lease", held.news())
        self._on_grant()
        if running is None:
            return self._leases.message(request.id, now)
        deadline = now + _WAIT_S if request.deadline is None else request.deadline
        until = now + _WAITED_PART * (deadline - now)
        self._waiting = _Waiting(request, origin, owner, held.fence, now, until)
        return None

    def _writing_beside(self, owner: Owner) -> RunningCall | None:
        """What the driver runs for others that may write."""
        running = self._runs_for_others(owner)
        if running is not None:
            return running
        for served in self._served:
            opened = served.opened
            # One that makes room for another job between two of its items.
            if opened.begun_at is not None and not served.read_only and opened.owner != owner:
                return RunningCall(served.method, opened.begun_at, served)
        return None

    def _runs_for_others(self, owner: Owner) -> RunningCall | None:
        """A call of theirs that a thread runs now and that may write. In any thread."""
        for running in self._worker.running_calls:
            job = running.job
            if isinstance(job, Served) and not job.read_only and job.opened.owner != owner:
                return running
        return None

    def _look_at(self, waiting: _Waiting, now: float) -> None:
        running = self._writing_beside(waiting.owner)
        held = self._leases.held
        if held is not None and held.fence == waiting.fence and running is not None:
            if now >= waiting.until:
                self._give_up(waiting, self._busy(running, now))
            return
        self._waiting = None
        try:
            self._leases.renew(waiting.owner, waiting.fence, now)
        except LabmeshError as exc:
            # It was given back or broken meanwhile.
            self._refuse(waiting, exc)
            return
        reply = self._leases.message(waiting.request.id, now)
        if self._audit is not None:
            self._audit.answered(waiting.request, waiting.origin, reply, waiting.since)
        if not self.service.reply(waiting.origin, reply):
            self._give_back(waiting, now)

    def _give_up(self, waiting: _Waiting, error: LabmeshError) -> None:
        self._waiting = None
        self._give_back(waiting, time.monotonic())
        self._refuse(waiting, error)

    def _give_back(self, waiting: _Waiting, now: float) -> None:
        """Nobody has done anything under this lease."""
        ended = self._leases.release(waiting.owner, waiting.fence, now)
        if ended is not None:
            self._ended(ended)

    def _refuse(self, waiting: _Waiting, error: LabmeshError) -> None:
        if self._audit is not None:
            self._audit.refused(waiting.request, waiting.origin, error, waiting.since)
        self.service.refuse(waiting.origin, error)

    def _busy(self, running: RunningCall, now: float) -> Busy:
        return Busy(
            f"the lease of {self._relay_id} was not granted: it is busy with {running.told(now)} "
            "and may write; try again, or ask whoever called it",
            running=running.method,
            running_s=round(now - running.since, 3),
            running_by=running.job.caller,
        )

    def _stopping(self) -> Stopping:
        return Stopping(f"{self._relay_id} is shutting down; no lease was granted")

    def _ended(self, ended: Ended) -> None:
        log.info("%s: a lease ended: %s", self._relay_id, ended.news())
        self._tell("lease", ended.news())
        if self._audit is not None:
            self._audit.lease_ended(ended)
        self._interrupt_writes(ended)
        if ended.safe_state and self._table.has_safe_state and not self._refusing:
            call = self._table.bind("safe_state")
            others_write = partial(self._runs_for_others, ended.held.owner)
            self._worker.submit_urgent(_SafeState(call, others_write, self._tell))

    def _interrupt_writes(self, ended: Ended) -> None:
        """A scan whose reader froze would hold the driver for ever, and go on when that wakes."""
        lease = ended.held
        for job in self._served:
            under_it = (job.fence, job.opened.owner) == (lease.fence, lease.owner)
            if under_it and not job.read_only:
                job.interrupt(LEASE_ENDED)


class _SafeState(Job):
    """What a driver does when a holder of its lease has vanished.

    :param others_write: what another thread runs for somebody else; None: nothing that may write.
    """

    alone = True

    __slots__ = ("_others_write", "_tell")

    def __init__(
        self,
        call: BoundCall,
        others_write: Callable[[], RunningCall | None],
        tell: Callable[[str, Any], None],
    ) -> None:
        super().__init__(call)
        self._others_write, self._tell = others_write, tell

    def execute(self, runner: Runner) -> Any:
        """Run it when nobody else writes."""
        # A call that another thread had just taken up may begin right behind the end of the lease.
        while self._others_write() is not None:
            time.sleep(_AGAIN_S)
        return super().execute(runner)

    def prepare(self, value: Any) -> None:
        return None

    def done(self, outcome: Outcome) -> None:
        error = outcome.error
        if error is not None:
            log.error("safe_state() failed: %s", error)
        self._tell("safe_state", {"error": None if error is None else str(error)})
