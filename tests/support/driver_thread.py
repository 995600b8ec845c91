"""A driver's thread under test: methods that block, callers that collect how calls end."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

from labmesh.errors import LabmeshError
from labmesh.instruments.exposure import BoundCall
from labmesh.instruments.jobs import Job, Outcome
from labmesh.instruments.worker import DriverWorker

__all__ = ["LIMIT_S", "Caller", "Clock", "Gate", "Submitted", "threads_left", "value"]

LIMIT_S = 10.0


def threads_left() -> list[str]:
    """Names of the drivers' threads that there are."""
    return [each.name for each in threading.enumerate() if each.name.startswith("labmesh-driver")]


def value(number: int) -> int:
    """A method that returns what it is given."""
    return number


class Clock:
    """A clock that stands until it is moved."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Gate:
    """A driver method that says when it has begun and returns when it is let go."""

    def __init__(self) -> None:
        self._begun = threading.Event()
        self._may_end = threading.Event()
        #: the one that is blocked
        self.thread = threading.current_thread()

    def block(self) -> str:
        self.thread = threading.current_thread()
        self._begun.set()
        assert self._may_end.wait(LIMIT_S)
        return "released"

    def wait_begun(self) -> None:
        """Holds the loop, which the worker needs for nothing."""
        assert self._begun.wait(LIMIT_S)

    def release(self) -> None:
        self._may_end.set()


class Submitted(Job):
    """A job that tells its caller how it ended."""

    def __init__(
        self,
        call: BoundCall,
        told: Callable[[Outcome], None],
        refusal: Callable[[float], LabmeshError | None] | None = None,
        prepare: Callable[[Any], Any] | None = None,
    ) -> None:
        super().__init__(call)
        self._told, self._refusal, self._prepare = told, refusal, prepare

    def refusal(self, now: float) -> LabmeshError | None:
        return None if self._refusal is None else self._refusal(now)

    def prepare(self, value: Any) -> Any:
        return value if self._prepare is None else self._prepare(value)

    def done(self, outcome: Outcome) -> None:
        self._told(outcome)


class InThread(Submitted):
    """One that ends in the driver's thread."""

    on_loop = False


class Caller:
    """Submits calls and collects their outcomes in the order of delivery.

    :param in_thread: the calls end in the driver's thread.
    """

    def __init__(self, worker: DriverWorker, *, in_thread: bool = False) -> None:
        self.worker = worker
        self.outcomes: list[tuple[str, Outcome]] = []
        self._kind: type[Submitted] = InThread if in_thread else Submitted
        self._news = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None

    def told(self, method: str, outcome: Outcome) -> None:
        """A call has ended; in any thread."""
        self.outcomes.append((method, outcome))
        if self._kind is Submitted:
            self._news.set()
        elif self._loop is not None:
            self._loop.call_soon_threadsafe(self._news.set)

    def job(
        self,
        function: Callable[..., Any],
        *args: Any,
        name: str | None = None,
        **options: Any,
    ) -> Submitted:
        method = name or getattr(function, "__name__", "method")
        call = BoundCall(method, function, args, {})
        return self._kind(call, lambda outcome: self.told(method, outcome), **options)

    def submit(self, function: Callable[..., Any], *args: Any, **options: Any) -> Submitted:
        job = self.job(function, *args, **options)
        self.worker.submit(job)
        return job

    async def wait(self, count: int) -> list[Any]:
        """The first ``count`` outcomes, each its value or its error."""
        self._loop = asyncio.get_running_loop()
        async with asyncio.timeout(LIMIT_S):
            while len(self.outcomes) < count:
                self._news.clear()
                if len(self.outcomes) < count:
                    await self._news.wait()
        return [o.value if o.error is None else o.error for _, o in self.outcomes]

    async def call(self, function: Callable[..., Any], *args: Any, **options: Any) -> Outcome:
        """Run one call while no other is open."""
        count = len(self.outcomes) + 1
        self.submit(function, *args, **options)
        await self.wait(count)
        return self.outcomes[-1][1]
