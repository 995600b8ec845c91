"""The thread that runs a driver, one call at a time.

What is to be run comes from a queue, or, with a :class:`Source`, right from the socket that the
thread reads itself: then a call costs no hand-off to another thread, neither on its way in nor with
its result. A thread that is busy does not read; its relay's loop does so meanwhile.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Hashable
from typing import Any, NamedTuple, Protocol

from labmesh.errors import Busy, InternalError, LabmeshError, Stopping
from labmesh.instruments.cooperation import set_current
from labmesh.instruments.failures import driver_failure, unsendable_result
from labmesh.instruments.jobs import Job, Outcome

__all__ = ["DriverWorker", "RunningCall", "Source"]

log = logging.getLogger(__name__)

#: Results that are delivered before the loop does something else.
_BATCH = 256
#: A method whose last call was quicker lets the results before it wait to be sent with its own.
_QUICK_S = 0.0002
_REMEMBERED = 1000
#: Jobs that are let through between two items of a long call.
_BETWEEN = 8
#: A source that was not emptied for so long is emptied before the next call, so that what waits in
#: it is known, and gets its signs of life.
READ_S = 0.005


class Source(Protocol):
    """Where a worker finds calls. What it reads, it hands to :meth:`DriverWorker.submit`."""

    #: a thread waits, or is about to; set under the worker's lock
    listened: bool

    def read(self) -> bool:
        """Take what is there; False: nothing is. Called under the worker's lock."""

    def flush(self) -> None:
        """Send the results that wait to be sent. Called under the worker's lock."""

    def wait(self, timeout_s: float | None = None) -> None:
        """Until there may be something to read, or the bell rings. Called without the lock, when
        :meth:`read` has found nothing since the last wait."""

    def ring(self) -> None:
        """End the wait; in any thread."""


class RunningCall(NamedTuple):
    """What a driver is busy with."""

    method: str
    #: the worker's clock (monotonic seconds) when it began
    since: float
    job: Job


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
    :param on_busy: called in a thread, under the lock, when it begins with a job.
    :param clock: monotonic seconds.
    """

    def __init__(
        self,
        name: str,
        *,
        threads: int = 1,
        max_queue: int = 4096,
        on_batch: Callable[[], None] | None = None,
        on_busy: Callable[[], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if threads < 1 or max_queue < 1:
            raise ValueError("a worker needs at least one thread and room for one call")
        self.name = name
        self._max_queue = max_queue
        self._on_batch = on_batch
        self._on_busy = on_busy
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

        #: Guards what follows, and what belongs to the source.
        self.lock = threading.RLock()
        self._queue: OrderedDict[Job, None] = OrderedDict()
        self._urgent: deque[Job] = deque()
        self._sleepers: list[threading.Lock] = []
        self._poll: Job | None = None
        self._poll_waits = False
        self._poll_is_due = False
        self._stopping = False
        self._source: Source | None = None
        #: a thread waits for the source
        self._is_listening = False
        #: methods whose last call was quick
        self._quick: set[str] = set()
        #: when the source was last found empty
        self._emptied_at = clock()

        #: what the threads finished and the loop has not delivered
        self._finished: deque[tuple[Job, Outcome]] = deque()
        self._wake_is_sent = False
        self._closed = False

    @property
    def running(self) -> RunningCall | None:
        """The call that has run longest, or None. Can be read in any thread at any time."""
        calls = self.running_calls
        return min(calls, key=lambda call: call.since) if calls else None

    @property
    def running_calls(self) -> list[RunningCall]:
        """What each busy thread runs. Can be read in any thread at any time."""
        return [call for call in self._running if call is not None]

    @property
    def queued(self) -> int:
        """How many calls wait."""
        return len(self._queue)

    @property
    def is_idle(self) -> bool:
        """Nothing runs or waits, and a thread listens to the source. Hold the lock."""
        return self._is_listening and not any(self._running)

    def start(self, loop: asyncio.AbstractEventLoop, source: Source | None = None) -> None:
        """Start the thread; results go to ``loop``. Calls may have been submitted before."""
        if self._loop is not None or self._stopping:
            raise RuntimeError(f"the worker of {self.name} was started or closed before")
        self._loop = loop
        self._source = source
        for thread in self._threads:
            thread.start()
            self._threads_left += 1

    def submit(self, job: Job) -> None:
        """Queue a call. Can be called in any thread.

        :raises Busy: the queue is full.
        :raises Stopping: the worker is closing.
        """
        with self.lock:
            self._refuse_if_stopping()
            if len(self._queue) >= self._max_queue:
                raise self._busy()
            self._queue[job] = None
            self._wake_one()

    def submit_urgent(self, job: Job) -> None:
        """Queue a call ahead of all that waits, whatever the length of the queue.

        :raises Stopping: the worker is closing.
        """
        with self.lock:
            self._refuse_if_stopping()
            self._urgent.append(job)
            self._wake_one()

    def submit_poll(self, job: Job) -> bool:
        """Queue a poll behind the calls; False: skipped, the one before has not ended.

        At most one poll is open. Calls overtake it while it waits, until the next poll is asked
        for: then it is due and goes first. So polls add at most one poll an interval to the wait of
        a call, and a driver that is never idle still shows its state.

        :raises Stopping: the worker is closing.
        """
        with self.lock:
            self._refuse_if_stopping()
            if self._poll is not None:
                self._poll_is_due = True
                return False
            self._poll = job
            self._poll_waits = True
            self._poll_is_due = False
            self._wake_one()
        return True

    def cancel(self, job: Job) -> bool:
        """True: taken out of the queue; it will not run, and ``done`` is not called."""
        with self.lock:
            if job not in self._queue:
                return False
            del self._queue[job]
            return True

    def look_at_source(self) -> None:
        """Take what has arrived while all threads are busy. Hold the lock."""
        now = self._clock()
        if not self._is_listening and now - self._emptied_at > READ_S:
            self._read(now)

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
        hands = _Hands(self, slot)
        try:
            while (job := self._next(slot, awake)) is not None:
                self._run(job, slot, hands)
                del job  # a thread that sleeps keeps no result alive
        finally:
            self._end(hands)

    def _run(self, job: Job, slot: int, hands: _Hands) -> None:
        outcome = self._perform(job, hands)
        if job.on_loop:
            self._running[slot] = None
            self._report(job, outcome)
            return
        try:
            with self.lock:
                running = self._running[slot]
                self._running[slot] = None
                job.done(outcome)
                self._note_time(job.method, running)
                if not self._queue and self._source is not None:
                    self._source.flush()
        except Exception:
            # A fault of the relay's; the thread must live for the calls behind this one.
            log.exception("%s: the result of %s was lost", self.name, job.method)

    def _note_time(self, method: str, running: RunningCall | None) -> None:
        if running is not None and self._clock() - running.since < _QUICK_S:
            if len(self._quick) < _REMEMBERED:
                self._quick.add(method)
        else:
            self._quick.discard(method)

    def _next(self, slot: int, awake: threading.Lock) -> Job | None:
        """Wait for a job, which counts as running from here on; None: stop."""
        lock = self.lock
        while True:
            with lock:
                if self._stopping:
                    return None
                source = None if self._is_listening else self._source
                is_empty = False
                if source is not None:
                    now = self._clock()
                    if not self._has_work() or now - self._emptied_at > READ_S:
                        is_empty = not self._read(now)
                job = self._pop()
                if self._source is not None and (job is None or job.method not in self._quick):
                    self._source.flush()
                if job is not None:
                    self._running[slot] = RunningCall(job.method, self._clock(), job)
                    if self._on_busy is not None:
                        self._on_busy()
                    if source is not None and self._sleepers:
                        self._sleepers.pop().release()  # somebody else can listen meanwhile
                    return job
                if source is not None:
                    if not is_empty:
                        continue  # it gave what is no job, and it takes a limited number at a time
                    self._is_listening = source.listened = True
                else:
                    self._sleepers.append(awake)
            if source is not None:
                source.wait()
                with lock:
                    self._is_listening = source.listened = False
                    self._emptied_at = self._clock()
            else:
                # Outside the lock, which the one that wakes this thread has just let go of: a
                # condition variable, whose waiter wants the lock back at once, costs 10 µs more.
                awake.acquire()

    def _read(self, now: float) -> bool:
        """Take what the source has; False: nothing."""
        source = self._source
        if source is None:
            return False
        self._emptied_at = now
        return source.read()

    def _has_work(self) -> bool:
        return bool(self._queue or self._urgent or self._poll_waits)

    def _pop(self) -> Job | None:
        if self._urgent:
            return self._urgent.popleft()
        if self._poll_waits and (self._poll_is_due or not self._queue):
            self._poll_waits = False
            return self._poll
        return self._queue.popitem(last=False)[0] if self._queue else None

    def run_between(self, slot: int, hands: _Hands) -> None:
        """Between two items of a long call, in the thread of that call: the poll that waits, and
        calls that change nothing."""
        for _ in range(_BETWEEN):
            with self.lock:
                job = self._pop_harmless()
            if job is None:
                break
            outcome = self._perform(job, hands)
            if job.on_loop:
                self._report(job, outcome)
                continue
            try:
                with self.lock:
                    job.done(outcome)
                    if self._source is not None:
                        self._source.flush()
            except Exception:
                # As in _run: the long call goes on, whatever becomes of another one's result.
                log.exception("%s: the result of %s was lost", self.name, job.method)
        running = self._running[slot]
        if running is not None:
            set_current(running.job)

    def rest(self, slot: int, hands: _Hands, timeout_s: float) -> bool:
        """Wait in the middle of a long call, as a thread without work does, and run what may be run
        between; False: another thread listens, and nothing was waited for."""
        with self.lock:
            source = None if self._is_listening or self._stopping else self._source
            # As everywhere: nobody may wait for a source before it was found empty.
            has_news = self._read(self._clock()) if source is not None else False
            if source is not None and not has_news:
                self._is_listening = source.listened = True
        if source is not None and not has_news:
            source.wait(timeout_s)
            with self.lock:
                self._is_listening = source.listened = False
        self.run_between(slot, hands)
        return source is not None

    def _pop_harmless(self) -> Job | None:
        if self._stopping:
            return None
        if not self._is_listening:
            self._read(self._clock())
        if self._poll_waits:
            self._poll_waits = False
            return self._poll
        held_up: set[Hashable] = set()
        for job in self._queue:
            call, client = job.call, job.client
            # A stream would be a long call inside a long call; and a client that has written and
            # reads then means to read what it wrote.
            if call.read_only and not call.yields and client not in held_up:
                del self._queue[job]
                return job
            held_up.add(client)
        return None

    def _perform(self, job: Job, hands: _Hands) -> Outcome:
        method = job.method
        try:
            error = job.refusal(self._clock())
        except Exception as exc:
            # A fault of the relay's check; the thread must live for the calls behind this one.
            log.exception("%s: the check before %s failed", self.name, method)
            error = InternalError(f"{method} was not run: {type(exc).__name__}")
        if error is not None:
            return Outcome(error=error)
        set_current(job)
        try:
            value = job.execute(hands)
        except BaseException as exc:
            # Everything, SystemExit and KeyboardInterrupt too: a driver never ends its relay.
            cause = job.cause_of(exc)
            return Outcome(error=driver_failure(cause, method=method, relay_id=self.name))
        finally:
            set_current(None)
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
        if not self.call_on_loop(self._deliver):
            # Nobody is left to hear of them: the calls that wait must not move an instrument.
            log.warning("%s: the event loop was closed while its driver worked", self.name)
            self._stop(Stopping(f"{self.name} has ended"))

    def _end(self, hands: _Hands) -> None:
        try:
            hands.runner.close()
        except Exception:
            # Tasks that a driver left on the loop are ended here, and are its author's code.
            log.exception("%s: the event loop of its driver did not close", self.name)
        self.call_on_loop(self._thread_ended)

    def call_on_loop(self, callback: Callable[[], None]) -> bool:
        """Have the loop call this; False: the loop has ended. In any thread."""
        assert self._loop is not None
        try:
            self._loop.call_soon_threadsafe(callback)
        except RuntimeError:  # asyncio's way to say that the loop is closed
            return False
        return True

    # ── on the loop, or in any thread ───────────────────────────────────────────────────────────

    def _wake_one(self) -> None:
        if self._sleepers:
            self._sleepers.pop().release()
        elif self._is_listening and self._source is not None:
            self._source.ring()

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
                log.exception("%s: the result of %s was lost", self.name, job.method)
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
        with self.lock:
            self._stopping = True
            waiting = [*self._urgent, *self._queue]
            if self._poll is not None and self._poll_waits:
                waiting.append(self._poll)
            self._queue.clear()
            self._urgent.clear()
            self._poll_waits = False
            sleepers, self._sleepers = self._sleepers, []
            if self._source is not None:
                self._source.ring()
            for job in waiting:
                if job.on_loop:
                    self._finished.append((job, Outcome(error=refusal)))
                else:
                    job.done(Outcome(error=refusal))
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


class _Hands:
    """What one thread lends to the job that it runs."""

    def __init__(self, worker: DriverWorker, slot: int) -> None:
        self._worker = worker
        self._slot = slot
        # It makes its loop with the first coroutine: most drivers have none.
        self.runner = asyncio.Runner(loop_factory=asyncio.new_event_loop)

    def settle(self, value: Any, job: Job) -> Any:
        """The value; of an awaitable, what it gives on the thread's own event loop."""
        if not hasattr(type(value), "__await__"):
            return value
        result, exc = self.runner.run(_settled(value, job))
        if exc is None:
            return result
        try:
            raise exc
        finally:
            del exc  # or this frame and the traceback keep each other, and the driver's locals

    def pause(self) -> None:
        """Between two items: state and readers must not wait for the end of a long scan."""
        self._worker.run_between(self._slot, self)

    def rest(self, timeout_s: float) -> bool:
        """Wait for news from outside; False: somebody else waits for them."""
        return self._worker.rest(self._slot, self, timeout_s)


async def _settled(awaitable: Awaitable[Any], job: Job) -> tuple[Any, BaseException | None]:
    job.in_coroutine(asyncio.get_running_loop(), asyncio.current_task())
    try:
        return await awaitable, None
    except BaseException as exc:
        # A SystemExit that left the task would stop the loop and be logged as never retrieved.
        return None, exc
    finally:
        job.in_coroutine(asyncio.get_running_loop(), None)
