"""A listener that stands still, or reads a byte a second, costs nobody else anything: FB4, FB5."""

from __future__ import annotations

import asyncio
import re
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import zmq
from tests.support.machine import Usage
from tests.support.networks import Network
from tests.support.peers import open_sockets, until
from tests.support.processes import Process, Start, program
from tests.support.zmtp import frame, zmtp
from tests.support.wire_events import heard

from labmesh.protocol.codec import decode_event
from labmesh.transport.publisher import Publisher

LIMIT_S = 40.0
NODE = "Load-0"
#: Events on their way at most: no queue but that of the slow one overflows.
UNDER_WAY = 200
#: What the broker keeps for one that does not keep up (a limit that follows the mean size of events
#: when it is off by a quarter) and for replays; and what its allocator needs beside.
BUDGET_MB = 1.25 * 64 + 8 + 50
HEARTBEAT_S = 0.1
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
        """So many events, and on at this rate until the time is over."""
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
        stopped.stop()
        try:
            added_ms, grown_mb = await slowed(load, broker, seconds, burst, rate)
        finally:
            stopped.cont()
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
        with trickling(network.xpub) as taken:
            added_ms, grown_mb = await slowed(load, broker, seconds, burst, rate)
        read = taken()
    missed = sum(each.missed for each in load.ears)
    print(
        f"FB5: 1 of {healthy + 1} listeners read {read} bytes in {seconds:g} s, {load.sent} events "
        f"of {size} bytes: lost by the others {missed}, added p99 {added_ms:+.1f} ms, broker's "
        f"memory {grown_mb:+.0f} MB"
    )
    assert missed == 0
    assert grown_mb < BUDGET_MB


async def slowed(
    load: Load, broker: Process, seconds: float, burst: int, rate: float
) -> tuple[float, float]:
    """Load while somebody is slow; the 99th percentile in ms that it adds, the broker's MB."""
    usual_ms, before = load.p99_ms(), Usage.of(broker.pid)
    await load.for_at_least(burst, seconds, rate)
    await load.all_heard()
    return load.p99_ms() - usual_ms, Usage.of(broker.pid).peak_mb - before.memory_mb


@contextmanager
def trickling(endpoint: str) -> Iterator[Callable[[], int]]:
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
        raw.sendall(frame(f"\x01event.{NODE}".encode()))
        reader = threading.Thread(target=read, args=(raw,))
        reader.start()
        try:
            yield lambda: taken
        finally:
            ended.set()
            reader.join()
