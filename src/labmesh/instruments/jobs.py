"""What a driver's thread runs: one call, several in a row, or one that yields its values."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncGenerator, Callable, Generator, Hashable, Sequence
from contextlib import suppress
from typing import Any, Protocol

from msgspec import Struct

from labmesh.errors import LabmeshError
from labmesh.instruments.async_items import AsyncItems, Underway
from labmesh.instruments.cooperation import CancelFlag
from labmesh.instruments.exposure import BoundCall
from labmesh.instruments.failures import driver_failure
from labmesh.instruments.ownership import is_unshared

__all__ = ["BatchJob", "Interrupted", "Job", "Outcome", "StreamJob"]


class Outcome(Struct, frozen=True):
    """How a job ended: with a value, or with an error (``error.executed`` tells whether it ran)."""

    value: Any = None
    error: LabmeshError | None = None


class Interrupted(Exception):
    """A job was ended while it ran; the text says why."""


class Runner(Protocol):
    """What a thread lends to the job that it runs."""

    def settle(self, value: Any, job: Job) -> Any:
        """The value; of an awaitable, what it gives on the thread's own event loop."""

    def run(self, begin: Callable[[asyncio.AbstractEventLoop], Underway], job: Job) -> None:
        """Run the thread's own event loop until what this has begun is so far."""

    def pause(self) -> None:
        """Between two steps of a long job: what must not wait for its end is done here."""

    def rest(self, timeout_s: float) -> bool:
        """:meth:`pause`, and wait for news from outside; False: somebody else waits for them."""


class Job(CancelFlag):
    """A call and what becomes of it; also the flag that is raised when nobody waits for it.

    :param call: what to run.
    """

    #: :meth:`done` is called on the worker's loop; False: in the thread, right behind the call
    on_loop = True
    #: where it is urgent: while it waits and runs no other thread begins with what may write; only
    #: for jobs whose :meth:`done` is called on the loop
    alone = False

    __slots__ = ("_end_coroutine", "call", "told_stuck", "why")

    def __init__(self, call: BoundCall) -> None:
        # As in CancelFlag, written out: there is one for every call.
        self.is_set = False
        self.call = call
        #: everybody was told that it lasts too long
        self.told_stuck = False
        #: why nobody waits for it any more
        self.why = ""
        self._end_coroutine: Callable[[], object] | None = None

    @property
    def method(self) -> str:
        """What it is called in the log and in errors."""
        return self.call.method

    @property
    def client(self) -> Hashable:
        """Whose it is: its calls keep their order."""
        return None

    @property
    def caller(self) -> str:
        """Who called it, for people; empty: nobody did, or nobody knows."""
        return ""

    def refusal(self, now: float) -> LabmeshError | None:
        """Why it must not begin; asked in the thread, right before it would. None: it may."""
        return None

    def execute(self, runner: Runner) -> Any:
        """Run the driver, in the thread."""
        value = self.call.run()
        return runner.settle(value, self)

    def prepare(self, value: Any) -> Any:
        """Turn the result into what :meth:`done` gets, in the thread: so a large result does not
        hold up others, and one that cannot be encoded fails this call only."""
        return value

    def done(self, outcome: Outcome) -> None:
        """It ended. Called once, unless it was taken out of the queue."""
        raise NotImplementedError

    def may_run_until(self, since: float) -> float:
        """When (monotonic) a job that began at ``since`` has run for as long as its driver allows;
        in any thread."""
        return _limit(self.call, since)

    def interrupt(self, why: str) -> None:
        """Tell a job that runs that nobody waits for it; in any thread.

        A coroutine is cancelled, a generator closed at its next ``yield``; any other method goes
        on, unless it asks :func:`~labmesh.cancel_requested`. Of several reasons the first counts.
        """
        self.why = self.why or why
        self.set()
        end = self._end_coroutine
        if end is not None:
            # A loop that has been closed since has no coroutine any more that could be ended.
            with suppress(RuntimeError):
                end()

    def cause_of(self, exc: BaseException) -> BaseException:
        """What to tell of a job that raised this: its coroutine knows of no reason."""
        if isinstance(exc, asyncio.CancelledError) and self.is_set:
            return Interrupted(self.why).with_traceback(exc.__traceback__)
        return exc

    def in_coroutine(self, loop: asyncio.AbstractEventLoop, task: asyncio.Task[Any] | None) -> None:
        """The coroutine that this job runs now; None: it has ended."""
        if task is None:
            self._end_coroutine = None
            return
        self._end_coroutine = lambda: loop.call_soon_threadsafe(task.cancel)
        if self.is_set:
            task.cancel()


def _limit(call: BoundCall, since: float) -> float:
    return since + call.timeout_s if call.timeout_s else math.inf


class BatchJob(Job):
    """Several calls, one behind the other; its value is a list of outcomes.

    :param entries: the calls.
    :param keep_going: also behind one that failed.
    """

    __slots__ = ("_running", "_since", "entries", "keep_going", "relay_id")

    def __init__(self, entries: Sequence[BoundCall], *, keep_going: bool, relay_id: str) -> None:
        names = ", ".join(each.method for each in entries)
        super().__init__(BoundCall(f"batch({names[:200]})", _nothing, (), {}))
        self.entries = entries
        self.keep_going = keep_going
        self.relay_id = relay_id
        self._running: BoundCall | None = None
        self._since = 0.0

    def may_run_until(self, since: float) -> float:
        """The limit is that of the call of it that runs now."""
        running = self._running
        return math.inf if running is None else _limit(running, self._since)

    def execute(self, runner: Runner) -> list[Outcome]:
        """Run them; what is missing in the list did not run."""
        outcomes: list[Outcome] = []
        for entry in self.entries:
            if self.is_set or not self.may_go_on():
                break
            self._running, self._since = entry, time.monotonic()
            outcome = self._run(entry, runner)
            outcomes.append(outcome)
            if outcome.error is not None and not self.keep_going:
                break
        return outcomes

    def may_go_on(self) -> bool:
        """Asked before each entry; False: neither it nor those behind it run."""
        return True

    def _run(self, entry: BoundCall, runner: Runner) -> Outcome:
        try:
            value = runner.settle(entry.run(), self)
        except BaseException as exc:
            # As in the worker: whatever a driver raises ends its call and nothing else.
            cause = self.cause_of(exc)
            error = driver_failure(cause, method=entry.method, relay_id=self.relay_id)
            return Outcome(error=error)
        # In a line of its own: arguments that are about to be passed are references, too.
        unshared = is_unshared(value)
        return self.kept(entry, value, unshared)

    def kept(self, entry: BoundCall, value: Any, unshared: bool) -> Outcome:
        """What one of them gave, to be kept while the others run.

        :param unshared: nobody else has it or its buffers, so nobody can change it.
        """
        return Outcome(value)


class StreamJob(Job):
    """A method that yields: each item goes to :meth:`put`; its value is what it returns."""

    __slots__ = ()

    def put(self, item: Any, runner: Runner) -> None:
        """Hand one item over, and wait until there is room for another one.

        :raises Interrupted: nobody takes it.
        """
        raise NotImplementedError

    def execute(self, runner: Runner) -> Any:
        """Run the generator to its end, or to the end of its reader's interest."""
        items = self.call.run()
        if isinstance(items, AsyncGenerator):
            return self._drain_async(items, runner)
        return self._drain(items, runner)

    def _drain(self, items: Generator[Any, Any, Any], runner: Runner) -> Any:
        try:
            while True:
                try:
                    item = next(items)
                except StopIteration as end:
                    return end.value
                self.put(item, runner)
        finally:
            items.close()

    def _drain_async(self, generator: AsyncGenerator[Any, Any], runner: Runner) -> None:
        items = AsyncItems(generator)
        try:
            while self._goes_on(items, runner):
                item, items.item = items.item, None
                self.put(item, runner)
                del item
        finally:
            # The flag is for the items; the generator's own clean-up must run to its end.
            runner.run(items.end, _Quiet(self.call))
            items.is_there()

    def _goes_on(self, items: AsyncItems, runner: Runner) -> bool:
        runner.run(items.go_on, self)
        return items.is_there()


class _Quiet(Job):
    """Work that nobody can take back."""

    __slots__ = ()


def _nothing() -> None:
    return None
