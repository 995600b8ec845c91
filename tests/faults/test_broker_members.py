"""Nodes that die, stand still, come and go: what the directory makes of them. FB6, FB7, FB14."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path

import pytest
from tests.support import records
from tests.support.hearing import Heard
from tests.support.machine import Usage
from tests.support.networks import Network
from tests.support.peers import open_sockets, until
from tests.support.processes import Process, Start
from tests.support.promptness import SLACK_S

from labmesh.protocol.messages import Done, Goodbye, Hello, Welcome
from labmesh.transport.link import Link
from labmesh.transport.sockets import Sockets

LIMIT_S = 20.0
SOAK = [pytest.mark.soak, pytest.mark.timeout(120)]


@pytest.fixture
def start(no_leaks: None) -> Iterator[Start]:
    with ExitStack() as processes:
        yield lambda *args, **options: processes.enter_context(Process(*args, **options))


@asynccontextmanager
async def watched(
    start: Start, folder: Path, *, ttl_s: float, heartbeat_s: float, relays: int = 1
) -> AsyncIterator[tuple[Process, Heard]]:
    """A broker, relays in one process, and what a client is told of their presence."""
    network = Network(start, folder, ttl_s=ttl_s, heartbeat_s=heartbeat_s)
    await asyncio.to_thread(network.broker)
    wanted = [network.relay(f"Inst-{number}") for number in range(relays)]
    process = await asyncio.to_thread(network.ready_nodes, *wanted)
    async with network.client() as client:
        heard = Heard()
        client.on_presence(heard)
        assert len(await client.list_nodes()) == relays
        yield process, heard


def changes(heard: Heard) -> list[str]:
    """The changes so far, without the joins, which may have come before the client did."""
    return [each["change"] for each in heard.items if each["change"] != "joined"]


# ── FB6 ─────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("heartbeat_s", "ttl_s", "slack_s"),
    [(0.3, SLACK_S + 0.5, SLACK_S), pytest.param(5.0, 30.0, 1.0, marks=SOAK)],
)
async def test_a_relay_that_crashes_is_suspect_after_three_beats_and_gone_at_its_ttl(
    start: Start, tmp_path: Path, heartbeat_s: float, ttl_s: float, slack_s: float
) -> None:
    """Counted from its last heartbeat, which may be one period, and the slack, before its end."""
    async with watched(start, tmp_path, ttl_s=ttl_s, heartbeat_s=heartbeat_s) as (relay, heard):
        killed_at = time.monotonic()
        relay.kill9()
        await heard.until(lambda _: changes(heard)[-1:] == ["suspect"], ttl_s + LIMIT_S)
        suspect_s = time.monotonic() - killed_at
        await heard.until(lambda _: "left" in changes(heard), ttl_s + LIMIT_S)
        left_s = time.monotonic() - killed_at
        assert changes(heard)[-2:] == ["suspect", "left"]
    print(
        f"FB6: crash without goodbye: suspect after {suspect_s:.2f} s (3 beats: "
        f"{3 * heartbeat_s:g} s), gone after {left_s:.2f} s (ttl {ttl_s:g} s)"
    )
    assert 2 * heartbeat_s - slack_s <= suspect_s <= 3 * heartbeat_s + slack_s
    assert ttl_s - heartbeat_s - slack_s <= left_s <= ttl_s + slack_s


@pytest.mark.soak
@pytest.mark.timeout(3900)
@pytest.mark.parametrize("seconds", [60.0, 3600.0])
async def test_a_busy_machine_kills_nobody(start: Start, tmp_path: Path, seconds: float) -> None:
    """Every processor computes all the time."""
    async with watched(start, tmp_path, ttl_s=30.0, heartbeat_s=1.0, relays=20) as (_, heard):
        burners = os.cpu_count() or 1
        for _ in range(burners):
            start(["-c", "while True: pass"], cwd=tmp_path)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await asyncio.Event().wait()
        print(
            f"FB6: 20 relays, {burners} processors busy for {seconds:g} s: false deaths "
            f"{changes(heard).count('left')}, suspected {changes(heard).count('suspect')}"
        )
        assert changes(heard).count("left") == 0


# ── FB7 ─────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("stopped_s", "ttl_s", "heartbeat_s"),
    [(1.5, 10.0, 0.3), pytest.param(10.0, 30.0, 1.0, marks=pytest.mark.soak)],
)
async def test_a_relay_that_stands_still_for_less_than_its_ttl_is_kept(
    start: Start, tmp_path: Path, stopped_s: float, ttl_s: float, heartbeat_s: float
) -> None:
    async with watched(start, tmp_path, ttl_s=ttl_s, heartbeat_s=heartbeat_s) as (relay, heard):
        stopped_at = time.monotonic()
        relay.stop()
        try:
            await heard.until(lambda _: changes(heard)[-1:] == ["suspect"], LIMIT_S)
            suspected = len(changes(heard))
            await until(lambda: time.monotonic() >= stopped_at + stopped_s, stopped_s + 1)
        finally:
            relay.cont()
        went_on = time.monotonic()
        await heard.until(lambda _: "back" in changes(heard)[suspected:], LIMIT_S)
        print(
            f"FB7: stopped for {stopped_s:g} s, ttl {ttl_s:g} s: false removals "
            f"{changes(heard).count('left')}, live again {time.monotonic() - went_on:.2f} s after"
        )
        assert "left" not in changes(heard)


# ── FB14 ────────────────────────────────────────────────────────────────────────────────────────


async def come_and_go(sockets: Sockets, network: Network, number: int) -> None:
    """One node, over a connection of its own; every other one has an id that was never there."""
    record = records.relay(f"Inst-{number if number % 2 else 0}", epoch=f"e{number}")
    link = Link(sockets, network.rpc, where="the broker")
    try:
        await link.wait_up(LIMIT_S)
        await link.request(Hello(id="-", node=record), Welcome, timeout=LIMIT_S)
        goodbye = Goodbye(id="-", node_id=record.node_id, node_epoch=record.epoch)
        await link.request(goodbye, Done, timeout=LIMIT_S)
    finally:
        link.close()


@pytest.mark.parametrize(
    "cycles", [300, pytest.param(10_000, marks=[pytest.mark.soak, pytest.mark.timeout(240)])]
)
async def test_nodes_that_come_and_go_leave_nothing_in_the_broker(
    start: Start, tmp_path: Path, cycles: int
) -> None:
    network = Network(start, tmp_path)
    broker = await asyncio.to_thread(network.broker)
    with open_sockets() as sockets:
        for number in range(100):
            await come_and_go(sockets, network, number)
        before = Usage.of(broker.pid)
        for number in range(100, 100 + cycles):
            await come_and_go(sockets, network, number)
        async with network.client() as client:
            left = await client.list_nodes()
        # A connection that has just ended is closed there a moment later.
        await until(lambda: Usage.of(broker.pid).descriptors <= before.descriptors, LIMIT_S)
        after = Usage.of(broker.pid)
    grown_mb = after.memory_mb - before.memory_mb
    print(
        f"FB14: {cycles} nodes came and went: directory entries left {len(left)}, descriptors "
        f"{after.descriptors - before.descriptors:+d}, memory {grown_mb:+.1f} MB "
        f"({1000 * grown_mb / cycles:.2f} kB a cycle)"
    )
    assert left == []
    assert grown_mb < 20
