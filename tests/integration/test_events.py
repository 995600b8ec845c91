"""Callbacks: each gets everything that is meant for it, in order, and none harms another."""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.support.hearing import Heard
from tests.support.places import Places

from labmesh.events.reading import Reading
from labmesh.testing import LocalMesh, ScriptedInstrument

LIMIT_S = 10.0
INTERVAL_S = 0.02


@pytest.fixture
def places(tmp_path: Path) -> Places:
    return Places(tmp_path)


def mesh_of(*relay_ids: str, **options: Any) -> LocalMesh:
    """Relays whose states count."""

    def driver() -> ScriptedInstrument:
        polls = itertools.count(1)
        return ScriptedInstrument(poll=lambda: {"polls": next(polls)})

    drivers = {each: driver() for each in relay_ids}
    return LocalMesh(drivers, **{"banks": 0, "state_interval": INTERVAL_S, **options})


def in_order(readings: list[Reading]) -> bool:
    """Nothing is missing, doubled or out of order."""
    sequences = [each.sequence for each in readings]
    return sequences == list(range(sequences[0], sequences[0] + len(sequences)))


# ── one callback and another ────────────────────────────────────────────────────────────────────


async def test_plain_and_async_callbacks_hear_every_state_in_order() -> None:
    async with mesh_of("Inst-0", "Inst-1") as mesh:
        client = await mesh.client()
        plain, heard_async, tasks = Heard(), Heard(), Heard()

        async def note(*item: Any) -> None:
            await asyncio.sleep(0)
            heard_async(*item)

        async def work(*item: Any) -> None:
            await asyncio.sleep(0)
            tasks(*item)

        client.on_state(plain)
        client.on_state(note)
        client.on_state(lambda *item: asyncio.create_task(work(*item)))
        for heard in (plain, heard_async, tasks):
            await heard.count(20)
            for relay_id in ("Inst-0", "Inst-1"):
                polls = [state["polls"] for who, state in heard.items if who == relay_id]
                assert polls == list(range(polls[0], polls[0] + len(polls)))


async def fails(_reading: Reading) -> None:
    raise ZeroDivisionError("a mistake of the user's")


async def never_returns(_reading: Reading) -> None:
    await asyncio.Event().wait()


async def is_cancelled(_reading: Reading) -> None:
    cancelled = asyncio.get_running_loop().create_future()
    cancelled.cancel()
    await cancelled


def fails_at_once(_reading: Reading) -> None:
    raise KeyError("another one")


def returns_a_failing_task(reading: Reading) -> object:
    return asyncio.create_task(fails(reading))


@pytest.mark.parametrize(
    "harmful",
    [fails, fails_at_once, never_returns, is_cancelled, returns_a_failing_task],
)
async def test_whatever_a_callback_does_the_others_lose_nothing(
    harmful: Callable[[Reading], object], caplog: pytest.LogCaptureFixture
) -> None:
    async with mesh_of("Inst-0") as mesh:
        client = await mesh.client()
        before, after = Heard(), Heard()
        calls = Heard()

        def tell(reading: Reading) -> object:
            calls(reading)
            return harmful(reading)

        client.on_reading(before)
        client.on_reading(tell)
        client.on_reading(after)
        for heard in (before, after):
            assert in_order(await heard.count(20))
        print(f"FC5: {harmful.__name__}: lost by two other callbacks 0 of {len(after.items)}")
        if harmful is never_returns:
            assert len(calls.items) == 1
        else:
            assert in_order(calls.items)
            assert len(calls.items) >= 15
            assert "tell" in caplog.text
        relay = await client.get_relay_agent("Inst-0")
        assert (await relay.status()).facts["registered"]


async def test_a_callback_that_blocks_its_loop_is_named_and_loses_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The socket is read elsewhere: what came meanwhile is told afterwards."""
    async with mesh_of("Inst-0") as mesh:
        nodes = asyncio.create_task(mesh.broker.wait_ended())
        client = await mesh.client()
        heard = Heard()
        blocked = False

        def blocking(reading: Reading) -> None:
            nonlocal blocked
            heard(reading)
            if not blocked and len(heard.items) == 3:
                blocked = True
                time.sleep(0.3)  # the fault itself, not a way to wait

        client.on_reading(blocking)
        assert in_order(await heard.count(20))
        nodes.cancel()
    assert "blocking blocked its loop for 0.3 s" in caplog.text


async def test_a_cancelled_subscription_hears_no_more_and_the_others_go_on() -> None:
    async with mesh_of("Inst-0") as mesh:
        client = await mesh.client()
        first, second = Heard(), Heard()
        subscription = client.on_reading(first)
        client.on_reading(second)
        await first.count(3)
        subscription.cancel()
        subscription.cancel()
        heard = len(first.items)
        went_on = len(second.items)
        await second.until(lambda items: len(items) >= went_on + 5)
        assert len(first.items) == heard
        assert subscription.ended
        assert in_order(second.items)


async def test_a_subscription_may_be_cancelled_by_its_own_callback() -> None:
    async with mesh_of("Inst-0") as mesh:
        client = await mesh.client()
        once, others = Heard(), Heard()

        def cancel_at_once(reading: Reading) -> None:
            once(reading)
            subscription.cancel()

        subscription = client.on_reading(cancel_at_once)
        client.on_reading(others)
        await others.count(5)
        assert len(once.items) == 1


async def test_a_slow_callback_gets_the_newest_states_and_is_told_what_it_skipped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("labmesh.events.listening._QUEUE", 5)
    monkeypatch.setattr("labmesh.events.listening._STATES_OF_EACH", 1)
    async with mesh_of("Inst-0") as mesh:
        client = await mesh.client()
        slow, quick = Heard(), Heard()
        go_on = asyncio.Event()

        async def wait(reading: Reading) -> None:
            slow(reading)
            await go_on.wait()

        subscription = client.on_reading(wait)
        client.on_reading(quick)
        await quick.count(20)
        go_on.set()
        readings: list[Reading] = await slow.count(3)
        skipped = sum(each.missed for each in readings)
        assert skipped >= 10
        assert subscription.conflated >= 10
        assert readings[-1].sequence - readings[0].sequence == len(readings) - 1 + skipped
        assert in_order(quick.items)


async def test_a_callback_may_call_relays_and_subscribe() -> None:
    async with mesh_of("Inst-0", "Inst-1") as mesh:
        client = await mesh.client()
        relays = {each: await client.get_relay_agent(each) for each in ("Inst-0", "Inst-1")}
        answers, nested = Heard(), Heard()

        async def ask(relay_id: str, state: dict[str, Any]) -> None:
            answers(relay_id, (await relays[relay_id].poll())["polls"] > state["polls"])
            if len(answers.items) == 1:
                client.on_state(nested)

        client.on_state(ask)
        assert all(later for _, later in await answers.count(10))
        await nested.count(5)


# ── other events ────────────────────────────────────────────────────────────────────────────────


async def test_presence_is_told_to_plain_and_async_callbacks() -> None:
    async with mesh_of() as mesh:
        client = await mesh.client()
        plain, heard_async = Heard(), Heard()

        async def note(change: dict[str, Any]) -> None:
            heard_async(change)

        client.on_presence(plain)
        client.on_presence(note)
        relay = await mesh.start_relay("Inst-0", ScriptedInstrument())
        await relay.stop()
        for heard in (plain, heard_async):
            assert [each["change"] for each in await heard.count(2)] == ["joined", "left"]


async def test_a_callback_may_change_what_it_gets() -> None:
    async with mesh_of("Inst-0", banks=1, in_memory=True) as mesh:
        client = await mesh.client()
        spoiling, heard = Heard(), Heard()

        def spoil(*item: Any) -> None:
            for each in item:
                if isinstance(each, dict):
                    each.clear()
            spoiling(*item)

        client.on_state(spoil)
        client.on_dataset(spoil)
        client.on_state(heard)
        client.on_dataset(heard)
        await mesh.relays["Inst-0"].upload(b"content")
        await heard.one(lambda each: isinstance(each, dict))
        assert all(each[1]["polls"] for each in heard.items if isinstance(each, tuple))
        assert all(each["dataset_id"] for each in heard.items if isinstance(each, dict))


async def test_a_dataset_is_announced_once_to_everybody_with_all_that_is_known() -> None:
    async with mesh_of("Inst-0", banks=2, in_memory=True) as mesh:
        clients = [await mesh.client() for _ in range(3)]
        heard = [Heard() for _ in range(4)]
        for client, each in zip([*clients, clients[0]], heard, strict=True):
            client.on_dataset(each)
        began = time.time()
        ids = [
            await mesh.relays["Inst-0"].upload(
                bytes([number]) * 1000,
                name=f"scan-{number}",
                meta={"sample": "A1", "number": number},
                bank=f"bank-{number % 2}",
            )
            for number in range(6)
        ]
        for each in heard:
            await each.count(6)
            assert [item["dataset_id"] for item in each.items] == ids
        for number, item in enumerate(heard[0].items):
            assert item["bank_id"] == f"bank-{number % 2}"
            assert item["relay_id"] == "Inst-0"
            assert item["size"] == 1000
            assert len(item["sha256"]) == 64
            assert item["name"] == f"scan-{number}"
            assert item["kind"] == "bytes"
            assert item["meta"] == {"sample": "A1", "number": number}
            assert item["sequence"] == 1 + number // 2
            assert began - 1 <= item["created"] <= time.time() + 1


async def test_whoever_subscribes_late_is_not_told_of_what_was_before() -> None:
    async with mesh_of("Inst-0", banks=1, in_memory=True) as mesh:
        client = await mesh.client()
        first, late = Heard(), Heard()
        client.on_dataset(first)
        relay = mesh.relays["Inst-0"]
        await relay.upload(b"one")
        await first.count(1)
        client.on_dataset(late)
        two = await relay.upload(b"two")
        await first.count(2)
        assert [each["dataset_id"] for each in await late.count(1)] == [two]


async def test_a_dataset_that_is_stored_right_after_subscribing_is_heard() -> None:
    """The subscription was in force since the client connected: there is no gap to fall into."""
    async with mesh_of("Inst-0", banks=1, in_memory=True) as mesh:
        for number in range(20):
            client = await mesh.client()
            heard = Heard()
            client.on_dataset(heard)
            dataset_id = await mesh.relays["Inst-0"].upload(b"%d" % number)
            # What was stored before may be announced later than this client came.
            await heard.one(lambda each, wanted=dataset_id: each["dataset_id"] == wanted)


async def test_what_is_stored_while_the_broker_is_away_is_announced_once_when_it_is_back(
    places: Places, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "labmesh")
    async with places.broker() as broker, places.bank() as bank, places.client() as client:
        await bank.ready
        heard = Heard()
        client.on_dataset(heard)
        proxy = await client.get_databank_agent()
        for outage in range(2):
            await proxy.upload(b"before %d" % outage)
            await heard.count(4 * outage + 1)
            await broker.stop()
            while (await proxy.status()).facts["events_up"]:
                continue
            ids = [
                (await proxy.upload(b"%d %d" % (outage, number))).dataset_id for number in range(3)
            ]
            assert (await proxy.status()).facts["unannounced"] == 3
            await broker.start()
            # In any order: who comes back in the middle of it hears the first ones later.
            await heard.count(4 * (outage + 1))
            assert {each["dataset_id"] for each in heard.items[-3:]} == set(ids)
        everything = [each["dataset_id"] for each in heard.items]
        assert len(everything) == len(set(everything)) == 8
