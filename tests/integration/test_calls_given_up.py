"""Calls that nobody waits for any more: those that have not begun never do."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any

import pytest
from tests.support.by_hand import connected
from tests.support.peers import until

from labmesh import RelayClient
from labmesh.testing import LocalMesh

SESSION = "0123456789abcdef"
LIMIT_S = 10.0


class Stage:
    """It writes down what it does, and can be kept busy."""

    def __init__(self) -> None:
        self.moves: list[str] = []
        self.free = threading.Event()
        self.busy = threading.Event()

    def move(self, tag: str) -> str:
        self.moves.append(tag)
        return tag

    def hold(self) -> None:
        self.busy.set()
        assert self.free.wait(LIMIT_S)


async def kept_busy(mesh: LocalMesh, driver: Stage) -> tuple[RelayClient, str, asyncio.Task[Any]]:
    """The stage, its address, and the call that keeps it busy."""
    client = await mesh.client()
    stage = await client.get_relay_agent("stage")
    holding = asyncio.create_task(stage.call("hold"))
    await until(driver.busy.is_set, what="the stage is busy")
    return stage, client.health("stage").endpoint, holding


async def queue_has(relay: RelayClient, count: int) -> None:
    """Wait until so many calls wait."""
    deadline = time.monotonic() + LIMIT_S
    while (await relay.status()).facts["queued"] != count:
        assert time.monotonic() < deadline


async def test_a_call_that_waits_is_taken_back_when_its_client_is_gone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("labmesh.serving.served._GIVEN_UP_S", 2.0)
    monkeypatch.setattr("labmesh.protocol.callee.SIGN_INTERVAL_S", 0.1)
    driver = Stage()
    async with LocalMesh({"stage": driver}, banks=0) as mesh:
        stage, endpoint, holding = await kept_busy(mesh, driver)
        with connected(endpoint, SESSION) as (gone,):
            gone.send("call", "1", method="move", args=["of the dead"])
            await queue_has(stage, 1)
        await queue_has(stage, 0)
        driver.free.set()
        await holding
        assert await stage.call("move", "of the living") == "of the living"
    assert driver.moves == ["of the living"]


@pytest.mark.parametrize("first", ["its thread", "its loop"])
async def test_a_call_whose_caller_heard_nothing_for_too_long_does_not_begin(
    first: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The relay's loop stood still, and gave no signs of life; its driver's thread worked on, or
    it goes on when the loop does, which has signs of life to give by then."""
    monkeypatch.setattr("labmesh.serving.served._GIVEN_UP_S", 1.5)
    monkeypatch.setattr("labmesh.protocol.callee.SIGN_INTERVAL_S", 0.1)
    driver = Stage()
    async with LocalMesh({"stage": driver}, banks=0) as mesh:
        stage, endpoint, holding = await kept_busy(mesh, driver)
        with connected(endpoint, SESSION) as (patient,):
            patient.send("call", "1", method="move", args=["late"])
            await queue_has(stage, 1)
            desk = mesh.relays["stage"]._desk
            # What stands still here is the loop of this test, and with it that of the relay.
            if first == "its thread":
                threading.Timer(1.8, driver.free.set).start()
            assert await asyncio.to_thread(lambda: True)
            ended = threading.Event()
            ended.wait(2.2)
            if first == "its loop":
                await queue_has(stage, 0)
                driver.free.set()
            await holding
            answer = patient.receive()
            assert (answer["name"], desk.busy) == ("expired", False)
    assert driver.moves == []


def test_a_call_that_arrives_after_it_was_given_up_is_refused() -> None:
    """Its deadline is far away: its caller has given it up, because nothing was heard of it."""

    async def run() -> None:
        driver = Stage()
        async with LocalMesh({"stage": driver}, banks=0) as mesh:
            client = await mesh.client()
            await client.get_relay_agent("stage")
            endpoint = str(mesh.relays["stage"].rpc).replace("*", "127.0.0.1")
            with connected(endpoint, SESSION) as (caller,):
                now = time.monotonic()
                soon, late = now + 60.0, now - 0.001
                times = {"deadline": soon, "arrive_by": late}
                caller.send("call", "1", method="move", args=["late"], **times)
                refused = await asyncio.to_thread(caller.receive)
                assert (refused["name"], "given it up" in refused["text"]) == ("expired", True)
                times = {"deadline": soon, "arrive_by": soon}
                caller.send("call", "2", method="move", args=["in time"], **times)
                assert (await asyncio.to_thread(caller.receive))["value"] == "in time"
        assert driver.moves == ["in time"]

    asyncio.run(run())
