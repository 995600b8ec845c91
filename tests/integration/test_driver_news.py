"""What relays publish beside each state: changes, a driver's own events, their logs."""

from __future__ import annotations

import asyncio
import itertools
import logging
import threading

import pytest
from tests.support.hearing import Heard
from tests.support.peers import until

import labmesh
from labmesh.errors import DriverError, NotFound
from labmesh.events.log_stream import LogLine
from labmesh.testing import LocalMesh, ScriptedInstrument

# ── on change ───────────────────────────────────────────────────────────────────────────────────


async def test_a_state_is_published_when_it_has_changed_and_to_a_broker_that_is_new() -> None:
    level = {"now": 1}
    driver = ScriptedInstrument(poll=lambda: {"level": level["now"]})
    async with LocalMesh(banks=0, state_interval=0.01) as mesh:
        await mesh.start_relay("psu-1", driver, publish="change", keep_alive=60)
        client = await mesh.client()
        heard = Heard()
        client.on_reading(heard)
        await heard.count(1)
        await asyncio.to_thread(driver.calls.wait_for, len(driver.calls) + 20)
        level["now"] = 2
        first, second = await heard.count(2)
        assert (first["level"], second["level"], second.missed) == (1, 2, 0)
        assert second.sequence == first.sequence + 1
        assert second.interval_s == 60, "it is not stale before three of them"
        await mesh.restart_broker()
        again = await heard.one(lambda each: each.sequence > second.sequence)
        assert again["level"] == 2
        late = await mesh.client()
        await late.follow_states("psu-1")
        assert late.last_reading("psu-1")["level"] == 2  # type: ignore[index]


async def test_what_does_not_change_is_published_to_show_that_it_is_true() -> None:
    async with LocalMesh(banks=0, state_interval=0.01) as mesh:
        driver = ScriptedInstrument(poll={"level": 1})
        await mesh.start_relay("psu-1", driver, publish="change", keep_alive=0.1)
        heard = Heard()
        (await mesh.client()).on_reading(heard)
        readings = await heard.count(4)
        polls = len(driver.calls)
    assert polls > 2 * len(readings)
    steps = [b.time - a.time for a, b in itertools.pairwise(readings[1:])]
    assert min(steps) > 0.05
    for wrong in ({"publish": "seldom"}, {"keep_alive": 0}, {"log_level": "loud"}):
        with pytest.raises(ValueError, match=r"poll|above 0|no log level"):
            labmesh.RelayAgent("psu-1", driver, **wrong)  # type: ignore[arg-type]


# ── a driver's own events ───────────────────────────────────────────────────────────────────────


class Furnace:
    """Tells how it is doing."""

    def heat(self, steps: int) -> str:
        for step in range(steps):
            assert labmesh.publish("progress", step / steps)
        labmesh.publish("message", "hot")
        return "done"

    async def heat_later(self) -> None:
        labmesh.publish("alarm", {"pressure": 3.5})

    def from_a_thread(self) -> list[str]:
        publish, refused = labmesh.publisher(), []

        def work() -> None:
            publish("message", "from a thread")
            try:
                labmesh.publish("message", "nobody knows whose")
            except RuntimeError as exc:
                refused.append(str(exc))

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        return refused

    def wrong(self, event: str, size: int = 0) -> None:
        labmesh.publish(event, b"x" * size)

    def unsendable(self) -> None:
        labmesh.publish("message", object())

    def log(self, text: str) -> None:
        logging.getLogger("furnace.control").warning("it says %s", text)

    def fail(self) -> None:
        try:
            raise OSError("no answer")
        except OSError:
            logging.getLogger("furnace.control").exception("cannot read")


async def test_a_drivers_events_come_in_order_and_before_the_methods_result() -> None:
    async with LocalMesh({"oven-1": Furnace(), "oven-2": Furnace()}, banks=0) as mesh:
        client = await mesh.client()
        heard, gaps = Heard(), Heard()
        client.on_gap(gaps)
        client.on_event(lambda *event: event[1] == "alive" or heard(event), "oven-1")
        await client.subscribed()
        oven = await client.get_relay_agent("oven-1")
        await (await client.get_relay_agent("oven-2")).heat(3)
        assert await oven.heat(100) == "done"
        items = await heard.count(101)
        assert items == [
            *(("oven-1", "progress", step / 100) for step in range(100)),
            ("oven-1", "message", "hot"),
        ]
        await oven.heat_later()
        (refused,) = await oven.from_a_thread()
        assert "labmesh.publisher()" in refused
        assert await mesh.relays["oven-1"].publish("scan.done", 5)
        assert (await heard.count(104))[-3:] == [
            ("oven-1", "alarm", {"pressure": 3.5}),
            ("oven-1", "message", "from a thread"),
            ("oven-1", "scan.done", 5),
        ]
        with pytest.raises(ValueError, match="the relay's own"):
            await oven.wrong("lease")
        with pytest.raises(DriverError, match="TooLarge: an event of 300005 bytes"):
            await oven.wrong("message", 300_000)
        with pytest.raises(DriverError, match="object"):
            await oven.unsendable()
        with pytest.raises(RuntimeError, match=r"await relay\.publish"):
            mesh.relays["oven-1"].publish_from_thread("message")
        await mesh.broker.stop()
        await until(lambda: not mesh.relays["oven-1"]._publisher.up)  # type: ignore[union-attr]
        assert not await mesh.relays["oven-1"].publish("message", "nobody hears it")
        assert gaps.items == []
    with pytest.raises(RuntimeError, match="no relay runs this thread"):
        labmesh.publish("message")


# ── logs ────────────────────────────────────────────────────────────────────────────────────────


async def test_what_a_driver_logs_is_in_its_relays_log_and_in_no_other() -> None:
    async with LocalMesh({"oven-1": Furnace(), "oven-2": Furnace()}, in_memory=True) as mesh:
        client = await mesh.client()
        heard, one, severe = Heard(), Heard(), Heard()
        client.on_log(heard)
        client.on_log(one, "oven-1")
        client.on_log(severe, level="error")
        await client.subscribed()
        oven = await client.get_relay_agent("oven-1")
        await oven.log("hello")
        await (await client.get_relay_agent("oven-2")).log("hello")
        await oven.fail()
        line: LogLine = await severe.one(lambda each: each.logger == "furnace.control")
        assert (line.node_id, line.level, line.text) == ("oven-1", "ERROR", "cannot read")
        assert "OSError: no answer" in line.exception
        lines = [each for each in await heard.count(3) if each.logger == "furnace.control"]
        assert sorted((each.node_id, each.text) for each in lines) == [
            ("oven-1", "cannot read"),
            ("oven-1", "it says hello"),
            ("oven-2", "it says hello"),
        ]
        # What belongs to no node in particular is in the log of each of this process.
        logging.getLogger("somebody").error("of us all")
        await heard.until(
            lambda items: (
                {each.node_id for each in items if each.text == "of us all"}
                == {"oven-1", "oven-2", "bank-0"}
            )
        )
        remembered = await client.recent_log("oven-1")
        assert [each.text for each in remembered if each.logger != "labmesh.relay"] == [
            "it says hello",
            "cannot read",
            "of us all",
        ]
        assert {each.node_id for each in one.items} == {"oven-1"}
        with pytest.raises(NotFound, match="did you mean 'oven-1'"):
            await client.recent_log("oven1")


async def test_a_callback_that_logs_does_not_log_without_end() -> None:
    async with LocalMesh({"oven-1": Furnace()}, banks=0) as mesh:
        client = await mesh.client()
        heard = Heard()

        def tell(line: LogLine) -> None:
            heard(line)
            logging.getLogger("watcher").error("heard %s", line.text)

        client.on_log(tell)
        await client.subscribed()
        oven = await client.get_relay_agent("oven-1")
        await oven.log("one")
        await heard.one(lambda each: each.text == "it says one")
        await oven.log("two")
        await heard.one(lambda each: each.text == "it says two")
        assert not [each for each in heard.items if each.logger == "watcher"]


async def test_a_flood_of_records_harms_nobody_and_is_counted() -> None:
    """More than there is room for: what is left is sent slowly, and tells how many are missing."""
    flood = 5000
    async with LocalMesh({"oven-1": Furnace()}, banks=0) as mesh:
        client = await mesh.client()
        heard: Heard = Heard()
        client.on_log(lambda line: line.logger == "flood" and heard(line))
        await client.subscribed()
        loud = logging.getLogger("flood")

        # On the loop, which sends nothing meanwhile.
        for number in range(flood):
            loud.error("line %d", number)
        await heard.one(lambda each: each.text == f"line {flood - 1}")
        told = sum(each.dropped for each in heard.items)
        assert len(heard.items) + told == flood
        assert told > 0


async def test_what_was_logged_while_the_broker_was_away_comes_when_it_is_back() -> None:
    async with LocalMesh({"oven-1": Furnace(), "mute": Furnace()}, banks=0) as mesh:
        await mesh.start_relay("silent", Furnace(), log_level=None)
        client = await mesh.client()
        heard = Heard()
        client.on_log(heard)
        oven, silent = [await client.get_relay_agent(each) for each in ("oven-1", "silent")]
        await oven.log("before")
        await silent.log("never")
        await heard.one(lambda each: each.text == "it says before")
        await mesh.broker.stop()
        await oven.log("meanwhile")
        await mesh.restart_broker()
        line: LogLine = await heard.one(lambda each: each.text == "it says meanwhile")
        assert line.node_id == "oven-1"
        assert "silent" not in {each.node_id for each in heard.items}
    assert not [each for each in logging.getLogger().handlers if type(each).__name__ == "LogStream"]
