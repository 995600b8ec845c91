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
from collections.abc import Callable

from labmesh.errors import LabmeshError, Stopping
from labmesh.instruments.cooperation import set_current
from labmesh.instruments.delivery import Delivery
from labmesh.instruments.handover import Publish, Upload, set_node, set_publisher, set_uploader
from labmesh.instruments.jobs import Job, Outcome
from labmesh.instruments.source import Source
from labmesh.instruments.thread_runner import (
    QUICK_S,
    RunningCall,
    ThreadRunner,
    name_the_stuck,
    note_speed,
)
from labmesh.instruments.work_intake import WorkIntake

__all__ = ["DriverWorker"]

log = logging.getLogger(__name__)

#: Jobs that are let through between two items of a long call.
_BETWEEN = 8
#: A source that was not emptied for so long is emptied before the next call, so that what waits in
#: it is known, and gets its signs of life.
READ_S = 0.003


class DriverWorker(WorkIntake):
    """Runs the calls of one driver in a thread of its own.

    Calls begin in the order of :meth:`submit`, and with one thread (the default) each ends before
    the next begins. Whatever a driver raises ends its call and nothing else. Coroutines, also those
    that plain methods return, are awaited on an event loop of the thread's own, which stands still
    between calls: tasks that a driver leaves behind go on only during its next coroutine.

    :param name: the relay's id, for errors, the log and the name of the thread.
    :param threads: more than one only for a driver that is safe to call concurrently.
    :param max_queue: calls that may wait.
    :param on_busy: called in a thread, under the lock, when it begins with a job that does not
        follow another one at once.
    :param clock: monotonic seconds.
    """

    def __init__(
        self,
        name: str,
        *,
        threads: int = 1,
        max_queue: int = 4096,
        on_busy: Callable[[], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(name, threads=threads, max_queue=max_queue, clock=clock)
        #: where the driver's datasets go; set it before the start
        self.uploader: Upload | None = None
        #: and its events
        self.publisher: Publish | None = None
        self._on_busy = on_busy
        self._ended = asyncio.Event()
        self._at_end: Callable[[], None] | None = None
        #: started and not ended; counted on the loop
        self._threads_left = 0
        self._threads = [
            threading.Thread(
                target=self._serve, args=(slot,), name=f"labmesh-driver-{name}-{slot}", daemon=True
            )
            for slot in range(threads)
        ]
        #: the methods whose last call was quick
        self._quick: set[str] = set()
        #: jobs that were begun until now
        self.begun = 0
        #: when the source was last found empty
        self._emptied_at = clock()

        self._delivery = Delivery(name, self._queue.ended)
        self._closed = False

    @property
    def is_idle(self) -> bool:
        """Nothing runs or waits, and a thread listens to the source. Hold the lock."""
        return self._is_listening and not any(self._running)

    def start(self, loop: asyncio.AbstractEventLoop, source: Source | None = None) -> None:
        """Start the thread; results go to ``loop``. Calls may have been submitted before."""
        if self._threads_left or self._stopping:
            raise RuntimeError(f"the worker of {self.name} was started or closed before")
        self._delivery.start(loop)
        self._source = source
        for thread in self._threads:
            thread.start()
            self._threads_left += 1

    def look_at_source(self) -> None:
        """Take what has arrived while all threads are busy. Hold the lock."""
        if not self._is_listening and (now := self._clock()) - self._emptied_at > READ_S:
            self._read(now)

    async def close(self, timeout_s: float = 5.0) -> bool:
        """Refuse what waits, let the running call end; False: it did not end in time.

        Calls in the queue end with :class:`~labmesh.errors.Stopping`. When this returns, every
        outcome that there is was delivered, and none follows. A thread that is stuck is a daemon:
        it ends with its call or with the process, and the log names it. Must be awaited on the
        loop that was given to :meth:`start`. A second time is fine.
        """
        self._stop(self._shutting_down())
        self._delivery.deliver_all()
        if self._threads_left and not self._closed:
            try:
                async with asyncio.timeout(timeout_s):
                    await self._ended.wait()
            except TimeoutError:
                name_the_stuck(self.name, self._threads, self._running, self._clock())
        self._delivery.deliver_all()
        self._closed = True
        self._delivery.close()
        if self._threads_left:
            return False
        for thread in self._threads:
            if thread.ident is not None:
                thread.join()
        return True

    def when_ended(self, callback: Callable[[], None]) -> None:
        """Have the loop call this once the last thread has ended, be it long after the close."""
        if self._threads_left:
            self._at_end = callback
        else:
            callback()

    # ── in the threads ──────────────────────────────────────────────────────────────────────────

    def _serve(self, slot: int) -> None:
        awake = threading.Lock()
        awake.acquire()
        runner = ThreadRunner(self, slot, self._clock)
        set_node(self.name)
        set_uploader(self.uploader)
        set_publisher(self.publisher)
        try:
            following: RunningCall | None = None
            while (running := following or self._next(slot, awake)) is not None:
                following = self._run(running, slot, runner)
                del running  # a thread that sleeps keeps no result alive
        finally:
            runner.close()
            self.call_on_loop(self._thread_ended)

    def _run(
        self,
        running: RunningCall,
        slot: int,
        runner: ThreadRunner,
        long: RunningCall | None = None,
    ) -> RunningCall | None:
        """Run a job to its end (``long``: in the middle of that one); returns what follows it."""
        job, since = running.job, running.since
        outcome = runner.perform(job, since)
        if job.on_loop:
            self._running[slot] = long
            with self.lock:
                if self._queue.was_alone(job):
                    self._wake_all()
            self._report(job, outcome)
            return None
        clock = self._clock
        is_quick = clock() - since < QUICK_S
        # Once a call: a with statement takes as long as two calls of functions more.
        self.lock.acquire()
        try:
            self._running[slot] = long
            job.done(outcome)
            now = clock()
            if is_quick is not (running.method in self._quick):
                note_speed(self._quick, running.method, is_quick)
            if long is None and self._queue.calls:
                if now - self._emptied_at <= READ_S and not self._sleepers:
                    # As in _next, which would have to ask for the lock again.
                    following = self._queue.pop()
                    if following is not None:
                        return self._begin(slot, following, now)
            elif self._source is not None:
                self._source.flush()
        except Exception:
            # A fault of the relay's; the thread must live for the calls behind this one.
            log.exception("%s: the result of %s was lost", self.name, job.method)
        finally:
            self.lock.release()
        return None

    def _begin(self, slot: int, job: Job, now: float) -> RunningCall:
        """From here on it counts as running."""
        method = job.call.method
        if method not in self._quick and self._source is not None:
            # No reply waits behind what may last.
            self._source.flush()
            now = self._clock()
        self.begun += 1
        running = self._running[slot] = RunningCall(method, now, job)
        return running

    def _next(self, slot: int, awake: threading.Lock) -> RunningCall | None:
        """Wait for a job, which counts as running from here on; None: stop."""
        lock, clock, queue = self.lock, self._clock, self._queue
        while True:
            with lock:
                if self._stopping:
                    return None
                source = None if self._is_listening else self._source
                is_empty = False
                if source is not None:
                    now = clock()
                    if (not queue.calls and queue.is_empty) or now - self._emptied_at > READ_S:
                        is_empty = not self._read(now)
                job = queue.pop()
                if job is not None:
                    running = self._begin(slot, job, clock())
                    if self._on_busy is not None:
                        self._on_busy()
                    if source is not None and self._sleepers:
                        self._sleepers.pop().release()  # somebody else can listen meanwhile
                    return running
                if self._source is not None:
                    self._source.flush()
                if source is not None:
                    if not is_empty and self._read(clock()):
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

    def run_between(self, slot: int, runner: ThreadRunner) -> None:
        """Between two items of a long call, which is not to end: what cannot or need not wait."""
        long = self._running[slot]
        for _ in range(_BETWEEN):
            with self.lock:
                job = self._next_harmless(long)
            if job is None:
                break
            running = self._running[slot] = RunningCall(job.method, self._clock(), job)
            self._run(running, slot, runner, long)
        set_current(None if long is None else long.job)

    def rest(self, slot: int, runner: ThreadRunner, timeout_s: float) -> bool:
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
        self.run_between(slot, runner)
        return source is not None

    def _next_harmless(self, long: RunningCall | None) -> Job | None:
        if self._stopping or (long is not None and long.job.is_set):
            return None
        if not self._is_listening:
            self._read(self._clock())
        return self._queue.pop_harmless()

    def _report(self, job: Job, outcome: Outcome) -> None:
        if not self._delivery.report(job, outcome):
            # Nobody is left to hear of them: the calls that wait must not move an instrument.
            log.warning("%s: the event loop was closed while its driver worked", self.name)
            self._stop(Stopping(f"{self.name} has ended"))

    def call_on_loop(self, callback: Callable[[], None]) -> bool:
        """Have the loop call this; False: the loop has ended. In any thread."""
        return self._delivery.call_on_loop(callback)

    # ── on the loop, or in any thread ───────────────────────────────────────────────────────────

    def _thread_ended(self) -> None:
        self._threads_left -= 1
        if not self._threads_left:
            self._ended.set()
            if self._at_end is not None:
                self._at_end()

    def _stop(self, refusal: LabmeshError) -> None:
        """Take nothing more; what waits ends with ``refusal``; the threads end."""
        with self.lock:
            self._stopping = True
            self._wake_all()
            for job in self._queue.clear():
                if job.on_loop:
                    self._delivery.put(job, Outcome(error=refusal))
                else:
                    job.done(Outcome(error=refusal))
