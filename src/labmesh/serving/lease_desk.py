"""The lease desk of a relay: who may write, and what becomes of the driver when that ends.

It belongs to whoever holds the worker's lock, as :class:`~labmesh.serving.calls.CallDesk` does.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection
from typing import Any

from labmesh.access.audit import Audit
from labmesh.errors import Stopping
from labmesh.instruments.exposure import BoundCall, MethodTable
from labmesh.instruments.jobs import Job, Outcome
from labmesh.instruments.worker import DriverWorker
from labmesh.protocol.leases import Ended, Leases
from labmesh.protocol.messages import Acquire, BreakLease, Done, Lease, Release, Renew
from labmesh.protocol.open_call import Owner
from labmesh.serving.served import KEY_ENDED, LEASE_ENDED, AnyServed

__all__ = ["LeaseDesk", "LeaseRequest"]

log = logging.getLogger(__name__)

LeaseRequest = Acquire | Renew | Release | BreakLease


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

    def refuse(self) -> None:
        """Grant nothing more, and leave the driver alone: its relay is shutting down."""
        self._refusing = True

    def facts(self) -> dict[str, Any] | None:
        """Who holds the lease, for the relay's status; None: nobody."""
        return self._leases.facts(time.monotonic())

    def next_deadline(self) -> float | None:
        """When (monotonic seconds) the lease runs out; None: nobody holds one."""
        return self._leases.next_deadline()

    def answer(self, request: LeaseRequest, owner: Owner, user: str) -> Lease | Done:
        """Answer a request about the lease.

        :param user: who sends it, where the mode proves that.
        :raises Locked: somebody else holds it, or the one that is meant is over.
        :raises NotFound: there is none that could be broken.
        :raises Conflict: another one than the one to be broken is held.
        :raises Stopping: nothing is granted any more.
        """
        now = time.monotonic()
        leases = self._leases
        match request:
            case Acquire():
                if self._refusing:
                    raise Stopping(f"{self._relay_id} is shutting down; no lease was granted")
                held = leases.acquire(
                    owner, ttl_s=request.ttl_s, holder=request.holder, note=request.note, now=now
                )
                self._user = user
                self._tell("lease", held.news())
                self._on_grant()
                return leases.message(request.id, now)
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
        """End the lease if its time has run out."""
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

    def _ended(self, ended: Ended) -> None:
        log.info("%s: a lease ended: %s", self._relay_id, ended.news())
        self._tell("lease", ended.news())
        if self._audit is not None:
            self._audit.lease_ended(ended)
        self._interrupt_writes(ended)
        if ended.safe_state and self._table.has_safe_state and not self._refusing:
            self._worker.submit_urgent(_SafeState(self._table.bind("safe_state"), self._tell))

    def _interrupt_writes(self, ended: Ended) -> None:
        """A scan whose reader froze would hold the driver for ever, and go on when that wakes."""
        lease = ended.held
        for job in self._served:
            under_it = (job.fence, job.opened.owner) == (lease.fence, lease.owner)
            if under_it and not job.read_only:
                job.interrupt(LEASE_ENDED)


class _SafeState(Job):
    """What a driver does when a holder of its lease has vanished."""

    __slots__ = ("_tell",)

    def __init__(self, call: BoundCall, tell: Callable[[str, Any], None]) -> None:
        super().__init__(call)
        self._tell = tell

    def prepare(self, value: Any) -> None:
        return None

    def done(self, outcome: Outcome) -> None:
        error = outcome.error
        if error is not None:
            log.error("safe_state() failed: %s", error)
        self._tell("safe_state", {"error": None if error is None else str(error)})
