"""A listener that stands still, or reads a byte a second, costs nobody else anything: FB4, FB5."""

from __future__ import annotations

import asyncio
import re
import socket
import statistics
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import zmq
from tests.support.machine import Usage
from tests.support.networks import Network
from tests.support.peers import open_sockets, until
from tests.support.processes import Process, Start, program
from tests.support.wire_events import heard
from tests.support.zmtp import frame, zmtp

from labmesh.protocol.codec import decode_event
from labmesh.transport.publisher import Publisher

LIMIT_S = 40.0
NODE, CAMERA = "Load-0", "Cam-0"
#: Events on their way at most: no queue but that of the slow one overflows.
UNDER_WAY = 200
#: What the broker keeps for one that does not keep up, and for replays, and what is on its way: a
#: batch that has come, and one that the healthy ones have not got yet.
BUDGET_MB = 67 + 8 + 20
HEARTBEAT_S = 0.1
TURNS = 3
_LOOK_MS = 20


@pytest.fixture
def start(no_leaks: None) -> Iterator[Start]:
    with ExitStack() as processes:
        yield lambda *args, **options: processes.enter_context(Process(*args, **options))


@dataclass
class Ear:
    """What one healthy listener heard."""

    last: int = 0
    missed: int = 0
    delays_s: list[float] = field(default_factory=list)

    def hear(self, header: bytes) -> None:
        event = decode_event(header)
        if self.last:
            self.missed += event.sequence - self.last - 1
        self.last = event.sequence
        self.delays_s.append(time.time() - event.time)


@contextmanager
def listening(endpoint: str, count: int) -> Iterator[list[Ear]]:
    """So many plain subscribers, which one thread reads."""
    ended = threading.Event()
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    ears: dict[zmq.Socket[bytes], Ear] = {}
    poller = zmq.Poller()
    for _ in range(count):
        peer = context.socket(zmq.SUB)
        peer.rcvhwm = 0
        peer.connect(endpoint)
        peer.subscribe(f"event.{NODE}")
        poller.register(peer, zmq.POLLIN)
        ears[peer] = Ear()

    def read() -> None:
        while not ended.is_set():
            for peer, _ in poller.poll(_LOOK_MS):
                ears[peer].hear(heard(peer.recv_multipart())[1])

    reader = threading.Thread(target=read)
    reader.start()
    try:
        yield list(ears.values())
    finally:
        ended.set()
        reader.join()
        context.destroy(linger=0)


@dataclass
class Load:
    """Publishes events, no faster than the healthy ones hear them."""

    publisher: Publisher
    ears: list[Ear]
    padding: str
    sent: int = 0

    async def publish(self, count: int) -> None:
        for _ in range(count):
            self.sent += 1
            value = {"n": self.sent, "padding": self.padding}
            assert self.publisher.publish("event", "step", value)
            if self.sent % 20 == 0:
                await until(lambda: self.ears[0].last > self.sent - UNDER_WAY, LIMIT_S)

    async def for_at_least(self, count: int, seconds: float, rate: float) -> None:
        """So many events, then on at this rate until the time is over."""
        began = time.monotonic()
        await self.publish(count)
        while (now := time.monotonic()) < began + seconds:
            await self.publish(max(1, int(rate * 0.01)))
            await asyncio.sleep(max(0.0, now + 0.01 - time.monotonic()))

    async def all_heard(self) -> None:
        await until(lambda: all(each.last == self.sent for each in self.ears), LIMIT_S)

    def p99_ms(self) -> float:
        """Of what was heard since it was asked last."""
        delays_s = sorted(delay for each in self.ears for delay in each.delays_s)
        for each in self.ears:
            each.delays_s.clear()
        return 1000 * delays_s[int(0.99 * len(delays_s))]


@asynccontextmanager
async def loaded(network: Network, healthy: int, size: int) -> AsyncIterator[Load]:
    """A publisher, and healthy listeners that all hear it."""
    with open_sockets(name="node") as sockets, listening(network.xpub, healthy) as ears:
        publisher = Publisher(sockets, network.xsub, node_id=NODE, epoch="e1")
        load = Load(publisher, ears, "x" * size)
        try:
            await until(lambda: publisher.up)
            # Each of them has subscribed some time after it was made.
            while not all(each.last for each in ears):
                await load.publish(1)
                await asyncio.sleep(0.01)
            yield load
        finally:
            publisher.close()


SHAPES = [
    # healthy listeners, seconds, events at once, bytes of each, events a second after those
    (4, 1.0, 7000, 16_000, 500.0),
    pytest.param(
        *(49, 30.0, 7000, 16_000, 500.0), marks=[pytest.mark.soak, pytest.mark.timeout(240)]
    ),
    pytest.param(*(9, 30.0, 0, 200, 5000.0), marks=[pytest.mark.soak, pytest.mark.timeout(240)]),
]


@pytest.mark.parametrize(("healthy", "seconds", "burst", "size", "rate"), SHAPES)
async def test_a_listener_that_is_stopped_costs_the_others_nothing(
    start: Start, tmp_path: Path, healthy: int, seconds: float, burst: int, size: int, rate: float
) -> None:
    network = Network(start, tmp_path)
    broker = await asyncio.to_thread(network.broker)
    stopped = start([program("listener.py"), network.rpc, network.xpub], cwd=tmp_path)
    await asyncio.to_thread(stopped.wait_for, "^heard", LIMIT_S)
    async with loaded(network, healthy, size) as load:

        def count() -> dict[str, int]:
            words = [each.text for each in stopped.lines if each.text.startswith("heard")][-1]
            return {name: int(number) for name, number in re.findall(r"(\w+) (\d+)", words)}

        await load.for_at_least(300, seconds / 10, rate)
        await load.all_heard()
        await until(lambda: count()["last"] == load.sent, LIMIT_S)
        first = load.sent + 1 - count()["heard"]

        @contextmanager
        def standing_still() -> Iterator[None]:
            stopped.stop()
            try:
                yield
            finally:
                stopped.cont()

        added_ms, grown_mb = await slowed(load, broker, standing_still, seconds, burst, rate)
        expected = load.sent - first + 1
        async with asyncio.timeout(LIMIT_S):
            # With each heartbeat, as a relay does: its queue may be full when the first one comes.
            while count()["heard"] + count()["lost"] < expected:
                load.publisher.publish_tail()
                await asyncio.sleep(HEARTBEAT_S)
        found = count()
    missed = sum(each.missed for each in load.ears)
    print(
        f"FB4: 1 of {healthy + 1} listeners stopped for {seconds:g} s, {load.sent} events of "
        f"{size} bytes: lost by the others {missed}, added p99 {added_ms:+.1f} ms, broker's memory "
        f"{grown_mb:+.0f} MB; the stopped one lost {expected - found['heard']} and was told "
        f"{found['lost']}"
    )
    assert missed == 0
    assert found["lost"] == expected - found["heard"] > 0
    assert grown_mb < BUDGET_MB


@pytest.mark.parametrize(("healthy", "seconds", "burst", "size", "rate"), SHAPES)
async def test_a_listener_that_reads_a_byte_a_second_costs_the_others_nothing(
    start: Start, tmp_path: Path, healthy: int, seconds: float, burst: int, size: int, rate: float
) -> None:
    network = Network(start, tmp_path)
    broker = await asyncio.to_thread(network.broker)
    async with loaded(network, healthy, size) as load:
        await load.for_at_least(300, seconds / 10, rate)
        await load.all_heard()
        trickles: list[Callable[[], int]] = []

        @contextmanager
        def reading_slowly() -> Iterator[None]:
            with trickling(network.xpub) as taken:
                trickles.append(taken)
                yield

        added_ms, grown_mb = await slowed(load, broker, reading_slowly, seconds, burst, rate)
        read = sum(taken() for taken in trickles)
    missed = sum(each.missed for each in load.ears)
    print(
        f"FB5: 1 of {healthy + 1} listeners read {read} bytes in {seconds:g} s, {load.sent} events "
        f"of {size} bytes: lost by the others {missed}, added p99 {added_ms:+.1f} ms, broker's "
        f"memory {grown_mb:+.0f} MB"
    )
    assert missed == 0
    assert grown_mb < BUDGET_MB


@asynccontextmanager
async def camera(network: Network) -> AsyncIterator[Callable[[], None]]:
    """Another node; each call publishes a large event of it."""
    with open_sockets(name="camera") as sockets:
        publisher = Publisher(sockets, network.xsub, node_id=CAMERA, epoch="e1")

        def publish() -> None:
            assert publisher.publish_encoded("event", "frame", bytes(200_000))

        try:
            await until(lambda: publisher.up)
            yield publish
        finally:
            publisher.close()


async def test_after_large_events_of_others_small_ones_are_heard_as_before(
    start: Start, tmp_path: Path
) -> None:
    """What may wait for a listener was made less for these; its empty queue passed for full then,
    for ever.
    """
    network = Network(start, tmp_path)
    await asyncio.to_thread(network.broker)
    async with loaded(network, 2, 100) as load, camera(network) as publish_frame:
        # Nearly as many as the socket reads before it says so.
        await load.publish(4700)
        await load.all_heard()
        for _ in range(30):
            publish_frame()
        await load.publish(3000)
        await load.all_heard()
    assert [each.missed for each in load.ears] == [0, 0]


async def test_who_wants_large_events_alone_may_not_let_more_bytes_wait_for_it(
    start: Start, tmp_path: Path
) -> None:
    """Many small ones go to others at the same time: their mean size says nothing about it."""
    network = Network(start, tmp_path)
    broker = await asyncio.to_thread(network.broker)
    async with loaded(network, 1, 100) as load, camera(network) as publish_frame:
        await load.publish(300)
        await load.all_heard()
        before = Usage.of(broker.pid)
        with trickling(network.xpub, CAMERA):
            for _ in range(600):
                publish_frame()
                await load.publish(10)
            await load.all_heard()
        grown_mb = Usage.of(broker.pid).peak_mb - before.memory_mb
        await asyncio.to_thread(broker.wait_for, "does not keep up: 6[4-9]|7[0-9] MiB", LIMIT_S)
    print(f"120 MB of large events: broker's memory {grown_mb:+.0f} MB")
    assert [each.missed for each in load.ears] == [0]
    assert grown_mb < BUDGET_MB


async def slowed(
    load: Load,
    broker: Process,
    somebody_slow: Callable[[], AbstractContextManager[None]],
    seconds: float,
    burst: int,
    rate: float,
) -> tuple[float, float]:
    """The same load with and without somebody slow, in turns; the 99th percentile in ms that it
    adds, and the broker's MB. First its queue is filled, which is not timed.
    """
    before = Usage.of(broker.pid)
    usual_ms: list[float] = []
    slow_ms: list[float] = []
    with somebody_slow():
        await load.publish(burst)
        await load.all_heard()
        load.p99_ms()
        await timed(load, seconds / TURNS, rate, slow_ms)
    for _ in range(1, TURNS):
        await timed(load, seconds / TURNS, rate, usual_ms)
        with somebody_slow():
            await timed(load, seconds / TURNS, rate, slow_ms)
    await timed(load, seconds / TURNS, rate, usual_ms)
    grown_mb = Usage.of(broker.pid).peak_mb - before.memory_mb
    return statistics.median(slow_ms) - statistics.median(usual_ms), grown_mb


async def timed(load: Load, seconds: float, rate: float, p99_ms: list[float]) -> None:
    """Load for a time, and note how late events came."""
    await load.for_at_least(0, seconds, rate)
    await load.all_heard()
    p99_ms.append(load.p99_ms())


@contextmanager
def trickling(endpoint: str, node: str = NODE) -> Iterator[Callable[[], int]]:
    """A subscriber that reads one byte a second; how many it has read."""
    taken, ended = 0, threading.Event()

    def read(raw: socket.socket) -> None:
        nonlocal taken
        while True:
            # The broker gives it up, once it has answered nothing for a while.
            taken += len(raw.recv(1))
            if ended.wait(1.0):
                return

    with zmtp(endpoint, "SUB", receive_bytes=4096) as raw:
        raw.sendall(frame(f"\x01event.{node}".encode()))
        reader = threading.Thread(target=read, args=(raw,))
        reader.start()
        try:
            yield lambda: taken
        finally:
            ended.set()
            reader.join()
