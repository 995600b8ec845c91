"""The thread of a driver: order, isolation, refusals, batches, the end."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import threading
import weakref
from collections.abc import AsyncIterator, Callable, Generator, Iterator
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

from labmesh.errors import (
    Busy,
    DriverError,
    Expired,
    InternalError,
    LabmeshError,
    Stopping,
)
from labmesh.instruments.exposure import BoundCall
from labmesh.instruments.jobs import Outcome
from labmesh.instruments.thread_runner import RunningCall
from labmesh.instruments.worker import DriverWorker


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    yield
    assert threads_left() == []


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def worker(clock: Clock) -> AsyncIterator[DriverWorker]:
    worker = DriverWorker("Inst-0", clock=clock)
    worker.start(asyncio.get_running_loop())
    yield worker
    assert await worker.close()


@pytest.fixture
def caller(worker: DriverWorker) -> Caller:
    return Caller(worker)


# ── calls ───────────────────────────────────────────────────────────────────────────────────────


async def test_a_call_runs_in_the_drivers_thread_and_ends_on_the_loop(caller: Caller) -> None:
    ended_in: list[threading.Thread] = []

    def thread() -> str:
        return threading.current_thread().name

    job = caller.job(thread)
    deliver = job.done

    def done(outcome: Outcome) -> None:
        ended_in.append(threading.current_thread())
        deliver(outcome)

    job.done = done
    caller.worker.submit(job)
    assert await caller.wait(1) == ["labmesh-driver-Inst-0-0"]
    assert ended_in == [threading.current_thread()]


async def test_calls_run_one_at_a_time_in_the_order_of_their_submission(caller: Caller) -> None:
    inside = threading.Semaphore(1)

    def exclusive(number: int) -> int:
        assert inside.acquire(blocking=False)
        inside.release()
        return number

    for number in range(100):
        caller.submit(exclusive, number)
    assert await caller.wait(100) == list(range(100))


async def test_calls_submitted_before_the_start_run_after_it() -> None:
    worker = DriverWorker("Inst-0")
    caller = Caller(worker)
    caller.submit(value, 1)
    worker.start(asyncio.get_running_loop())
    assert await caller.wait(1) == [1]
    assert await worker.close()


async def test_a_blocked_driver_holds_up_neither_the_loop_nor_another_driver(
    caller: Caller, clock: Clock
) -> None:
    gate = Gate()
    assert caller.worker.running is None
    job = caller.submit(gate.block, name="measure")
    gate.wait_begun()
    clock.now += 30.0
    assert caller.worker.running == RunningCall("measure", since=100.0, job=job)
    assert caller.worker.running_calls == [caller.worker.running]

    other = DriverWorker("Inst-1")
    other.start(asyncio.get_running_loop())
    assert await Caller(other).call(value, 7) == Outcome(7)
    assert await other.close()

    assert caller.outcomes == []
    gate.release()
    assert await caller.wait(1) == ["released"]
    assert caller.worker.running is None


async def test_two_threads_run_two_calls_at_once(clock: Clock) -> None:
    worker = DriverWorker("Inst-0", threads=2, clock=clock)
    worker.start(asyncio.get_running_loop())
    caller = Caller(worker)
    meeting = threading.Barrier(3)

    def meet(number: int) -> int:
        meeting.wait(LIMIT_S)  # both are inside
        meeting.wait(LIMIT_S)
        return number

    jobs = {caller.submit(meet, 1), caller.submit(meet, 2)}
    meeting.wait(LIMIT_S)
    assert {each.job for each in worker.running_calls} == jobs
    assert worker.running in worker.running_calls
    meeting.wait(LIMIT_S)
    assert sorted(await caller.wait(2)) == [1, 2]
    assert await worker.close()


@pytest.mark.parametrize("limits", [{"threads": 0}, {"max_queue": 0}])
def test_a_worker_needs_a_thread_and_a_queue(limits: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="at least one"):
        DriverWorker("Inst-0", **limits)  # type: ignore[arg-type]


# ── calls that do not run ───────────────────────────────────────────────────────────────────────


async def test_a_cancelled_call_does_not_run(caller: Caller) -> None:
    gate = Gate()
    ran: list[int] = []
    running = caller.submit(gate.block)
    gate.wait_begun()
    first = caller.submit(ran.append, 1)
    caller.submit(ran.append, 2)
    assert caller.worker.queued == 2
    assert caller.worker.cancel(first)
    assert not caller.worker.cancel(first)
    assert not caller.worker.cancel(running)
    assert caller.worker.queued == 1
    gate.release()
    await caller.wait(2)
    assert ran == [2]
    assert not caller.worker.cancel(running)
    assert [method for method, _ in caller.outcomes] == ["block", "append"]


async def test_a_call_whose_time_has_passed_when_its_turn_comes_does_not_run(
    caller: Caller, clock: Clock
) -> None:
    gate = Gate()
    ran: list[int] = []
    asked: list[float] = []

    def until(deadline: float) -> Callable[[float], LabmeshError | None]:
        def refusal(now: float) -> LabmeshError | None:
            asked.append(now)
            return None if now < deadline else Expired("too late")

        return refusal

    caller.submit(gate.block)
    gate.wait_begun()
    caller.submit(ran.append, 1, name="move", refusal=until(105.0))
    caller.submit(ran.append, 2, name="move", refusal=until(115.0))
    clock.now = 110.0
    gate.release()
    _, late, _ = await caller.wait(3)
    assert ran == [2]
    assert asked == [110.0, 110.0]
    assert isinstance(late, Expired)
    assert str(late) == "too late"


async def test_a_check_that_fails_refuses_its_own_call_only(
    caller: Caller, caplog: pytest.LogCaptureFixture
) -> None:
    ran: list[int] = []

    def refusal(now: float) -> LabmeshError | None:
        raise ZeroDivisionError

    outcome = await caller.call(ran.append, 1, refusal=refusal)
    assert isinstance(outcome.error, InternalError)
    assert "the check before append failed" in caplog.text
    assert await caller.call(value, 2) == Outcome(2)
    assert ran == []


async def test_a_full_queue_refuses_and_says_what_it_waits_for(clock: Clock) -> None:
    worker = DriverWorker("Inst-0", max_queue=3, clock=clock)
    caller = Caller(worker)
    for number in range(3):
        caller.submit(value, number)
    with pytest.raises(Busy, match="Inst-0 is busy: 3 calls wait, the limit; try again later"):
        caller.submit(value, 3)

    worker.start(asyncio.get_running_loop())
    await caller.wait(3)
    gate = Gate()
    caller.submit(gate.block, name="sweep")
    gate.wait_begun()
    waiting = [caller.submit(value, number) for number in range(3)]
    clock.now += 12.34
    with pytest.raises(Busy, match=r"behind sweep, which has run for 12\.3 s") as caught:
        caller.submit(value, 4)
    assert caught.value.detail == {
        "queued": 3,
        "running": "sweep",
        "running_s": 12.34,
        "running_by": "",
    }
    assert caught.value.executed is False

    assert worker.cancel(waiting[0])
    caller.submit(value, 5)
    gate.release()
    assert (await caller.wait(7))[3:] == ["released", 1, 2, 5]
    assert await worker.close()


# ── whatever a driver does ──────────────────────────────────────────────────────────────────────


class OwnError(Exception):
    pass


class Unspeakable(Exception):
    def __str__(self) -> str:
        raise SystemExit(9)


def recurse() -> None:
    recurse()


def raising(exc: BaseException) -> Callable[[], None]:
    def method() -> None:
        raise exc

    return method


def raising_in_coroutine(exc: BaseException) -> Callable[[], Any]:
    async def method() -> None:
        await asyncio.sleep(0)
        raise exc

    return method


EXCEPTIONS: list[tuple[Callable[[], BaseException], type[BaseException]]] = [
    (lambda: ValueError("too high"), ValueError),
    (lambda: OwnError("x"), DriverError),
    (Unspeakable, DriverError),
    (lambda: SystemExit(1), DriverError),
    (KeyboardInterrupt, DriverError),
    (GeneratorExit, DriverError),
    (StopIteration, DriverError),
    (asyncio.CancelledError, DriverError),
    (lambda: BaseException("bare"), DriverError),
    (MemoryError, MemoryError),
    (RecursionError, RecursionError),
    (lambda: TimeoutError("no reply"), TimeoutError),
]


@pytest.mark.parametrize(("exc", "kind"), EXCEPTIONS, ids=lambda each: each.__name__)
@pytest.mark.parametrize("make", [raising, raising_in_coroutine])
async def test_an_exception_ends_its_call_and_nothing_else(
    caller: Caller,
    make: Callable[[BaseException], Callable[[], Any]],
    exc: Callable[[], BaseException],
    kind: type[BaseException],
    caplog: pytest.LogCaptureFixture,
) -> None:
    error = (await caller.call(make(exc()))).error
    assert isinstance(error, DriverError)
    assert isinstance(error, kind)
    assert (error.method, error.relay_id, error.executed) == ("method", "Inst-0", True)
    assert "labmesh/instruments/" not in error.remote_traceback
    assert "asyncio/" not in error.remote_traceback
    assert await caller.call(value, 1) == Outcome(1)
    assert caplog.records == []


async def test_endless_recursion_ends_its_call_and_nothing_else(caller: Caller) -> None:
    error = (await caller.call(recurse)).error
    assert isinstance(error, RecursionError)
    assert isinstance(error, DriverError)
    assert await caller.call(value, 1) == Outcome(1)


def cycle() -> list[Any]:
    ring: list[Any] = []
    ring.append(ring)
    return ring


def deep() -> list[Any]:
    nested: list[Any] = []
    for _ in range(100_000):
        nested = [nested]
    return nested


def generator() -> Generator[int]:
    yield 1


async def async_generator() -> AsyncIterator[int]:
    yield 1


class Itself:
    def me(self) -> Itself:
        return self


JUNK = [cycle, deep, generator, async_generator, Itself().me, lambda: {1, 2}, lambda: b"raw"]


@pytest.mark.parametrize("function", JUNK, ids=lambda each: each.__name__)
async def test_a_result_that_cannot_be_encoded_is_an_error_of_that_call(
    caller: Caller, function: Callable[[], Any]
) -> None:
    error = (await caller.call(function, name="junk", prepare=json.dumps)).error
    assert type(error) is DriverError
    assert str(error).startswith("junk ran, but its result (")
    assert error.executed is True
    assert await caller.call(value, 1, prepare=json.dumps) == Outcome("1")


async def test_an_encoder_that_gives_up_is_an_error_of_that_call(caller: Caller) -> None:
    def encode(result: Any) -> Any:
        raise SystemExit

    error = (await caller.call(value, 1, prepare=encode)).error
    assert str(error) == "value ran, but its result (int) cannot be sent: SystemExit"


async def test_results_are_encoded_in_the_drivers_thread(caller: Caller) -> None:
    def encode(result: Any) -> tuple[Any, str]:
        return result, threading.current_thread().name

    outcome = await caller.call(value, 1, prepare=encode)
    assert outcome == Outcome((1, "labmesh-driver-Inst-0-0"))


# ── coroutines ──────────────────────────────────────────────────────────────────────────────────


async def test_coroutines_are_awaited_on_one_loop_of_the_drivers_own(caller: Caller) -> None:
    loops = []

    async def read() -> int:
        loops.append(asyncio.get_running_loop())
        await asyncio.sleep(0)
        return len(loops)

    assert await caller.call(read) == Outcome(1)
    assert await caller.call(read) == Outcome(2)
    assert loops[0] is loops[1]
    assert loops[0] is not asyncio.get_running_loop()


async def test_what_a_plain_method_returns_is_awaited_when_it_can_be(caller: Caller) -> None:
    async def later() -> str:
        return "coroutine"

    class Awaitable:
        def __await__(self) -> Generator[None, None, str]:
            yield
            return "awaitable"

    assert await caller.call(lambda: later()) == Outcome("coroutine")
    assert await caller.call(Awaitable) == Outcome("awaitable")


async def test_a_task_that_a_driver_leaves_behind_is_ended_with_the_worker() -> None:
    worker = DriverWorker("Inst-0")
    worker.start(asyncio.get_running_loop())
    ended: list[str] = []

    async def watch() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append("watch")

    async def begin() -> None:
        tasks.add(asyncio.create_task(watch()))
        await asyncio.sleep(0)

    tasks: set[asyncio.Task[None]] = set()
    await Caller(worker).call(begin)
    assert await worker.close()
    assert ended == ["watch"]


async def test_a_loop_that_does_not_close_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    worker = DriverWorker("Inst-0")
    worker.start(asyncio.get_running_loop())

    async def sabotage() -> None:
        loop = asyncio.get_running_loop()

        async def refuse() -> None:
            raise OSError("the port is stuck")

        loop.shutdown_asyncgens = refuse  # type: ignore[method-assign]

    await Caller(worker).call(sabotage)
    assert await worker.close()
    assert "Inst-0: the event loop of its driver did not close" in caplog.text


# ── batches ─────────────────────────────────────────────────────────────────────────────────────


class CountingLoop(asyncio.SelectorEventLoop):
    """Counts how often another thread wakes it."""

    wakes = 0

    def call_soon_threadsafe(self, *args: Any, **kwargs: Any) -> asyncio.Handle:
        self.wakes += 1
        return super().call_soon_threadsafe(*args, **kwargs)


def test_ten_thousand_results_arrive_in_order_with_one_wake_up() -> None:
    async def main(loop: CountingLoop) -> None:
        worker = DriverWorker("Inst-0", max_queue=20_000)
        caller = Caller(worker)
        last = threading.Event()
        worker.start(loop)
        for number in range(10_000):
            caller.submit(value, number)
        caller.submit(last.set)
        # The loop is held, as by a long callback: all results are there when it looks.
        assert last.wait(LIMIT_S)
        results = await caller.wait(10_001)
        assert results[:-1] == list(range(10_000))
        # One for the results that came while the loop was held, one if the last came after it.
        assert loop.wakes <= 2
        assert await worker.close()

    with asyncio.Runner(loop_factory=CountingLoop) as runner:
        loop = runner.get_loop()
        assert isinstance(loop, CountingLoop)
        runner.run(main(loop))


async def test_a_large_batch_leaves_room_for_other_work() -> None:
    worker = DriverWorker("Inst-0")
    caller = Caller(worker)
    last, delivered_in_between = threading.Event(), -1

    def look() -> None:
        nonlocal delivered_in_between
        delivered_in_between = len(caller.outcomes)

    worker.start(asyncio.get_running_loop())
    for number in range(600):
        caller.submit(value, number)
    caller.submit(last.set)
    assert last.wait(LIMIT_S)
    asyncio.get_running_loop().call_soon(look)
    await caller.wait(601)
    assert 0 <= delivered_in_between <= 512
    assert await worker.close()


def raising_when_told(exc: BaseException) -> Callable[[Outcome], None]:
    def done(outcome: Outcome) -> None:
        raise exc

    return done


async def test_a_callback_that_raises_costs_the_others_nothing(
    caller: Caller, caplog: pytest.LogCaptureFixture
) -> None:
    gate = Gate()
    caller.submit(gate.block)
    gate.wait_begun()
    for error in (ZeroDivisionError(), asyncio.CancelledError()):
        job = caller.job(value, 1)
        job.done = raising_when_told(error)
        caller.worker.submit(job)
    caller.submit(value, 2)
    gate.release()
    assert await caller.wait(2) == ["released", 2]
    assert caplog.text.count("Inst-0: the result of value was lost") == 2


async def test_a_thread_that_waits_keeps_neither_results_nor_arguments_alive(
    caller: Caller,
) -> None:
    class Waveform:
        pass

    alive: weakref.WeakSet[Waveform] = weakref.WeakSet()

    def acquire(settings: Waveform) -> Waveform:
        waveform = Waveform()
        alive.update((settings, waveform))
        return waveform

    async def fail(settings: Waveform) -> None:
        alive.add(settings)
        raise ValueError("overload")

    gc.disable()
    try:
        await caller.call(acquire, Waveform())
        await caller.call(fail, Waveform())
        # The thread has left both calls behind when it has begun the next.
        await caller.call(value, 1)
        caller.outcomes.clear()
        gc.collect(0)
        assert list(alive) == []
    finally:
        gc.enable()


# ── polls ───────────────────────────────────────────────────────────────────────────────────────


async def test_polls_never_pile_up(caller: Caller) -> None:
    gate = Gate()
    worker = caller.worker
    poll = caller.job(gate.block, name="poll")
    assert worker.submit_poll(poll)
    gate.wait_begun()
    for _ in range(5):
        assert not worker.submit_poll(caller.job(value, 99, name="poll"))
    assert worker.running == RunningCall("poll", 100.0, poll)
    gate.release()
    assert await caller.wait(1) == ["released"]
    assert worker.submit_poll(caller.job(value, 2, name="poll"))
    assert await caller.wait(2) == ["released", 2]


async def test_calls_overtake_a_poll_that_waits(caller: Caller) -> None:
    gate = Gate()
    caller.submit(gate.block)
    gate.wait_begun()
    assert caller.worker.submit_poll(caller.job(value, 0, name="poll"))
    caller.submit(value, 1)
    caller.submit(value, 2)
    gate.release()
    await caller.wait(4)
    assert [method for method, _ in caller.outcomes] == ["block", "value", "value", "poll"]


async def test_a_poll_that_waited_a_whole_interval_goes_first(caller: Caller) -> None:
    gate = Gate()
    caller.submit(gate.block)
    gate.wait_begun()
    assert caller.worker.submit_poll(caller.job(value, 0, name="poll"))
    caller.submit(value, 1)
    assert not caller.worker.submit_poll(caller.job(value, 99, name="second poll"))
    caller.submit(value, 2)
    gate.release()
    await caller.wait(4)
    assert [method for method, _ in caller.outcomes] == ["block", "poll", "value", "value"]

    # The next poll is patient again.
    second = Gate()
    caller.submit(second.block)
    second.wait_begun()
    assert caller.worker.submit_poll(caller.job(value, 0, name="poll"))
    caller.submit(value, 3)
    second.release()
    await caller.wait(7)
    assert [method for method, _ in caller.outcomes][4:] == ["block", "value", "poll"]


async def test_polls_that_raise_are_told_each_time(caller: Caller) -> None:
    for count in range(1, 4):
        job = caller.job(raising(OSError("no instrument")), name="poll")
        assert caller.worker.submit_poll(job)
        assert isinstance((await caller.wait(count))[-1], OSError)


# ── the end ─────────────────────────────────────────────────────────────────────────────────────


async def test_closing_refuses_what_waits_and_lets_the_running_call_end() -> None:
    worker = DriverWorker("Inst-0")
    worker.start(asyncio.get_running_loop())
    caller, gate = Caller(worker), Gate()
    caller.submit(gate.block)
    gate.wait_begun()
    caller.submit(value, 1)
    worker.submit_poll(caller.job(value, 2, name="poll"))
    closing = asyncio.ensure_future(worker.close(LIMIT_S))
    refused = await caller.wait(2)
    assert all(isinstance(each, Stopping) for each in refused)
    assert all(each.executed is False for each in refused)
    for submit in (worker.submit, worker.submit_poll):
        with pytest.raises(Stopping, match="Inst-0 is shutting down; this was not run"):
            submit(caller.job(value, 3))
    gate.release()
    assert await closing
    assert caller.outcomes[2] == ("block", Outcome("released"))


async def test_closing_twice_and_at_once_is_fine() -> None:
    worker = DriverWorker("Inst-0", threads=3)
    worker.start(asyncio.get_running_loop())
    assert await asyncio.gather(worker.close(), worker.close()) == [True, True]
    assert await worker.close()


async def test_a_worker_that_never_started_closes() -> None:
    worker = DriverWorker("Inst-0")
    caller = Caller(worker)
    caller.submit(value, 1)
    assert await worker.close()
    assert await worker.close()
    assert [type(each) for each in await caller.wait(1)] == [Stopping]
    with pytest.raises(RuntimeError, match="started or closed before"):
        worker.start(asyncio.get_running_loop())


async def test_a_worker_starts_once(worker: DriverWorker) -> None:
    with pytest.raises(RuntimeError, match="the worker of Inst-0 was started"):
        worker.start(asyncio.get_running_loop())


async def test_a_stuck_driver_is_left_behind_and_named(
    clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    worker = DriverWorker("Inst-0", threads=2, clock=clock)
    worker.start(asyncio.get_running_loop())
    caller, gate = Caller(worker), Gate()
    caller.submit(gate.block, name="sweep")
    gate.wait_begun()
    clock.now += 12.0
    with caplog.at_level(logging.WARNING):
        assert not await worker.close(timeout_s=0.0)
    assert "Inst-0: its driver is still in sweep after 12.0 s" in caplog.text
    assert f"thread {gate.thread.name} is left behind" in caplog.text
    assert gate.thread.daemon
    assert not await worker.close()

    threads = [each for each in threading.enumerate() if each.name.startswith("labmesh-driver")]
    gate.release()
    for thread in threads:
        thread.join(LIMIT_S)
    await asyncio.sleep(0)
    assert await worker.close()
    # What came after the end is told to nobody.
    assert caller.outcomes == []


async def test_closing_can_be_cancelled_and_done_again() -> None:
    worker = DriverWorker("Inst-0")
    worker.start(asyncio.get_running_loop())
    caller, gate = Caller(worker), Gate()
    caller.submit(gate.block)
    gate.wait_begun()
    closing = asyncio.ensure_future(worker.close(LIMIT_S))
    await asyncio.sleep(0)
    closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing
    gate.release()
    assert await worker.close()
    assert [outcome for _, outcome in caller.outcomes] == [Outcome("released")]


def test_a_loop_that_closed_meanwhile_ends_the_thread_and_runs_nothing_more(
    caplog: pytest.LogCaptureFixture,
) -> None:
    ran: list[int] = []
    gate = Gate()

    async def main() -> None:
        worker = DriverWorker("Inst-0")
        worker.start(asyncio.get_running_loop())
        caller = Caller(worker)
        caller.submit(gate.block)
        gate.wait_begun()
        caller.submit(ran.append, 1)

    asyncio.run(main())
    gate.release()
    gate.thread.join(LIMIT_S)
    assert not gate.thread.is_alive()
    assert ran == []
    assert "the event loop was closed while its driver worked" in caplog.text


def test_a_loop_that_closed_with_results_undelivered_runs_nothing_more() -> None:
    ran: list[int] = []
    first, second = Gate(), Gate()
    loop = asyncio.new_event_loop()

    async def main() -> None:
        worker = DriverWorker("Inst-0")
        worker.start(loop)
        caller = Caller(worker)
        caller.submit(first.block)
        caller.submit(second.block)
        caller.submit(ran.append, 1)

    loop.run_until_complete(main())
    first.release()
    # The first call has asked the loop, which stands, to look; then the loop is closed.
    second.wait_begun()
    loop.close()
    second.release()
    second.thread.join(LIMIT_S)
    assert not second.thread.is_alive()
    assert ran == []


async def test_every_job_ends_once_under_load_from_many_sides() -> None:
    worker = DriverWorker("Inst-0", max_queue=50_000)
    loop = asyncio.get_running_loop()
    worker.start(loop)
    ended: dict[int, int] = dict.fromkeys(range(4000), 0)
    errors: list[LabmeshError | None] = []
    everything = asyncio.Event()
    begin = threading.Barrier(4)

    def job(number: int) -> Submitted:
        def done(outcome: Outcome) -> None:
            ended[number] += 1
            errors.append(outcome.error)
            if len(errors) == len(ended):
                everything.set()

        return Submitted(BoundCall("value", value, [number], {}), done)

    def side(first: int) -> None:
        begin.wait(LIMIT_S)
        for number in range(first, first + 1000):
            worker.submit(job(number))

    await asyncio.gather(*(asyncio.to_thread(side, 1000 * each) for each in range(4)))
    async with asyncio.timeout(LIMIT_S):
        await everything.wait()
    assert set(ended.values()) == {1}
    assert errors == [None] * 4000
    assert await worker.close()
