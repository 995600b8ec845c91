"""What a driver's thread runs: batches, methods that yield, coroutines; and their early end."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Iterator
from contextvars import ContextVar
from typing import Any

import pytest
from tests.support.driver_thread import (
    LIMIT_S,
    Caller,
    Clock,
    Gate,
    Submitted,
    threads_left,
    value,
)

from labmesh import cancel_requested
from labmesh.errors import DriverError, LabmeshError
from labmesh.instruments.exposure import BoundCall
from labmesh.instruments.jobs import BatchJob, Interrupted, Job, Outcome, StreamJob
from labmesh.instruments.worker import DriverWorker

GONE = "its caller is gone"


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    yield
    assert threads_left() == []


@pytest.fixture
async def worker() -> AsyncIterator[DriverWorker]:
    worker = DriverWorker("Inst-0", clock=Clock())
    worker.start(asyncio.get_running_loop())
    yield worker
    assert await worker.close()


@pytest.fixture
def caller(worker: DriverWorker) -> Caller:
    return Caller(worker)


class Stream(StreamJob):
    """A method that yields, read by a reader who takes ``room`` items and then no more."""

    def __init__(self, function: Callable[[], Any], room: int = 1000) -> None:
        super().__init__(BoundCall("scan", function, (), {}, yields=True))
        self.items: list[Any] = []
        self.room = room
        self.ended: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()

    def put(self, item: Any, runner: Any) -> None:
        runner.pause()
        if self.is_set or len(self.items) == self.room:
            raise Interrupted(self.why or GONE)
        self.items.append(item)

    def done(self, outcome: Outcome) -> None:
        self.ended.set_result(outcome)


class Batch(BatchJob):
    """Several calls, whose caller waits for all of them."""

    def __init__(self, *functions: Callable[[], Any], keep_going: bool = False) -> None:
        entries = [BoundCall(each.__name__, each, (), {}) for each in functions]
        super().__init__(entries, keep_going=keep_going, relay_id="Inst-0")
        self.ended: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()

    def done(self, outcome: Outcome) -> None:
        self.ended.set_result(outcome)


async def end_of(worker: DriverWorker, job: Stream | Batch) -> Outcome:
    """Run it to its end."""
    worker.submit(job)
    async with asyncio.timeout(LIMIT_S):
        return await job.ended


async def assert_works_on(caller: Caller) -> None:
    """The thread runs the next call, which nobody has asked to end."""
    assert await caller.call(value, 7) == Outcome(7)
    assert await caller.call(cancel_requested) == Outcome(False)


# ── one behind the other ────────────────────────────────────────────────────────────────────────


def one() -> int:
    return 1


async def two() -> int:
    await asyncio.sleep(0)
    return 2


def fail() -> None:
    raise OSError("the probe is not connected")


async def fail_later() -> None:
    await asyncio.sleep(0)
    raise OSError("the probe is not connected")


async def test_a_batch_has_an_outcome_for_each_of_its_calls(worker: DriverWorker) -> None:
    batch = Batch(one, two, one)
    assert await end_of(worker, batch) == Outcome([Outcome(1), Outcome(2), Outcome(1)])
    assert batch.method == "batch(one, two, one)"


async def test_the_name_of_a_batch_is_no_longer_than_a_line(worker: DriverWorker) -> None:
    assert len(Batch(*[one] * 256).method) < 220


@pytest.mark.parametrize("failing", [fail, fail_later])
async def test_a_batch_ends_with_its_first_error(
    worker: DriverWorker, failing: Callable[[], Any]
) -> None:
    outcome = await end_of(worker, Batch(one, failing, two))
    first, second = outcome.value
    assert first == Outcome(1)
    assert isinstance(second.error, DriverError)
    assert isinstance(second.error, OSError)
    assert (second.error.method, second.error.relay_id) == (failing.__name__, "Inst-0")
    assert "labmesh/instruments/" not in second.error.remote_traceback


async def test_a_batch_that_keeps_going_has_errors_among_its_outcomes(
    worker: DriverWorker,
) -> None:
    outcome = await end_of(worker, Batch(fail, one, fail_later, two, keep_going=True))
    assert [each.value for each in outcome.value] == [None, 1, None, 2]
    assert [each.error is None for each in outcome.value] == [False, True, False, True]


async def test_nothing_runs_between_the_calls_of_a_batch(caller: Caller) -> None:
    ran: list[str] = []
    gate = Gate()

    def block() -> str:
        ran.append("first of the batch")
        return gate.block()

    def second() -> None:
        ran.append("second of the batch")

    batch = Batch(block, second)
    caller.worker.submit(batch)
    gate.wait_begun()
    caller.worker.submit_urgent(caller.job(ran.append, "urgent"))
    caller.submit(ran.append, "another call")
    gate.release()
    await caller.wait(2)
    assert ran == ["first of the batch", "second of the batch", "urgent", "another call"]


async def test_a_batch_that_is_interrupted_ends_behind_the_call_that_runs(caller: Caller) -> None:
    gate = Gate()
    batch = Batch(gate.block, one)
    caller.worker.submit(batch)
    gate.wait_begun()
    batch.interrupt(GONE)
    gate.release()
    async with asyncio.timeout(LIMIT_S):
        assert await batch.ended == Outcome([Outcome("released")])
    await assert_works_on(caller)


async def test_a_batch_that_is_interrupted_in_a_coroutine_says_why(caller: Caller) -> None:
    waits = Waiting()
    batch = Batch(one, waits.forever, one, keep_going=True)
    caller.worker.submit(batch)
    waits.wait_begun()
    batch.interrupt(GONE)
    async with asyncio.timeout(LIMIT_S):
        first, second = (await batch.ended).value
    assert first == Outcome(1)
    assert str(second.error) == f"Interrupted: {GONE}"
    await assert_works_on(caller)


# ── values one by one ───────────────────────────────────────────────────────────────────────────


class Scan:
    """Methods that yield, and what became of them."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.thread = ""

    def points(self) -> Generator[int, None, str]:
        try:
            yield from range(3)
        finally:
            self.log.append("closed")
            self.thread = threading.current_thread().name
        return "3 points"

    async def later_points(self) -> AsyncGenerator[int, None]:
        try:
            for number in range(3):
                await asyncio.sleep(0)
                yield number
        finally:
            # A clean-up that has to wait is not cut short, whatever ended the scan.
            await asyncio.sleep(0)
            self.log.append("closed")
            self.thread = threading.current_thread().name

    def breaking(self) -> Generator[int, None, None]:
        yield 0
        raise ValueError("channel 3 is gone")

    async def breaking_later(self) -> AsyncGenerator[int, None]:
        yield 0
        raise ValueError("channel 3 is gone")


async def test_the_items_of_a_generator_are_put_and_what_it_returns_is_its_value(
    worker: DriverWorker,
) -> None:
    scan = Scan()
    stream = Stream(scan.points)
    assert await end_of(worker, stream) == Outcome("3 points")
    assert stream.items == [0, 1, 2]
    assert scan.log == ["closed"]


async def test_the_items_of_an_async_generator_are_put(worker: DriverWorker) -> None:
    scan = Scan()
    stream = Stream(scan.later_points)
    assert await end_of(worker, stream) == Outcome(None)
    assert stream.items == [0, 1, 2]
    assert scan.log == ["closed"]


@pytest.mark.parametrize("kind", ["points", "later_points"])
async def test_a_generator_is_closed_in_its_thread_when_nobody_takes_its_items(
    caller: Caller, kind: str
) -> None:
    scan = Scan()
    stream = Stream(getattr(scan, kind), room=1)
    error = (await end_of(caller.worker, stream)).error
    assert isinstance(error, DriverError)
    assert str(error) == f"Interrupted: {GONE}"
    assert error.executed is True
    assert stream.items == [0]
    assert (scan.log, scan.thread) == (["closed"], "labmesh-driver-Inst-0-0")
    await assert_works_on(caller)


@pytest.mark.parametrize("kind", ["breaking", "breaking_later"])
async def test_what_a_generator_raises_comes_behind_its_items(caller: Caller, kind: str) -> None:
    stream = Stream(getattr(Scan(), kind))
    error = (await end_of(caller.worker, stream)).error
    assert isinstance(error, DriverError)
    assert isinstance(error, ValueError)
    assert stream.items == [0]
    assert error.remote_traceback.count("File ") == 1, "the driver's frame alone"
    await assert_works_on(caller)


class Held:
    """Generators that wait between two items, until somebody asks for their end."""

    def __init__(self) -> None:
        self.first = threading.Event()
        self.closed = threading.Event()

    def until_asked(self) -> Generator[int, None, None]:
        try:
            yield 0
            self.first.set()
            wait_until_asked()
            yield 1
        finally:
            self.closed.set()

    async def asleep(self) -> AsyncGenerator[int, None]:
        try:
            yield 0
            self.first.set()
            await asyncio.Event().wait()
            yield 1
        finally:
            await asyncio.sleep(0)
            self.closed.set()


def wait_until_asked() -> None:
    """As a driver does it in a long step."""
    step = threading.Event()
    while not cancel_requested():
        step.wait(0.001)


@pytest.mark.parametrize("kind", ["until_asked", "asleep"])
async def test_a_generator_that_is_interrupted_is_closed_and_says_why(
    caller: Caller, kind: str
) -> None:
    held = Held()
    stream = Stream(getattr(held, kind))
    caller.worker.submit(stream)
    assert held.first.wait(LIMIT_S)
    stream.interrupt("the lease that it ran under has ended")
    stream.interrupt("another reason that comes later")
    async with asyncio.timeout(LIMIT_S):
        error = (await stream.ended).error
    assert str(error) == "Interrupted: the lease that it ran under has ended"
    assert held.closed.is_set()
    assert stream.items == [0]
    await assert_works_on(caller)


async def too_long() -> AsyncGenerator[str, None]:
    """A step outlasts the time of the whole scan."""
    try:
        async with asyncio.timeout(0.05):
            yield "first"
            await asyncio.Event().wait()
    except TimeoutError:
        yield "too long"


async def too_late() -> AsyncGenerator[str, None]:
    """The time is over when its reader wants the next item, for which it need not wait."""
    try:
        async with asyncio.timeout(0):
            yield "first"
            yield "second"
            yield "third"
    except TimeoutError:
        yield "too long"


async def with_helpers() -> AsyncGenerator[str, None]:
    """What it starts in one step ends in another one."""
    done = asyncio.Event()

    async def step() -> str:
        await done.wait()
        return "helped"

    async with asyncio.TaskGroup() as group:
        helper = group.create_task(step())
        yield "first"
        done.set()
    yield helper.result()


async def with_context() -> AsyncGenerator[str, None]:
    """Values of its context are there in the next step."""
    token = STEP.set("set before")
    yield "first"
    yield STEP.get()
    STEP.reset(token)


STEP: ContextVar[str] = ContextVar("step")


@pytest.mark.parametrize(
    ("scan", "last"),
    [
        (too_long, "too long"),
        (too_late, "too long"),
        (with_helpers, "helped"),
        (with_context, "set before"),
    ],
)
async def test_all_of_an_async_generator_runs_in_one_task(
    caller: Caller, scan: Callable[[], AsyncGenerator[str, None]], last: str
) -> None:
    stream = Stream(scan)
    assert (await end_of(caller.worker, stream)) == Outcome(None)
    assert (stream.items[0], stream.items[-1]) == ("first", last)
    await assert_works_on(caller)


async def test_an_async_generator_that_is_ended_while_it_ends_cleans_up(caller: Caller) -> None:
    """Told twice: to end, and in the middle of that once more."""
    log: list[str] = []
    begun, ending = threading.Event(), threading.Event()

    async def careful() -> AsyncGenerator[int, None]:
        yield 0
        try:
            begun.set()
            await asyncio.Event().wait()
        finally:
            ending.set()
            try:
                await asyncio.Event().wait()
            finally:
                await asyncio.sleep(0)
                log.append("safe")

    stream = Stream(careful)
    caller.worker.submit(stream)
    assert begun.wait(LIMIT_S)
    stream.interrupt(GONE)
    assert ending.wait(LIMIT_S)
    stream.interrupt("and once more")
    async with asyncio.timeout(LIMIT_S):
        assert str((await stream.ended).error) == f"Interrupted: {GONE}"
    assert log == ["safe"]
    await assert_works_on(caller)


async def test_an_async_generator_that_is_ended_before_it_begins_does_not_begin(
    caller: Caller,
) -> None:
    scan = Scan()
    stream = Stream(scan.later_points)
    stream.interrupt(GONE)
    assert str((await end_of(caller.worker, stream)).error) == f"Interrupted: {GONE}"
    assert (stream.items, scan.log) == ([], [])
    await assert_works_on(caller)


class Hostile:
    """Generators that do not end as they should."""

    def swallow(self) -> Generator[int, None, None]:
        try:
            yield 0
        except GeneratorExit:
            yield 1

    async def swallow_later(self) -> AsyncGenerator[int, None]:
        try:
            yield 0
        except GeneratorExit:
            yield 1

    def raise_at_the_end(self) -> Generator[int, None, None]:
        try:
            yield 0
            yield 1
        finally:
            raise OSError("the shutter is stuck")

    async def raise_at_the_end_later(self) -> AsyncGenerator[int, None]:
        try:
            yield 0
            yield 1
        finally:
            await asyncio.sleep(0)
            raise OSError("the shutter is stuck")

    def exit_at_the_end(self) -> Generator[int, None, None]:
        try:
            yield 0
            yield 1
        finally:
            raise SystemExit(1)


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("swallow", "generator ignored GeneratorExit"),
        ("swallow_later", "async generator ignored GeneratorExit"),
        ("raise_at_the_end", "the shutter is stuck"),
        ("raise_at_the_end_later", "the shutter is stuck"),
        ("exit_at_the_end", "SystemExit: 1"),
    ],
)
async def test_a_generator_that_does_not_close_ends_its_call_and_nothing_else(
    caller: Caller, kind: str, says: str
) -> None:
    error = (await end_of(caller.worker, Stream(getattr(Hostile(), kind), room=0))).error
    assert isinstance(error, DriverError)
    assert str(error) == says
    await assert_works_on(caller)


async def test_a_generator_that_goes_on_when_its_coroutine_is_cancelled_is_closed_all_the_same(
    caller: Caller,
) -> None:
    begun = threading.Event()

    async def stubborn() -> AsyncGenerator[int, None]:
        yield 0
        try:
            begun.set()
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            log.append("told")
        yield 1
        log.append("never")

    log: list[str] = []
    stream = Stream(stubborn)
    caller.worker.submit(stream)
    assert begun.wait(LIMIT_S)
    stream.interrupt(GONE)
    async with asyncio.timeout(LIMIT_S):
        assert str((await stream.ended).error) == f"Interrupted: {GONE}"
    assert (log, stream.items) == (["told"], [0])
    await assert_works_on(caller)


async def test_a_method_that_should_yield_and_does_not_is_an_error(caller: Caller) -> None:
    error = (await end_of(caller.worker, Stream(lambda: 5))).error
    assert isinstance(error, DriverError)
    await assert_works_on(caller)


async def test_polls_run_between_the_items_of_a_stream(caller: Caller) -> None:
    asked: list[bool] = []
    polled = threading.Event()
    first, go_on = threading.Event(), threading.Event()

    def scan() -> Generator[int, None, None]:
        yield 0
        first.set()
        assert go_on.wait(LIMIT_S)
        yield 1
        assert polled.is_set(), "the poll did not wait for the end of the scan"
        asked.append(cancel_requested())

    async def poll() -> str:
        asked.append(cancel_requested())
        await asyncio.sleep(0)
        polled.set()
        return "state"

    stream = Stream(scan)
    caller.worker.submit(stream)
    assert first.wait(LIMIT_S)
    assert caller.worker.submit_poll(caller.job(poll))
    caller.submit(value, 1)
    go_on.set()
    async with asyncio.timeout(LIMIT_S):
        assert await stream.ended == Outcome(None)
    assert await caller.wait(2) == ["state", 1]
    assert asked == [False, False]


async def test_a_poll_between_two_items_leaves_the_stream_its_own_flag(caller: Caller) -> None:
    first, go_on = threading.Event(), threading.Event()
    asked: list[tuple[str, bool]] = []

    class Unread(Stream):
        """Its reader goes away while it is polled."""

        def put(self, item: Any, runner: Any) -> None:
            runner.pause()
            self.items.append(item)

    def scan() -> Generator[int, None, None]:
        yield 0
        first.set()
        assert go_on.wait(LIMIT_S)
        yield 1
        asked.append(("scan", cancel_requested()))

    def poll() -> None:
        stream.interrupt(GONE)
        asked.append(("poll", cancel_requested()))

    stream = Unread(scan)
    caller.worker.submit(stream)
    assert first.wait(LIMIT_S)
    assert caller.worker.submit_poll(caller.job(poll))
    go_on.set()
    async with asyncio.timeout(LIMIT_S):
        await stream.ended
    assert asked == [("poll", False), ("scan", True)]
    await assert_works_on(caller)


async def test_a_poll_that_raises_between_two_items_does_not_end_the_stream(
    caller: Caller,
) -> None:
    first, go_on = threading.Event(), threading.Event()

    def scan() -> Generator[int, None, str]:
        yield 0
        first.set()
        assert go_on.wait(LIMIT_S)
        yield 1
        return "whole"

    stream = Stream(scan)
    caller.worker.submit(stream)
    assert first.wait(LIMIT_S)
    assert caller.worker.submit_poll(caller.job(fail))
    go_on.set()
    async with asyncio.timeout(LIMIT_S):
        assert await stream.ended == Outcome("whole")
    assert isinstance((await caller.wait(1))[0], OSError)


# ── calls that are told to end ──────────────────────────────────────────────────────────────────


class Waiting:
    """A coroutine that waits for ever."""

    def __init__(self) -> None:
        self._begun = threading.Event()
        self.log: list[str] = []

    async def forever(self) -> None:
        self._begun.set()
        await asyncio.Event().wait()

    async def in_vain(self) -> str:
        self._begun.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.log.append("told")
        return "went on"

    def wait_begun(self) -> None:
        assert self._begun.wait(LIMIT_S)


async def test_a_coroutine_that_is_interrupted_is_cancelled_and_says_why(caller: Caller) -> None:
    waits = Waiting()
    job = caller.submit(waits.forever)
    waits.wait_begun()
    job.interrupt("its caller took it back")
    [error] = await caller.wait(1)
    assert isinstance(error, DriverError)
    assert str(error) == "Interrupted: its caller took it back"
    assert error.executed is True
    await assert_works_on(caller)


async def test_a_coroutine_that_goes_on_when_it_is_cancelled_has_its_value(caller: Caller) -> None:
    waits = Waiting()
    job = caller.submit(waits.in_vain)
    waits.wait_begun()
    job.interrupt(GONE)
    assert await caller.wait(1) == ["went on"]
    assert waits.log == ["told"]
    await assert_works_on(caller)


async def test_a_coroutine_that_was_interrupted_before_it_began_is_cancelled(
    caller: Caller,
) -> None:
    job = caller.job(Waiting().forever)
    job.interrupt(GONE)
    caller.worker.submit(job)
    [error] = await caller.wait(1)
    assert str(error) == f"Interrupted: {GONE}"
    await assert_works_on(caller)


async def test_a_coroutine_that_cancels_itself_was_not_interrupted(caller: Caller) -> None:
    async def cancel() -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        await asyncio.sleep(0)

    error = (await caller.call(cancel)).error
    assert str(error) == "CancelledError"
    await assert_works_on(caller)


async def test_an_interrupt_that_comes_when_its_loop_has_closed_is_no_error(
    caller: Caller,
) -> None:
    job = caller.job(value, 1)

    def run_and_close() -> None:
        loop = asyncio.new_event_loop()
        task = loop.create_task(asyncio.sleep(0))
        job.in_coroutine(loop, task)
        loop.run_until_complete(task)
        loop.close()

    await asyncio.to_thread(run_and_close)
    job.interrupt(GONE)
    assert job.is_set


class Asking:
    """Drivers of every kind that end when they are asked to."""

    def __init__(self) -> None:
        self.begun = threading.Event()

    def function(self) -> str:
        self.begun.set()
        wait_until_asked()
        return "stopped"

    async def coroutine(self) -> str:
        return self.function()

    def generator(self) -> Generator[int, None, str]:
        self.function()
        return "stopped"
        yield

    async def async_generator(self) -> AsyncGenerator[int, None]:
        self.function()
        return
        yield


def job_of(kind: str, asking: Asking, caller: Caller) -> tuple[Job, asyncio.Future[Outcome] | None]:
    method = getattr(asking, kind.removeprefix("batch of a "))
    if kind.startswith("batch"):
        batch = Batch(method)
        return batch, batch.ended
    if "generator" in kind:
        stream = Stream(method)
        return stream, stream.ended
    return caller.job(method), None


@pytest.mark.parametrize(
    "kind",
    [
        "function",
        "coroutine",
        "generator",
        "async_generator",
        "batch of a function",
        "batch of a coroutine",
    ],
)
async def test_a_driver_is_told_in_every_kind_of_call_and_the_next_one_is_not(
    caller: Caller, kind: str
) -> None:
    asking = Asking()
    job, ended = job_of(kind, asking, caller)
    caller.worker.submit(job)
    assert asking.begun.wait(LIMIT_S)
    job.interrupt(GONE)
    if ended is None:
        assert await caller.wait(1) == ["stopped"]
    else:
        async with asyncio.timeout(LIMIT_S):
            assert (await ended).error is None
    await assert_works_on(caller)


async def test_a_poll_is_told_as_well(caller: Caller) -> None:
    asking = Asking()
    poll = caller.job(asking.function)
    assert caller.worker.submit_poll(poll)
    assert asking.begun.wait(LIMIT_S)
    poll.interrupt(GONE)
    assert await caller.wait(1) == ["stopped"]
    await assert_works_on(caller)


async def test_no_call_runs_while_results_are_prepared_or_checks_are_made(caller: Caller) -> None:
    asked: list[bool] = []

    def look(now: float) -> LabmeshError | None:
        asked.append(cancel_requested())
        return None

    def prepare(result: Any) -> Any:
        asked.append(cancel_requested())
        return result

    job: Submitted = caller.job(value, 1, refusal=look, prepare=prepare)
    job.interrupt(GONE)
    caller.worker.submit(job)
    assert await caller.wait(1) == [1]
    assert asked == [False, False]


# ── urgent ──────────────────────────────────────────────────────────────────────────────────────


async def test_what_is_urgent_goes_ahead_of_all_that_waits() -> None:
    worker = DriverWorker("Inst-0", max_queue=1)
    worker.start(asyncio.get_running_loop())
    caller, gate = Caller(worker), Gate()
    caller.submit(gate.block)
    gate.wait_begun()
    caller.submit(value, 1)
    worker.submit_poll(caller.job(value, 2, name="poll"))
    worker.submit_poll(caller.job(value, 2, name="never"))
    for number in (3, 4):
        worker.submit_urgent(caller.job(value, number))
    gate.release()
    assert await caller.wait(5) == ["released", 3, 4, 2, 1]
    assert await worker.close()
