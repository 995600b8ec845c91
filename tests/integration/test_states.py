"""The states of relays: published on schedule, unchanged, with what is needed to trust them."""

from __future__ import annotations

import asyncio
import itertools
import logging
import math
import re
import statistics
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.support.hearing import Heard
from tests.support.lab_values import same
from tests.support.places import Places
from tests.support.promptness import SLACK_S

import labmesh.serving.states
from labmesh.blocking.status import InstrumentStatus
from labmesh.events.reading import Reading
from labmesh.testing import Held, LocalMesh, ScriptedInstrument

LIMIT_S = 10.0


@pytest.fixture
def places(tmp_path: Path) -> Places:
    return Places(tmp_path)


def counting() -> ScriptedInstrument:
    """A driver whose state counts its polls."""
    polls = itertools.count(1)
    return ScriptedInstrument(poll=lambda: {"polls": next(polls)}, move=None)


# ── what is published ───────────────────────────────────────────────────────────────────────────

STATES = [
    {},
    {"voltage": 2.5, "output": False, "label": "ünïcødé", "count": 0, "nothing": None},
    {"overflow": math.nan, "limit": -math.inf, "nested": {"list": [1, [2.0, {"deep": True}]]}},
    {"trace": np.linspace(0, 1, 1000), "raw": b"\x00\xff", "z": 1 - 2j},
    {"relay_id": "Inst-0", "kind": "x", "type": "call", "id": 1},
]


async def test_a_state_arrives_as_the_driver_gave_it() -> None:
    driver = ScriptedInstrument(poll=itertools.cycle(STATES).__next__)
    async with LocalMesh({"Inst-0": driver}, banks=0, state_interval=0.02) as mesh:
        heard = Heard()
        (await mesh.client()).on_state(heard)
        items = await heard.count(len(STATES) + 1)
    first = next(index for index, state in enumerate(STATES) if same(state, items[0][1]))
    for number, (relay_id, state) in enumerate(items):
        assert relay_id == "Inst-0"
        assert same(STATES[(first + number) % len(STATES)], state)


@pytest.mark.parametrize(
    ("polled", "state"),
    [(2.5, {"value": 2.5}), (False, {"value": False}), ((1, 2), {"value": [1, 2]})],
)
async def test_a_poll_that_gives_a_bare_reading_is_a_state_of_one_value(
    polled: Any, state: dict[str, Any]
) -> None:
    async with LocalMesh({"Inst-0": ScriptedInstrument(poll=polled)}, banks=0) as mesh:
        heard = Heard()
        (await mesh.client()).on_state(heard)
        assert (await heard.count(1))[0] == ("Inst-0", state)


class Without:
    """A driver without ``poll()``."""

    def move(self) -> int:
        return 1


class NeedsAChannel(Without):
    """Its ``poll`` is not a relay's: it wants to know of what."""

    def poll(self, channel: int) -> int:
        return channel


class PollsLater(Without):
    """Nothing to say yet."""

    def poll(self) -> None:
        return None


@pytest.mark.parametrize("driver", [Without(), NeedsAChannel(), PollsLater()])
async def test_without_a_state_a_relay_publishes_a_sign_of_life(driver: Any) -> None:
    async with LocalMesh({"Inst-0": driver}, banks=0, state_interval=0.05) as mesh:
        client = await mesh.client()
        states, events = Heard(), Heard()
        client.on_state(states)
        client.on_event(events)
        assert (await events.count(3))[:3] == [("Inst-0", "alive", None)] * 3
        await client.follow_states()
        assert states.items == []
        assert client.last_reading("Inst-0") is None
        assert await (await client.get_relay_agent("Inst-0")).move() == 1


class AsyncPoll:
    async def poll(self) -> dict[str, float]:
        await asyncio.sleep(0)
        return {"voltage": 2.5}


async def test_poll_may_be_a_coroutine() -> None:
    async with LocalMesh({"Inst-0": AsyncPoll()}, banks=0) as mesh:
        heard = Heard()
        (await mesh.client()).on_state(heard)
        assert (await heard.count(1))[0] == ("Inst-0", {"voltage": 2.5})


# ── what goes wrong ─────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("failure", "error", "text"),
    [
        (OSError("the cable is out"), "OSError", "the cable is out"),
        (SystemExit(3), "SystemExit", "3"),
        ({"a": {1, 2}}, "ResultNotSerialisable", "set"),
        ({"a": bytes(300_000)}, "TooLarge", "upload large results as datasets"),
    ],
)
async def test_a_failing_poll_is_reported_and_the_stream_goes_on(
    failure: Any, error: str, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "labmesh")
    fails = threading.Event()
    polls = itertools.count(1)

    def poll() -> Any:
        number = next(polls)
        return failure if fails.is_set() else {"polls": number}

    driver = ScriptedInstrument(poll=poll)
    async with LocalMesh({"Inst-0": driver}, banks=0, state_interval=0.02) as mesh:
        client = await mesh.client()
        states, events = Heard(), Heard()
        client.on_state(states)
        client.on_event(events)
        relay = await client.get_relay_agent("Inst-0")
        await states.count(2)
        fails.set()
        relay_id, kind, value = await events.one(lambda each: each[1] == "state_error")
        assert (relay_id, kind, value["error"]) == ("Inst-0", "state_error", error)
        assert text in value["text"]
        assert error in (await relay.status()).facts["state_error"]
        await events.until(lambda items: sum(each[1] == "state_error" for each in items) >= 3)
        fails.clear()
        good_before = len(states.items)
        await states.until(lambda items: len(items) >= good_before + 2)
        assert (await relay.status()).facts["state_error"] == ""
    assert caplog.text.count("poll() failed") == 1
    assert caplog.text.count("poll() works again") == 1


async def test_a_poll_that_hangs_silences_neither_its_relay_nor_its_other_states() -> None:
    released, hangs = threading.Event(), threading.Event()
    polls = itertools.count(1)
    driver = ScriptedInstrument(
        poll=lambda: Held(released, {}) if hangs.is_set() else {"polls": next(polls)}
    )
    other = counting()
    async with LocalMesh({"Inst-0": driver, "Inst-1": other}, banks=0, state_interval=0.02) as mesh:
        client = await mesh.client()
        heard = Heard()
        client.on_state(heard)
        relay = await client.get_relay_agent("Inst-0")
        await heard.one(lambda each: each[0] == "Inst-0")
        hangs.set()
        while (await relay.status()).facts["state_age_s"] < 0.2:
            continue
        facts = (await relay.status()).facts
        assert (facts["busy_with"], facts["registered"]) == ("poll", True)
        began = len(heard.items)
        await heard.until(lambda items: len(items) > began + 5)
        assert {each[0] for each in heard.items[began + 1 :]} == {"Inst-1"}
        hangs.clear()
        released.set()
        await heard.until(lambda items: any(each[0] == "Inst-0" for each in items[began + 1 :]))


async def test_a_poll_that_hangs_is_shown_as_stuck_and_not_only_its_state_as_old(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(labmesh.serving.states, "POLL_LIMIT_S", 0.2)
    released, hangs = threading.Event(), threading.Event()
    driver = ScriptedInstrument(poll=lambda: Held(released, {}) if hangs.is_set() else {})
    async with LocalMesh({"Inst-0": driver}, banks=0, state_interval=0.02) as mesh:
        client = await mesh.client()
        events = Heard()
        client.on_event(events)
        relay = await client.get_relay_agent("Inst-0")
        await client.follow_states()
        assert not (await relay.status()).facts["stuck"]
        hangs.set()
        _, _, told = await events.one(lambda each: each[:2] == ("Inst-0", "stuck"))
        assert told["method"] == "poll"
        status = InstrumentStatus.of("Inst-0", client.health("Inst-0"), await relay.status(), None)
        assert (status.busy_with, status.busy_by, status.stuck) == ("poll", "", True)
        assert re.search(r"driver      STUCK in poll for \d\.\d+ s, 0 queued; if", repr(status))
        released.set()
        async with asyncio.timeout(10):
            while (await relay.status()).facts["stuck"]:
                continue


# ── the schedule ────────────────────────────────────────────────────────────────────────────────


async def test_the_interval_is_kept_without_drift() -> None:
    interval_s, wanted = 0.05, 30
    driver = counting()
    async with LocalMesh({"Inst-0": driver}, banks=0, state_interval=interval_s) as mesh:
        heard = Heard()
        (await mesh.client()).on_state(heard)
        # Not on schedule are one at the start, and one when the broker takes events: until it does
        # nothing is heard.
        await heard.count(1)
        first = len(driver.calls) + 1
        await asyncio.to_thread(driver.calls.wait_for, first + wanted)
        times = [each.time for each in driver.calls[first : first + wanted]]

    def off_schedule_s(begins: float) -> float:
        """How far most of them are from the steps of a schedule that begins there."""
        steps = [(each - begins) / interval_s for each in times]
        return statistics.median(interval_s * abs(each - round(each)) for each in steps)

    # Any of them may be late, where the machine is busy: not so most of them.
    error_s = min(map(off_schedule_s, times))
    steps = [round((later - earlier) / interval_s) for earlier, later in itertools.pairwise(times)]
    print(f"{wanted} states, {times[-1] - times[0]:.3f} s, median error {1000 * error_s:.2f} ms")
    assert error_s < interval_s / 5
    assert statistics.median(steps) == 1
    assert sum(steps) >= wanted - 2, "what was left out is not made up for"


async def test_a_driver_that_blocks_is_not_polled_and_polls_do_not_pile_up() -> None:
    interval_s = 0.02
    released = threading.Event()
    polls = itertools.count(1)
    driver = ScriptedInstrument(poll=lambda: {"polls": next(polls)}, block=Held(released))
    async with LocalMesh({"Inst-0": driver}, banks=0, state_interval=interval_s) as mesh:
        client = await mesh.client()
        relay = await client.get_relay_agent("Inst-0")
        blocking = asyncio.create_task(relay.block())
        await asyncio.to_thread(driver.calls.wait_for, 1, "block")
        polled = len(driver.calls.of("poll"))
        while (await relay.status()).facts["busy_s"] < 15 * interval_s:
            continue
        assert len(driver.calls.of("poll")) == polled
        released_at = time.monotonic()
        released.set()
        await blocking
        await asyncio.to_thread(driver.calls.wait_for, polled + 5, "poll")
        times = [each.time - released_at for each in driver.calls.of("poll")[polled:]]
    # The one that was due comes at once, and the next ones on schedule.
    assert times[0] < SLACK_S
    assert times[4] > 2.5 * interval_s


# ── late joiners, gaps, restarts ────────────────────────────────────────────────────────────────


async def test_a_late_joiner_gets_the_last_state_of_every_relay_at_once() -> None:
    drivers = {f"Inst-{n}": ScriptedInstrument(poll={"number": n}) for n in range(3)}
    async with LocalMesh(drivers, banks=0, state_interval=60.0) as mesh:
        watcher = await mesh.client()
        seen = Heard()
        watcher.on_state(seen)
        await seen.count(3)

        client = await mesh.client()
        first, second = Heard(), Heard()
        began = time.monotonic()
        client.on_state(first)
        assert sorted(await first.count(3)) == [(f"Inst-{n}", {"number": n}) for n in range(3)]
        client.on_state(second)
        assert sorted(await second.count(3)) == sorted(first.items)
        assert time.monotonic() - began < SLACK_S
        late = await mesh.start_relay("late", ScriptedInstrument(poll={"number": 9}))
        assert await first.one(lambda each: each[0] == "late") == ("late", {"number": 9})
        assert len(first.items) == 4

        patient = await mesh.client()
        await patient.follow_states()
        assert patient.last_reading("Inst-2")["number"] == 2  # type: ignore[index]
        assert patient.last_reading("late").epoch == late.epoch  # type: ignore[union-attr]


async def test_a_reading_tells_when_it_was_taken_and_what_is_missing() -> None:
    driver = counting()
    async with LocalMesh({"Inst-0": driver}, banks=0, state_interval=0.02) as mesh:
        client = await mesh.client()
        heard = Heard()
        client.on_reading(heard)
        readings: list[Reading] = await heard.count(10)
        epoch = mesh.relays["Inst-0"].epoch
    for earlier, later in itertools.pairwise(readings):
        assert later.relay_id == "Inst-0"
        assert later.epoch == epoch
        assert later.sequence == earlier.sequence + 1
        assert later["polls"] == earlier["polls"] + 1
        assert later.time >= earlier.time
        assert later.missed == 0
        assert 0 <= later.age_s < LIMIT_S
    assert dict(readings[0]) == readings[0].value


async def test_what_was_published_while_the_broker_was_away_is_counted_as_missed(
    places: Places,
) -> None:
    """And not delivered late: a state of the past is worth nothing."""
    driver = counting()
    async with (
        places.broker() as broker,
        places.relay(driver=driver, state_interval=0.02) as relay,
        places.client() as client,
    ):
        await relay.ready
        heard = Heard()
        client.on_reading(heard)
        await heard.count(3)
        await broker.stop()
        polled = len(driver.calls)
        await asyncio.to_thread(driver.calls.wait_for, polled + 5)
        heard_before = len(heard.items)
        await broker.start()
        await heard.until(lambda items: len(items) > heard_before + 3)
        readings: list[Reading] = heard.items
    told = sum(each.missed for each in readings)
    assert told >= 4
    assert readings[-1].sequence - readings[0].sequence == len(readings) - 1 + told
    assert [each.sequence for each in readings] == sorted({each.sequence for each in readings})


async def test_a_restarted_relay_begins_anew_and_one_that_left_has_no_state() -> None:
    async with LocalMesh({"Inst-0": counting()}, banks=0, state_interval=0.02) as mesh:
        client = await mesh.client()
        heard, presence = Heard(), Heard()
        client.on_reading(heard)
        client.on_presence(presence)
        await heard.count(3)
        relay = await mesh.restart_relay("Inst-0")
        fresh = await heard.one(lambda each: each.epoch == relay.epoch)
        assert fresh.missed == 0
        assert client.last_reading("Inst-0").epoch == relay.epoch  # type: ignore[union-attr]
        await relay.stop()
        await presence.until(lambda items: len(items) == 3)
        assert client.last_reading("Inst-0") is None
        none = Heard()
        client.on_state(none)
        await client.follow_states()
        assert none.items == []
