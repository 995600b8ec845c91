"""Strangers that want the broker's memory: unfinished messages, and subscriptions without end.

FB15 and FB16. ZeroMQ limits frames, not messages, and keeps a list of all that it was asked for,
refused or not. So who wants too much is hung up on, and others notice nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path

import pytest
from tests.support.machine import Usage
from tests.support.networks import Network
from tests.support.peers import until
from tests.support.processes import Process, Start, free_ports, program
from tests.support.zmtp import frame, zmtp

from labmesh import DirectorClientAgent
from labmesh.errors import LabmeshError
from labmesh.transfer import upload_dataset

LIMIT_S = 30.0
FRAME_BYTES = 60_000
#: What strangers may take at one port: what is allowed there, and what comes until they are found.
LISTENER_MB = 64
SOAK = [pytest.mark.soak, pytest.mark.timeout(120)]


@pytest.fixture
def start(no_leaks: None) -> Iterator[Start]:
    with ExitStack() as processes:
        yield lambda *args, **options: processes.enter_context(Process(*args, **options))


class Witness:
    """A client that asks the broker all the time."""

    def __init__(self, client: DirectorClientAgent) -> None:
        self._client = client
        self.asked = 0
        self.worst_s = 0.0
        self.failed: list[LabmeshError] = []

    async def run(self) -> None:
        """Ask until cancelled."""
        while True:
            began = time.monotonic()
            self.asked += 1
            try:
                await self._client.list_nodes()
            except LabmeshError as exc:
                self.failed.append(exc)
            self.worst_s = max(self.worst_s, time.monotonic() - began)
            await asyncio.sleep(0.02)


@asynccontextmanager
async def witnessed(network: Network) -> AsyncIterator[Witness]:
    async with network.client() as client:
        witness = Witness(client)
        asking = asyncio.ensure_future(witness.run())
        try:
            yield witness
        finally:
            asking.cancel()
            await asyncio.wait([asking])


# ── FB15 ────────────────────────────────────────────────────────────────────────────────────────


def pour(raw: socket.socket, megabytes: int) -> int:
    """Frames of a message that never ends; how many MB were taken before the server hung up."""
    piece = frame(bytes(FRAME_BYTES), more=True)
    poured = 0
    with contextlib.suppress(OSError):
        while poured < megabytes * 1_000_000:
            raw.sendall(piece)
            poured += len(piece)
    return poured // 1_000_000


async def flood(doors: dict[str, str], megabytes: int) -> list[int]:
    """So many MB at each of these addresses at once; what each took of them."""
    with ExitStack() as attackers:
        raws = [attackers.enter_context(zmtp(*each)) for each in doors.items()]
        return await asyncio.gather(*(asyncio.to_thread(pour, each, megabytes) for each in raws))


@pytest.mark.parametrize(("megabytes", "visits"), [(150, 1), pytest.param(333, 4, marks=SOAK)])
async def test_messages_that_never_end_end_their_connection(
    start: Start, tmp_path: Path, megabytes: int, visits: int
) -> None:
    network = Network(start, tmp_path)
    rpc, ingest, retrieve = (f"tcp://127.0.0.1:{each}" for each in free_ports(3))
    broker = await asyncio.to_thread(network.broker)
    nodes = await asyncio.to_thread(
        network.ready_nodes,
        network.relay("psu-1", rpc_bind=rpc),
        network.bank("bank-0", ingest_bind=ingest, retrieve_bind=retrieve),
    )
    attacked = [
        (broker, {network.rpc: "DEALER", network.xsub: "PUB", network.xpub: "SUB"}),
        (nodes, {rpc: "DEALER", ingest: "DEALER", retrieve: "DEALER"}),
    ]
    async with witnessed(network) as witness:
        for process, doors in attacked:
            before = Usage.of(process.pid)
            peaks_mb, poured = [], [0]
            for _ in range(visits):
                poured += await flood(doors, megabytes)
                asked = witness.asked
                await until(lambda asked=asked: witness.asked > asked + 5, LIMIT_S)
                peaks_mb.append(Usage.of(process.pid).peak_mb - before.memory_mb)
            print(
                f"FB15: {megabytes} MB of a message that never ends at each of {len(doors)} ports, "
                f"{visits} times: at most {max(poured)} MB taken, memory at most "
                f"{', '.join(f'{each:+.0f}' for each in peaks_mb)} MB; witness failures "
                f"{len(witness.failed)} of {witness.asked}, slowest answer "
                f"{1000 * witness.worst_s:.0f} ms"
            )
            assert max(poured) < megabytes, "each was hung up on"
            assert "of a message that does not end" in process.errors
            assert peaks_mb[-1] < LISTENER_MB * len(doors)
            assert process.exit_code is None
        await upload_dataset(ingest, bytes(1_000_000))
    assert witness.failed == []


@pytest.mark.parametrize("megabytes", [100, pytest.param(1000, marks=SOAK)])
async def test_who_sends_much_in_messages_that_end_is_not_hung_up_on(
    start: Start, tmp_path: Path, megabytes: int
) -> None:
    network = Network(start, tmp_path)
    (port,) = free_ports(1)
    ingest = f"tcp://127.0.0.1:{port}"
    await asyncio.to_thread(network.broker)
    bank = await asyncio.to_thread(network.ready_nodes, network.bank("bank-0", ingest_bind=ingest))
    content = bytes(megabytes * 250_000)
    await asyncio.gather(*(upload_dataset(ingest, content) for _ in range(4)))
    grown_mb = Usage.of(bank.pid).peak_mb
    print(f"FB15: {megabytes} MB by 4 honest clients: nobody was hung up on; {grown_mb:.0f} MB")
    assert "does not end" not in bank.errors


# ── FB16 ────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("topics", "seconds"), [(20_000, 1.0), pytest.param(100_000, 10.0, marks=SOAK)]
)
async def test_who_subscribes_without_end_is_hung_up_on(
    start: Start, tmp_path: Path, topics: int, seconds: float
) -> None:
    network = Network(start, tmp_path)
    broker = await asyncio.to_thread(network.broker)
    async with witnessed(network) as witness, network.client() as client:
        await client.subscribed()
        before = Usage.of(broker.pid)

        async def refused() -> int:
            return int((await client.broker_status()).facts["subscriptions_refused"])

        # Each time that it is hung up on it comes again, with all of them.
        bomber = start([program("bomber.py"), network.xpub, str(topics)], cwd=tmp_path)
        await asyncio.to_thread(bomber.wait_for, "^bombed", LIMIT_S)
        async with asyncio.timeout(LIMIT_S):
            while await refused() < 1000:
                pass
        slowest_ms = []
        ended = time.monotonic() + seconds
        while time.monotonic() < ended:
            began = time.monotonic()
            # Somebody who comes now is heard: this waits for what goes the way of events.
            await client.subscribed()
            slowest_ms.append(1000 * (time.monotonic() - began))
            await asyncio.sleep(0.01)
        count, most = await refused(), Usage.of(broker.pid)
    slowest_ms.sort()
    grown_mb = most.peak_mb - before.memory_mb
    print(
        f"FB16: {topics} subscriptions of one connection, which comes again for {seconds:g} s: "
        f"refused {count}; memory at most {grown_mb:+.1f} MB; events of others: p99 "
        f"{slowest_ms[int(0.99 * len(slowest_ms))]:.0f} ms, slowest {slowest_ms[-1]:.0f} ms; "
        f"witness failures {len(witness.failed)} of {witness.asked}"
    )
    assert "asks for topics without end" in broker.errors
    assert witness.failed == []
    # Below 20 where the processors are free; what comes before the reset is noticed adds to it.
    assert grown_mb < 40
