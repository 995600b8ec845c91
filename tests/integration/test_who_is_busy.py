"""An instrument that is busy says with what, since when and for whom, to everybody who looks."""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from tests.support.by_hand import connected
from tests.support.promptness import BEGUN_S, hear_last_words

from labmesh import DirectorClientAgent, RelayClient
from labmesh.asking.holding import holder_name
from labmesh.blocking.status import InstrumentStatus
from labmesh.errors import Busy, Expired
from labmesh.testing import Held, LocalMesh, ScriptedInstrument

RELAY = "Inst-0"
LIMIT_S = 10.0


@asynccontextmanager
async def held_up(**options: Any) -> AsyncIterator[tuple[LocalMesh, ScriptedInstrument]]:
    """A relay whose driver returns from ``block`` when the test ends."""
    released = threading.Event()
    driver = ScriptedInstrument(block=Held(released), write=None)
    async with LocalMesh(banks=0) as mesh:
        await mesh.start_relay(RELAY, driver, **options)
        try:
            yield mesh, driver
        finally:
            released.set()


async def looked_at(client: DirectorClientAgent, relay: RelayClient) -> InstrumentStatus:
    return InstrumentStatus.of(RELAY, client.health(RELAY), await relay.status(), None)


async def test_everybody_sees_whose_call_keeps_a_driver_busy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Who only looks, who is refused because of it, and who waited for it in vain."""
    hear_last_words(monkeypatch)
    async with held_up(max_queue=1) as (mesh, driver):
        caller, observer = await mesh.client(), await mesh.client()
        block = asyncio.create_task((await caller.get_relay_agent(RELAY)).block())
        await asyncio.to_thread(driver.calls.wait_for, 1, "block")
        relay = await observer.get_relay_agent(RELAY)
        status = await looked_at(observer, relay)
        assert (status.busy_with, status.busy_by) == ("block", holder_name())
        assert re.search(r"busy with block for [\d.]+ s \(called by \S+@\S+ \(pid", repr(status))

        late = asyncio.create_task(relay.call("write", timeout=BEGUN_S))
        while not (await relay.status()).facts["queued"]:  # noqa: ASYNC110  (nobody announces it)
            await asyncio.sleep(0.001)
        with pytest.raises(Busy) as refused:
            await relay.call("write", timeout=LIMIT_S)
        assert refused.value.detail["running_by"] == holder_name()
        assert f"behind block (called by {holder_name()}), which has run" in str(refused.value)
        with pytest.raises(Expired) as expired:
            await late
        assert f"behind block (called by {holder_name()}), which has run" in str(expired.value)
        assert "it was not run and will not be" in str(expired.value)
        block.cancel()


async def test_what_a_program_by_hand_says_of_itself_is_shown() -> None:
    async with held_up() as (mesh, driver):
        observer = await mesh.client()
        relay = await observer.get_relay_agent(RELAY)

        def call(*, name: str, count: int) -> None:
            peer.send("ping", "0", caller=name)
            peer.send("call", "1", method="block")
            driver.calls.wait_for(count, "block")

        with connected(str(mesh.relays[RELAY].rpc), "its session") as (peer,):
            await asyncio.to_thread(call, name="LabVIEW on lab-7", count=1)
            assert (await looked_at(observer, relay)).busy_by == "LabVIEW on lab-7"
