"""FC3 and FC4: every dataset once, whoever is cut off, killed, or started again meanwhile."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.support.bank_process import BankProcess, Uploads, seeded
from tests.support.cable import Cable
from tests.support.hearing import Heard
from tests.support.networks import Network
from tests.support.peers import until
from tests.support.places import Places
from tests.support.processes import Process, Start, free_ports, program

from labmesh import DirectorClientAgent

COMMITS = 50
LIMIT_S = 30.0
KEEPER_S = 15.0


@pytest.fixture
def start(no_leaks: None) -> Iterator[Start]:
    with ExitStack() as processes:
        yield lambda *args, **options: processes.enter_context(Process(*args, **options))


@asynccontextmanager
async def listening(places: Places) -> AsyncIterator[tuple[DirectorClientAgent, Heard]]:
    async with places.client() as client:
        heard = Heard()
        client.on_dataset(heard)
        yield client, heard


async def commit_meanwhile(uploads: Uploads, fault: Coroutine[Any, Any, None]) -> int:
    """50 commits, the fault begins after 10 of them; how many there were while it lasted."""
    faulty: asyncio.Future[None] | None = None
    meanwhile = 0
    for number in range(COMMITS):
        await uploads.one(f"set-{number:02}", seeded(1000, number))
        meanwhile += faulty is not None and not faulty.done()
        if number == COMMITS // 5:
            faulty = asyncio.ensure_future(fault)
    assert faulty is not None
    await faulty
    return meanwhile


async def told_once(what: str, uploads: Uploads, heard: Heard, meanwhile: int) -> None:
    """Each was heard once, in the order of the commits; and prints how long that took."""
    ended, before = time.monotonic(), len(heard.items)
    await heard.until(
        lambda items: {each["dataset_id"] for each in items} >= set(uploads.acknowledged), LIMIT_S
    )
    took_s = time.monotonic() - ended
    counts = Counter(each["dataset_id"] for each in heard.items)
    twice = sum(count > 1 for count in counts.values())
    print(
        f"{what} during {COMMITS} commits, {meanwhile} of them meanwhile: heard {len(counts)} of "
        f"{COMMITS}, duplicates {twice}; {COMMITS - before} of them after the fault and all "
        f"commits had ended, within {took_s:.2f} s"
    )
    assert [each["dataset_id"] for each in heard.items] == uploads.acknowledged
    assert len(uploads.acknowledged) == COMMITS


@pytest.mark.parametrize(
    "seconds", [4.5, pytest.param(60.0, marks=[pytest.mark.soak, pytest.mark.timeout(180)])]
)
async def test_a_client_that_is_cut_off_misses_none(places: Places, seconds: float) -> None:
    """FC3: nothing from the broker arrives any more, and nobody says so."""
    async with places.broker(), places.bank() as bank:
        await bank.ready
        async with Cable(places.ports[0]) as rpc, Cable(places.ports[2]) as xpub:
            client = DirectorClientAgent(broker_rpc=rpc.endpoint, broker_xpub=xpub.endpoint)

            async def cut_off() -> None:
                for each in (rpc, xpub):
                    each.hold()
                await asyncio.sleep(seconds)
                # What was under way is lost with the connections.
                for each in (rpc, xpub):
                    each.cut()
                    each.release()

            async with client:
                heard = Heard()
                client.on_dataset(heard)
                uploads = Uploads(str(bank.ingest))
                count = await commit_meanwhile(uploads, cut_off())
                assert count > COMMITS // 2
                await told_once(f"FC3: client cut off for {seconds:g} s", uploads, heard, count)


async def test_a_broker_that_is_killed_costs_none(start: Start, tmp_path: Path) -> None:
    network = Network(start, tmp_path)
    broker = network.broker()
    (port,) = free_ports(1)
    ingest = f"tcp://127.0.0.1:{port}"
    network.ready_nodes(network.bank("bank-0", ingest_bind=ingest))

    async def restart() -> None:
        broker.kill9()
        await asyncio.to_thread(network.broker)

    async with network.client() as client:
        heard = Heard()
        client.on_dataset(heard)
        uploads = Uploads(ingest)
        count = await commit_meanwhile(uploads, restart())
        assert count
        await told_once("broker killed", uploads, heard, count)


async def test_a_bank_that_is_killed_repeats_none(places: Places) -> None:
    options = {"broker_rpc": places.rpc, "broker_xsub": places.xsub}
    with BankProcess(places.folder / "bank", options) as bank:
        async with places.broker():
            await asyncio.to_thread(bank.start)

            async def restart() -> None:
                bank.kill9()
                await asyncio.to_thread(bank.start)

            async with listening(places) as (client, heard):
                await until(lambda: any(each.kind == "bank" for each in client.known_nodes))
                uploads = Uploads(bank.ingest)
                count = await commit_meanwhile(uploads, restart())
                await told_once("bank killed", uploads, heard, count)


async def test_a_client_with_a_cursor_that_is_killed_6_times(start: Start, tmp_path: Path) -> None:
    await kill_keepers(start, tmp_path, kills=6)


@pytest.mark.soak
@pytest.mark.timeout(600)
async def test_a_client_with_a_cursor_that_is_killed_100_times(
    start: Start, tmp_path: Path
) -> None:
    await kill_keepers(start, tmp_path, kills=100)


async def kill_keepers(start: Start, folder: Path, *, kills: int, seed: int = 4) -> None:
    """FC4: killed at any moment while datasets come and are handed over."""
    chance = random.Random(seed)
    network = Network(start, folder)
    network.broker()
    (port,) = free_ports(1)
    network.ready_nodes(network.bank("bank-0", ingest_bind=f"tcp://127.0.0.1:{port}"))
    uploads = Uploads(f"tcp://127.0.0.1:{port}")
    (folder / "kept").mkdir()
    calls = folder / "calls"
    calls.touch()

    async def upload(count: int) -> None:
        for _ in range(count):
            number = len(uploads.sent)
            await uploads.one(f"set-{number:04}", seeded(1000, number))

    for number in range(kills):
        keeper = start(
            [program("dataset_keeper.py"), network.rpc, network.xpub, folder], cwd=folder
        )
        size = calls.stat().st_size
        uploading = asyncio.ensure_future(upload(chance.randint(3, 8)))
        await until(lambda size=size: calls.stat().st_size > size, KEEPER_S, keeper.tail())
        await asyncio.sleep(chance.uniform(0.0, chance.choice((0.02, 0.5))))
        if number % 3 == 0:
            await uploading  # others are killed while datasets are stored
        keeper.kill9()
        await uploading
    start([program("dataset_keeper.py"), network.rpc, network.xpub, folder], cwd=folder)
    await until(
        lambda: {each.name for each in (folder / "kept").iterdir()} >= set(uploads.acknowledged),
        LIMIT_S,
        "not every dataset was handed over",
    )
    lines = [each.split() for each in calls.read_text().splitlines()]
    first = Counter(each[1] for each in lines if each[0] == "begin" and each[2] == "False")
    again = [each[1] for each in lines if each[0] == "begin" and each[2] == "True"]
    twice = [each[1] for each in lines if each[0] == "twice"]
    kept = {each.name for each in (folder / "kept").iterdir()}
    print(
        f"FC4: client with a cursor killed {kills} times (seed {seed}): {len(kept)} of "
        f"{len(uploads.acknowledged)} datasets seen, twice {len(twice)}; handed over again and "
        f"flagged {len(again)}, again without a flag {sum(each > 1 for each in first.values())}"
    )
    assert kept == set(uploads.sent)
    assert twice == []
    assert max(first.values()) == 1
    assert len(again) <= kills
    assert {each for each, _ in first.items()} | set(again) == set(uploads.sent)
