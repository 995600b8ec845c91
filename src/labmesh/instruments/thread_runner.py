"""How one thread of a driver runs a job, whatever the driver does, and what it lends to it."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Protocol

from msgspec import Struct

from labmesh.errors import InternalError
from labmesh.instruments.async_items import Underway
from labmesh.instruments.cooperation import of_this_thread
from labmesh.instruments.failures import driver_failure, unsendable_result
from labmesh.instruments.jobs import Job, Outcome

__all__ = ["QUICK_S", "RunningCall", "ThreadRunner", "name_the_stuck", "note_speed"]

log = logging.getLogger(__name__)

#: A method whose last call was quicker lets the results before it wait to be sent with its own.
QUICK_S = 0.0001
_REMEMBERED = 1000


class RunningCall(Struct, frozen=True, gc=False):
    """What a driver is busy with."""

    method: str
    #: the worker's clock (monotonic seconds) when it began
    since: float
    job: Job

    def told(self, now: float) -> str:
        """What, for how long, and by whom: for those who wait for its end."""
        by = self.job.caller
        whose = f" (called by {by})" if by else ""
        return f"{self.method}{whose}, which has run for {now - self.since:.1f} s"


class Worker(Protocol):
    """What a thread needs of its worker."""

    name: str

    def run_between(self, slot: int, runner: ThreadRunner) -> None:
        """Run what may be run between two items of a long call."""

    def rest(self, slot: int, runner: ThreadRunner, timeout_s: float) -> bool:
        """Wait for news from outside; False: another thread waits for them."""


class ThreadRunner:
    """What one thread runs jobs with, and lends to each of them meanwhile; made in that thread.

    :param slot: which of the worker's threads it is.
    :param clock: monotonic seconds.
    """

    def __init__(self, worker: Worker, slot: int, clock: Callable[[], float]) -> None:
        self._worker = worker
        self._slot = slot
        self._clock = clock
        self._current = of_this_thread()
        # It makes its loop with the first coroutine: most drivers have none.
        self._coroutines = asyncio.Runner(loop_factory=asyncio.new_event_loop)

    def perform(self, job: Job, now: float) -> Outcome:
        """Run a job; whatever its driver raises is its outcome.

        :param now: the worker's clock, right before this.
        """
        try:
            error = job.refusal(now)
        except Exception as exc:
            # A fault of the relay's check; the thread must live for the calls behind this one.
            log.exception("%s: the check before %s failed", self._worker.name, job.method)
            error = InternalError(f"{job.method} was not run: {type(exc).__name__}")
        if error is not None:
            return Outcome(error=error)
        current = self._current
        current.flag = job
        try:
            value = job.execute(self)
        except BaseException as exc:
            # Everything, SystemExit and KeyboardInterrupt too: a driver never ends its relay.
            cause = job.cause_of(exc)
            error = driver_failure(cause, method=job.method, relay_id=self._worker.name)
            return Outcome(error=error)
        finally:
            current.flag = None
        try:
            return Outcome(job.prepare(value))
        except BaseException as exc:
            # Encoding may run code of the driver's objects, and may run out of stack or memory.
            error = unsendable_result(exc, value, method=job.method, relay_id=self._worker.name)
            return Outcome(error=error)

    def settle(self, value: Any, job: Job) -> Any:
        """The value; of an awaitable, what it gives on the thread's own event loop."""
        if not hasattr(type(value), "__await__"):
            return value
        result, exc = self._coroutines.run(_settled(value, job))
        if exc is None:
            return result
        try:
            raise exc
        finally:
            del exc  # or this frame and the traceback keep each other, and the driver's locals

    def run(self, begin: Callable[[asyncio.AbstractEventLoop], Underway], job: Job) -> None:
        """Run the thread's own event loop until what ``begin`` has begun is so far."""
        loop = self._coroutines.get_loop()
        task, done = begin(loop)
        job.in_coroutine(loop, task)
        try:
            loop.run_until_complete(done)
        finally:
            job.in_coroutine(loop, None)

    def pause(self) -> None:
        """Between two items: state and readers must not wait for the end of a long scan."""
        self._worker.run_between(self._slot, self)

    def rest(self, timeout_s: float) -> bool:
        """Wait for news from outside; False: somebody else waits for them."""
        return self._worker.rest(self._slot, self, timeout_s)

    def close(self) -> None:
        """End the thread's event loop; in the thread."""
        try:
            self._coroutines.close()
        except Exception:
            # Tasks that a driver left on the loop are ended here, and are its author's code.
            log.exception("%s: the event loop of its driver did not close", self._worker.name)


async def _settled(awaitable: Awaitable[Any], job: Job) -> tuple[Any, BaseException | None]:
    job.in_coroutine(asyncio.get_running_loop(), asyncio.current_task())
    try:
        return await awaitable, None
    except BaseException as exc:
        # A SystemExit that left the task would stop the loop and be logged as never retrieved.
        return None, exc
    finally:
        job.in_coroutine(asyncio.get_running_loop(), None)


def note_speed(quick: set[str], method: str, is_quick: bool) -> None:
    """How the last call of a method was. There is a limit to how many are known."""
    if not is_quick:
        quick.discard(method)
    elif len(quick) < _REMEMBERED:
        quick.add(method)


def name_the_stuck(
    name: str,
    threads: Sequence[threading.Thread],
    running: Sequence[RunningCall | None],
    now: float,
) -> None:
    """Log which threads of a worker are left behind in their calls."""
    for thread, call in zip(threads, running, strict=True):
        if call is not None:
            log.warning(
                "%s: its driver is still in %s after %.1f s; thread %s is left behind",
                name,
                call.method,
                now - call.since,
                thread.name,
            )
