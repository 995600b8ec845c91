"""Brokers that are killed under event load, with a spare in place: how long a client hears nothing,
and what it loses.
"""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from tests.support.networks import BEGIN_S, Network
from tests.support.peers import until
from tests.support.processes import Process, Start, program
from tests.support.promptness import SLACK_S

from labmesh import DirectorClientAgent
from labmesh.events.healing import Gap
from labmesh.protocol.messages import GetStatus, Status

#: The promise: nobody hears nothing for longer, seconds.
SILENCE_S = 5.0
RATE = 200.0
LOAD = "Load-0"


@dataclass
class Listener:
    """What a client hears of the load: which events, and the longest silence between two."""

    heard: list[int] = field(default_factory=list)
    gaps: list[Gap] = field(default_factory=list)
    calls: int = 0
    longest_call_s: float = 0.0
    last_at: float = 0.0
    silence_s: float = 0.0

    def event(self, _node_id: str, kind: str, value: Any) -> None:
        if kind != "step":
            return
        now = time.monotonic()
        if self.last_at:
            self.silence_s = max(self.silence_s, now - self.last_at)
        self.last_at = now
        self.heard.append(value)

    def took_silence(self) -> float:
        """The longest so far; from now on, it is measured anew."""
        silence_s, self.silence_s = self.silence_s, 0.0
        return silence_s

    @property
    def told_lost(self) -> int:
        return sum(each.lost for each in self.gaps if each.family == "event")

    @property
    def told_recovered(self) -> int:
        return sum(each.recovered for each in self.gaps if each.family == "event")

    async def call(self, client: DirectorClientAgent) -> None:
        """Call all the time; a call that fails ends the test."""
        proxy = await client.get_relay_agent(LOAD)
        while True:
            began = time.monotonic()
            assert await proxy.square(self.calls) == self.calls**2
            self.longest_call_s = max(self.longest_call_s, time.monotonic() - began)
            self.calls += 1
            await asyncio.sleep(0.002)


class Pair:
    """Two broker processes, the relay with the load, and who is followed."""

    def __init__(self, start: Start, folder: Path) -> None:
        self._start = start
        self._folder = folder
        self.networks = (Network(start, folder), Network(start, folder))
        self.brokers = [each.broker() for each in self.networks]

    @property
    def spare(self) -> str:
        return self.networks[1].rpc

    def load(self, **options: Any) -> Process:
        """The relay, once it is registered."""
        first = self.networks[0]
        wanted = {
            "relay_id": LOAD,
            "broker_rpc": first.rpc,
            "state_pub": first.xsub,
            "rpc_bind": "tcp://127.0.0.1:*",
            "heartbeat_seconds": 0.5,
            "state_interval": 0.1,
            "spare_broker": self.spare,
            **options,
        }
        process = self._start([program("event_load.py"), json.dumps(wanted)], cwd=self._folder)
        process.wait_for(f"ready {LOAD}", BEGIN_S)
        return process

    def client(self, **options: Any) -> DirectorClientAgent:
        first = self.networks[0]
        given = {"broker_rpc": first.rpc, "broker_xpub": first.xpub, "spare_broker": self.spare}
        return DirectorClientAgent(**{**given, **options})

    def again(self, number: int) -> None:
        """Start a broker that was killed, and wait until the relay is registered with it."""
        self.brokers[number] = broker = self.networks[number].broker()
        broker.wait_for(f"relay {LOAD}: joined", BEGIN_S)


def followed(client: DirectorClientAgent) -> int:
    return [each.endpoint for each in client.brokers].index(client.health().endpoint)


async def published_to_both(client: DirectorClientAgent) -> None:
    """Wait until the relay's events go to either broker: its memory begins there."""
    async with asyncio.timeout(BEGIN_S):
        while True:
            status, _ = await client.request(LOAD, GetStatus(id="-"), Status)
            if all(each["events_up"] for each in status.facts["brokers"]):
                return
            await asyncio.sleep(0.02)


async def settled(listener: Listener, published: int) -> None:
    """Wait until each event was heard, or told as lost."""
    await until(
        lambda: len(listener.heard) + listener.told_lost >= published,
        SILENCE_S + SLACK_S,
        "every event heard or told as lost",
    )


def check(listener: Listener, published: int) -> str:
    """Each event once and in order; what is missing was told, exactly."""
    heard = listener.heard
    assert heard == sorted(set(heard))
    assert listener.told_lost == published - len(heard)
    return (
        f"{published} events published, {len(heard)} heard once and in order "
        f"({listener.told_recovered} of them fetched again), {published - len(heard)} lost, "
        f"{listener.told_lost} told as lost; {listener.calls} calls meanwhile, none failed, the "
        f"longest {listener.longest_call_s * 1000:.0f} ms"
    )


async def kill_brokers(pair: Pair, kills: int, rate: float, slack_s: float = 0.0) -> None:
    """Kill -9 the broker that is followed, start it again, kill the other one, and so on."""
    limit_s = SILENCE_S + slack_s
    listener = Listener()
    async with pair.client() as client:
        client.on_event(listener.event, LOAD)
        client.on_gap(listener.gaps.append)
        await client.subscribed()
        proxy = await client.get_relay_agent(LOAD)
        calling = asyncio.ensure_future(listener.call(client))
        await proxy.begin(rate)
        await until(lambda: len(listener.heard) > rate / 4)
        silences = []
        for number in range(kills):
            victim = followed(client)
            listener.took_silence()
            # Not from the loop that listens: the wait for the process would be silence, too.
            await asyncio.to_thread(pair.brokers[victim].kill9)
            heard, killed_at, lost = len(listener.heard), time.monotonic(), listener.told_lost
            await until(lambda victim=victim: followed(client) != victim, limit_s)
            await until(
                lambda heard=heard, killed_at=killed_at: (
                    len(listener.heard) > heard + rate / 4 and listener.last_at > killed_at + 0.5
                ),
                limit_s,
            )
            silences.append(listener.took_silence())
            await asyncio.to_thread(pair.again, victim)
            await published_to_both(client)
            print(
                f"kill {number + 1:2} of {kills}: silent for {silences[-1]:.2f} s, "
                f"{listener.told_lost - lost} events lost"
            )
        published = await proxy.end()
        await settled(listener, published)
        assert not calling.done(), calling
        calling.cancel()
    text = check(listener, published)
    print(f"{kills} kills at {rate:g} events/s: silent for {max(silences):.2f} s at most; {text}")
    assert max(silences) <= limit_s
    # A broker remembers the last 1024 events: the silence would have to last 5 s.
    assert rate > RATE or published == len(listener.heard)


def test_a_client_hears_on_after_2_broker_kills(start: Start, tmp_path: Path) -> None:
    pair = Pair(start, tmp_path)
    pair.load()
    asyncio.run(kill_brokers(pair, 2, RATE, SLACK_S))


@pytest.mark.soak
@pytest.mark.timeout(300)
@pytest.mark.parametrize("rate", [RATE, 2000.0])
def test_a_client_hears_on_after_20_broker_kills(start: Start, tmp_path: Path, rate: float) -> None:
    pair = Pair(start, tmp_path)
    pair.load()
    asyncio.run(kill_brokers(pair, 20, rate))


def test_a_broker_that_stands_still_is_left_in_time(start: Start, tmp_path: Path) -> None:
    """Nothing breaks, nothing is refused: only heartbeats tell."""

    async def run(pair: Pair) -> None:
        listener = Listener()
        async with pair.client() as client:
            client.on_event(listener.event, LOAD)
            client.on_gap(listener.gaps.append)
            await client.subscribed()
            proxy = await client.get_relay_agent(LOAD)
            await proxy.begin(RATE)
            await until(lambda: len(listener.heard) > RATE / 4)
            pair.brokers[0].stop()
            try:
                await until(lambda: followed(client) == 1, SILENCE_S + SLACK_S)
                heard = len(listener.heard)
                await until(lambda: len(listener.heard) > heard + RATE)
            finally:
                pair.brokers[0].cont()
            published = await proxy.end()
            await settled(listener, published)
        print(f"stopped: silent for {listener.silence_s:.2f} s; {check(listener, published)}")
        assert listener.silence_s <= SILENCE_S + SLACK_S

    pair = Pair(start, tmp_path)
    pair.load()
    asyncio.run(run(pair))


def test_without_a_spare_it_is_silent_until_the_broker_is_back(
    start: Start, tmp_path: Path
) -> None:
    """The negative control: the same kill, and nobody knows the spare."""
    away_s = 2.0

    async def run(pair: Pair) -> None:
        listener = Listener()
        async with pair.client(spare_broker=None) as client:
            client.on_event(listener.event, LOAD)
            client.on_gap(listener.gaps.append)
            await client.subscribed()
            proxy = await client.get_relay_agent(LOAD)
            await proxy.begin(RATE)
            await until(lambda: len(listener.heard) > RATE / 4)
            pair.brokers[0].kill9()
            killed_at, heard = time.monotonic(), 0
            while (now := time.monotonic()) < killed_at + away_s:
                assert await proxy.square(3) == 9
                await asyncio.sleep(0.05)
                if now < killed_at + away_s / 2:
                    heard = len(listener.heard)  # what was on its way
            assert len(listener.heard) == heard, "and nothing more"
            await asyncio.to_thread(pair.again, 0)
            heard = len(listener.heard)
            await until(lambda: len(listener.heard) > heard + RATE / 4, BEGIN_S)
            published = await proxy.end()
            await settled(listener, published)
        print(f"no spare: silent for {listener.silence_s:.2f} s; {check(listener, published)}")
        assert listener.silence_s > away_s
        assert listener.told_lost > away_s * RATE / 2

    pair = Pair(start, tmp_path)
    pair.load(spare_broker=None)
    asyncio.run(run(pair))
