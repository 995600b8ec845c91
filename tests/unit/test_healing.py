"""Gaps that are healed: in order, and bounded while the broker lets itself be waited for."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from labmesh.errors import LinkLost
from labmesh.events.healing import Gap, Healer
from labmesh.protocol.arrivals import Lost, Received
from labmesh.protocol.codec import encode_event
from labmesh.protocol.event_frame import joined
from labmesh.protocol.messages import Event, LastEvents, Replay
from labmesh.protocol.replay import Ring

TOPIC = "event.cam"
ROOM = 5


def event(sequence: int, topic: str = TOPIC) -> Received:
    header = Event(publisher="cam", epoch="e1", sequence=sequence, time=0.0)
    return Received(topic, header, b"\xc0" * 1000)


class Broker:
    """A broker's memory of events, which answers when it is told to."""

    def __init__(self) -> None:
        self._ring = Ring()
        self.may_answer = asyncio.Event()
        self.is_away = False

    def keep(self, received: Received) -> None:
        frame = joined(received.topic.encode(), encode_event(received.event), b"\xc0" * 1000)
        self._ring.keep(received.topic.encode(), frame)

    async def request(self, replay: Replay, _reply: object, *, timeout: float) -> LastEvents:
        await self.may_answer.wait()
        if self.is_away:
            raise LinkLost("the broker is away")
        events, more = self._ring.between(
            replay.topic, replay.node_epoch, replay.first, replay.last, 3000
        )
        return LastEvents(id="-", events=events, more=more)


class Healing:
    """A healer, and what came of it."""

    def __init__(self) -> None:
        self.broker = Broker()
        self.delivered: list[Received] = []
        self.gaps: list[Gap] = []
        self._tasks: list[asyncio.Task[Any]] = []
        self.healer = Healer(
            self.broker,  # type: ignore[arg-type]
            self._spawn,
            self.delivered.append,
            self.gaps.append,
            max_bytes=ROOM * event(1).size,
        )

    def _spawn(self, work: Coroutine[Any, Any, Any], name: str) -> None:
        self._tasks.append(asyncio.create_task(work, name=name))

    async def healed(self) -> None:
        self.broker.may_answer.set()
        await asyncio.gather(*self._tasks)

    def sequences(self, topic: str = TOPIC) -> list[int]:
        return [each.event.sequence for each in self.delivered if each.topic == topic]


async def test_what_waits_for_a_replay_is_bounded_and_the_rest_is_fetched_in_its_turn() -> None:
    healing = Healing()
    for sequence in range(1, 101):
        healing.broker.keep(event(sequence))
    for turn in ("first", "again"):
        healing.delivered.clear()
        healing.gaps.clear()
        healing.broker.may_answer.clear()
        healing.healer.take(Lost(TOPIC, "e1", 1, 9, 9))
        for sequence in range(10, 101):
            healing.healer.take(event(sequence))
        healing.healer.take(Lost(TOPIC, "e1", 101, 103, 3))
        held = healing.healer._held[TOPIC]
        assert len(held) == ROOM + 2
        assert held[-1] == Lost(TOPIC, "e1", 15, 103, 89)
        await healing.healed()
        assert healing.sequences() == list(range(1, 101)), turn
        told = [(each.first, each.last, each.lost, each.recovered) for each in healing.gaps]
        assert told == [(1, 9, 0, 9), (15, 103, 3, 86)]


async def test_what_cannot_be_fetched_is_told_as_lost_exactly() -> None:
    healing = Healing()
    healing.broker.is_away = True
    other = "event.dmm"
    for topic in (TOPIC, other):
        healing.healer.take(Lost(topic, "e1", 1, 1, 1))
    for sequence in range(2, 12):
        for topic in (TOPIC, other):
            healing.healer.take(event(sequence, topic))
    await healing.healed()
    for topic in (TOPIC, other):
        lost = sum(each.lost for each in healing.gaps if each.node_id == topic[6:])
        assert len(healing.sequences(topic)) + lost == 11
    assert len(healing.delivered) == ROOM, "what waits is counted for all topics together"
    assert {each.recovered for each in healing.gaps} == {0}
