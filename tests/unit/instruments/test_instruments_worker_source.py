"""A driver's thread that fetches its calls itself, and the loop that does so while it is busy."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
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
from tests.support.served import eventually

from labmesh import cancel_requested
from labmesh.errors import Stopping
from labmesh.instruments.exposure import BoundCall
from labmesh.instruments.jobs import Outcome, StreamJob
from labmesh.instruments.worker import READ_S, DriverWorker


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    yield
    assert threads_left() == []


class Post:
    """A source that tells of what arrives once, as the descriptor of a ZeroMQ socket does.

    :param at_most: messages that it gives in one go.
    """

    def __init__(self, at_most: int = 1000) -> None:
        self._at_most = at_most
        self._arrived: deque[Callable[[], None]] = deque()
        self._bell = threading.Event()
        self.listened = False
        #: who read each message
        self.readers: list[str] = []
        self.waits = 0
        self.flushed = 0

    def arrive(self, *messages: Callable[[], None]) -> None:
        """Several messages at once; in any thread."""
        self._arrived.extend(messages)
        self._bell.set()

    def read(self) -> bool:
        something = bool(self._arrived)
        for _ in range(min(self._at_most, len(self._arrived))):
            message = self._arrived.popleft()
            self.readers.append(threading.current_thread().name)
            message()
        return something

    def flush(self) -> None:
        self.flushed += 1

    def wait(self, timeout_s: float | None = None) -> None:
        self.waits += 1
        self._bell.wait(LIMIT_S if timeout_s is None else timeout_s)
        self._bell.clear()

    def ring(self) -> None:
        self._bell.set()


class Lab:
    """A worker that reads its post."""

    def __init__(self, *, threads: int = 1, at_most: int = 1000) -> None:
        self.clock = Clock()
        self.busy = 0
        self.worker = DriverWorker(
            "Inst-0", threads=threads, clock=self.clock, on_busy=self._begins
        )
        self.post = Post(at_most)
        self.caller = Caller(self.worker, in_thread=True)
        self.worker.start(asyncio.get_running_loop(), self.post)

    def _begins(self) -> None:
        self.busy += 1

    def call(self, function: Callable[..., Any], *args: Any, **options: Any) -> Submitted:
        """A call arrives."""
        job = self.caller.job(function, *args, **options)
        self.post.arrive(lambda: self.worker.submit(job))
        return job

    def is_idle(self) -> bool:
        with self.worker.lock:
            return self.worker.is_idle

    def look(self) -> None:
        """As the loop does while the thread is busy."""
        with self.worker.lock:
            self.worker.look_at_source()


@pytest.fixture
async def lab() -> AsyncIterator[Lab]:
    lab = Lab()
    yield lab
    assert await lab.worker.close()


THREAD = "labmesh-driver-Inst-0-0"


async def test_calls_are_read_run_and_ended_in_the_drivers_thread(lab: Lab) -> None:
    ended_in: list[str] = []
    told = lab.caller.told

    def tell(method: str, outcome: Outcome) -> None:
        ended_in.append(threading.current_thread().name)
        told(method, outcome)

    lab.caller.told = tell  # type: ignore[method-assign]
    for number in range(3):
        lab.call(value, number)
    assert await lab.caller.wait(3) == [0, 1, 2]
    assert set(lab.post.readers) == {THREAD}
    assert ended_in == [THREAD] * 3
    assert lab.worker.begun == 3
    assert lab.busy


async def test_results_are_sent_before_the_thread_waits(lab: Lab) -> None:
    lab.call(value, 1)
    await lab.caller.wait(1)
    eventually(lab.is_idle, "the thread waits")
    flushed, waits = lab.post.flushed, lab.post.waits
    lab.call(value, 2)
    await lab.caller.wait(2)
    eventually(lambda: lab.post.waits > waits, "the thread waits again")
    assert lab.post.flushed > flushed


async def test_a_thread_waits_only_for_a_source_that_it_found_empty() -> None:
    lab = Lab(at_most=2)
    seen: list[int] = []
    # What is no call, as a ping, leaves nothing to run; and the post tells of all of them once.
    lab.post.arrive(*(lambda number=number: seen.append(number) for number in range(9)))
    lab.call(value, 1)
    assert await lab.caller.wait(1) == [1]
    assert seen == list(range(9))
    assert await lab.worker.close()


async def test_the_loop_reads_while_the_driver_blocks(lab: Lab) -> None:
    gate = Gate()
    lab.call(gate.block)
    gate.wait_begun()
    lab.call(value, 1)
    pinged: list[str] = []
    lab.post.arrive(lambda: pinged.append(threading.current_thread().name))
    lab.look()
    assert pinged == [], "the thread may read again any moment"
    lab.clock.now += READ_S * 1.01
    lab.look()
    assert pinged == [threading.current_thread().name]
    assert lab.worker.queued == 1
    assert not lab.is_idle()
    gate.release()
    assert await lab.caller.wait(2) == ["released", 1]
    eventually(lab.is_idle, "the thread waits")


async def test_the_loop_does_not_read_while_a_thread_waits_for_the_source(lab: Lab) -> None:
    eventually(lab.is_idle, "the thread waits")
    lab.clock.now += 1.0
    lab.look()
    assert lab.post.readers == []
    lab.call(value, 1)
    assert await lab.caller.wait(1) == [1]


async def test_a_call_that_was_submitted_otherwise_ends_the_wait(lab: Lab) -> None:
    eventually(lab.is_idle, "the thread waits")
    lab.caller.submit(value, 1)
    assert await lab.caller.wait(1) == [1]
    assert lab.worker.submit_poll(lab.caller.job(value, 2))
    lab.worker.submit_urgent(lab.caller.job(value, 3))
    assert sorted(await lab.caller.wait(3)) == [1, 2, 3]


async def test_a_source_is_emptied_between_calls_that_take_long(lab: Lab) -> None:
    order: list[str] = []

    def slow(name: str) -> None:
        order.append(name)
        lab.clock.now += 1.0
        lab.post.arrive(lambda: order.append(f"ping during {name}"))

    gate = Gate()
    lab.call(gate.block)
    gate.wait_begun()
    for name in ("first", "second"):
        lab.caller.submit(slow, name)
    gate.release()
    await lab.caller.wait(3)
    eventually(lambda: len(order) == 4, "all is read")
    assert order == ["first", "ping during first", "second", "ping during second"]


async def test_one_thread_listens_while_the_other_one_works() -> None:
    lab = Lab(threads=2)
    gate = Gate()
    lab.call(gate.block)
    gate.wait_begun()
    for number in range(20):
        lab.call(value, number)
        await lab.caller.wait(number + 1)
    gate.release()
    assert await lab.caller.wait(21) == [*range(20), "released"]
    assert await lab.worker.close()


async def test_two_threads_share_what_arrives_at_once() -> None:
    lab = Lab(threads=2)
    meeting = threading.Barrier(2)

    def meet() -> bool:
        meeting.wait(LIMIT_S)
        return True

    jobs = [lab.caller.job(meet) for _ in range(2)]
    lab.post.arrive(*(lambda job=job: lab.worker.submit(job) for job in jobs))
    assert await lab.caller.wait(2) == [True, True]
    assert await lab.worker.close()


async def test_a_result_that_is_lost_costs_the_thread_nothing(
    lab: Lab, caplog: pytest.LogCaptureFixture
) -> None:
    def told(outcome: Outcome) -> None:
        raise ZeroDivisionError

    job = lab.caller.job(value, 1)
    job._told = told
    lab.post.arrive(lambda: lab.worker.submit(job))
    lab.call(value, 2)
    assert await lab.caller.wait(1) == [2]
    assert "Inst-0: the result of value was lost" in caplog.text


async def test_closing_wakes_the_thread_and_refuses_what_waits(lab: Lab) -> None:
    gate = Gate()
    lab.call(gate.block)
    gate.wait_begun()
    lab.caller.submit(value, 1)
    closing = asyncio.ensure_future(lab.worker.close(LIMIT_S))
    [refused] = await lab.caller.wait(1)
    assert isinstance(refused, Stopping)
    gate.release()
    assert await closing
    assert lab.caller.outcomes[1] == ("block", Outcome("released"))


# ── in the middle of a stream ───────────────────────────────────────────────────────────────────


class Scan(StreamJob):
    """A method that yields, whose reader has no room until he says so."""

    on_loop = False

    def __init__(self, function: Callable[[], Any]) -> None:
        super().__init__(BoundCall("scan", function, (), {}, yields=True))
        self.waits = threading.Event()
        self.has_room = False
        self.items: list[Any] = []
        self.outcome: Outcome | None = None

    def put(self, item: Any, runner: Any) -> None:
        runner.pause()
        while not self.has_room:
            self.waits.set()
            runner.rest(LIMIT_S)
        self.items.append(item)

    def make_room(self) -> None:
        self.has_room = True

    def done(self, outcome: Outcome) -> None:
        self.outcome = outcome


def numbers() -> Generator[int, None, bool]:
    yield from range(3)
    return cancel_requested()


class Scanning:
    """A scan that waits for its reader, in the middle of it."""

    def __init__(self, lab: Lab, function: Callable[[], Any] = numbers) -> None:
        self.lab = lab
        self.scan = Scan(function)
        lab.post.arrive(lambda: lab.worker.submit(self.scan))
        assert self.scan.waits.wait(LIMIT_S)

    def read_call(self, function: Callable[..., Any], *args: Any, client: str = "") -> Submitted:
        """A call that changes nothing arrives."""
        return self._call(function, args, client, read_only=True)

    def write_call(self, function: Callable[..., Any], *args: Any, client: str = "") -> Submitted:
        return self._call(function, args, client, read_only=False)

    def _call(self, function: Any, args: Any, client: str, *, read_only: bool) -> Submitted:
        call = BoundCall(function.__name__, function, args, {}, read_only=read_only)
        job = Owned(call, lambda outcome: self.lab.caller.told(call.method, outcome))
        job.owner = client
        self.lab.post.arrive(lambda: self.lab.worker.submit(job))
        return job

    def end(self) -> None:
        self.lab.post.arrive(self.scan.make_room)
        eventually(lambda: self.scan.outcome is not None, "the scan has ended")


class Owned(Submitted):
    """A call of somebody, which ends in the driver's thread."""

    on_loop = False
    owner = ""

    @property
    def client(self) -> str:
        return self.owner


async def test_a_scan_that_waits_for_its_reader_hears_of_him(lab: Lab) -> None:
    scanning = Scanning(lab)
    scanning.end()
    assert scanning.scan.outcome == Outcome(False)
    assert scanning.scan.items == [0, 1, 2]


async def test_news_that_a_limited_read_has_left_are_not_waited_for() -> None:
    lab = Lab(at_most=1)
    scanning = Scanning(lab)
    seen: list[int] = []
    lab.post.arrive(
        *(lambda number=number: seen.append(number) for number in range(5)),
        scanning.scan.make_room,
    )
    eventually(lambda: scanning.scan.outcome is not None, "the scan has ended", LIMIT_S / 2)
    assert seen == list(range(5))
    assert await lab.worker.close()


async def test_readers_do_not_wait_for_the_end_of_a_scan_and_writers_do(lab: Lab) -> None:
    scanning = Scanning(lab)
    scanning.write_call(value, 1, client="ada")
    scanning.read_call(value, 2, client="bob")
    assert await lab.caller.wait(1) == [2]
    scanning.end()
    assert await lab.caller.wait(2) == [2, 1]
    assert scanning.scan.outcome == Outcome(False)


async def test_who_has_written_reads_what_he_wrote(lab: Lab) -> None:
    scanning = Scanning(lab)
    scanning.write_call(value, 1, client="ada")
    scanning.read_call(value, 2, client="ada")
    scanning.read_call(value, 3, client="bob")
    assert await lab.caller.wait(1) == [3]
    scanning.end()
    assert await lab.caller.wait(3) == [3, 1, 2]


async def test_no_scan_runs_inside_another_one(lab: Lab) -> None:
    scanning = Scanning(lab)
    inner = Scan(numbers)
    inner.call = BoundCall("scan", numbers, (), {}, read_only=True, yields=True)
    inner.make_room()
    lab.post.arrive(lambda: lab.worker.submit(inner))
    scanning.read_call(value, 1, client="bob")
    assert await lab.caller.wait(1) == [1]
    assert inner.outcome is None
    scanning.end()
    eventually(lambda: inner.outcome is not None, "the other scan has ended")


async def test_what_a_reader_does_between_two_items_does_not_touch_the_scan(
    lab: Lab, caplog: pytest.LogCaptureFixture
) -> None:
    scanning = Scanning(lab)

    def fail() -> None:
        raise OSError("the probe is not connected")

    def told(outcome: Outcome) -> None:
        raise ZeroDivisionError

    reading = scanning.read_call(value, 1)
    reading.interrupt("its caller is gone")
    assert isinstance((await lab.caller.wait(1))[0], int)
    scanning.read_call(fail)
    assert isinstance((await lab.caller.wait(2))[1], OSError)
    lost = lab.caller.job(value, 2)
    lost._told = told
    lost.call = BoundCall("value", value, [2], {}, read_only=True)
    lab.post.arrive(lambda: lab.worker.submit(lost))
    eventually(lambda: "the result of value was lost" in caplog.text, "it was lost")
    scanning.end()
    assert scanning.scan.outcome == Outcome(False)


async def test_a_scan_does_not_wait_for_news_that_another_thread_waits_for() -> None:
    lab = Lab(threads=2)
    rested: list[bool] = []

    class Resting(Scan):
        def put(self, item: Any, runner: Any) -> None:
            eventually(lambda: lab.post.listened, "the other thread waits")
            rested.append(runner.rest(LIMIT_S))

    scan = Resting(numbers)
    lab.post.arrive(lambda: lab.worker.submit(scan))
    eventually(lambda: scan.outcome is not None, "the scan has ended", LIMIT_S / 2)
    assert rested == [False] * 3
    assert await lab.worker.close()
