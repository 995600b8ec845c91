"""Who is on the mesh: registration, restarts of the broker, ids and addresses, presence."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.support import records
from tests.support.hearing import Heard
from tests.support.places import ANYWHERE, Places
from tests.support.processes import free_ports
from tests.support.promptness import SLACK_S

from labmesh import DataBank, DirectorClientAgent, DirectoryBroker, RelayAgent, RelayClient
from labmesh.errors import Busy, Conflict, LabmeshError, NotFound, NotSent, ProtocolError
from labmesh.protocol.addresses import parse_bind
from labmesh.protocol.messages import (
    DIRECTORY_REQUESTS,
    Done,
    Goodbye,
    Heartbeat,
    Hello,
    NodeRecord,
    Request,
    Welcome,
)
from labmesh.testing import LocalMesh, ScriptedInstrument
from labmesh.transport.keys import Security
from labmesh.transport.link import Link
from labmesh.transport.service import Answer, Origin, Service
from labmesh.transport.sockets import Sockets

LIMIT_S = 10.0

#: A broker that comes back has every node within one heartbeat and this.
BACK_S = 2.0


@pytest.fixture
def places(tmp_path: Path) -> Places:
    return Places(tmp_path)


@asynccontextmanager
async def asking(endpoint: str) -> AsyncIterator[Link]:
    """A link for requests of a test's own."""
    sockets = Sockets(Security("open"), "test")
    link = Link(sockets, endpoint, where="the broker")
    try:
        await link.wait_up(LIMIT_S)
        yield link
    finally:
        link.close()
        sockets.close_all()


class Ghost:
    """A line of the directory with nobody behind it; it says what the test wants to hear."""

    def __init__(self, link: Link, record: NodeRecord) -> None:
        self._link = link
        self.record = record

    async def hello(self) -> Welcome:
        return await self._link.request(Hello(id="-", node=self.record), Welcome, timeout=LIMIT_S)

    async def beat(self) -> Welcome:
        record = self.record
        beat = Heartbeat(id="-", node_id=record.node_id, node_epoch=record.epoch)
        return await self._link.request(beat, Welcome, timeout=LIMIT_S)


def told(change: dict[str, Any]) -> tuple[str, str, str]:
    """What a change of presence says, in short."""
    return change["node_id"], change["change"], change["reason"]


async def listed(client: DirectorClientAgent) -> list[str]:
    """The ids that the directory lists."""
    return [str(each.node_id) for each in await client.list_nodes()]


# ── presence ────────────────────────────────────────────────────────────────────────────────────


async def test_joining_and_leaving_are_told_with_everything_about_the_node(
    places: Places,
) -> None:
    async with places.broker(), places.client() as client:
        heard = Heard()
        client.on_presence(heard)
        relay = places.relay("Inst-0", heartbeat_seconds=0.7)
        bank = places.bank("bank-0")
        async with relay:
            await relay.ready
            async with bank:
                await bank.ready
        await heard.count(4)
        assert [told(each) for each in heard.items] == [
            ("Inst-0", "joined", ""),
            ("bank-0", "joined", ""),
            ("bank-0", "left", "goodbye"),
            ("Inst-0", "left", "goodbye"),
        ]
        joined = heard.items[0]
        assert joined["kind"] == "relay"
        assert set(joined["endpoints"]) == {"rpc"}
        assert joined["title"] == "ScriptedInstrument"
        assert joined["host"] == socket.gethostname()
        assert joined["pid"] == os.getpid()
        assert joined["epoch"] == relay.epoch
        assert joined["heartbeat_s"] == 0.7
        assert joined["state"] == "live"
        assert joined["software"].startswith("labmesh ")
        assert set(heard.items[1]["endpoints"]) == {"ingest", "retrieve"}
        assert heard.items[1]["title"] == str(places.folder / "bank-0")
        assert heard.items[1]["heartbeat_s"] == places.heartbeat_s


async def test_a_silent_node_is_suspect_comes_back_and_leaves_at_its_ttl(places: Places) -> None:
    async with places.broker(ttl_seconds=SLACK_S), places.client() as client:
        heard = Heard()
        client.on_presence(heard)
        async with asking(places.rpc) as link:
            ghost = Ghost(link, records.relay("ghost", heartbeat_s=0.1))
            assert (await ghost.hello()).ttl_s == SLACK_S
            await heard.one(lambda each: each["change"] == "suspect")
            [line] = await client.list_relay_ids()
            assert (line["relay_id"], line["state"]) == ("ghost", "suspect")
            last_beat_at = time.monotonic()
            await ghost.beat()
            await heard.one(lambda each: each["change"] == "left")
            left_after_s = time.monotonic() - last_beat_at
            assert await listed(client) == []
            with pytest.raises(NotFound, match="say hello first"):
                await ghost.beat()
        assert [told(each) for each in heard.items] == [
            ("ghost", "joined", ""),
            ("ghost", "suspect", ""),
            ("ghost", "back", ""),
            ("ghost", "suspect", ""),
            ("ghost", "left", "expired"),
        ]
        assert [each["state"] for each in heard.items] == [
            "live",
            "suspect",
            "live",
            "suspect",
            "suspect",
        ]
        assert SLACK_S <= left_after_s <= 2 * SLACK_S


async def test_a_beating_node_outlives_its_ttl_again_and_again(places: Places) -> None:
    """``heartbeat_seconds`` is the period of its heartbeats."""
    async with places.broker(ttl_seconds=SLACK_S), places.client() as client:
        heard = Heard()
        client.on_presence(heard)
        async with places.relay(heartbeat_seconds=0.1) as relay:
            await relay.ready
            proxy = await client.get_relay_agent("Inst-0")
            beats: list[float] = []
            while not beats or beats[-1] - beats[0] < SLACK_S + 0.5:
                facts = (await proxy.status()).facts
                beat_at = time.monotonic() - facts["heartbeat_age_s"]
                if not beats or beat_at > beats[-1] + 0.05:
                    beats.append(beat_at)
            mean_s = (beats[-1] - beats[0]) / (len(beats) - 1)
            print(f"a heartbeat every {mean_s:.3f} s")
            assert 0.1 <= mean_s <= 1.0
            assert "left" not in [each["change"] for each in heard.items]


# ── the broker goes and comes back ──────────────────────────────────────────────────────────────


async def test_a_broker_that_comes_back_has_every_node_back(places: Places) -> None:
    content = bytes(range(256)) * 20_000
    async with AsyncExitStack() as stack:
        broker = await stack.enter_async_context(places.broker())
        nodes = [places.relay("Inst-0"), places.relay("Inst-1"), places.bank("bank-0")]
        for each in nodes:
            await stack.enter_async_context(each)
            await each.ready
        leaver = await stack.enter_async_context(places.relay("leaver"))
        await leaver.ready
        client = await stack.enter_async_context(places.client())
        states, datasets = Heard(), Heard()
        client.on_state(states)
        client.on_dataset(datasets)
        relay = await client.get_relay_agent("Inst-0")
        bank = await client.get_databank_agent()
        before = await bank.upload(content, name="before")
        await datasets.one(lambda each: each["name"] == "before")
        assert await relay.poll() == {"voltage": 2.5}
        epochs = [each.epoch for each in nodes]

        await broker.stop()
        # Calls and data go on, also to a relay that this client has never called.
        assert await relay.poll() == {"voltage": 2.5}
        assert await RelayClient(client, "Inst-1").poll() == {"voltage": 2.5}
        await bank.download(before.dataset_id, places.folder / "scan.bin")
        assert (places.folder / "scan.bin").read_bytes() == content
        await bank.upload(content, name="meanwhile")
        await leaver.stop()

        states_before = len(states.items)
        await broker.start()
        began = time.monotonic()
        async with places.client() as fresh:
            for relay_id in ("Inst-0", "Inst-1"):
                await fresh.get_relay_agent(relay_id)
            await fresh.get_databank_agent("bank-0")
            back_s = time.monotonic() - began
            assert await listed(fresh) == ["bank-0", "Inst-0", "Inst-1"]
        await states.until(lambda items: len(items) > states_before)
        states_s = time.monotonic() - began
        print(f"all back after {back_s:.2f} s, states after {states_s:.2f} s")
        assert back_s <= places.heartbeat_s + BACK_S + SLACK_S
        assert states_s <= places.heartbeat_s + BACK_S + SLACK_S

        # The client's own directory and its subscriptions follow.
        async with asyncio.timeout(LIMIT_S):
            while client.known("leaver") is not None:
                await client.broker_status()
        assert [str(each.node_id) for each in client.known_nodes] == ["bank-0", "Inst-0", "Inst-1"]
        with pytest.raises(NotSent, match="leaver is not on the mesh"):
            await RelayClient(client, "leaver").poll()
        after = await bank.upload(content[:1000], name="after")
        heard = await datasets.one(lambda each: each["name"] == "after")
        assert heard["dataset_id"] == after.dataset_id
        assert [each.epoch for each in nodes] == epochs


async def test_a_relay_uploads_while_the_broker_is_away(places: Places) -> None:
    async with AsyncExitStack() as stack:
        broker = await stack.enter_async_context(places.broker())
        bank = await stack.enter_async_context(places.bank())
        relay = await stack.enter_async_context(places.relay())
        await bank.ready
        await relay.ready
        await relay.upload(b"first")
        await broker.stop()
        dataset_id = await relay.upload(b"second")
        await broker.start()
        async with places.client() as client:
            proxy = await client.get_databank_agent()
            assert await proxy.read(dataset_id) == b"second"


async def test_a_node_that_waits_for_a_broker_serves_meanwhile(places: Places) -> None:
    """Whoever knows its address can call it; and it registers as soon as there is a broker."""
    async with places.relay(heartbeat_seconds=5.0) as relay:
        async with asking(relay.endpoints["rpc"]) as link:
            assert link.node_id == "Inst-0"
        assert not relay.registered
        async with places.broker():
            began = time.monotonic()
            await relay.ready
            assert relay.registered
            assert time.monotonic() - began <= BACK_S + SLACK_S


async def test_broker_restarts_in_a_row(places: Places) -> None:
    async with places.relay() as relay, places.broker() as broker:
        await relay.ready
        for _ in range(3):
            await broker.stop()
            await broker.start()
            async with places.client() as client:
                await client.get_relay_agent("Inst-0")


# ── what a broker may answer ────────────────────────────────────────────────────────────────────


class StandIn:
    """A broker whose answers to ``Hello`` the test gives: an error, or None for a welcome.

    ``Ellipsis`` is no answer at all. Behind the last one every hello is welcome.
    """

    def __init__(self, rpc: str, answers: list[Any]) -> None:
        self._rpc = rpc
        self._answers = list(answers)
        self.heard = Heard()

    async def __aenter__(self) -> StandIn:
        self._sockets = Sockets(Security("open"), "stand-in")
        self._service = Service(
            self._sockets,
            parse_bind(self._rpc),
            role="directory",
            requests=DIRECTORY_REQUESTS,
            node_id="broker",
            kind="broker",
            epoch="e1",
            handle=self._answer,
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._service.close()
        self._sockets.close_all()

    def _answer(self, request: Request, _body: object, _origin: Origin) -> Answer:
        self.heard(request)
        if isinstance(request, Goodbye):
            return Done(id=request.id)
        answer = self._answers.pop(0) if self._answers else None
        if answer is ...:
            return None
        if answer is not None:
            raise answer
        return Welcome(id=request.id, broker_epoch="e1", ttl_s=30.0)


async def test_a_broker_that_is_full_or_faulty_is_asked_again(places: Places) -> None:
    answers = [Busy("full"), LabmeshError("faulty"), Busy("full")]
    async with StandIn(places.rpc, answers) as broker, places.relay() as relay:
        async with asyncio.timeout(LIMIT_S):
            await relay.ready
        assert [type(each) for each in broker.heard.items] == [Hello] * 4


@pytest.mark.parametrize("refusal", [ProtocolError("bad endpoint"), Conflict("taken")])
async def test_a_newcomer_that_is_refused_for_good_fails(
    refusal: LabmeshError, places: Places
) -> None:
    async with StandIn(places.rpc, [refusal]):
        with pytest.raises(type(refusal), match=str(refusal)):
            await places.relay().run()


async def test_no_answer_of_a_broker_ends_a_node_that_serves(places: Places) -> None:
    """A broker that was restarted may be of another opinion; the instrument stays connected."""
    answers = [None, NotFound("who are you?"), ProtocolError("no"), Conflict("taken"), Busy("full")]
    async with (
        StandIn(places.rpc, answers) as broker,
        places.relay(heartbeat_seconds=0.05) as relay,
    ):
        await relay.ready
        await broker.heard.count(len(answers) + 2)
        async with asking(relay.endpoints["rpc"]) as link:
            assert link.epoch == relay.epoch
        assert relay.registered


async def test_a_node_that_stops_before_it_is_registered_says_goodbye_all_the_same(
    places: Places,
) -> None:
    """Otherwise the broker, which may still be asking around, would list a dead node."""
    async with StandIn(places.rpc, [...]) as broker:
        async with places.relay():
            await broker.heard.count(1)
        assert [type(each) for each in broker.heard.items] == [Hello, Goodbye]


# ── one id, one node ────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("kind", ["relay", "bank"])
async def test_the_id_of_a_live_node_is_refused_to_a_second_one(kind: str, places: Places) -> None:
    async with places.broker(), places.client() as client:
        heard = Heard()
        client.on_presence(heard)
        driver = ScriptedInstrument(poll={"who": "first"}, who="first")
        async with places.relay("Inst-0", driver) as first:
            await first.ready
            relay = await client.get_relay_agent("Inst-0")
            second: RelayAgent | DataBank = (
                places.relay("Inst-0") if kind == "relay" else places.bank("Inst-0")
            )
            with pytest.raises(Conflict) as caught:
                await second.run()
            text = str(caught.value)
            for named in ("Inst-0", socket.gethostname(), str(os.getpid()), str(first.rpc)):
                assert named in text
            assert "choose another id" in text
            assert "stop the other one" in text
            assert isinstance(caught.value, RuntimeError)
            assert caught.value.detail["node_id"] == "Inst-0"
            assert await relay.who() == "first"
            assert [each["epoch"] for each in await client.list_relay_ids()] == [first.epoch]
            states = Heard()
            client.on_state(states)
            assert {each[1]["who"] for each in await states.count(3)} == {"first"}
        await heard.one(lambda each: each["change"] == "left")
        assert [told(each) for each in heard.items] == [
            ("Inst-0", "joined", ""),
            ("Inst-0", "left", "goodbye"),
        ]


async def test_two_newcomers_with_one_id_one_of_them_wins(places: Places) -> None:
    async with places.broker(), places.client() as client:
        relays = [places.relay("Inst-0") for _ in range(4)]
        serving = [asyncio.create_task(each.run()) for each in relays]
        left = set(serving)
        while len(left) > 1:
            done, left = await asyncio.wait(
                left, timeout=LIMIT_S, return_when=asyncio.FIRST_COMPLETED
            )
            assert {type(each.exception()) for each in done} == {Conflict}
        [winner] = left
        [line] = await client.list_relay_ids()
        assert line["epoch"] == relays[serving.index(winner)].epoch
        winner.cancel()
        with pytest.raises(asyncio.CancelledError):
            await winner


async def test_the_id_of_a_dead_node_is_taken_over_at_once(places: Places) -> None:
    """Long before its ttl: it is asked whether it lives, at its address, and nobody answers."""
    async with places.broker(), places.client() as client, asking(places.rpc) as link:
        heard = Heard()
        client.on_presence(heard)
        endpoint = f"tcp://127.0.0.1:{free_ports(1)[0]}"
        ghost = Ghost(link, records.relay("Inst-0", epoch="dead", endpoint=endpoint))
        await ghost.hello()
        began = time.monotonic()
        async with places.relay("Inst-0") as relay:
            await relay.ready
            took_s = time.monotonic() - began
            await heard.count(3)
            assert [(*told(each), each["epoch"]) for each in heard.items] == [
                ("Inst-0", "joined", "", "dead"),
                ("Inst-0", "left", "replaced", "dead"),
                ("Inst-0", "joined", "", relay.epoch),
            ]
            with pytest.raises(NotFound, match="say hello first"):
                await ghost.beat()
        print(f"taken over after {took_s:.2f} s")
        assert took_s <= 1.0 + SLACK_S


# ── addresses ───────────────────────────────────────────────────────────────────────────────────


def has_ipv6() -> bool:
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            return True
    except OSError:
        return False


ipv6 = pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6 loopback")


@pytest.mark.parametrize(
    "bind",
    [
        "tcp://127.0.0.1:*",
        "tcp://127.0.0.1:0",
        "tcp://*:*",
        "tcp://localhost:*",
        pytest.param("tcp://[::1]:*", marks=ipv6),
    ],
)
async def test_all_four_nodes_at_every_form_of_address(bind: str, tmp_path: Path) -> None:
    """A port ``*`` or ``0`` is any free one; it is what is advertised."""
    host = "127.0.0.1" if "*:" in bind else bind.removeprefix("tcp://").rpartition(":")[0]
    async with DirectoryBroker(bind, bind, bind) as broker:
        rpc, xsub, xpub = (
            f"tcp://{host}:{each.port}" for each in (broker.rpc, broker.xsub, broker.xpub)
        )
        relay = RelayAgent(
            "Inst-0", ScriptedInstrument(poll={"voltage": 2.5}), rpc, bind, xsub, state_interval=0.1
        )
        bank = DataBank(
            ingest_bind=bind,
            retrieve_bind=bind,
            data_dir=tmp_path / "bank",
            broker_rpc=rpc,
            broker_xsub=xsub,
        )
        async with relay, bank, DirectorClientAgent(broker_rpc=rpc, broker_xpub=xpub) as client:
            await relay.ready
            await bank.ready
            [line] = await client.list_relay_ids()
            assert line["rpc_endpoint"] == f"tcp://{host}:{relay.rpc.port}"
            assert relay.rpc.port > 0
            [line] = await client.list_banks()
            assert line["ingest"] == f"tcp://{host}:{bank.ingest.port}"
            assert line["retrieve"] == f"tcp://{host}:{bank.retrieve.port}"
            assert await (await client.get_relay_agent("Inst-0")).poll() == {"voltage": 2.5}
            states = Heard()
            client.on_state(states)
            await states.count(1)
            dataset_id = await relay.upload(b"content")
            assert await (await client.get_databank_agent()).read(dataset_id) == b"content"


@pytest.mark.parametrize("broker_address", ["127.0.0.1", "localhost"])
async def test_broker_in_an_address_is_replaced(broker_address: str, tmp_path: Path) -> None:
    async with DirectoryBroker(ANYWHERE, ANYWHERE, ANYWHERE) as broker:
        rpc, xsub, xpub = (
            f"tcp://BROKER:{each.port}" for each in (broker.rpc, broker.xsub, broker.xpub)
        )
        relay = RelayAgent(
            "Inst-0",
            ScriptedInstrument(),
            broker_rpc=rpc,
            state_pub=xsub,
            broker_address=broker_address,
        )
        bank = DataBank(
            ingest_bind=ANYWHERE,
            retrieve_bind=ANYWHERE,
            data_dir=tmp_path / "bank",
            broker_rpc=rpc,
            broker_xsub=xsub,
            broker_address=broker_address,
        )
        async with (
            relay,
            bank,
            DirectorClientAgent(broker_address, broker_rpc=rpc, broker_xpub=xpub) as client,
        ):
            await relay.ready
            await bank.ready
            assert await listed(client) == ["bank-0", "Inst-0"]


async def test_the_client_learns_the_event_port_from_the_broker() -> None:
    async with LocalMesh({"Inst-0": ScriptedInstrument(poll={"voltage": 2.5})}, banks=0) as mesh:
        client = DirectorClientAgent(broker_rpc=mesh.address)
        async with client:
            states = Heard()
            client.on_state(states)
            await states.count(1)


async def test_bound_everywhere_local_address_is_advertised(places: Places) -> None:
    async with places.broker(), places.client() as client:
        relay = places.relay(rpc_bind="tcp://*:*", local_address="localhost")
        async with relay:
            await relay.ready
            [line] = await client.list_relay_ids()
            assert line["rpc_endpoint"] == f"tcp://localhost:{relay.rpc.port}"
            assert await (await client.get_relay_agent("Inst-0")).poll() == {"voltage": 2.5}


def own_address() -> str | None:
    """An address of this machine that is not a loopback one."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("198.51.100.1", 9))
        except OSError:
            return None
        address: str = probe.getsockname()[0]
    return None if address.startswith("127.") else address


async def test_a_loopback_address_is_not_advertised_to_a_broker_elsewhere(
    places: Places, caplog: pytest.LogCaptureFixture
) -> None:
    """But that of the interface that reaches the broker; and the log says so."""
    address = own_address()
    if address is None:
        pytest.skip("this machine has no address but loopback")
    caplog.set_level(logging.INFO, "labmesh")
    relay = places.relay(
        broker_rpc=f"tcp://BROKER:{places.ports[0]}",
        rpc_bind="tcp://*:*",
        broker_address=address,
    )
    async with relay:
        assert relay.endpoints == {"rpc": f"tcp://{address}:{relay.rpc.port}"}
    assert f"advertises {address}" in caplog.text
    own = places.relay(
        broker_rpc=f"tcp://BROKER:{places.ports[0]}",
        rpc_bind="tcp://*:*",
        broker_address=address,
        local_address="192.0.2.77",
    )
    async with own:
        assert own.endpoints == {"rpc": f"tcp://192.0.2.77:{own.rpc.port}"}


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"rpc_bind": "127.0.0.1:5850"}, "tcp://"),
        ({"rpc_bind": "tcp://127.0.0.1"}, "port is missing"),
        ({"broker_rpc": "tcp://BROKER:*"}, "definite"),
        ({"broker_rpc": "tcp://BROKER:5750", "broker_address": ""}, "broker_address"),
        ({"relay_id": "../x"}, "relay id"),
        ({"heartbeat_seconds": 0}, "heartbeat"),
        ({"state_interval": 0}, "state_interval"),
    ],
)
def test_what_cannot_be_used_is_refused_by_the_constructor(
    options: dict[str, Any], what: str
) -> None:
    with pytest.raises(ValueError, match=what):
        RelayAgent(**{"relay_id": "Inst-0", "driver": ScriptedInstrument(), **options})
