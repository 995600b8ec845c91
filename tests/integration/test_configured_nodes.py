"""Keys of labmesh.toml that show in time: nodes made from a file behave as it says."""

from __future__ import annotations

import asyncio
import socket
import statistics
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from itertools import pairwise
from pathlib import Path

import pytest
from msgspec.structs import replace
from tests.support.promptness import SLACK_S

from labmesh.broker import DirectoryBroker
from labmesh.cli import assembly
from labmesh.client import BankClient, DirectorClientAgent, RelayClient
from labmesh.config import BankTable, BrokerTable, Config, RelayEntry, RelayTable
from labmesh.errors import LinkLost
from labmesh.events.reading import Reading
from labmesh.instruments.simulated import Thermometer
from labmesh.protocol.messages import Hello, NodeRecord, Welcome
from labmesh.transfer import upload_dataset
from labmesh.transport.keys import Security
from labmesh.transport.link import Link
from labmesh.transport.sockets import Sockets

ANYWHERE = "tcp://127.0.0.1:*"
OPEN = Security("open")
ENTRY = RelayEntry(id="Thermo-0", driver="-", bind=ANYWHERE)


@pytest.fixture
def config(tmp_path: Path) -> Config:
    """A mesh on free ports of this machine."""
    return Config(
        broker=BrokerTable(rpc_bind=ANYWHERE, xsub_bind=ANYWHERE, xpub_bind=ANYWHERE),
        bank=BankTable(
            ingest_bind=ANYWHERE, retrieve_bind=ANYWHERE, default_data_dir=str(tmp_path / "bank")
        ),
    )


@pytest.fixture
async def stack() -> AsyncIterator[AsyncExitStack]:
    """Nodes that end with the test."""
    async with AsyncExitStack() as nodes:
        yield nodes


async def started(stack: AsyncExitStack, config: Config) -> DirectoryBroker:
    return await stack.enter_async_context(assembly.make_broker(config, OPEN))


async def client_of(stack: AsyncExitStack, broker: DirectoryBroker) -> DirectorClientAgent:
    client = DirectorClientAgent(broker_rpc=str(broker.rpc), security=OPEN)
    return await stack.enter_async_context(client)


async def heartbeat_ages(node: RelayClient | BankClient, *, seconds: float) -> list[float]:
    """How old the last heartbeat was, looked at again and again for so long."""
    ages = []
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        ages.append((await node.status()).facts["heartbeat_age_s"])
        await asyncio.sleep(0.01)
    return ages


def beats(ages: list[float]) -> int:
    """How often the last heartbeat was another one than before."""
    return sum(later < earlier for earlier, later in pairwise(ages))


async def test_a_silent_node_leaves_after_ttl_seconds(
    stack: AsyncExitStack, config: Config
) -> None:
    broker = await started(stack, replace(config, broker=replace(config.broker, ttl_seconds=0.6)))
    client = await client_of(stack, broker)
    left: asyncio.Future[dict[str, object]] = asyncio.get_running_loop().create_future()

    def watch(change: dict[str, object]) -> None:
        if change["change"] == "left":
            left.set_result(change)

    client.on_presence(watch)
    sockets = Sockets(OPEN, "silent")
    stack.callback(sockets.close_all)
    link = Link(sockets, str(broker.rpc), where="the broker")
    stack.callback(link.close)
    record = NodeRecord(
        node_id="silent",  # type: ignore[arg-type]
        kind="relay",
        epoch="1",  # type: ignore[arg-type]
        endpoints={"rpc": "tcp://127.0.0.1:9"},
    )
    began = time.monotonic()
    welcome = await link.request(Hello(id="-", node=record), Welcome, timeout=10)
    assert welcome.ttl_s == 0.6
    async with asyncio.timeout(10):
        change = await left
    assert (change["node_id"], change["reason"]) == ("silent", "expired")
    assert 0.6 <= time.monotonic() - began < 0.6 + SLACK_S


async def test_a_relay_that_beats_within_ttl_seconds_stays(
    stack: AsyncExitStack, config: Config
) -> None:
    config = replace(
        config,
        broker=replace(config.broker, ttl_seconds=SLACK_S),
        relay=RelayTable(heartbeat_seconds=0.1),
    )
    broker = await started(stack, config)
    relay = assembly.make_relay(assembly.beside(config, broker), ENTRY, Thermometer(), OPEN)
    await stack.enter_async_context(relay)
    await relay.ready
    client = await client_of(stack, broker)
    changes: list[str] = []
    client.on_presence(lambda change: changes.append(change["change"]))
    proxy = await client.get_relay_agent("Thermo-0")
    ages = await heartbeat_ages(proxy, seconds=SLACK_S + 0.3)
    assert max(ages) < SLACK_S, "it beat all the time"
    assert beats(ages) >= 7, "about every 0.1 s"
    assert "left" not in changes
    (listed,) = await client.list_nodes()
    assert listed.heartbeat_s == 0.1


async def test_a_bank_beats_at_heartbeat_seconds(stack: AsyncExitStack, config: Config) -> None:
    config = replace(
        config,
        broker=replace(config.broker, ttl_seconds=SLACK_S),
        bank=replace(config.bank, heartbeat_seconds=0.1),
    )
    broker = await started(stack, config)
    bank = assembly.make_bank(assembly.beside(config, broker), OPEN)
    await stack.enter_async_context(bank)
    await bank.ready
    client = await client_of(stack, broker)
    proxy = await client.get_databank_agent()
    assert beats(await heartbeat_ages(proxy, seconds=2.0)) >= 4


@pytest.mark.parametrize(("table_s", "poll", "wanted_s"), [(0.1, None, 0.1), (5.0, 0.2, 0.2)])
async def test_states_come_at_state_interval_or_at_an_entrys_poll(
    stack: AsyncExitStack, config: Config, table_s: float, poll: float | None, wanted_s: float
) -> None:
    config = replace(config, relay=RelayTable(state_interval=table_s))
    broker = await started(stack, config)
    relay = assembly.make_relay(
        assembly.beside(config, broker), replace(ENTRY, poll=poll), Thermometer(), OPEN
    )
    await stack.enter_async_context(relay)
    client = await client_of(stack, broker)
    readings: asyncio.Queue[Reading] = asyncio.Queue()
    client.on_reading(readings.put_nowait)
    async with asyncio.timeout(10):
        taken = [await readings.get()]
        while taken[-1].sequence < taken[0].sequence + 8:
            taken.append(await readings.get())
    # A busy machine leaves some out, and the next one comes at its time: not so most of them.
    steps_s = [later.time - earlier.time for earlier, later in pairwise(taken)]
    assert statistics.median(steps_s) == pytest.approx(wanted_s, rel=0.35)


async def test_upload_chunk_is_what_a_relay_sends_at_a_time(
    stack: AsyncExitStack, config: Config
) -> None:
    config = replace(config, relay=RelayTable(upload_chunk=70_000))
    broker = await started(stack, config)
    beside = assembly.beside(config, broker)
    relay = assembly.make_relay(beside, ENTRY, Thermometer(), OPEN)
    bank = assembly.make_bank(beside, OPEN)
    for node in (bank, relay):
        await stack.enter_async_context(node)
        await node.ready
    acknowledged: list[int] = []
    await relay.upload(bytes(250_000), progress=lambda done, _: acknowledged.append(done))
    assert acknowledged == [70_000, 140_000, 210_000, 250_000]


@pytest.mark.parametrize("retries", [0, 1])
async def test_an_upload_gives_up_after_its_timeout_and_retries(
    config: Config, retries: int
) -> None:
    config = replace(config, relay=RelayTable(upload_timeout=0.2, upload_retries=retries))
    settings = assembly.upload_settings(config)
    with socket.create_server(("127.0.0.1", 0)) as mute:  # accepts, and says nothing
        began = time.monotonic()
        with pytest.raises(LinkLost, match=f"{retries + 1} tries did not help"):
            await upload_dataset(
                f"tcp://127.0.0.1:{mute.getsockname()[1]}",
                b"x",
                timeout=settings.timeout_s,
                retries=settings.retries,
                chunk=settings.chunk_bytes,
                security=OPEN,
            )
        seconds = time.monotonic() - began
    assert 0.2 * (retries + 1) <= seconds < 0.2 * (retries + 1) + 3.0


async def test_the_folder_and_the_addresses_are_those_of_the_file(
    stack: AsyncExitStack, config: Config, tmp_path: Path
) -> None:
    config = replace(
        config,
        bank=replace(config.bank, ingest_bind="tcp://*:*", default_address="localhost"),
        relay=RelayTable(default_address="127.0.0.1"),
    )
    broker = await started(stack, config)
    beside = assembly.beside(config, broker)
    bank = assembly.make_bank(beside, OPEN)
    relay = assembly.make_relay(beside, replace(ENTRY, bind="tcp://*:*"), Thermometer(), OPEN)
    for node in (bank, relay):
        await stack.enter_async_context(node)
        await node.ready
    assert (tmp_path / "bank").is_dir()
    client = await client_of(stack, broker)
    listed = {each.node_id: each.endpoints for each in await client.list_nodes()}
    assert listed == {"bank-0": bank.endpoints, "Thermo-0": relay.endpoints}
    assert listed["bank-0"]["ingest"] == f"tcp://localhost:{bank.ingest.port}"
    assert listed["Thermo-0"]["rpc"] == f"tcp://127.0.0.1:{relay.rpc.port}"
