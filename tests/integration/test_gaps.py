"""Every lost event is told, by its number; what the broker remembers is delivered nevertheless."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
from tests.support.peers import open_sockets, until
from tests.support.wire_events import lose

from labmesh import DirectorClientAgent, DirectoryBroker
from labmesh.events.healing import Gap
from labmesh.protocol.arrivals import Lost
from labmesh.protocol.replay import MAX_EVENTS
from labmesh.transport.publisher import Publisher

ANYWHERE = "tcp://127.0.0.1:*"
EVENTS = 400
AT_A_TIME = 12


class Loss:
    """Has the broker lose events on their way out: those whose number the rule names."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, rule: Callable[[int], bool]) -> None:
        self.lost: list[int] = []
        passed = 0

        def loses(topic: bytes) -> bool:
            nonlocal passed
            if not topic.startswith((b"event.", b"state.")):
                return False
            passed += 1
            if rule(passed):
                self.lost.append(passed)
            return rule(passed)

        lose(monkeypatch, loses)


class Watch:
    """A client that remembers what it heard, and what it was told to have missed."""

    def __init__(self, client: DirectorClientAgent) -> None:
        self.client = client
        self.values: list[int] = []
        self.states: list[int] = []
        self.gaps: list[Gap] = []
        client.on_event(lambda _node, _kind, value: self.values.append(value))
        client.on_state(lambda _node, state: self.states.append(state["n"]))
        client.on_gap(self.gaps.append)


@asynccontextmanager
async def watched() -> AsyncIterator[tuple[Watch, Publisher, DirectoryBroker]]:
    async with DirectoryBroker(ANYWHERE, ANYWHERE, ANYWHERE) as broker:
        await broker.ready
        async with DirectorClientAgent(
            broker_rpc=str(broker.rpc), broker_xpub=str(broker.xpub)
        ) as client:
            watch = Watch(client)
            await client.follow_states()
            with open_sockets(name="node") as sockets:
                publisher = Publisher(sockets, str(broker.xsub), node_id="psu-1", epoch="e1")
                try:
                    await until(lambda: publisher.up)
                    yield watch, publisher, broker
                finally:
                    publisher.close()


async def test_what_is_lost_is_delivered_late_in_order_and_told_exactly(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Every 7th event is lost on its way to the subscriber, and also the last one."""
    async with watched() as (watch, publisher, _):
        publisher.publish("event", "step", 0)
        await until(lambda: watch.values == [0])
        loss = Loss(monkeypatch, lambda number: number % 7 == 0 or number == EVENTS)
        for number in range(1, EVENTS + 1):
            assert publisher.publish("event", "step", number)
        publisher.publish_tail()
        await until(lambda: len(watch.values) == EVENTS + 1)
        assert watch.values == list(range(EVENTS + 1))
        await until(lambda: sum(each.recovered for each in watch.gaps) == len(loss.lost))
    assert loss.lost[-1] == EVENTS
    assert {each.lost for each in watch.gaps} == {0}
    print(f"FC2: {len(loss.lost)} of {EVENTS} lost, told {len(loss.lost)}, recovered 100 %")


async def test_what_the_broker_has_forgotten_is_told_as_lost(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    count = MAX_EVENTS + 500
    assert count % AT_A_TIME == 0
    async with watched() as (watch, publisher, broker):
        publisher.publish("event", "step", 0)
        await until(lambda: watch.values == [0])
        Loss(monkeypatch, lambda number: number <= count)
        for first in range(1, count + 1, AT_A_TIME):
            # No more at a time than queues hold: the only loss is that of this test.
            wanted = broker._proxy.events.forwarded + AT_A_TIME
            for number in range(first, first + AT_A_TIME):
                assert publisher.publish("event", "step", number)
            await until(lambda wanted=wanted: broker._proxy.events.forwarded >= wanted)
        publisher.publish_tail()
        await until(lambda: watch.values[-1] == count and bool(watch.gaps))
    (gap,) = watch.gaps
    # The broker's own events take a few places in its memory.
    assert (gap.family, gap.node_id, gap.epoch, gap.first, gap.last) == (
        *("event", "psu-1", "e1"),
        *(2, count + 1),
    )
    assert gap.lost + gap.recovered == count
    assert MAX_EVENTS - 20 <= gap.recovered <= MAX_EVENTS
    assert watch.values == [0, *range(count - gap.recovered + 1, count + 1)]


async def test_lost_states_are_counted_exactly_and_not_fetched_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with watched() as (watch, publisher, _):
        publisher.publish("state", "state", {"n": 0})
        await until(lambda: watch.states == [0])
        loss = Loss(monkeypatch, lambda number: number % 5 == 0)
        for number in range(1, EVENTS + 1):
            assert publisher.publish("state", "state", {"n": number})
        publisher.publish_tail()
        await until(lambda: sum(each.lost for each in watch.gaps) == len(loss.lost))
        await until(lambda: watch.states[-1] == EVENTS - 1)
    assert {each.recovered for each in watch.gaps} == {0}


async def test_a_mark_that_found_no_room_is_no_gap_for_it_is_asked_for_again() -> None:
    async with watched() as (watch, publisher, _):
        publisher.publish("state", "state", {"n": 0})
        await until(lambda: watch.states == [0])
        lost = [Lost(topic, "e1", 1, 3, 3) for topic in ("mark.t1", "state.psu-1")]
        watch.client._feed._deliver([*lost])
        await until(lambda: bool(watch.gaps))
    assert [(each.family, each.lost) for each in watch.gaps] == [("state", 3)]


async def test_a_client_that_came_late_has_lost_nothing() -> None:
    async with watched() as (watch, publisher, broker):
        publisher.publish("event", "step", 0)
        await until(lambda: watch.values == [0])
        async with DirectorClientAgent(
            broker_rpc=str(broker.rpc), broker_xpub=str(broker.xpub)
        ) as late:
            other = Watch(late)
            await late.follow_states()
            publisher.publish_tail()
            publisher.publish("event", "step", 1)
            await until(lambda: 1 in other.values)
            assert other.gaps == []
