"""The thread that runs a driver, one call at a time, and hands the results back in batches.

A call costs one hand-off each way: the loop wakes the thread when it sleeps, the thread wakes the
loop when no wake-up is under way. There is no future, task or executor a call.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from labmesh.errors import Busy, Expired, InternalError, LabmeshError, Stopping
from labmesh.instruments.exposure import BoundCall
from labmesh.instruments.failures import driver_failure, unsendable_result

__all__ = ["DriverWorker", "Job", "Outcome", "RunningCall"]

log = logging.getLogger(__name__)

#: Results that are delivered before the loop does something else.
_BATCH = 256


class Outcome(NamedTuple):
    """How a job ended: with a value, or with an error (``error.executed`` tells whether it ran)."""

    value: Any = None
    error: LabmeshError | None = None


class RunningCall(NamedTuple):
    """What a driver is busy with."""

    method: str
    #: the worker's clock (monotonic seconds) when it began
    since: float


@dataclass(slots=True, eq=False)
class Job:
    """A call and what becomes of it. ``done`` is called once, unless the job is cancelled.

    :param call: what to run.
    :param done: gets the outcome, on the loop.
    :param begin: asked in the worker, right before the call; False: it is too late, do not run it.
    :param prepare: turns the result into what ``done`` gets, in the worker: an encoder, so that a
        large result does not hold up the loop, and one that cannot be encoded fails this call only.
    """

    call: BoundCall
    done: Callable[[Outcome], None]
    begin: Callable[[float], bool] | None = None
    prepare: Callable[[Any], Any] | None = None


class DriverWorker:
    """Runs the calls of one driver in a thread of its own.

    Calls begin in the order of :meth:`submit`, and with one thread (the default) each ends before
    the next begins. Whatever a driver raises ends its call and nothing else. Coroutines, also those
    that plain methods return, are awaited on an event loop of the thread's own, which stands still
    between calls: tasks that a driver leaves behind go on only during its next coroutine.

    :param name: the relay's id, for errors, the log and the name of the thread.
    :param threads: more than one only for a driver that is safe to call concurrently.
    :param max_queue: calls that may wait.
    :param on_batch: called on the loop after each batch of results, to flush what they caused.
    :param clock: monotonic seconds.
    """

    def __init__(
        self,
        name: str,
        *,
        threads: int = 1,
        max_queue: int = 4096,
        on_batch: Callable[[], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if threads < 1 or max_queue < 1:
            raise ValueError("a worker needs at least one thread and room for one call")
        self.name = name
        self._max_queue = max_queue
        self._on_batch = on_batch
        self._clock = clock
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ended = asyncio.Event()
        #: started and not ended; counted on the loop
        self._threads_left = 0
        self._threads = [
            threading.Thread(
                target=self._serve, args=(slot,), name=f"labmesh-driver-{name}-{slot}", daemon=True
            )
            for slot in range(threads)
        ]
        #: one entry a thread, each written by its thread alone
        self._running: list[RunningCall | None] = [None] * threads

        # Guarded by the lock.
        self._lock = threading.Lock()
        self._queue: OrderedDict[Job, None] = OrderedDict()
        self._sleepers: list[threading.Lock] = []
        self._poll: Job | None = None
        self._poll_waits = False
        self._poll_is_due = False
        self._stopping = False

        #: what the threads finished and the loop has not delivered
        self._finished: deque[tuple[Job, Outcome]] = deque()
        self._wake_is_sent = False
        self._closed = False

    @property
    def running(self) -> RunningCall | None:
        """The call that has run longest, or None. Can be read in any thread at any time."""
        calls = [call for call in self._running if call is not None]
        return min(calls, key=lambda call: call.since) if calls else None

    @property
    def queued(self) -> int:
        """How many calls wait."""
        return len(self._queue)

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Start the thread; results go to ``loop``. Calls may have been submitted before."""
        if self._loop is not None or self._stopping:
            raise RuntimeError(f"the worker of {self.name} was started or closed before")
        self._loop = loop
        for thread in self._threads:
            thread.start()
            self._threads_left += 1

    def submit(self, job: Job) -> None:
        """Queue a call. Can be called in any thread.

        :raises Busy: the queue is full.
        :raises Stopping: the worker is closing.
        """
        with self._lock:
            self._refuse_if_stopping()
            if len(self._queue) >= self._max_queue:
                raise self._busy()
            self._queue[job] = None
            sleeper = self._sleepers.pop() if self._sleepers else None
        if sleeper is not None:
            sleeper.release()

    def submit_poll(self, job: Job) -> bool:
        """Queue a poll behind the calls; False: skipped, the one before has not ended.

        At most one poll is open. Calls overtake it while it waits, until the next poll is asked
        for: then it is due and goes first. So polls add at most one poll an interval to the wait of
        a call, and a driver that is never idle still shows its state.

        :raises Stopping: the worker is closing.
        """
        with self._lock:
            self._refuse_if_stopping()
            if self._poll is not None:
                self._poll_is_due = True
                return False
            self._poll = job
            self._poll_waits = True
            self._poll_is_due = False
            sleeper = self._sleepers.pop() if self._sleepers else None
        if sleeper is not None:
            sleeper.release()
        return True

    def cancel(self, job: Job) -> bool:
        """True: taken out of the queue; it will not run, and ``done`` is not called."""
        with self._lock:
            if job not in self._queue:
                return False
            del self._queue[job]
            return True

    async def close(self, timeout_s: float = 5.0) -> bool:
        """Refuse what waits, let the running call end; False: it did not end in time.

        Calls in the queue end with :class:`~labmesh.errors.Stopping`. When this returns, every
        outcome that there is was delivered, and none follows. A thread that is stuck is a daemon:
        it ends with its call or with the process, and the log names it. Must be awaited on the
        loop that was given to :meth:`start`. A second time is fine.
        """
        self._stop(Stopping(f"{self.name} is shutting down; this was not run"))
        self._deliver_all()
        if self._threads_left and not self._closed:
            try:
                async with asyncio.timeout(timeout_s):
                    await self._ended.wait()
            except TimeoutError:
                self._name_the_stuck()
        self._deliver_all()
        self._closed = True
        if self._threads_left:
            return False
        for thread in self._threads:
            if thread.ident is not None:
                thread.join()
        return True

    # ── in the threads ──────────────────────────────────────────────────────────────────────────

    def _serve(self, slot: int) -> None:
        awake = threading.Lock()
        awake.acquire()
        # It makes its loop with the first coroutine: most drivers have none.
        runner = asyncio.Runner(loop_factory=asyncio.new_event_loop)
        try:
            while (job := self._next(slot, awake)) is not None:
                outcome = self._perform(job, runner)
                self._running[slot] = None
                self._report(job, outcome)
                del job, outcome  # a thread that sleeps keeps no result alive
        finally:
            self._end(runner)

    def _next(self, slot: int, awake: threading.Lock) -> Job | None:
        """Wait for a job, which counts as running from here on; None: stop."""
        while True:
            with self._lock:
                job = None if self._stopping else self._pop()
                if job is not None:
                    self._running[slot] = RunningCall(job.call.method, self._clock())
                if job is not None or self._stopping:
                    return job
                self._sleepers.append(awake)
            # Outside the lock, which the one that wakes this thread has just let go of: a condition
            # variable, whose waiter wants the lock back at once, costs 10 µs more a call.
            awake.acquire()

    def _pop(self) -> Job | None:
        if self._poll_waits and (self._poll_is_due or not self._queue):
            self._poll_waits = False
            return self._poll
        return self._queue.popitem(last=False)[0] if self._queue else None

    def _perform(self, job: Job, runner: asyncio.Runner) -> Outcome:
        method = job.call.method
        try:
            if job.begin is not None and not job.begin(self._clock()):
                return Outcome(error=_too_late(method))
        except Exception as exc:
            # A fault of the relay's check; the thread must live for the calls behind this one.
            log.exception("%s: the check before %s failed", self.name, method)
            return Outcome(error=InternalError(f"{method} was not run: {type(exc).__name__}"))
        try:
            value = job.call.run()
            if hasattr(type(value), "__await__"):
                value = _await(value, runner)
        except BaseException as exc:
            # Everything, SystemExit and KeyboardInterrupt too: a driver never ends its relay.
            return Outcome(error=driver_failure(exc, method=method, relay_id=self.name))
        if job.prepare is None:
            return Outcome(value)
        try:
            return Outcome(job.prepare(value))
        except BaseException as exc:
            # Encoding may run code of the driver's objects, and may run out of stack or memory.
            error = unsendable_result(exc, value, method=method, relay_id=self.name)
            return Outcome(error=error)

    def _report(self, job: Job, outcome: Outcome) -> None:
        # The loop lowers the flag before it looks, this thread looks at it after it has appended:
        # so a result is never left without a wake-up behind it. A wake-up too many is harmless.
        self._finished.append((job, outcome))
        assert self._loop is not None
        if self._wake_is_sent and not self._loop.is_closed():
            return
        self._wake_is_sent = True
        if not self._call_on_loop(self._deliver):
            # Nobody is left to hear of them: the calls that wait must not move an instrument.
            log.warning("%s: the event loop was closed while its driver worked", self.name)
            self._stop(Stopping(f"{self.name} has ended"))

    def _end(self, runner: asyncio.Runner) -> None:
        try:
            runner.close()
        except Exception:
            # Tasks that a driver left on the loop are ended here, and are its author's code.
            log.exception("%s: the event loop of its driver did not close", self.name)
        self._call_on_loop(self._thread_ended)

    def _call_on_loop(self, callback: Callable[[], None]) -> bool:
        assert self._loop is not None
        try:
            self._loop.call_soon_threadsafe(callback)
        except RuntimeError:  # asyncio's way to say that the loop is closed
            return False
        return True

    # ── on the loop, or in any thread ───────────────────────────────────────────────────────────

    def _deliver(self) -> None:
        self._wake_is_sent = False
        for _ in range(min(len(self._finished), _BATCH)):
            job, outcome = self._finished.popleft()
            if job is self._poll:
                self._poll = None
            if self._closed:
                continue
            try:
                job.done(outcome)
            except (Exception, asyncio.CancelledError):
                # One callback must not cost the others of the batch their results.
                log.exception("%s: the result of %s was lost", self.name, job.call.method)
        if self._finished and self._loop is not None:
            self._wake_is_sent = True
            self._loop.call_soon(self._deliver)
        if self._on_batch is not None and not self._closed:
            self._on_batch()

    def _deliver_all(self) -> None:
        while self._finished:
            self._deliver()

    def _thread_ended(self) -> None:
        self._threads_left -= 1
        if not self._threads_left:
            self._ended.set()

    def _stop(self, refusal: LabmeshError) -> None:
        """Take nothing more; what waits ends with ``refusal``; the threads end."""
        with self._lock:
            self._stopping = True
            waiting = list(self._queue)
            if self._poll is not None and self._poll_waits:
                waiting.append(self._poll)
            self._queue.clear()
            self._poll_waits = False
            sleepers, self._sleepers = self._sleepers, []
        self._finished.extend((job, Outcome(error=refusal)) for job in waiting)
        for sleeper in sleepers:
            sleeper.release()

    def _refuse_if_stopping(self) -> None:
        if self._stopping:
            raise Stopping(f"{self.name} is shutting down; this was not run")

    def _busy(self) -> Busy:
        waiting = len(self._queue)
        text = f"{self.name} is busy: {waiting} calls wait, the limit"
        running = self.running
        if running is None:
            return Busy(f"{text}; try again later", queued=waiting)
        running_s = round(self._clock() - running.since, 3)
        return Busy(
            f"{text}, behind {running.method}, which has run for {running_s:.1f} s; "
            "try again later",
            queued=waiting,
            running=running.method,
            running_s=running_s,
        )

    def _name_the_stuck(self) -> None:
        for thread, call in zip(self._threads, self._running, strict=True):
            if call is not None:
                log.warning(
                    "%s: its driver is still in %s after %.1f s; thread %s is left behind",
                    self.name,
                    call.method,
                    self._clock() - call.since,
                    thread.name,
                )


def _too_late(method: str) -> Expired:
    return Expired(
        f"{method} waited in the queue until its deadline passed; it was not run and will not be"
    )


def _await(awaitable: Awaitable[Any], runner: asyncio.Runner) -> Any:
    value, exc = runner.run(_settle(awaitable))
    if exc is None:
        return value
    try:
        raise exc
    finally:
        del exc  # or this frame and the traceback keep each other, and the driver's locals, alive


async def _settle(awaitable: Awaitable[Any]) -> tuple[Any, BaseException | None]:
    try:
        return await awaitable, None
    except BaseException as exc:
        # A SystemExit that left the task would stop the loop and be logged as never retrieved.
        return None, exc
