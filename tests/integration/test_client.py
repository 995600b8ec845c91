"""The client: what it finds, for whom it waits, and from where it can be used."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from tests.support import records
from tests.support.places import ANYWHERE, Places
from tests.support.processes import free_ports
from tests.support.promptness import SLACK_S

import labmesh
from labmesh import BankClient, DataBank, DirectorClientAgent, RelayAgent, RelayClient
from labmesh.errors import LinkLost, NotFound, NotSent
from labmesh.protocol.messages import Hello, Welcome
from labmesh.testing import LocalMesh, ScriptedInstrument
from labmesh.transport.keys import Security
from labmesh.transport.link import Link
from labmesh.transport.sockets import Sockets

LIMIT_S = 10.0


@pytest.fixture
def places(tmp_path: Path) -> Places:
    return Places(tmp_path)


class PSU:
    """A power supply."""

    def __init__(self) -> None:
        self.voltage = 0.0

    def set_voltage(self, value: float) -> dict[str, Any]:
        self.voltage = float(value)
        return {"ok": True, "voltage": self.voltage}

    def ends(self) -> list[float]:
        return [-self.voltage, self.voltage]

    def square(self, value: int) -> int:
        return value * value


class PSUClient(RelayClient):
    """What a user writes: their own names and types."""

    async def set_voltage(self, *, value: float) -> dict[str, Any]:
        result: dict[str, Any] = await super().call("set_voltage", {"value": value})
        return result

    async def double(self, value: float) -> float:
        return (await self.set_voltage(value=2 * value))["voltage"]


# ── finding ─────────────────────────────────────────────────────────────────────────────────────


async def test_lists_are_dicts_that_tell_where_who_and_what() -> None:
    async with LocalMesh({"Inst-1": PSU(), "Inst-0": PSU()}, banks=2) as mesh:
        client = await mesh.client()
        relays = await client.list_relay_ids()
        assert [each["relay_id"] for each in relays] == ["Inst-0", "Inst-1"]
        assert relays[0]["rpc_endpoint"] == str(mesh.relays["Inst-0"].rpc)
        banks = await client.list_banks()
        assert [each["bank_id"] for each in banks] == ["bank-0", "bank-1"]
        assert banks[1]["ingest"] == str(mesh.banks["bank-1"].ingest)
        assert banks[1]["retrieve"] == str(mesh.banks["bank-1"].retrieve)
        for each in (*relays, *banks):
            assert each["state"] == "live"
            assert each["host"] == socket.gethostname()
            assert each["pid"] == os.getpid()
        assert relays[0]["title"] == "PSU"
        assert isinstance(relays, list)
        assert all(type(each) is dict for each in (*relays, *banks))


async def test_a_users_own_class_of_proxy() -> None:
    async with LocalMesh({"Inst-0": PSU()}, banks=0) as mesh:
        client = await mesh.client()
        psu = await client.get_relay_agent("Inst-0", PSUClient)
        assert type(psu) is PSUClient
        assert await psu.set_voltage(value=2.5) == {"ok": True, "voltage": 2.5}
        assert await psu.double(2.5) == 5.0
        low, high = await psu.ends()
        assert (low, high) == (-5.0, 5.0)
        plain = await client.get_relay_agent("Inst-0")
        assert type(plain) is RelayClient
        assert await plain.set_voltage(value=1) == {"ok": True, "voltage": 1.0}
        assert repr(psu) == "<PSUClient Inst-0>"
        with pytest.raises(AttributeError):
            _ = plain._voltage


async def test_the_first_bank_is_taken_when_none_is_named() -> None:
    async with LocalMesh(banks=2, in_memory=True) as mesh:
        client = await mesh.client()
        for bank in (await client.get_databank_agent(None), await client.get_databank_agent()):
            assert isinstance(bank, BankClient)
            assert bank.bank_id == "bank-0"
        assert (await client.get_databank_agent("bank-1")).bank_id == "bank-1"


async def test_a_relay_and_a_bank_that_come_late_are_waited_for(places: Places) -> None:
    async with places.broker(), places.client() as client:
        looking = [
            asyncio.create_task(client.get_relay_agent("Inst-0")),
            asyncio.create_task(client.get_databank_agent(None)),
            asyncio.create_task(client.get_databank_agent("bank-0", wait=LIMIT_S)),
        ]
        assert await client.list_relay_ids() == []
        async with places.relay() as relay, places.bank() as bank:
            await relay.ready
            await bank.ready
            began = time.monotonic()
            proxy, *_ = await asyncio.gather(*looking)
            assert time.monotonic() - began < SLACK_S
            assert await proxy.poll() == {"voltage": 2.5}


async def test_an_unknown_id_names_the_closest_and_says_that_the_broker_is_fine() -> None:
    drivers = {"Inst-0": PSU(), "Inst-1": PSU(), "thermo": PSU()}
    async with LocalMesh(drivers, banks=1, in_memory=True) as mesh:
        client = await mesh.client()
        began = time.monotonic()
        with pytest.raises(LookupError) as caught:
            await client.get_relay_agent("inst-0", wait=0.3)
        assert 0.3 <= time.monotonic() - began < 0.3 + SLACK_S
        text = str(caught.value)
        for named in ("'inst-0'", "Inst-0", "thermo", "broker is fine"):
            assert named in text
        assert isinstance(caught.value, RuntimeError)
        assert isinstance(caught.value, NotFound)
        for what in (
            client.get_relay_agent("bank-0", wait=0),
            client.get_databank_agent("Inst-0", wait=0),
            client.get_databank_agent("bank-1", wait=0),
        ):
            with pytest.raises(LookupError, match="broker is fine"):
                await what


async def test_without_any_bank_it_is_said_how_to_start_one(places: Places) -> None:
    async with places.broker(), places.client() as client:
        with pytest.raises(LookupError, match=r"broker is fine.*labmesh bank"):
            await client.get_databank_agent(None, wait=0.05)


async def test_silent_nodes_are_said_to_be_silent(places: Places) -> None:
    ghost = records.relay(
        "Inst-1", heartbeat_s=0.05, endpoint=f"tcp://127.0.0.1:{free_ports(1)[0]}"
    )
    async with places.broker(), places.client() as client:
        sockets = Sockets(Security("open"), "test")
        link = Link(sockets, places.rpc, where="the broker")
        try:
            await link.request(Hello(id="-", node=ghost), Welcome, timeout=LIMIT_S)
        finally:
            link.close()
            sockets.close_all()
        with pytest.raises(LookupError, match=r"Inst-1 \(silent\)"):
            await client.get_relay_agent("Inst-0", wait=0.3)


async def test_the_clients_own_directory_follows(places: Places) -> None:
    async with places.broker(), places.client() as client:
        assert client.known_nodes == []
        presence = asyncio.Queue[dict[str, Any]]()
        client.on_presence(presence.put_nowait)
        async with places.relay() as relay:
            assert (await presence.get())["change"] == "joined"
            assert [str(each.node_id) for each in client.known_nodes] == ["Inst-0"]
            assert client.known("Inst-0").epoch == relay.epoch  # type: ignore[union-attr]
            assert client.known("Inst-1") is None
            assert not client.health("Inst-0").up
            proxy = RelayClient(client, "Inst-0")
            assert await proxy.poll() == {"voltage": 2.5}
            assert client.health("Inst-0").up
            assert client.health("Inst-0").endpoint == str(relay.rpc)
            assert client.health().up
        assert (await presence.get())["change"] == "left"
        assert client.known_nodes == []


async def test_the_brokers_status(places: Places) -> None:
    async with (
        places.broker() as broker,
        places.relay() as relay,
        places.bank() as bank,
        places.client() as client,
    ):
        await relay.ready
        await bank.ready
        status = await client.broker_status()
        assert (status.kind, status.epoch) == ("broker", broker.epoch)
        assert (status.facts["relays"], status.facts["banks"]) == (1, 1)
        assert status.facts["security"] == "open"
        assert status.facts["xpub_port"] == broker.xpub.port


async def test_while_the_broker_is_away_questions_to_it_end_in_time(
    places: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("labmesh.client.REQUEST_S", 0.1)
    monkeypatch.setattr("labmesh.asking.links.REQUEST_S", 0.1)
    async with places.broker() as broker, places.client() as client:
        await broker.stop()
        for ask in (
            client.list_relay_ids,
            client.list_banks,
            client.broker_status,
            lambda: client.get_relay_agent("Inst-0"),
            lambda: client.get_databank_agent(None),
        ):
            began = time.monotonic()
            with pytest.raises(ConnectionError, match="broker") as caught:
                await ask()
            assert time.monotonic() - began < SLACK_S
            assert isinstance(caught.value, LinkLost)


async def test_states_cannot_be_followed_for_ever_without_a_broker(
    places: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("labmesh.events.in_step._BEGIN_S", 0.3)
    async with places.broker() as broker, places.client() as client:
        await broker.stop()
        with pytest.raises(ConnectionError, match=r"no states within 0\.3 s"):
            await client.follow_states()
        await broker.start()
        monkeypatch.undo()
        await client.follow_states()


# ── threads and tasks ───────────────────────────────────────────────────────────────────────────


async def test_one_client_serves_many_threads_and_tasks() -> None:
    """A proxy works in each thread's own loop as it does at home."""
    async with LocalMesh({"Inst-0": PSU()}, banks=1, in_memory=True) as mesh:
        client = await mesh.client()
        relay = await client.get_relay_agent("Inst-0")

        async def use(seed: int) -> None:
            own = await client.get_relay_agent("Inst-0", PSUClient)
            numbers = range(1000 * seed, 1000 * seed + 50)
            squares = await asyncio.gather(*(relay.call("square", each) for each in numbers))
            assert squares == [each * each for each in numbers]
            assert (await own.set_voltage(value=seed))["ok"]
            with pytest.raises(AttributeError):
                await relay.nonsense()
            assert [each["relay_id"] for each in await client.list_relay_ids()] == ["Inst-0"]
            bank = await client.get_databank_agent()
            record = await bank.upload(b"%d" % seed, dataset_id=f"of-{seed}")
            assert await bank.read(record.dataset_id) == b"%d" % seed

        with ThreadPoolExecutor(4) as threads:
            loop = asyncio.get_running_loop()
            elsewhere = [
                loop.run_in_executor(threads, lambda seed=seed: asyncio.run(use(seed)))
                for seed in range(1, 5)
            ]
            await asyncio.gather(use(5), use(6), *elsewhere)


async def test_a_call_of_another_thread_can_be_cancelled_there() -> None:
    released = threading.Event()
    driver = ScriptedInstrument(move=lambda: released.wait(LIMIT_S))
    async with LocalMesh({"Inst-0": driver}, banks=0) as mesh:
        client = await mesh.client()
        relay = await client.get_relay_agent("Inst-0")

        async def give_up() -> None:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.1):
                    await relay.move()

        blocking = asyncio.create_task(relay.move())
        await asyncio.to_thread(driver.calls.wait_for, 1)
        await asyncio.to_thread(lambda: asyncio.run(give_up()))
        while (await relay.status()).facts["queued"]:
            assert not blocking.done()
        released.set()
        await blocking
    assert len(driver.calls) == 1


def test_a_loop_that_goes_on_in_another_thread_is_still_the_home_of_its_client() -> None:
    """And a loop that runs in the thread in which the client connected is not."""
    home = asyncio.new_event_loop()

    async def start() -> tuple[LocalMesh, RelayClient]:
        mesh = await LocalMesh({"Inst-0": PSU()}, banks=0).__aenter__()
        return mesh, await (await mesh.client()).get_relay_agent("Inst-0")

    async def square(value: int) -> Any:
        return await relay.call("square", value)

    mesh, relay = home.run_until_complete(start())
    moved = threading.Thread(target=home.run_forever)
    moved.start()
    try:
        assert asyncio.run(asyncio.wait_for(square(2), LIMIT_S)) == 4
        assert asyncio.run_coroutine_threadsafe(square(3), home).result(LIMIT_S) == 9
        assert asyncio.run(asyncio.wait_for(square(4), LIMIT_S)) == 16
    finally:
        ended = mesh.__aexit__(None, None, None)
        asyncio.run_coroutine_threadsafe(ended, home).result(LIMIT_S)
        home.call_soon_threadsafe(home.stop)
        moved.join(LIMIT_S)
        home.close()


async def test_callbacks_are_subscribed_on_the_loop_that_connected() -> None:
    async with LocalMesh(banks=0) as mesh:
        client = await mesh.client()

        async def elsewhere() -> None:
            for subscribe in (client.on_state, client.on_dataset, client.on_presence):
                with pytest.raises(RuntimeError, match="call_soon_threadsafe"):
                    subscribe(print)

        await asyncio.to_thread(lambda: asyncio.run(elsewhere()))


def test_a_client_whose_loop_has_ended_says_so(places: Places) -> None:
    client = places.client()

    async def connect() -> None:
        async with places.broker(), client:
            pass

    async def use() -> None:
        with pytest.raises(NotSent, match="loop of this client has ended"):
            await client.list_relay_ids()

    asyncio.run(connect())
    asyncio.run(use())


# ── what existing programs rely on ──────────────────────────────────────────────────────────────


async def test_the_constructors_take_what_existing_programs_give(tmp_path: Path) -> None:
    async with labmesh.DirectoryBroker(ANYWHERE, ANYWHERE, ANYWHERE) as broker:
        relay = RelayAgent(
            "Inst-0",
            PSU(),
            broker_rpc=f"tcp://BROKER:{broker.rpc.port}",
            rpc_bind="tcp://*:*",
            state_pub=f"tcp://BROKER:{broker.xsub.port}",
            local_address="127.0.0.1",
            broker_address="127.0.0.1",
            state_interval=1.0,
        )
        bank = DataBank(
            ingest_bind="tcp://*:*",
            retrieve_bind="tcp://*:*",
            data_dir=str(tmp_path / "bank"),
            broker_rpc=f"tcp://BROKER:{broker.rpc.port}",
            broker_xsub=f"tcp://BROKER:{broker.xsub.port}",
            bank_id="bank-0",
            heartbeat_sec=5,
            broker_address="127.0.0.1",
            local_address="127.0.0.1",
        )
        client = DirectorClientAgent(
            broker_address="127.0.0.1",
            broker_rpc=f"tcp://BROKER:{broker.rpc.port}",
            broker_xpub=f"tcp://BROKER:{broker.xpub.port}",
            local_address="127.0.0.1",
        )
        async with relay, bank, client:
            psu = await client.get_relay_agent("Inst-0")
            assert await psu.set_voltage(value=2.5) == {"ok": True, "voltage": 2.5}
            assert (await client.get_databank_agent(None)).bank_id == "bank-0"


def test_the_version_is_one_that_existing_programs_accept() -> None:
    assert tuple(map(int, labmesh.__version__.split(".")[:2])) >= (0, 1)


@pytest.mark.parametrize("limit", [0, -1])
def test_a_call_limit_is_more_than_nothing(limit: float) -> None:
    with pytest.raises(ValueError, match="call_limit"):
        DirectorClientAgent(call_limit=limit)
