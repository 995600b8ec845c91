"""The doubles that ship: a whole mesh in one process, and the demonstration."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
from tests.support.peers import until

import labmesh
from labmesh import testing
from labmesh.errors import ConfigError, NotFound
from labmesh.instruments.simulated import PowerSupply
from labmesh.storage.base import BlobStore, Catalog
from labmesh.testing import (
    LocalMesh,
    MemoryBlobStore,
    MemoryCatalog,
    ScriptedInstrument,
    demo,
)
from labmesh.transport.keys import Security


def names_in(folder: str | Path) -> list[str] | None:
    """What is in a folder; None: there is no such folder."""
    path = Path(folder)
    return [each.name for each in path.iterdir()] if path.is_dir() else None


async def test_a_local_mesh_is_ready_when_it_is_entered() -> None:
    async with LocalMesh({"Inst-0": PowerSupply()}, banks=2) as local:
        client = await local.client()
        assert [each["relay_id"] for each in await client.list_relay_ids()] == ["Inst-0"]
        assert [each["bank_id"] for each in await client.list_banks()] == ["bank-0", "bank-1"]
        psu = await client.get_relay_agent("Inst-0")
        assert await psu.set_voltage(2.5) == 2.5
        assert set(local.relays) == {"Inst-0"}
        assert set(local.banks) == {"bank-0", "bank-1"}


async def test_its_banks_keep_datasets_in_a_folder_that_goes_with_it() -> None:
    async with LocalMesh() as local:
        client = await local.client()
        bank = await client.get_databank_agent()
        record = await bank.upload(b"data", name="x")
        assert await bank.read(record.dataset_id) == b"data"
        folder = (await bank.status()).facts["folder"]
        assert names_in(folder)
    assert names_in(folder) is None


async def test_it_can_be_entered_again() -> None:
    local = LocalMesh({"Inst-0": PowerSupply()})
    for _ in range(2):
        async with local:
            bank = await (await local.client()).get_databank_agent()
            assert await bank.list() == []
            await bank.upload(b"data")
            folder = (await bank.status()).facts["folder"]
        assert names_in(folder) is None


async def test_its_banks_keep_datasets_where_they_are_told_to(tmp_path: Path) -> None:
    for name in ("first", "second"):
        async with LocalMesh(data_dir=tmp_path) as local:
            bank = await (await local.client()).get_databank_agent()
            await bank.upload(b"data", dataset_id=name)
            known = [each.dataset_id for each in await bank.list()]
    assert known == ["first", "second"]
    assert names_in(tmp_path) == ["bank-0"]


async def test_its_banks_need_no_disk() -> None:
    async with LocalMesh(in_memory=True) as local:
        bank = await (await local.client()).get_databank_agent()
        record = await bank.upload(b"data")
        assert await bank.read(record.dataset_id) == b"data"
        assert (await bank.status()).facts["folder"] == "memory"


async def test_banks_come_and_go_and_keep_what_they_have() -> None:
    async with LocalMesh() as mesh:
        client = await mesh.client()
        bank = await client.get_databank_agent("bank-0")
        record = await bank.put("kept", tags="good")
        restarted = await mesh.restart_bank("bank-0")
        assert mesh.banks == {"bank-0": restarted}
        assert await bank.read(record.dataset_id) == "kept"
        assert (await bank.show(record.dataset_id)).tags == ["good"]
        await mesh.start_bank("bank-9")
        other = await client.get_databank_agent("bank-9")
        assert await other.list() == []


async def test_relays_come_and_go() -> None:
    async with LocalMesh(banks=0) as local:
        client = await local.client()
        counter = ScriptedInstrument(count=[1, 2, 3])
        relay = await local.start_relay("counter", counter, state_interval=5.0)
        proxy = await client.get_relay_agent("counter")
        assert await proxy.count() == 1
        again = await local.restart_relay("counter")
        assert (again.epoch != relay.epoch, again.driver is counter) == (True, True)
        assert await proxy.count() == 2
        other = ScriptedInstrument(count="another")
        await local.restart_relay("counter", other)
        assert await proxy.count() == "another"
        await local.relays["counter"].stop()
        with pytest.raises(NotFound):
            await client.get_relay_agent("counter", wait=0)


async def test_a_restarted_broker_has_the_addresses_of_the_old_one() -> None:
    async with LocalMesh({"Inst-0": PowerSupply()}, banks=0) as local:
        client = await local.client()
        before = (local.address, local.broker.epoch)
        await local.restart_broker()
        assert local.address == before[0]
        assert local.broker.epoch != before[1]
        # A question on its way when the link breaks is one that its sender has to ask again.
        await until(lambda: client._broker.epoch == local.broker.epoch)
        psu = await client.get_relay_agent("Inst-0")
        assert await psu.set_voltage(1) == 1.0


async def test_it_can_have_a_password() -> None:
    security = Security.resolve(environ={"LMH_NETWORK_PASSWORD": "correct horse"})
    async with LocalMesh({"Inst-0": PowerSupply()}, security=security) as local:
        client = await local.client()
        assert (await client.broker_status()).facts["security"] == "password"
        assert await (await client.get_relay_agent("Inst-0")).set_voltage(1) == 1.0


async def test_one_that_cannot_start_leaves_nothing_behind() -> None:
    with pytest.raises(ConfigError, match="is a class"):
        async with LocalMesh({"Inst-0": PowerSupply}):
            pytest.fail("it did start")


def test_the_demonstration_is_a_mesh_with_simulated_instruments() -> None:
    with labmesh.demo() as mesh:
        assert mesh.relays == ["Inst-0", "Scope-0", "Thermo-0"]
        assert mesh["Inst-0"].set_voltage(2.5) == 2.5
        state = mesh["Thermo-0"].state
        assert state is None or state["simulated"] is True
        trace = mesh["Scope-0"].acquire(points=10)
        np.testing.assert_array_equal(mesh.put(trace, "trace").read(), trace)
        known = mesh._session.client.known("bank-0")
        assert known is not None
        folder = Path(known.title)
        assert folder.is_dir()
    assert not folder.exists()


def test_a_demonstration_of_ones_own_instruments_ends_with_close() -> None:
    mesh = demo({"mine": ScriptedInstrument(answer=42)})
    assert mesh.relays == ["mine"]
    assert mesh["mine"].answer() == 42
    mesh.close()
    mesh.close()
    assert "labmesh" not in [each.name for each in threading.enumerate()]


def test_a_demonstration_that_cannot_start_leaves_nothing_behind() -> None:
    with pytest.raises(ConfigError, match="is a class"):
        demo({"mine": PowerSupply})
    assert "labmesh" not in [each.name for each in threading.enumerate()]


def test_everything_that_is_shipped_is_named() -> None:
    assert all(hasattr(testing, name) for name in testing.__all__)
    store: BlobStore = MemoryBlobStore()
    catalog: Catalog = MemoryCatalog()
    assert (store.free_bytes() > 0, catalog.count()) == (True, 0)
