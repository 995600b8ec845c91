"""Five hundred nodes, opened and closed in one process, leave nothing behind."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from tests.support.leaks import Held, assert_nothing_more
from tests.support.peers import PROTECTED, with_password

from labmesh import DataBank, DirectorClientAgent, DirectoryBroker, RelayAgent
from labmesh.errors import AuthenticationError, Conflict
from labmesh.instruments.simulated import Thermometer

ANYWHERE = "tcp://127.0.0.1:*"


@asynccontextmanager
async def one_of_each(folder: Path) -> AsyncIterator[DirectoryBroker]:
    async with DirectoryBroker(ANYWHERE, ANYWHERE, ANYWHERE) as broker:
        addresses = {"broker_rpc": str(broker.rpc)}
        bank = DataBank(
            ingest_bind=ANYWHERE,
            retrieve_bind=ANYWHERE,
            data_dir=folder,
            broker_xsub=str(broker.xsub),
            **addresses,
        )
        relay = RelayAgent("Inst-0", Thermometer(), state_pub=str(broker.xsub), **addresses)
        async with bank, relay, DirectorClientAgent(**addresses) as client:
            await asyncio.gather(bank.ready, relay.ready)
            thermometer = await client.get_relay_agent("Inst-0")
            assert isinstance(await thermometer.read(), float)
            yield broker


@pytest.mark.timeout(180)
@pytest.mark.parametrize("rounds", [20, pytest.param(100, marks=pytest.mark.soak)])
async def test_nodes_leave_nothing_behind(rounds: int, tmp_path: Path) -> None:
    async with one_of_each(tmp_path):
        pass
    before = Held.now()
    began = time.monotonic()
    for _ in range(rounds):
        async with one_of_each(tmp_path) as broker:
            # The fifth node of a round fails to start: its port is taken.
            late = RelayAgent("late", Thermometer(), rpc_bind=str(broker.rpc))
            with pytest.raises(Conflict):
                await late.start()
    print(f"{5 * rounds} nodes in {time.monotonic() - began:.1f} s")
    await assert_nothing_more(before)


async def test_nodes_that_are_refused_leave_nothing_behind() -> None:
    secured = with_password("correct horse")
    other = with_password("battery staple")
    async with DirectoryBroker(ANYWHERE, ANYWHERE, ANYWHERE, security=secured) as broker:
        before = Held.now()
        for security in (other, PROTECTED, other):
            client = DirectorClientAgent(broker_rpc=str(broker.rpc), security=security)
            with pytest.raises(AuthenticationError):
                await client.connect()
            relay = RelayAgent(
                "Inst-0", Thermometer(), broker_rpc=str(broker.rpc), security=security
            )
            with pytest.raises(AuthenticationError):
                await relay.run()
        await assert_nothing_more(before)
