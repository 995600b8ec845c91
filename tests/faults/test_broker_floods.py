"""Strangers that want the broker's memory: unfinished messages, and subscriptions without end.

FB15 and FB16. A network without a password is open to programs of its own machine alone, and those
can fill a message that never ends: ZeroMQ limits frames, not messages. So what is promised there is
that others are served meanwhile, and that the memory is free again when the stranger has gone.
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
import zmq
from tests.support.machine import Usage
from tests.support.networks import Network
from tests.support.peers import raw_socket, until
from tests.support.processes import Process, Start
from tests.support.zmtp import frame, zmtp

from labmesh import DirectorClientAgent
from labmesh.errors import LabmeshError

LIMIT_S = 30.0
FRAME_BYTES = 60_000


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
    """Frames of a message that never ends; how many MB were taken."""
    piece = frame(bytes(FRAME_BYTES), more=True)
    poured = 0
    # A server that has had enough may hang up.
    with contextlib.suppress(OSError):
        while poured < megabytes * 1_000_000:
            raw.sendall(piece)
            poured += len(piece)
    return poured // 1_000_000


@pytest.mark.parametrize("megabytes", [32, pytest.param(1000, marks=pytest.mark.soak)])
async def test_messages_that_never_end_harm_nobody_and_go_with_their_sender(
    start: Start, tmp_path: Path, megabytes: int
) -> None:
    network = Network(start, tmp_path)
    broker = await asyncio.to_thread(network.broker)
    before = Usage.of(broker.pid)
    doors = {network.rpc: "DEALER", network.xsub: "PUB", network.xpub: "SUB"}
    peaks_mb, poured = [], 0
    async with witnessed(network) as witness:
        for _ in range(4):
            with ExitStack() as attackers:
                raws = [attackers.enter_context(zmtp(*each)) for each in doors.items()]
                poured += sum(
                    await asyncio.gather(
                        *(asyncio.to_thread(pour, each, megabytes // 3) for each in raws)
                    )
                )
            asked = witness.asked
            await until(lambda asked=asked: witness.asked > asked + 5, LIMIT_S)
            peaks_mb.append(Usage.of(broker.pid).peak_mb - before.memory_mb)
    print(
        f"FB15: {poured} MB of messages that never end, at 3 ports, in 4 visits: memory at most "
        f"{', '.join(f'{each:+.0f}' for each in peaks_mb)} MB; witness failures "
        f"{len(witness.failed)} of {witness.asked}, slowest answer {1000 * witness.worst_s:.0f} ms"
    )
    # What one visit took is free for the next one.
    assert peaks_mb[-1] < peaks_mb[0] + megabytes
    assert witness.failed == []
    assert broker.exit_code is None


# ── FB16 ────────────────────────────────────────────────────────────────────────────────────────


# libzmq itself keeps a list of what a connection asked for, also of what it is refused, until the
# connection ends: a quarter of a kilobyte each. Taken, they would be three.
@pytest.mark.parametrize(
    ("topics", "budget_mb"), [(20_000, 20), pytest.param(100_000, 40, marks=pytest.mark.soak)]
)
async def test_subscriptions_without_end_are_refused(
    start: Start, tmp_path: Path, topics: int, budget_mb: float
) -> None:
    network = Network(start, tmp_path)
    broker = await asyncio.to_thread(network.broker)
    async with witnessed(network) as witness, network.client() as client:
        before = Usage.of(broker.pid)

        async def counted() -> tuple[int, int]:
            facts = (await client.broker_status()).facts
            return facts["subscriptions_refused"], facts["subscriptions"]

        with raw_socket(zmq.SUB) as bomber:
            bomber.sndhwm = 0
            bomber.connect(network.xpub)
            for number in range(topics):
                bomber.setsockopt(zmq.SUBSCRIBE, b"state.bomb-%048d" % number)
            refused = taken = 0
            async with asyncio.timeout(LIMIT_S):
                while refused + taken < topics:
                    refused, taken = await counted()
            most = Usage.of(broker.pid)
        # Somebody who comes now is heard.
        await client.subscribed()
    grown_mb = most.peak_mb - before.memory_mb
    print(
        f"FB16: {topics} subscriptions of one connection: refused {refused}, taken {taken}; memory "
        f"at most {grown_mb:+.1f} MB; witness failures {len(witness.failed)} of {witness.asked}"
    )
    assert witness.failed == []
    assert grown_mb < budget_mb
