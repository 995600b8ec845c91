"""How one thread of a driver runs a job, whatever the driver does, and what it lends to it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from msgspec import Struct

from labmesh.errors import InternalError
from labmesh.instruments.cooperation import set_current
from labmesh.instruments.failures import driver_failure, unsendable_result
from labmesh.instruments.jobs import Job, Outcome

__all__ = ["RunningCall", "ThreadRunner"]

log = logging.getLogger(__name__)


class RunningCall(Struct, frozen=True):
    """What a driver is busy with."""

    method: str
    #: the worker's clock (monotonic seconds) when it began
    since: float
    job: Job


class Worker(Protocol):
    """What a thread needs of its worker."""

    name: str

    def run_between(self, slot: int, runner: ThreadRunner) -> None:
        """Run what may be run between two items of a long call."""

    def rest(self, slot: int, runner: ThreadRunner, timeout_s: float) -> bool:
        """Wait for news from outside; False: another thread waits for them."""


class ThreadRunner:
    """What one thread runs jobs with, and lends to each of them meanwhile.

    :param slot: which of the worker's threads it is.
    :param clock: monotonic seconds.
    """

    def __init__(self, worker: Worker, slot: int, clock: Callable[[], float]) -> None:
        self._worker = worker
        self._slot = slot
        self._clock = clock
        # It makes its loop with the first coroutine: most drivers have none.
        self._coroutines = asyncio.Runner(loop_factory=asyncio.new_event_loop)

    def perform(self, job: Job) -> Outcome:
        """Run a job; whatever its driver raises is its outcome."""
        try:
            error = job.refusal(self._clock())
        except Exception as exc:
            # A fault of the relay's check; the thread must live for the calls behind this one.
            log.exception("%s: the check before %s failed", self._worker.name, job.method)
            error = InternalError(f"{job.method} was not run: {type(exc).__name__}")
        if error is not None:
            return Outcome(error=error)
        set_current(job)
        try:
            value = job.execute(self)
        except BaseException as exc:
            # Everything, SystemExit and KeyboardInterrupt too: a driver never ends its relay.
            cause = job.cause_of(exc)
            error = driver_failure(cause, method=job.method, relay_id=self._worker.name)
            return Outcome(error=error)
        finally:
            set_current(None)
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
