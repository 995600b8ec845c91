"""A network with a spare broker: what nodes tell both, and clients hear once, whoever dies."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from tests.support.hearing import Heard
from tests.support.peers import PROTECTED, until, with_password
from tests.support.processes import free_ports
from tests.support.promptness import SLACK_S

from labmesh import DataBank, DirectorClientAgent, DirectoryBroker, RelayAgent
from labmesh.config import load_config
from labmesh.discovery import broker_candidate
from labmesh.errors import Conflict, LinkLost
from labmesh.events import presence_once
from labmesh.events.brokers_followed import BrokersFollowed
from labmesh.events.healing import Gap
from labmesh.protocol.messages import ListNodes, NodeList
from labmesh.protocol.replay import MAX_EVENTS
from labmesh.testing import MemoryBlobStore, MemoryCatalog, ScriptedInstrument
from labmesh.transport.keys import Security

HOWTO = Path(__file__).parents[2] / "docs" / "howto-spare-broker.md"
#: What the promise allows for going over is 5 s.
OVER_S = 5.0 + SLACK_S


class Two:
    """Two brokers at definite ports, and nodes that know both."""

    def __init__(self, stack: AsyncExitStack, security: Security) -> None:
        self.stack = stack
        self.security = security
        ports = free_ports(6)
        self.ports = (ports[:3], ports[3:])
        self.brokers: list[DirectoryBroker | None] = [None, None]

    @property
    def addresses(self) -> dict[str, str]:
        """What a client is told."""
        return {
            "broker_rpc": f"tcp://127.0.0.1:{self.ports[0][0]}",
            "broker_xpub": f"tcp://127.0.0.1:{self.ports[0][2]}",
            "spare_broker": f"127.0.0.1:{self.ports[1][0]}",
        }

    async def start(self, number: int, ttl_s: float = 30.0) -> DirectoryBroker:
        """Start the first broker (0) or the spare (1), which knows nobody."""
        binds = [f"tcp://127.0.0.1:{each}" for each in self.ports[number]]
        broker = DirectoryBroker(*binds, ttl_seconds=ttl_s, security=self.security)
        self.brokers[number] = broker
        return await self.stack.enter_async_context(broker)

    async def stop(self, number: int) -> None:
        """End it; its nodes and clients find the link broken."""
        broker = self.brokers[number]
        assert broker is not None
        await broker.stop()

    def relay(self, relay_id: str = "psu-1", **options: Any) -> RelayAgent:
        """A relay that is not started yet."""
        known = self.addresses
        return RelayAgent(
            relay_id,
            ScriptedInstrument(poll={"n": 1}),
            known["broker_rpc"],
            "tcp://127.0.0.1:*",
            f"tcp://127.0.0.1:{self.ports[0][1]}",
            **{
                "spare_broker": known["spare_broker"],
                "heartbeat_seconds": 0.2,
                "state_interval": 0.1,
                "security": self.security,
                **options,
            },
        )

    async def ready_relay(self, relay_id: str = "psu-1", **options: Any) -> RelayAgent:
        """A relay that both brokers list, if both are there, and that publishes to both."""
        relay = await self.stack.enter_async_context(self.relay(relay_id, **options))
        await relay.ready
        await until(lambda: self.is_everywhere(relay))
        return relay

    def is_everywhere(self, relay: RelayAgent) -> bool:
        """Every broker that is up lists the relay, and takes its events."""
        facts = relay._member_facts().get("brokers", [])
        is_up = [each is not None and each._stopping is None for each in self.brokers]
        return all(
            each["registered"] and each["events_up"]
            for each, expected in zip(facts, is_up, strict=True)
            if expected
        )

    async def client(self, **options: Any) -> DirectorClientAgent:
        """A client that is connected."""
        given = {**self.addresses, "security": self.security, **options}
        return await self.stack.enter_async_context(DirectorClientAgent(**given))


@pytest.fixture
async def two(request: pytest.FixtureRequest) -> AsyncIterator[Two]:
    async with AsyncExitStack() as stack:
        network = Two(stack, getattr(request, "param", PROTECTED))
        await network.start(0)
        await network.start(1)
        yield network


def followed(client: DirectorClientAgent) -> int:
    """0: the first broker, 1: the spare."""
    return [each.endpoint for each in client.brokers].index(client.health().endpoint)


async def gone_over(client: DirectorClientAgent, number: int) -> None:
    """Wait until a client is in step with this broker."""
    await until(lambda: followed(client) == number and client.health().up, OVER_S)
    await client.subscribed()


class Watch:
    """What a client heard, and was told to have missed."""

    def __init__(self, client: DirectorClientAgent) -> None:
        self.values: list[int] = []
        self.states: list[int] = []
        self.gaps: list[Gap] = []
        self.presence: list[tuple[str, str]] = []
        client.on_event(self._event)
        client.on_reading(lambda reading: self.states.append(reading.sequence))
        client.on_gap(self.gaps.append)
        client.on_presence(self._present)

    def _event(self, _node_id: str, kind: str, value: Any) -> None:
        if kind == "step":
            self.values.append(value)

    def _present(self, change: dict[str, Any]) -> None:
        if change["change"] in ("joined", "left"):
            self.presence.append((change["node_id"], change["change"]))

    def lost(self, family: str = "event") -> int:
        return sum(each.lost for each in self.gaps if each.family == family)


@pytest.mark.parametrize(
    "two", [PROTECTED, with_password()], ids=["open", "password"], indirect=True
)
async def test_nothing_is_lost_or_comes_twice_from_broker_to_broker_and_back(two: Two) -> None:
    relay = await two.ready_relay()
    client = await two.client()
    watch = Watch(client)
    await client.subscribed()
    proxy = await client.get_relay_agent("psu-1")
    published = 0

    async def publish(count: int) -> None:
        nonlocal published
        for _ in range(count):
            assert await relay.publish("step", published)
            published += 1

    await publish(100)
    await until(lambda: len(watch.values) == 100)
    assert followed(client) == 0

    await two.stop(0)
    await publish(100)  # while the client has no broker
    async with asyncio.timeout(OVER_S):
        # A question that finds no broker waits for the other one; a call never needs one.
        assert await proxy.describe() is not None
        assert [each.node_id for each in await client.list_nodes()] == ["psu-1"]
    await publish(100)
    await until(lambda: len(watch.values) == published, OVER_S)
    assert watch.values == list(range(published))
    assert sum(each.recovered for each in watch.gaps if each.family == "event") >= 100
    assert watch.lost() == 0
    assert followed(client) == 1

    await two.start(0)
    await until(lambda: two.is_everywhere(relay))
    await publish(100)
    await until(lambda: len(watch.values) == published)
    assert followed(client) == 1, "it stays where it is as long as that one lives"

    await two.stop(1)
    await publish(100)
    await gone_over(client, 0)
    await publish(100)
    await until(lambda: len(watch.values) == published, OVER_S)
    assert watch.values == list(range(published))
    assert watch.lost() == 0
    assert watch.states == sorted(set(watch.states)), "no state twice, none out of order"
    assert watch.presence == []
    assert isinstance(client._directory, BrokersFollowed)
    assert client._directory.turns == 2


async def test_what_the_spare_has_forgotten_is_counted_exactly(two: Two) -> None:
    relay = await two.ready_relay(state_interval=60.0)
    client = await two.client()
    watch = Watch(client)
    await client.subscribed()
    await relay.publish("step", 0)
    await until(lambda: watch.values == [0])
    brokers = client._directory
    assert isinstance(brokers, BrokersFollowed)
    brokers._following._grace_s = 60.0  # until all of it has passed
    await two.stop(0)
    spare = two.brokers[1]
    assert spare is not None
    count = MAX_EVENTS + 700
    for number in range(1, count + 1):
        assert await relay.publish("step", number)
        if number % 100 == 0:  # its socket has room for them
            await until(lambda number=number: spare._proxy.events.forwarded >= number)
    brokers._following._grace_s = 0.0
    brokers._stirred.set()
    await gone_over(client, 1)
    await relay.publish("step", count + 1)
    await until(lambda: watch.values[-1] == count + 1, OVER_S)
    heard = [each for each in watch.values if 0 < each <= count]
    assert heard == sorted(set(heard))
    assert watch.lost() == count - len(heard) > 0
    print(f"published {count}, heard {len(heard)}, told as lost {watch.lost()}")


async def test_the_loss_of_the_last_event_is_told_by_the_next_heartbeat(two: Two) -> None:
    relay = await two.ready_relay(state_interval=60.0)
    client = await two.client()
    watch = Watch(client)
    await client.subscribed()
    await relay.publish("step", 0)
    await until(lambda: watch.values == [0])
    await two.stop(0)
    await relay.publish("step", 1)  # and then nothing more
    await until(lambda: watch.values == [0, 1], OVER_S)
    assert watch.lost() == 0


async def test_each_change_of_presence_is_told_once(
    two: Two, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(presence_once, "_SETTLED_S", 1.5)
    client = await two.client()
    presence = Heard()

    def hear(change: dict[str, Any]) -> None:
        if change["change"] in ("joined", "left"):
            presence(change["node_id"], change["change"])

    client.on_presence(hear)
    relay = await two.ready_relay()
    other = await two.ready_relay("psu-2")
    assert await presence.count(2) == [("psu-1", "joined"), ("psu-2", "joined")]
    await two.stop(0)
    # While the client hears nobody: one leaves, one comes.
    await other.stop()
    third = two.relay("psu-3")
    await two.stack.enter_async_context(third)
    await gone_over(client, 1)
    seen = await presence.count(4)
    assert sorted(seen[2:]) == [("psu-2", "left"), ("psu-3", "joined")]
    # A broker that comes back hears everybody anew, and nobody hears it say so.
    await two.start(0)
    await until(lambda: two.is_everywhere(relay) and two.is_everywhere(third))
    await two.stop(1)
    await gone_over(client, 0)
    await relay.stop()
    assert (await presence.count(5))[4:] == [("psu-1", "left")]


async def test_who_starts_while_the_first_is_away_is_there(two: Two) -> None:
    await two.stop(0)
    async with asyncio.timeout(10.0):
        relay = await two.ready_relay()
        bank = DataBank(
            ingest_bind="tcp://127.0.0.1:*",
            retrieve_bind="tcp://127.0.0.1:*",
            broker_rpc=two.addresses["broker_rpc"],
            broker_xsub=f"tcp://127.0.0.1:{two.ports[0][1]}",
            spare_broker=two.addresses["spare_broker"],
            store=MemoryBlobStore(),
            catalog=MemoryCatalog(),
            security=PROTECTED,
        )
        await two.stack.enter_async_context(bank)
        await bank.ready
        client = await two.client()
    assert followed(client) == 1
    stored = Heard()
    client.on_dataset(stored)
    await client.subscribed()
    dataset_id = await relay.upload(b"abc", name="first")
    assert [each["dataset_id"] for each in await stored.count(1)] == [dataset_id]
    status = (await client.broker_status()).facts
    assert (status["relays"], status["banks"]) == (1, 1)
    assert [each.up for each in client.brokers] == [False, True]


async def test_the_first_broker_s_no_ends_a_newcomer_and_the_spare_s_does_not(two: Two) -> None:
    await two.ready_relay("psu-1")
    twin = two.relay("psu-1")
    with pytest.raises(Conflict):
        async with twin:
            await twin.ready
    # One that only the spare knows is in nobody's way: the first one's word counts.
    spare = two.brokers[1]
    assert spare is not None
    alone = RelayAgent(
        "psu-2",
        ScriptedInstrument(poll={}),
        str(spare.rpc),
        "tcp://127.0.0.1:*",
        str(spare.xsub),
        security=PROTECTED,
    )
    relay = two.relay("psu-2")
    async with alone:
        await alone.ready
        await two.stack.enter_async_context(relay)
        await relay.ready
        facts = relay._member_facts()["brokers"]
        assert [each["registered"] for each in facts] == [True, False]


async def test_with_neither_broker_the_error_names_both(two: Two) -> None:
    await two.stop(0)
    await two.stop(1)
    client = DirectorClientAgent(**two.addresses, security=PROTECTED)
    with pytest.raises(LinkLost) as raised:
        await client.connect(timeout=0.3)
    text = str(raised.value)
    assert all(f":{ports[0]}" in text for ports in two.ports), text


async def test_without_a_spare_nothing_is_opened_for_one_and_nothing_comes(two: Two) -> None:
    """The negative control: the same death, and a client and a relay that know one broker."""
    known = await two.ready_relay("psu-1")
    relay = two.relay("psu-2", spare_broker=None)
    client = await two.client(spare_broker=None)
    with_spare = await two.client()
    async with relay:
        await relay.ready
        watch = Watch(client)
        await client.subscribed()
        await relay.publish("step", 0)
        await until(lambda: watch.values == [0])
        # A link to the spare; and a relay's second way for events.
        assert len(with_spare._sockets._sockets) == len(client._sockets._sockets) + 1
        assert len(known._sockets._sockets) == len(relay._sockets._sockets) + 2
        assert [each.endpoint for each in client.brokers] == [client.broker_rpc]
        await two.stop(0)
        await until(lambda: not client.health().up)
        assert await relay.publish("step", 1) is False
        await gone_over(with_spare, 1)
        assert watch.values == [0]
        with pytest.raises(ConnectionError):
            await client._broker.request(ListNodes(id="-"), NodeList, timeout=0.3)


async def test_the_howto(two: Two, tmp_path: Path) -> None:
    text = HOWTO.read_text(encoding="utf-8")
    file = tmp_path / "labmesh.toml"
    (toml,) = re.findall(r"```toml\n(.*?)```", text, re.DOTALL)
    file.write_text(toml)
    assert load_config(file).broker.spare == "lab-pc2"
    assert broker_candidate(None, {}, file).spare == "tcp://lab-pc2:5750"
    names: dict[str, Any] = {"__name__": "howto"}
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    exec(compile(code, HOWTO.name, "exec"), names)
    known = two.addresses
    spare = known["spare_broker"]
    driver = ScriptedInstrument(poll={"n": 1})
    events = f"tcp://127.0.0.1:{two.ports[0][1]}"
    async with names["my_relay"](driver, known["broker_rpc"], events, spare) as relay:
        await until(lambda: two.is_everywhere(relay))
        async with names["my_client"](known["broker_rpc"], spare) as client:
            await two.stop(0)
            await gone_over(client, 1)
            assert [each.node_id for each in await client.list_nodes()] == ["psu-1"]
