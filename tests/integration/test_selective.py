"""Only what was asked for is listened to, and only as long as somebody does."""

from __future__ import annotations

import asyncio
import gc
import itertools
from collections.abc import AsyncIterator
from typing import Any

import pytest
from tests.support.hearing import Heard
from tests.support.peers import until

import labmesh
from labmesh import DirectorClientAgent
from labmesh.errors import Busy, NoAnswer, ProtocolError
from labmesh.events.reading import Reading
from labmesh.protocol.interests import MAX_PREFIXES
from labmesh.testing import LocalMesh, ScriptedInstrument

RELAYS = ("psu-1", "psu-10", "dmm-1")


def counting() -> ScriptedInstrument:
    polls = itertools.count(1)
    return ScriptedInstrument(poll=lambda: {"polls": next(polls)})


@pytest.fixture
async def mesh() -> AsyncIterator[LocalMesh]:
    drivers = {each: counting() for each in RELAYS}
    async with LocalMesh(drivers, banks=0, state_interval=0.02, heartbeat_seconds=0.05) as mesh:
        yield mesh


def in_force(mesh: LocalMesh) -> set[str]:
    """What the broker sends to somebody, besides whole families."""
    return {each.decode() for each in list(mesh.broker._proxy._admission._topics)}


def states(*ids: str) -> set[str]:
    return {f"{family}.{each}" for each in ids for family in ("state", "tail")}


async def test_an_id_is_that_id_and_its_subscription_goes_with_its_last_listener(
    mesh: LocalMesh,
) -> None:
    client = await mesh.client()
    gaps, first, second, others = Heard(), Heard(), Heard(), Heard()
    client.on_gap(gaps)
    one = client.on_state(first, "psu-1")
    two = client.on_reading(second, ["psu-1", "psu-1"])
    three = client.on_event(others, "dmm-*")
    await first.count(10)
    await second.count(10)
    assert {relay_id for relay_id, _ in first.items} == {"psu-1"}
    assert {each.relay_id for each in second.items} == {"psu-1"}
    assert in_force(mesh) == states("psu-1") | {"event.dmm-", "tail.dmm-"}
    one.cancel()
    three.cancel()
    await until(lambda: in_force(mesh) == states("psu-1"))
    before = len(second.items)
    await second.count(before + 5)
    two.cancel()
    await until(lambda: in_force(mesh) == set())
    assert client.last_reading("psu-1") is None, "nothing keeps it current"
    # Whoever listens again has lost nothing meanwhile.
    await asyncio.to_thread(_polls_of(mesh, "psu-1", 10))
    again = Heard()
    client.on_reading(again, "psu-1")
    readings: list[Reading] = await again.count(10)
    assert [each.missed for each in readings] == [0] * len(readings)
    assert readings[0].sequence > second.items[-1].sequence + 5
    assert gaps.items == []
    await client.close()


def _polls_of(mesh: LocalMesh, relay_id: str, count: int) -> Any:
    calls = mesh.relays[relay_id].driver.calls  # type: ignore[attr-defined]
    return lambda: calls.wait_for(len(calls) + count)


async def test_a_late_listener_gets_the_last_states_of_those_that_it_names(mesh: LocalMesh) -> None:
    client = await mesh.client()
    await client.follow_states("psu-1")
    assert client.last_reading("psu-1") is not None
    assert client.last_reading("dmm-1") is None
    heard = Heard()
    client.on_reading(heard, "psu-*")
    client.on_reading(heard, "dmm-1")
    await heard.until(lambda items: {each.relay_id for each in items} == set(RELAYS))
    await client.close()


async def test_many_topics_become_one_subscription_to_their_family(mesh: LocalMesh) -> None:
    client = await mesh.client()
    heard = Heard()
    ids = [f"absent-{number}" for number in range(MAX_PREFIXES)]
    handle = client.on_state(heard, ids)
    await until(lambda: in_force(mesh) == states(*ids))
    more = client.on_state(heard, "psu-1")
    await heard.count(3)
    assert {relay_id for relay_id, _ in heard.items} == {"psu-1"}
    await until(lambda: in_force(mesh) == set())
    handle.cancel()
    await until(lambda: in_force(mesh) == states("psu-1"))
    before = len(heard.items)
    await heard.count(before + 3)
    more.cancel()
    await client.close()
    await until(lambda: in_force(mesh) == set())


@pytest.mark.parametrize("wrong", ["psu 1", "", "psu-1\n"])
async def test_what_names_no_id_is_refused_and_leaves_nothing_behind(
    mesh: LocalMesh, wrong: str
) -> None:
    client = await mesh.client()
    for listen in (client.on_state, client.on_reading, client.on_event, client.on_log):
        with pytest.raises(ProtocolError):
            listen(print, ["psu-1", wrong])
    with pytest.raises(ProtocolError):
        client.watch(wrong)
    with pytest.raises(TypeError):
        client.on_state(print, [3])  # type: ignore[list-item]
    await client.subscribed()
    assert in_force(mesh) == set()
    await client.close()


# ── iterators ───────────────────────────────────────────────────────────────────────────────────


async def test_an_iterator_tells_what_its_reader_was_too_slow_for(mesh: LocalMesh) -> None:
    client = await mesh.client()
    readings = client.watch("psu-1", queue=2)
    first = await anext(readings)
    await asyncio.to_thread(_polls_of(mesh, "psu-1", 20))
    later = [await anext(readings) for _ in range(4)]
    assert {each.relay_id for each in (first, *later)} == {"psu-1"}
    steps = [b.sequence - a.sequence for a, b in itertools.pairwise([first, *later])]
    assert [each.missed for each in later] == [step - 1 for step in steps]
    assert sum(each.missed for each in later) >= 10
    await client.close()


async def test_an_iterator_that_nobody_holds_ends_its_subscription(mesh: LocalMesh) -> None:
    client = await mesh.client()
    async for reading in client.watch("dmm-*"):
        assert reading.relay_id == "dmm-1"
        break
    gc.collect()
    await until(lambda: in_force(mesh) == set())
    async with client.watch("psu-1") as held:
        await anext(held)
    async for _ in held:
        continue  # what had come already is still there
    assert await anext(held, None) is None
    with pytest.raises(NoAnswer, match=r"no state of absent within 0\.05 s"):
        await anext(client.watch("absent", timeout=0.05))
    for wrong in ({"queue": 0}, {"timeout": 0}):
        with pytest.raises(ValueError, match=r"1 or more|above 0"):
            client.watch(**wrong)  # type: ignore[arg-type]
    await client.close()


async def test_an_iterator_ends_with_its_client(mesh: LocalMesh) -> None:
    client = await mesh.client()
    seen: list[Reading] = []

    async def read() -> None:
        async for reading in client.watch():
            seen.append(reading)

    reading = asyncio.create_task(read())
    await until(lambda: {each.relay_id for each in seen} == set(RELAYS))
    await client.close()
    async with asyncio.timeout(5):
        await reading


async def test_the_blocking_mesh_subscribes_to_what_is_used(mesh: LocalMesh) -> None:
    gaps, events = [], []

    def visit() -> tuple[set[str], set[str]]:
        with labmesh.connect(mesh.address) as lab:
            gap, event = lab.on_gap(gaps.append), lab.on_event(events.append, "psu-1")
            assert lab["psu-1"].state is not None
            used = in_force(mesh)
            seen = {next(readings).relay_id for readings in [lab.watch("dmm-1")] for _ in range(3)}
            assert not gap.ended
            assert not event.ended
            return used, seen

    used, seen = await asyncio.to_thread(visit)
    assert used == states("psu-1") | {"event.psu-1"}
    assert seen == {"dmm-1"}
    assert gaps == []
    await until(lambda: in_force(mesh) == set())


async def test_two_clients_do_not_take_each_others_subscriptions(mesh: LocalMesh) -> None:
    one, two = await mesh.client(), await mesh.client()
    heard = Heard()
    handle = one.on_state(heard, "psu-1")
    other = Heard()
    two.on_state(other, "psu-1")
    await heard.count(2)
    await other.count(2)
    handle.cancel()
    await one.subscribed()
    before = len(other.items)
    await other.count(before + 5)
    await _closed(one, two)


async def _closed(*clients: DirectorClientAgent) -> None:
    for each in clients:
        await each.close()


@pytest.mark.parametrize("limit", ["of the broker", "of one connection"])
async def test_who_is_refused_a_subscription_is_told(
    mesh: LocalMesh, limit: str, caplog: pytest.LogCaptureFixture
) -> None:
    client = await mesh.client()
    heard = Heard()
    client.on_state(heard, "psu-1")
    await client.subscribed()
    proxy = mesh.broker._proxy
    if limit == "of the broker":
        proxy._admission._max_topics = len(proxy._admission._topics)
    else:
        (listener,) = proxy._audience._listeners.values()
        proxy._audience._most = len(listener.topics)
    refused = client.on_state(heard, "dmm-1")
    with pytest.raises(
        Busy, match=r"refused a subscription to state\.dmm-1 and 1 more: .*\(name none\)"
    ):
        await client.subscribed()
    assert "does not hear everything: the broker refused" in caplog.text
    refused.cancel()
    await refused.closed()
    await client.subscribed()
    with pytest.raises(Busy, match=r"refused a subscription to state\.dmm-1 and 1 more"):
        await client.follow_states("dmm-1")
    others = await mesh.client()
    await others.follow_states()
    assert {each for each, _ in heard.items} == {"psu-1"}


async def test_a_refusal_is_told_also_to_who_does_not_ask(
    mesh: LocalMesh, caplog: pytest.LogCaptureFixture
) -> None:
    client = await mesh.client()
    mesh.broker._proxy._admission._max_topics = 0
    client.on_event(Heard(), "psu-1")
    await until(lambda: "refused a subscription to event.psu-1 and 1 more" in caplog.text)
    # Whole families are always admitted.
    other = await mesh.client()
    other.on_event(Heard())
    await other.subscribed()
