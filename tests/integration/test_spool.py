"""Datasets that wait at their relay until a bank has them."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.support.places import ANYWHERE, Places
from tests.support.processes import free_ports

import labmesh
from labmesh import DataBank, RelayAgent
from labmesh.asking.remote import RelayClient
from labmesh.blocking.status import InstrumentStatus
from labmesh.errors import ConfigError, Conflict, NoSpace, ProtocolError
from labmesh.protocol.messages import GetDataset
from labmesh.storage.memory import MemoryBlobStore, MemoryCatalog
from labmesh.transfer import UploadSettings, upload
from labmesh.transport.keys import Security
from labmesh.transport.sockets import Sockets

numpy = pytest.importorskip("numpy")

LIMIT_S = 10.0


class Camera:
    """A driver that hands its pictures over."""

    def __init__(self) -> None:
        self.threads: list[threading.Thread] = []
        self.upload: Any = None

    def poll(self) -> dict[str, float]:
        return {"exposure": 0.5}

    def picture(self, size: int, **details: Any) -> str:
        return labmesh.upload(b"p" * size, name="picture", **details)

    def film(self, pieces: int, broken: bool = False) -> str:
        return labmesh.upload(self._frames(pieces, broken), name="film", dataset_id="film")

    def in_a_thread_of_its_own(self) -> str:
        save, made = labmesh.uploader(), []
        thread = threading.Thread(target=lambda: made.append(save(b"own", name="own")))
        thread.start()
        thread.join()
        return made[0]

    def _frames(self, pieces: int, broken: bool) -> Iterator[bytes]:
        for number in range(pieces):
            self.threads.append(threading.current_thread())
            yield bytes([number]) * 1000
        if broken:
            raise ValueError("the shutter is stuck")


@pytest.fixture
def places(tmp_path: Path) -> Places:
    return Places(tmp_path)


@pytest.fixture
async def relay(places: Places) -> AsyncIterator[RelayAgent]:
    """A relay with a spool, and no bank."""
    async with places.broker(), spooling(places) as relay:
        await relay.ready
        yield relay


def spooling(places: Places, **options: Any) -> RelayAgent:
    folder = places.folder / "spool"
    return places.relay("Cam-0", Camera(), spool_dir=folder, upload_timeout=1.0, **options)


async def drained(relay: RelayAgent) -> None:
    async with asyncio.timeout(LIMIT_S):
        await relay.drain()


async def facts_of(relay: RelayAgent, places: Places) -> dict[str, Any]:
    async with places.client() as client:
        return dict((await RelayClient(client, "Cam-0").status()).facts["spool"])


async def test_acquisition_does_not_wait_for_a_bank(places: Places, relay: RelayAgent) -> None:
    array = numpy.arange(1000)
    first = await relay.upload(b"first", name="scan", meta={"T": 4.2}, tags=["keep"])
    second = await relay.upload(array, parents=[first])
    facts = await facts_of(relay, places)
    assert (facts["datasets"], facts["bytes"] > 8000, facts["refused"]) == (2, True, 0)
    async with places.client() as client:
        proxy = RelayClient(client, "Cam-0")
        status = InstrumentStatus.of("Cam-0", client.health("Cam-0"), await proxy.status(), None)
        assert "spool       2 datasets" in repr(status)
    async with places.bank() as bank:
        await bank.ready
        await drained(relay)
        async with places.client() as client:
            records = await (await client.get_databank_agent("bank-0")).list()
    assert [each.dataset_id for each in records] == [first, second]
    assert (records[0].name, records[0].meta, records[0].relay_id) == ("scan", {"T": 4.2}, "Cam-0")
    assert (records[1].kind, records[1].parents) == ("npy", [first])
    assert [each.name for each in (places.folder / "spool").iterdir()] == ["LOCK"]


async def test_a_relay_that_is_started_again_sends_what_the_former_one_kept(
    places: Places,
) -> None:
    async with places.broker():
        async with spooling(places) as relay:
            dataset_id = await relay.upload(b"kept")
        async with spooling(places) as relay, places.bank() as bank:
            await bank.ready
            await drained(relay)
            async with places.client() as client:
                proxy = await client.get_databank_agent("bank-0")
                assert await proxy.read(dataset_id) == b"kept"


async def test_two_relays_do_not_share_a_spool(places: Places, relay: RelayAgent) -> None:
    second = places.relay("Cam-1", Camera(), spool_dir=places.folder / "spool")
    with pytest.raises(ConfigError, match="in use by another relay"):
        await second.start()


async def test_what_conflicts_is_put_aside_and_holds_nothing_up(
    places: Places, relay: RelayAgent
) -> None:
    async with places.bank() as bank:
        await bank.ready
        await relay.upload(b"one", dataset_id="scan", wait=True)
        await relay.upload(b"one", dataset_id="scan", wait=True)
        with pytest.raises(Conflict, match="already stored"):
            await relay.upload(b"another", dataset_id="scan", wait=True)
        await relay.upload(b"next", wait=True)
        (folder,) = (places.folder / "spool" / "refused").iterdir()
        assert (folder / "data").read_bytes() == b"another"
        assert "already stored" in (folder / "reason.txt").read_text()
        assert (await facts_of(relay, places))["refused"] == 1


class Filling(MemoryBlobStore):
    """It says when it has refused for lack of room."""

    def __init__(self, capacity_bytes: int) -> None:
        super().__init__(capacity_bytes=capacity_bytes)
        self.refusals = 0
        self.refused_twice = threading.Event()

    def begin(self, *arguments: Any, **options: Any) -> Any:
        try:
            return super().begin(*arguments, **options)
        except NoSpace:
            self.refusals += 1
            if self.refusals == 2:
                self.refused_twice.set()
            raise


async def test_a_full_bank_is_waited_for(places: Places, relay: RelayAgent) -> None:
    store = Filling(capacity_bytes=1000)
    async with places.bank(store=store, catalog=MemoryCatalog()) as bank:
        await bank.ready
        await relay.upload(b"a" * 600, wait=True)
        dataset_id = await relay.upload(b"b" * 600)
        # Refused a second time: the first refusal has been told.
        assert await asyncio.to_thread(store.refused_twice.wait, LIMIT_S)
        facts = await facts_of(relay, places)
        assert (facts["datasets"], dataset_id in facts["error"]) == (1, True)
        for each in list(store.objects()):
            store.remove(each.sha256)
        await drained(relay)
        assert (await facts_of(relay, places))["error"] == ""


async def test_a_named_bank_is_waited_for_while_the_others_go_on(
    places: Places, relay: RelayAgent
) -> None:
    there = await relay.upload(b"there", bank="bank-1")
    async with places.bank() as here:
        await here.ready
        await relay.upload(b"anywhere", wait=True)
        facts = await facts_of(relay, places)
        assert (facts["datasets"], "no bank 'bank-1'" in facts["error"]) == (1, True)
        async with places.bank("bank-1") as bank:
            await bank.ready
            await drained(relay)
            async with places.client() as client:
                proxy = await client.get_databank_agent("bank-1")
                assert [each.dataset_id for each in await proxy.list()] == [there]


@pytest.mark.parametrize("spool", [True, False], ids=["spool", "straight"])
async def test_the_bank_with_most_room_is_taken(spool: bool, places: Places) -> None:
    banks = [
        places.bank(
            f"bank-{number}", store=MemoryBlobStore(capacity_bytes=room), catalog=MemoryCatalog()
        )
        for number, room in enumerate((10_000, 90_000, 50_000))
    ]
    folder = places.folder / "spool" if spool else None
    relay = places.relay("Cam-0", Camera(), spool_dir=folder)
    async with places.broker(), relay, banks[0], banks[1], banks[2]:
        for node in (relay, *banks):
            await node.ready
        dataset_id = await relay.upload(b"x" * 20_000, wait=True)
        async with places.client() as client:
            proxy = await client.get_databank_agent("bank-1")
            assert [each.dataset_id for each in await proxy.list()] == [dataset_id]


# ── from the driver ─────────────────────────────────────────────────────────────────────────────


async def test_a_driver_hands_its_datasets_over(places: Places, relay: RelayAgent) -> None:
    camera = relay.driver
    assert isinstance(camera, Camera)
    async with places.bank() as bank, places.client() as client:
        await bank.ready
        proxy = await client.get_relay_agent("Cam-0")
        async with proxy.lease(note="night shift"):
            picture = await proxy.picture(5000, meta={"lens": 50}, wait=True)
        await proxy.film(3)
        own = await proxy.in_a_thread_of_its_own()
        await drained(relay)
        assert {each.name for each in camera.threads} == {"labmesh-driver-Cam-0-0"}
        databank = await client.get_databank_agent("bank-0")
        assert await databank.read("film") == bytes(1000) + b"\1" * 1000 + b"\2" * 1000
        assert await databank.read(own) == b"own"
        request = GetDataset(id="-", dataset_id=picture, full=True)
        provenance = await provenance_of(bank, request.dataset_id)
    told = provenance["relay"]
    assert told["driver"].endswith("test_spool:Camera")
    assert (told["id"], told["state"]) == ("Cam-0", {"exposure": 0.5})
    assert provenance["lease"]["note"] == "night shift"
    assert provenance["call"]["method"] == "picture"
    assert {"user", "host", "program", "pid", "python", "labmesh"} <= provenance.keys()
    assert provenance["acquired"]["ended"] >= provenance["acquired"]["began"] > 1e9


async def provenance_of(bank: DataBank, dataset_id: str) -> dict[str, Any]:
    record = await asyncio.to_thread(bank._catalog.full, dataset_id)
    assert record is not None
    return record.provenance


async def test_an_acquisition_that_fails_is_kept_but_not_sent(
    places: Places, relay: RelayAgent
) -> None:
    async with places.client() as client:
        proxy = await client.get_relay_agent("Cam-0")
        with pytest.raises(ValueError, match="the shutter is stuck"):
            await proxy.film(3, broken=True)
    (folder,) = (places.folder / "spool" / "incomplete").iterdir()
    assert (folder / "data").stat().st_size == 3000
    assert "the shutter is stuck" in (folder / "reason.txt").read_text()
    facts = await facts_of(relay, places)
    assert (facts["datasets"], facts["incomplete"]) == (0, 1)


async def test_a_stream_of_the_loop_that_fails_is_kept_but_not_sent(
    places: Places, relay: RelayAgent
) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        yield b"some"
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken") as error:
        await relay.upload(pieces())
    assert "4 bytes" in error.value.__notes__[0]
    assert (await facts_of(relay, places))["incomplete"] == 1


async def test_what_cannot_be_taken_says_so(places: Places, relay: RelayAgent) -> None:
    with pytest.raises(ProtocolError):
        await relay.upload(b"x", meta={"array": b"bytes"})
    with pytest.raises(RuntimeError, match="await relay"):
        relay.upload_from_thread(b"x")
    with pytest.raises(RuntimeError, match="no relay runs this thread"):
        labmesh.upload(b"x")
    small = places.relay("Cam-1", Camera(), spool_dir=places.folder / "small", spool_limit=1000)
    async with small:
        with pytest.raises(NoSpace, match="raise spool_limit"):
            await small.upload(b"x" * 1001)


# ── resuming ────────────────────────────────────────────────────────────────────────────────────


async def test_a_later_process_goes_on_where_the_bank_stands(places: Places) -> None:
    """The session of the spool is what makes it the same upload."""
    content = bytes(range(256)) * 40_000
    source = places.folder / "source"
    source.write_bytes(content)
    port = free_ports(1)[0]
    async with places.bank(ingest_bind=f"tcp://127.0.0.1:{port}", retrieve_bind=ANYWHERE) as bank:
        reached: list[int] = []
        enough = asyncio.Event()

        def note(done: int, _size: int | None) -> None:
            reached.append(done)
            if done > 2_000_000:
                enough.set()

        async def send(progress: Any) -> str:
            sockets = Sockets(Security("open"), "test")
            try:
                record = await upload(
                    sockets,
                    str(bank.ingest),
                    source,
                    settings=UploadSettings(chunk_bytes=100_000),
                    dataset_id="scan",
                    session="0123456789abcdef",
                    progress=progress,
                )
            finally:
                sockets.close_all()
            return record.sha256

        first = asyncio.ensure_future(send(note))
        await enough.wait()
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        assert first.cancelled()
        later: list[int] = []
        await send(lambda done, _: later.append(done))
        assert later[0] > 1_000_000
        assert later[-1] == len(content)
