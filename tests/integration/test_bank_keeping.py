"""A bank's uploads that go on, its trash and rules, its scrub, quota and provenance."""

from __future__ import annotations

import asyncio
import json
import random
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest
import zmq
from msgspec.structs import replace
from tests.support.banks import asking, bank_of, object_of, sha256_of
from tests.support.peers import until
from tests.support.places import Places

from labmesh import DataBank
from labmesh.errors import Busy, Conflict, Damaged, NoSpace, StorageError
from labmesh.keeping.bank_upkeep import SoundClock
from labmesh.protocol.messages import (
    ChunkStored,
    Committed,
    DatasetId,
    DeleteDataset,
    Done,
    GetDataset,
    GetStatus,
    ListTrash,
    RestoreDataset,
    Status,
    TrashPage,
    UploadAbort,
    UploadChunk,
    UploadCommit,
    UploadGranted,
    UploadStart,
    Verified,
    VerifyDataset,
)
from labmesh.protocol.retention import Rule
from labmesh.protocol.upload import UploadLimits
from labmesh.protocol.upload_records import record_of
from labmesh.storage.filesystem import open_folder
from labmesh.storage.memory import MemoryBlobStore, MemoryCatalog
from labmesh.transport.link import Link

LIMIT_S = 10.0
SCAN = random.Random(7).randbytes(3_000_001)
MUCH = random.Random(8).randbytes(24_000_000)


def flipped(path: Path) -> None:
    """Change one bit of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.chmod(0o644)
    path.write_bytes(content)


KEY: dict[str, Any] = {"id": "-", "dataset_id": "scan", "session": "0123456789abcdef"}


async def sent(link: Link, offset: int, content: bytes) -> ChunkStored:
    """One chunk."""
    return await link.request(
        UploadChunk(**KEY, offset=offset), ChunkStored, timeout=LIMIT_S, body=content
    )


async def committed(link: Link, content: bytes) -> Committed:
    request = UploadCommit(**KEY, size=len(content), sha256=sha256_of(content))
    return await link.request(request, Committed, timeout=LIMIT_S)


async def test_an_upload_goes_on_behind_a_stop_of_its_bank_for_the_bearer_of_its_token(
    places: Places,
) -> None:
    start = UploadStart(**KEY, size=20, name="sweep", meta={"n": 1}, provenance={"user": "ana"})
    async with places.broker(), places.bank() as bank:
        async with asking(str(bank.ingest)) as link:
            await link.request(start, UploadGranted, timeout=LIMIT_S)
            assert (await sent(link, 0, b"0123456789")).offset == 10
        await bank.stop()
        await bank.start()
        async with asking(str(bank.ingest)) as link:
            with pytest.raises(Conflict, match="another sender"):
                await link.request(
                    replace(start, session="another-token"), UploadGranted, timeout=LIMIT_S
                )
            granted = await link.request(start, UploadGranted, timeout=LIMIT_S)
            assert granted.offset == 10
            await sent(link, 10, b"abcdefghij")
            record = (await committed(link, b"0123456789abcdefghij")).record
        assert (record.name, record.meta) == ("sweep", {"n": 1})
        async with asking(str(bank.retrieve)) as link:
            full = await link.request(
                GetDataset(id="-", dataset_id=DatasetId("scan"), full=True),
                Committed,
                timeout=LIMIT_S,
            )
        assert full.record.provenance["user"] == "ana"
        assert full.record.provenance["bank"] == "bank-0"
        assert full.record.provenance["committed"] >= full.record.provenance["started"]


async def test_an_upload_whose_bank_was_killed_before_its_record_can_be_ended(
    places: Places,
) -> None:
    content = random.Random(9).randbytes(2_000_000)
    start = UploadStart(**KEY, name="stream", meta={"n": 1})
    later = UploadStart(**{**KEY, "dataset_id": DatasetId("known")}, name="known")
    # What a bank does until it is killed between the object and its record; and just behind it.
    blobs, catalog = open_folder(places.folder / "bank-0")
    for each in (start, later):
        part = blobs.begin(None, msgspec.msgpack.encode(each))
        part.write(0, content)
        part.sync()
        part.finish(len(content), sha256_of(content))
    catalog.add(record_of(later, len(content), sha256_of(content), 1.0, "bank-0"))
    catalog.close()
    blobs.close()

    async with places.broker(), places.bank() as bank:
        assert [path.suffix for path in (places.folder / "bank-0" / "parts").iterdir()] == [".json"]
        async with asking(str(bank.ingest)) as link:
            granted = await link.request(start, UploadGranted, timeout=LIMIT_S)
            assert granted.offset == len(content)
            record = (await committed(link, content)).record
            assert (record.name, record.meta, record.size) == ("stream", {"n": 1}, len(content))
        assert list((places.folder / "bank-0" / "parts").iterdir()) == []
        async with asking(str(bank.retrieve)) as link:
            verify = VerifyDataset(id="-", dataset_id=DatasetId("scan"))
            assert not (await link.request(verify, Verified, timeout=LIMIT_S)).damage


async def test_bytes_of_a_stream_are_durable_soon_and_it_is_told(places: Places) -> None:
    async with places.broker(), places.bank() as bank, asking(str(bank.ingest)) as link:
        await link.request(UploadStart(**KEY), UploadGranted, timeout=LIMIT_S)
        piece = bytes(2**20)
        stored = [await sent(link, number * 2**20, piece) for number in range(40)]
        assert all(each.offset - each.durable <= 16 * 2**20 for each in stored)
        assert stored[-1].durable > 0
        await link.request(UploadAbort(**KEY), Done, timeout=LIMIT_S)
        assert list((places.folder / "bank-0" / "parts").iterdir()) == []


async def test_twenty_senders_of_one_small_dataset_agree(places: Places) -> None:
    async with bank_of(places) as (_, proxy):
        contents = [b"%d" % (number % 4) for number in range(20)]
        results = await asyncio.gather(
            *(proxy.upload(each, dataset_id="scan") for each in contents), return_exceptions=True
        )
        stored = await proxy.read("scan")
        for content, result in zip(contents, results, strict=True):
            if content == stored:
                assert not isinstance(result, BaseException), result
            else:
                assert isinstance(result, Conflict)


async def test_uploaders_that_vanish_leave_nothing_behind(places: Places) -> None:
    limits = UploadLimits(max_sessions=4, quiet_s=0.05, max_quiet=2, idle_s=0.3)
    async with places.broker(), places.bank(limits=limits) as bank:
        for number in range(60):
            async with asking(str(bank.ingest)) as link:
                key = {**KEY, "dataset_id": f"scan-{number}"}
                while True:
                    try:
                        await link.request(UploadStart(**key), UploadGranted, timeout=LIMIT_S)
                    except Busy:
                        continue
                    break
                chunk = UploadChunk(**key, offset=0)
                await link.request(chunk, ChunkStored, timeout=LIMIT_S, body=b"content")
        async with asyncio.timeout(LIMIT_S), asking(str(bank.ingest)) as link:
            while True:
                status = await link.request(GetStatus(id="-"), Status, timeout=LIMIT_S)
                if not status.facts["uploads_open"]:
                    break
        parts = places.folder / "bank-0" / "parts"
        await until(lambda: not list(parts.iterdir()), LIMIT_S, "parts are left")


async def test_answers_wait_for_a_peer_that_reads_late(places: Places) -> None:
    async with bank_of(places) as (bank, proxy):
        await proxy.upload(MUCH, dataset_id="scan")
        with zmq.Context() as context, context.socket(zmq.DEALER) as dealer:
            dealer.linger = 0
            dealer.rcvhwm = 1
            dealer.connect(str(bank.retrieve))
            for number in range(16):
                fetch = {"type": "fetch", "id": f"{number}", "dataset_id": "scan", "size": 2**20}
                dealer.send(json.dumps({**fetch, "offset": number * 2**20}).encode())
            # Somebody else is served meanwhile.
            assert await proxy.read("scan") == MUCH
            pieces = {}
            for _ in range(16):
                header, body = await asyncio.to_thread(dealer.recv_multipart)
                pieces[json.loads(header)["offset"]] = body
        assert b"".join(pieces[each] for each in sorted(pieces)) == MUCH[: 16 * 2**20]


async def test_a_clock_that_is_set_forward_deletes_nothing_until_it_has_kept_its_time(
    places: Places, caplog: pytest.LogCaptureFixture
) -> None:
    day, hour = 86_400.0, 3600.0
    wall, monotonic = time.time(), 0.0
    async with bank_of(places) as (bank, proxy):
        await proxy.upload(SCAN, dataset_id="deleted")
        await proxy.upload(MUCH, dataset_id="old")
        await proxy.delete("deleted")
        upkeep = bank._upkeep
        upkeep._rules = (Rule(name="*", keep_s=60 * day),)
        upkeep._clock = SoundClock(lambda: wall, lambda: monotonic)

        async def there_after(passed_s: float, set_by_s: float) -> tuple[int, int]:
            nonlocal wall, monotonic
            wall, monotonic = wall + passed_s + set_by_s, monotonic + passed_s
            await upkeep.tidy_once()
            return len(await proxy.list()), len(await proxy.trash())

        assert await there_after(0, 0) == (1, 1)
        assert await there_after(hour, 0) == (1, 1)
        # Set to another year, and back before the next round but one.
        assert await there_after(hour, 365 * day) == (1, 1)
        assert "the clock was set by +31536000 s" in caplog.text
        assert await there_after(hour, -365 * day) == (1, 1)
        assert await there_after(hour, 0) == (1, 1)
        # Who leaves it so means it.
        assert await there_after(hour, 70 * day) == (1, 1)
        assert await there_after(hour, 0) == (0, 1)
        assert await there_after(31 * day, 0) == (0, 0)


async def test_what_is_deleted_can_be_restored_until_its_time_is_over(places: Places) -> None:
    rules = [Rule(name="old", keep_last=1)]
    async with bank_of(places, retention=rules, trash_days=0) as (bank, proxy):
        for number in range(3):
            await proxy.upload(b"%d" % number, dataset_id=f"scan-{number}", name="old")
        kept = await proxy.upload(SCAN, dataset_id="kept")
        upkeep = bank._upkeep
        upkeep._times.orphan_s = 0.0
        # Its clock is not to be believed yet.
        await upkeep.tidy_once()
        assert len(await proxy.list()) == 4
        upkeep._times.settle_s = 0.0
        await upkeep.tidy_once()
        assert [each.dataset_id for each in await proxy.list()] == ["scan-2", "kept"]
        assert object_of(places, b"0") is None
        assert object_of(places, b"2") is not None
        async with asking(str(bank.retrieve)) as link:
            delete = DeleteDataset(id="-", dataset_id=DatasetId("kept"), who="ana", why="test")
            await link.request(delete, Done, timeout=LIMIT_S)
            with pytest.raises(LookupError):
                await proxy.show("kept")
            page = await link.request(ListTrash(id="-"), TrashPage, timeout=LIMIT_S)
            [entry] = page.entries
            assert (entry.record.dataset_id, entry.who, entry.why) == ("kept", "ana", "test")
            restore = RestoreDataset(id="-", dataset_id=DatasetId("kept"))
            assert (await link.request(restore, Committed, timeout=LIMIT_S)).record == kept
        assert await proxy.read("kept") == SCAN


async def test_damage_is_found_by_a_scrub_and_by_verify_and_mended_by_an_upload(
    places: Places,
) -> None:
    async with bank_of(places) as (bank, proxy):
        record = await proxy.upload(SCAN, dataset_id="scan")
        verify = VerifyDataset(id="-", dataset_id=DatasetId("scan"))
        async with asking(str(bank.retrieve)) as link:
            assert (await link.request(verify, Verified, timeout=LIMIT_S)).damage == ""
            stored = object_of(places, SCAN)
            assert stored is not None
            flipped(stored)
            await bank._upkeep._scrub_one(record)
            assert (await proxy.status()).facts["damaged"] == 1
            assert (await link.request(verify, Verified, timeout=LIMIT_S)).damage
        with pytest.raises(Damaged):
            await proxy.read("scan")
        await proxy.upload(SCAN, dataset_id="copy")
        assert await proxy.read("scan") == SCAN
        assert (await proxy.status()).facts["damaged"] == 0


async def test_what_is_gone_is_taken_again_under_its_own_id(places: Places) -> None:
    async with bank_of(places) as (_, proxy):
        for content, dataset_id in ((SCAN, "small"), (MUCH, "large")):
            record = await proxy.upload(content, dataset_id=dataset_id)
            for harm in (flipped, Path.unlink):
                stored = object_of(places, content)
                assert stored is not None
                harm(stored)
                with pytest.raises(StorageError):
                    await proxy.read(dataset_id)
                again = await proxy.upload(content, dataset_id=dataset_id)
                assert (again.sequence, again.created) == (record.sequence, record.created)
                assert await proxy.read(dataset_id) == content
            with pytest.raises(Conflict):
                await proxy.upload(b"something else", dataset_id=dataset_id)
            assert await proxy.read(dataset_id) == content


async def test_a_quota_refuses_before_the_first_byte(places: Places) -> None:
    async with bank_of(places, quota_bytes=4_000_000) as (_, proxy):
        await proxy.upload(SCAN, dataset_id="scan")
        for content in (SCAN[1:], iter([SCAN[1:]])):
            with pytest.raises(NoSpace, match=r"room|quota"):
                await proxy.upload(content, dataset_id="more")
        assert (await proxy.upload(b"small")).size == 5


async def test_a_bank_whose_disk_refuses_is_read_only_until_it_works_again(
    places: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("labmesh.keeping.bank_upkeep._PROBE_S", 0.05)
    monkeypatch.setattr("labmesh.keeping.bank_upkeep._LOOK_S", 0.05)
    store = MemoryBlobStore()
    async with bank_of(places, store=store, catalog=MemoryCatalog()) as (bank, proxy):
        await proxy.upload(SCAN, dataset_id="scan")
        store.break_medium("the disk is gone")
        for content in (b"small", SCAN[1:]):
            with pytest.raises(StorageError, match="the disk is gone"):
                await proxy.upload(content, dataset_id="more")
        assert (await proxy.status()).facts["read_only"] == "the disk is gone"
        assert await proxy.read("scan") == SCAN
        async with asking(str(bank.retrieve)) as link:
            delete = DeleteDataset(id="-", dataset_id=DatasetId("scan"))
            with pytest.raises(StorageError, match="changes nothing"):
                await link.request(delete, Done, timeout=LIMIT_S)
        store.mend_medium()
        await until(lambda: not store.refusal(), LIMIT_S, "the store stays read-only")
        assert (await proxy.upload(SCAN[1:])).size == len(SCAN) - 1


async def test_the_last_states_of_the_mesh_are_in_the_provenance(places: Places) -> None:
    async with bank_of(places) as (bank, proxy), places.relay() as relay:
        await relay.ready
        await relay.upload(SCAN, dataset_id="scan")
        request = GetDataset(id="-", dataset_id=DatasetId("scan"), full=True)
        async with asking(str(bank.retrieve)) as link:
            full = await link.request(request, Committed, timeout=LIMIT_S)
        known = full.record.provenance
        assert known["states_at_commit"]["Inst-0"]["value"] == {"voltage": 2.5}
        assert (await proxy.show("scan")).provenance == {}


async def test_two_banks_never_share_a_folder(places: Places) -> None:
    async with places.bank("bank-0"):
        other = places.bank("bank-1", data_dir=places.folder / "bank-0")
        with pytest.raises(StorageError, match="in use by another bank"):
            await other.start()


@pytest.mark.parametrize(
    "wrong", [{"quota_bytes": -1}, {"trash_days": -1}, {"scrub_days": -1}, {"upload_idle_hours": 0}]
)
def test_numbers_that_a_bank_cannot_use_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        DataBank(**wrong)
