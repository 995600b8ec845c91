"""The call desk of a relay: what clients ask of its driver, from the request to the last reply.

It belongs to whoever holds the worker's lock: mostly the driver's own thread, which reads requests
and answers them; the relay's loop while that thread is busy, or when time passes.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

from labmesh.access.audit import Audit
from labmesh.errors import (
    Cancelled,
    Conflict,
    Expired,
    Forbidden,
    LabmeshError,
    OutcomeUnknown,
    Stopping,
)
from labmesh.instruments.exposure import MethodTable
from labmesh.instruments.jobs import Outcome
from labmesh.instruments.worker import DriverWorker
from labmesh.protocol.callee import Callee
from labmesh.protocol.codec import Buffer
from labmesh.protocol.leases import Leases
from labmesh.protocol.messages import (
    Acquire,
    Batch,
    BreakLease,
    Call,
    Cancel,
    Done,
    GetCall,
    Invocation,
    More,
    Release,
    Renew,
    Request,
)
from labmesh.protocol.open_call import Ended, OpenCall, Owner, given_of
from labmesh.serving.asked import job_of_batch, job_of_call
from labmesh.serving.call_state import state_of
from labmesh.serving.call_watch import CallWatch, StuckWatch
from labmesh.serving.callers import Callers
from labmesh.serving.lease_desk import LeaseDesk
from labmesh.serving.served import (
    KEY_ENDED,
    SHUTTING_DOWN,
    TAKEN_BACK,
    AnyServed,
    ServedStream,
    abandoned,
    given_up,
    is_given_up,
    overdue,
    taken_back,
)
from labmesh.transport.answering import Answer, NotTaken, Origin
from labmesh.transport.shared import SharedService

__all__ = ["CallDesk"]

log = logging.getLogger(__name__)

#: Publishes the news of a relay: kind of the event, value.
News = Callable[[str, Any], None]


class CallDesk:
    """Takes calls for one driver and sees each of them to its end.

    :param relay_id: for the texts.
    :param news: called on the loop with what everybody should know.
    """

    def __init__(
        self,
        relay_id: str,
        table: MethodTable,
        leases: Leases,
        news: News,
        *,
        threads: int = 1,
        max_queue: int = 4096,
        audit: Audit | None = None,
    ) -> None:
        self._audit = audit
        self._relay_id = relay_id
        self.callers = Callers(leases)
        self._table = table
        self._news = news
        self._watch = CallWatch(relay_id, self._look_after_calls)
        self.worker = DriverWorker(
            relay_id, threads=threads, max_queue=max_queue, on_busy=self._watch.wake
        )
        self.lock = self.worker.lock
        self._callee = Callee(began_at=time.monotonic())
        self._served: dict[OpenCall, AnyServed] = {}
        self._refusing = False
        self._stuck = StuckWatch(relay_id, self.worker, self.end, news)
        self.leases = LeaseDesk(
            relay_id,
            table,
            leases,
            self.worker,
            self._served.values(),
            tell=self._tell,
            on_grant=self._watch.wake,
            audit=audit,
        )
        #: May this client write? In any thread; see :meth:`Leases.check_write`. It is the machine's
        #: own method, because it is asked twice for each call that writes.
        self.check_write = leases.check_write

    def open(self, service: SharedService) -> None:
        """Begin to take calls."""
        self._service = self.leases.service = service
        self._watch.open(self.worker)
        self.worker.start(asyncio.get_running_loop(), service)

    async def end_calls(self, timeout_s: float) -> bool:
        """Take nothing more, and see what runs to its end; False: something does not end.

        Its callers are told that nobody will hear of its end.
        """
        with self.lock:
            self._refusing = True
            self.leases.refuse()
            for job in self._served.values():
                if isinstance(job, ServedStream):
                    # Its end is its reader's, and may never come.
                    job.interrupt(SHUTTING_DOWN)
        ended = await self.worker.close(timeout_s)
        with self.lock:
            for opened in list(self._served):
                self.end(opened, Outcome(error=abandoned(self._relay_id, opened.method)))
            self._service.flush()
        return ended

    def end_of_keys(self, is_over: Callable[[str], bool]) -> None:
        """End what users have open whose keys are no longer good, as far as it can be ended: a
        stream whose reader may not ask for more would keep the driver's thread for ever.
        """
        if not self._served and self.leases.next_deadline() is None:
            return
        with self.lock:
            for opened, job in list(self._served.items()):
                if is_over(opened.origin.user):
                    error = Forbidden(f"{KEY_ENDED}; {opened.method} did not run and will not")
                    if not self._take_back(opened, error):
                        job.interrupt(KEY_ENDED)
            self.leases.end_of_keys(is_over, time.monotonic())
            self._service.flush()

    @property
    def busy(self) -> bool:
        """Some call is open."""
        return bool(self._served)

    def close(self) -> None:
        """Stop looking after calls."""
        self._watch.close()

    # ── requests, under the lock ────────────────────────────────────────────────────────────────

    def has_come(self, user: str, request: Invocation) -> bool:
        """Whether a user's call comes once more: it is answered, and does not run again."""
        session = request.session
        return bool(session) and self._callee.has_come((user, session), request.id)

    def handle(self, request: Request, origin: Origin) -> Answer:
        """Answer a request about calls and leases; None: it is answered when the call ends."""
        if isinstance(request, Call):
            self.take(request, origin, time.monotonic())
            return None
        self.leases.expire(time.monotonic())
        match request:
            case Batch():
                self._batch(request, origin)
                return None
            case Cancel():
                return self._cancel(request, self.callers.owner_of(request, origin))
            case More():
                job = self._served[
                    self._callee.find(self.callers.owner_of(request, origin), request.call)
                ]
                if isinstance(job, ServedStream):
                    job.grant(request.credit)
                return Done(id=request.id)
            case GetCall():
                owner = self.callers.owner_of(request, origin)
                return state_of(self._callee, request, owner, time.monotonic())
            case Acquire() | Renew() | Release() | BreakLease():
                return self.leases.answer(request, self.callers.owner_of(request, origin), origin)
            case _:
                raise AssertionError(f"{type(request).__name__} is not for a relay")

    def take_all(self, calls: Sequence[Call], origin: Origin, now: float) -> NotTaken:
        """Take calls that had arrived together at ``now``; returns those that are refused, or that
        a fault of ours keeps out, with the reason."""
        refused: NotTaken = []
        owner = self.callers.owner_of(calls[0], origin)
        # Nearly always they are new, and there is room: that is asked once for all of them.
        room = self.worker.room if self._audit is None else 0
        together = len(calls) <= room and self._callee.are_new(owner, calls)
        jobs: list[AnyServed] = []
        for call in calls:
            try:
                if together:
                    jobs.append(self._opened(call, owner, origin, now))
                else:
                    self.take(call, origin, now)
            except Exception as exc:
                if together:
                    self._callee.refused(owner, call.id, now)
                refused.append((call, exc))
        if jobs:
            self._take_in(owner, jobs, now)
        return refused

    def take(self, call: Call, origin: Origin, now: float) -> None:
        """Take a call that had arrived at ``now``; what this raises is its answer."""
        owner = self.callers.owner_of(call, origin)
        known = self._callee.find_repeated(owner, call, call.method, origin, now)
        if known is not None:
            self._answer_again(known)
            return
        try:
            self._submit(self._opened(call, owner, origin, now), call, now)
        except LabmeshError:
            if call.session:
                self._callee.refused(owner, call.id, now)
            raise

    def _batch(self, batch: Batch, origin: Origin) -> None:
        owner = self.callers.owner_of(batch, origin)
        now = time.monotonic()
        known = self._callee.find_repeated(owner, batch, "batch", origin, now)
        if known is not None:
            self._answer_again(known)
            return
        try:
            job = job_of_batch(self._table, batch, self._relay_id)
            read_only = all(each.read_only for each in job.entries)
            self._open(job, batch, owner, origin, now, read_only)
            self._submit(job, batch, now)
        except LabmeshError:
            if batch.session:
                self._callee.refused(owner, batch.id, now)
            raise

    def _opened(self, call: Call, owner: Owner, origin: Origin, now: float) -> AnyServed:
        """A new call, if nothing is wrong with it; nobody knows it yet."""
        job = job_of_call(self._table, call)
        self._open(job, call, owner, origin, now, job.call.read_only)
        return job

    def _open(
        self,
        job: AnyServed,
        request: Call | Batch,
        owner: Owner,
        origin: Origin,
        now: float,
        read_only: bool,
    ) -> None:
        """Make it an open call, if it may still begin."""
        method = job.call.method if isinstance(request, Call) else "batch"
        if self._refusing:
            raise Stopping(f"{self._relay_id} is shutting down; {method} was not run")
        arrive_by = request.arrive_by
        if arrive_by is not None and not now <= arrive_by:
            raise Expired(f"{method} arrived after its caller had given it up; it was not run")
        deadline = self._callee.deadline_of(request.deadline, now)
        kept, given = bool(request.session), given_of(request)
        opened = OpenCall(owner, origin, request.id, method, deadline, kept, now, given)
        job.open_at(self, opened, request.fence, read_only)
        if not read_only:
            self.check_write(owner, request.fence, now)

    def _submit(self, job: AnyServed, request: Call | Batch, now: float) -> None:
        self._take_in(job.opened.owner, [job], now)
        if self._audit is not None and not job.read_only:
            self._audit.begun(job.opened, request)

    def _take_in(self, owner: Owner, jobs: list[AnyServed], now: float) -> None:
        """From here on they are known, and wait for their turn. All of them are, or none."""
        calls = [each.opened for each in jobs]
        self._callee.accept_all(owner, calls, now)
        self._served.update(zip(calls, jobs, strict=True))
        try:
            self.worker.take_all(jobs)
        except LabmeshError:
            for opened in calls:
                del self._served[opened]
                self._callee.finish(opened, "not_run", None, now)
            raise

    def _answer_again(self, opened: OpenCall) -> None:
        """A call came once more: its reply goes out again, or will go to where it came from."""
        if opened.ended is None:
            return
        if opened.reply is not None:
            self._service.send(opened.origin, opened.reply)
            return
        if opened.ended == "not_run":
            raise Cancelled(f"{opened.method} was refused before; it did not run and will not")
        raise OutcomeUnknown(
            f"{opened.method} ran, and {opened.ended}, but its reply was too large to be kept",
            state=opened.ended,
        )

    def _cancel(self, request: Cancel, owner: Owner) -> Done:
        opened = self._callee.find(owner, request.call)
        if self._take_back(opened, taken_back(opened.method)):
            return Done(id=request.id)
        self._served[opened].interrupt(TAKEN_BACK)
        raise Conflict(f"{opened.method} has begun; it was told that nobody waits for it")

    # ── ends of calls, under the lock ───────────────────────────────────────────────────────────

    def end(self, opened: OpenCall, outcome: Outcome) -> None:
        """A call ended: its caller is told, once."""
        if opened.ended is not None:
            return
        job = self._served.pop(opened)
        error = outcome.error
        if self._audit is not None:
            self._audit.ended(opened, outcome)
        ended: Ended = "returned"
        if error is None:
            reply = outcome.value
        else:
            if job.is_set and "Interrupted" not in str(error.detail.get("exception_type")):
                # Its caller does not wait any more: nobody else would hear of it.
                text = "%s: %s was told to end, and failed: %s"
                log.warning(text, self._relay_id, opened.method, error)
            # What is remembered must not keep the frames alive that it was raised in.
            error.__traceback__ = error.__context__ = error.__cause__ = None
            opened.error = error
            reply = self._service.encode_error(opened.origin, error, opened.id)
            ended = "not_run" if error.executed is False else "raised"
        self._callee.finish(opened, ended, reply, time.monotonic())
        self._service.send_soon(opened.origin, reply)

    def _take_back(self, opened: OpenCall, error: LabmeshError) -> bool:
        """End a call that still waits; False: it has begun."""
        if not self.worker.cancel(self._served[opened]):
            return False
        self.end(opened, Outcome(error=error))
        return True

    def say(self, opened: OpenCall, frames: list[Buffer]) -> bool:
        """Send what is not the last reply of a call; False: nobody is there to take it."""
        return opened.ended is None and self._service.send(opened.origin, frames)

    def _tell(self, kind: str, value: Any) -> None:
        """Publish news. In any thread."""
        self.worker.call_on_loop(lambda: self._news(kind, value))

    # ── time, on the loop ───────────────────────────────────────────────────────────────────────

    def _look_after_calls(self, now: float) -> float | None:
        """What time brings about; returns in how many seconds to look again."""
        self.worker.look_at_source()
        self.leases.expire(now)
        for opened in self._callee.overdue(now):
            self._take_back(opened, overdue(opened.method, self.worker.running, now))
        for opened, alive in self._callee.signs(now):
            # First: a sign of life that comes too late does not bring its caller back.
            if opened.begun_at is None and is_given_up(opened, now):
                self._take_back(opened, given_up(opened.method))
            elif self.say(opened, self._service.encode(opened.origin, alive)):
                opened.heard_at = now
            elif opened.begun_at is not None:
                self._served[opened].reader_is_gone()
        self._stuck.look(now)
        if self._audit is not None:
            self._audit.look(now)
        self._service.flush()
        return self._watch.pause_s(
            now,
            quiet=not self._served and self.worker.is_idle,
            due_at=self.leases.next_deadline(),
        )

    def stuck(self, now: float) -> bool:
        """Does the driver run something longer than it may, or than its caller waits?"""
        return self._stuck.found(now)
