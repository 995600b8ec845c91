"""A broker that is away, comes last, or comes back to a crowd: FB2, FB3, FB13."""

from __future__ import annotations

import asyncio
import itertools
import re
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from pathlib import Path

import pytest
from tests.support import records
from tests.support.bank_process import Uploads, seeded
from tests.support.machine import Usage
from tests.support.networks import Network
from tests.support.peers import open_sockets, until
from tests.support.places import Places
from tests.support.processes import Process, Start, free_ports

from labmesh.errors import LabmeshError
from labmesh.registration import Registration
from labmesh.transport.sockets import Sockets

LIMIT_S = 20.0
#: Sockets of one context: ZeroMQ has no more than 1023 of them, a link needs three.
LINKS_OF_ONE = 100


@pytest.fixture
def start(no_leaks: None) -> Iterator[Start]:
    with ExitStack() as processes:
        yield lambda *args, **options: processes.enter_context(Process(*args, **options))


# ── FB2 ─────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "away_s", [1.5, pytest.param(60.0, marks=[pytest.mark.soak, pytest.mark.timeout(180)])]
)
async def test_calls_and_downloads_do_not_notice_that_the_broker_is_away(
    start: Start, tmp_path: Path, away_s: float
) -> None:
    network = Network(start, tmp_path)
    broker = await asyncio.to_thread(network.broker)
    relay_ids = ["Inst-0", "Inst-1"]
    ingest = f"tcp://127.0.0.1:{free_ports(1)[0]}"
    bank = network.bank("bank-0", ingest_bind=ingest)
    await asyncio.to_thread(network.ready_nodes, bank, *map(network.relay, relay_ids))
    content = seeded(3_000_000, 1)
    uploads = Uploads(ingest)
    await uploads.one("set", content)
    async with network.client() as client:
        reader = await client.get_databank_agent("bank-0")
        assert await reader.fetch("set") == content
        callers = await asyncio.to_thread(network.callers, 4, relay_ids)
        broker.kill9()
        seen, until_s = len(callers.lines), time.monotonic() + away_s
        downloads, broken = 0, []
        while time.monotonic() < until_s or len(callers.lines) < seen + 3:
            downloads += 1
            try:
                assert await reader.fetch("set") == content
            except LabmeshError as exc:
                broken.append(exc)
    during = [each.text for each in callers.lines[seen:]]
    failed = [each for each in during if each.startswith("failed")]
    counts = [int(found[1]) for each in during if (found := re.match(r"calls (\d+)", each))]
    print(
        f"FB2: broker away for {away_s:g} s: failed calls {len(failed)} of "
        f"{counts[-1] - counts[0]}, broken downloads {len(broken)} of {downloads} (3 MB each)"
    )
    assert failed == []
    assert broken == []
    assert counts[-1] > counts[0]


# ── FB3 ─────────────────────────────────────────────────────────────────────────────────────────


async def test_nodes_find_each_other_in_whatever_order_they_start(tmp_path: Path) -> None:
    took_s = []
    orders = list(itertools.permutations(("broker", "relay", "bank", "client")))
    # Those of one batch wait at the same time: a node that comes too early tries again later.
    for batch in (orders[:12], orders[12:]):
        took_s += await asyncio.gather(
            *(converge(Places(tmp_path / "-".join(order)), order) for order in batch)
        )
    print(
        f"FB3: {len(took_s)} of {len(orders)} start orders converged, in {max(took_s):.2f} s at "
        f"most after the last node was started"
    )
    assert len(took_s) == 24


async def converge(places: Places, order: tuple[str, ...]) -> float:
    """Start the nodes in this order; seconds until the client hears the relay and has the bank."""
    made = {
        "broker": places.broker(),
        "relay": places.relay(),
        "bank": places.bank(),
    }
    client = places.client()
    heard = asyncio.Event()
    async with AsyncExitStack() as open_nodes:
        connecting = None
        for each in order:
            if each == "client":
                connecting = asyncio.ensure_future(client.connect())
            else:
                await open_nodes.enter_async_context(made[each])
            await asyncio.sleep(0)
        began = time.monotonic()
        assert connecting is not None
        await connecting
        open_nodes.push_async_callback(client.close)
        client.on_state(lambda _node, _state: heard.set())
        await until(
            lambda: heard.is_set() and {"relay", "bank"} <= {n.kind for n in client.known_nodes},
            LIMIT_S,
            f"{order}: {client.known_nodes}",
        )
        return time.monotonic() - began


# ── FB13 ────────────────────────────────────────────────────────────────────────────────────────


class Crowd:
    """Nodes that register again, each as a relay does, over links of their own."""

    def __init__(self) -> None:
        self.asked: dict[str, float] = {}
        self.hello_s: dict[str, float] = {}
        self.back_at: dict[str, float] = {}

    def one(self, sockets: Sockets, network: Network, number: int) -> Registration:
        """One of them."""
        record = records.relay(f"Inst-{number}", port=5801 + number, heartbeat_s=1.0)
        name = str(record.node_id)

        async def prepare() -> None:
            self.asked[name] = time.monotonic()

        def welcome(_: Registration) -> None:
            self.back_at[name] = time.monotonic()
            self.hello_s[name] = self.back_at[name] - self.asked[name]

        return Registration(
            sockets,
            network.rpc,
            where="the broker",
            events=network.xsub,
            record=lambda: record,
            prepare=prepare,
            on_welcome=welcome,
            on_beat=lambda _: None,
            is_final=lambda _: False,
            heartbeat_s=1.0,
        )


@asynccontextmanager
async def crowded(network: Network, count: int) -> AsyncIterator[Crowd]:
    """So many nodes, all of them registered."""
    crowd = Crowd()
    async with AsyncExitStack() as stack:
        running = []
        for first in range(0, count, LINKS_OF_ONE):
            sockets = stack.enter_context(open_sockets(name=f"crowd-{first}"))
            for number in range(first, min(first + LINKS_OF_ONE, count)):
                each = crowd.one(sockets, network, number)
                stack.callback(each.close)
                running.append(asyncio.ensure_future(each.run()))
        try:
            await until(lambda: len(crowd.back_at) == count, LIMIT_S)
            yield crowd
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("count", [60, pytest.param(500, marks=pytest.mark.soak)])
async def test_a_crowd_that_comes_back_at_once_is_served(
    start: Start, tmp_path: Path, count: int
) -> None:
    network = Network(start, tmp_path)
    broker = await asyncio.to_thread(network.broker)
    async with crowded(network, count) as crowd:
        broker.kill9()
        crowd.back_at.clear()
        broker = await asyncio.to_thread(network.broker)
        began, cpu_s = time.monotonic(), Usage.of(broker.pid).cpu_s
        await until(lambda: len(crowd.back_at) == count, LIMIT_S)
        used_s = Usage.of(broker.pid).cpu_s - cpu_s
        async with network.client() as client:
            listed = await client.list_nodes()
    print(
        f"FB13: {count} nodes at once: all served {max(crowd.back_at.values()) - began:.2f} s "
        f"after the broker listened, {used_s:.2f} s of its processor time, slowest hello "
        f"{1000 * max(crowd.hello_s.values()):.0f} ms"
    )
    assert len(listed) == count
