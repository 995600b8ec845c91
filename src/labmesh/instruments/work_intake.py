"""What waits for the threads of a driver, and how they are woken for it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

from labmesh.errors import Stopping
from labmesh.instruments.job_queue import JobQueue, busy
from labmesh.instruments.jobs import Job
from labmesh.instruments.source import Source
from labmesh.instruments.thread_runner import RunningCall

__all__ = ["WorkIntake"]


class WorkIntake:
    """Takes jobs for the threads of one driver; :class:`DriverWorker` has the threads.

    :param name: the relay's id, for errors.
    :param threads: how many threads there are.
    :param max_queue: calls that may wait.
    :param clock: monotonic seconds.
    """

    def __init__(
        self, name: str, *, threads: int, max_queue: int, clock: Callable[[], float]
    ) -> None:
        if threads < 1 or max_queue < 1:
            raise ValueError("a worker needs at least one thread and room for one call")
        self.name = name
        self._max_queue = max_queue
        self._clock = clock
        #: one entry a thread, each written by its thread alone
        self._running: list[RunningCall | None] = [None] * threads

        #: Guards what follows, and what belongs to the source.
        self.lock = threading.RLock()
        self._queue = JobQueue()
        self._sleepers: list[threading.Lock] = []
        self._stopping = False
        self._source: Source | None = None
        #: a thread waits for the source
        self._is_listening = False

    @property
    def running(self) -> RunningCall | None:
        """The call that has run longest, or None. Can be read in any thread at any time."""
        return min(self.running_calls, key=lambda call: call.since, default=None)

    @property
    def running_calls(self) -> list[RunningCall]:
        """What each busy thread runs. Can be read in any thread at any time."""
        return [call for call in self._running if call is not None]

    @property
    def queued(self) -> int:
        """How many calls wait."""
        return len(self._queue.calls)

    @property
    def room(self) -> int:
        """How many calls would be taken now. Hold the lock."""
        return 0 if self._stopping else self._max_queue - len(self._queue.calls)

    def submit(self, job: Job) -> None:
        """Queue a call. Can be called in any thread.

        :raises Busy: the queue is full.
        :raises Stopping: the worker is closing.
        """
        with self.lock:
            self.take(job)

    def take(self, job: Job) -> None:
        """:meth:`submit` for who holds the lock."""
        self.take_all((job,))

    def take_all(self, jobs: Sequence[Job]) -> None:
        """:meth:`take` for several, in this order: all of them, or none."""
        if self._stopping:
            raise self._shutting_down()
        calls = self._queue.calls
        if len(calls) + len(jobs) > self._max_queue:
            raise busy(self.name, len(calls), self.running, self._clock())
        calls.update(dict.fromkeys(jobs))
        if self._sleepers:
            for _ in jobs[: len(self._sleepers)]:
                self._sleepers.pop().release()
        elif self._is_listening:
            self._wake_one()

    def submit_urgent(self, job: Job) -> None:
        """Queue a call ahead of all that waits, whatever the length of the queue.

        :raises Stopping: the worker is closing.
        """
        with self.lock:
            if self._stopping:
                raise self._shutting_down()
            self._queue.push_urgent(job)
            self._wake_one()

    def submit_poll(self, job: Job) -> bool:
        """Queue a poll behind the calls; False: skipped, the one before has not ended.

        At most one poll is open. Calls overtake it while it waits, until the next poll is asked
        for: then it is due and goes first. So polls add at most one poll an interval to the wait of
        a call, and a driver that is never idle still shows its state.

        :raises Stopping: the worker is closing.
        """
        with self.lock:
            if self._stopping:
                raise self._shutting_down()
            if not self._queue.push_poll(job):
                return False
            self._wake_one()
        return True

    def cancel(self, job: Job) -> bool:
        """True: taken out of the queue; it will not run, and ``done`` is not called."""
        with self.lock:
            return self._queue.remove(job)

    def _wake_one(self) -> None:
        if self._sleepers:
            self._sleepers.pop().release()
        elif self._is_listening and self._source is not None:
            self._source.ring()

    def _wake_all(self) -> None:
        while self._sleepers:
            self._sleepers.pop().release()
        if self._source is not None:
            self._source.ring()

    def _shutting_down(self) -> Stopping:
        return Stopping(f"{self.name} is shutting down; this was not run")
