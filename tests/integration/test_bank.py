"""Datasets: what is stored is what was sent, and what is fetched is what was stored."""

from __future__ import annotations

import asyncio
import io
import os
import random
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace
from tests.support import records
from tests.support.banks import asking, bank_of, object_of, sha256_of
from tests.support.hearing import Heard
from tests.support.places import Places
from tests.support.processes import free_ports
from tests.support.promptness import SLACK_S

from labmesh import DataBank
from labmesh.errors import (
    ChecksumMismatch,
    Conflict,
    LabmeshError,
    NoAnswer,
    NotFound,
    NotSent,
    ProtocolError,
    StorageError,
    TooLarge,
)
from labmesh.protocol.addresses import parse_bind
from labmesh.protocol.messages import (
    INGEST_REQUESTS,
    ChunkStored,
    Committed,
    DatasetId,
    GetDataset,
    Hello,
    UploadChunk,
    UploadCommit,
    UploadGranted,
    UploadStart,
    Welcome,
)
from labmesh.relay import upload_dataset
from labmesh.transfer import UploadSettings
from labmesh.transport.keys import Security
from labmesh.transport.service import Service
from labmesh.transport.sockets import Sockets

LIMIT_S = 10.0
SCAN = random.Random(7).randbytes(3_000_001)
#: So that a bank can be stopped and started at its addresses in the middle of a transfer.
MUCH = random.Random(8).randbytes(24_000_000)


# ── up ──────────────────────────────────────────────────────────────────────────────────────────


async def _pieces(content: bytes) -> AsyncIterator[bytes]:
    for offset in range(0, len(content), 700_000):
        await asyncio.sleep(0)
        yield content[offset : offset + 700_000]


def _generated(content: bytes) -> Iterator[bytes]:
    for offset in range(0, len(content), 700_000):
        yield content[offset : offset + 700_000]


def _file(content: bytes, path: Path) -> Path:
    path.write_bytes(content)
    return path


CONTENTS: dict[str, Callable[[bytes, Path], Any]] = {
    "bytes": lambda content, path: content,
    "bytearray": lambda content, path: bytearray(content),
    "memoryview": lambda content, path: memoryview(content),
    "path": lambda content, path: _file(content, path),
    "text path": lambda content, path: str(_file(content, path)),
    "file": lambda content, path: io.BytesIO(content),
    "iterator": lambda content, path: _generated(content),
    "list": lambda content, path: list(_generated(content)),
    "async iterator": lambda content, path: _pieces(content),
}


@pytest.mark.parametrize("content", [SCAN, b"", b"x"], ids=["3 MB", "empty", "1 byte"])
@pytest.mark.parametrize("kind", CONTENTS)
async def test_an_upload_returns_when_its_bytes_are_on_disk(
    kind: str, content: bytes, places: Places
) -> None:
    async with bank_of(places) as (bank, proxy):
        dataset_id = await upload_dataset(
            str(bank.ingest), CONTENTS[kind](content, places.folder / "scan"), relay_id="Inst-0"
        )
        stored = object_of(places, content)
        assert stored is not None
        assert stored.read_bytes() == content
        record = await proxy.show(dataset_id)
        assert (record.size, record.sha256) == (len(content), sha256_of(content))
        assert record.relay_id == "Inst-0"
        assert record.bank_id == "bank-0"
        assert await proxy.read(dataset_id) == content


async def test_an_open_file_is_uploaded_and_left_open(places: Places) -> None:
    path = _file(SCAN, places.folder / "scan")
    async with bank_of(places) as (bank, proxy):
        with path.open("rb") as file:
            dataset_id = await upload_dataset(str(bank.ingest), file)
            assert not file.closed
        assert await proxy.read(dataset_id) == SCAN


async def test_100_mb_are_streamed_in_bounded_memory(places: Places) -> None:
    piece = random.Random(9).randbytes(1_000_000)
    peak = 0

    def watch(_stored: int, _size: int | None) -> None:
        nonlocal peak
        peak = max(peak, resident_bytes())

    async with bank_of(places) as (bank, proxy):
        await upload_dataset(str(bank.ingest), piece)
        before = resident_bytes()
        dataset_id = await upload_dataset(
            str(bank.ingest), (piece for _ in range(100)), progress=watch
        )
        assert (await proxy.show(dataset_id)).size == 100_000_000
        grown = peak - before
        peak = 0
        dest = places.folder / "scan"
        await proxy.download(dataset_id, dest, progress=watch)
        grown_down = peak - before
    print(f"uploader and bank grew by {grown / 1e6:.1f} MB, downloading by {grown_down / 1e6:.1f}")
    assert dest.stat().st_size == 100_000_000
    assert grown < 60e6
    assert grown_down < 60e6


def resident_bytes() -> int:
    """Memory of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGESIZE")


if not Path("/proc/self/statm").exists():
    test_100_mb_are_streamed_in_bounded_memory = pytest.mark.skip("this system has no /proc")(
        test_100_mb_are_streamed_in_bounded_memory
    )


async def test_upload_chunk_is_how_much_is_sent_at_a_time(places: Places) -> None:
    steps: list[int] = []

    def note(stored: int, _size: int | None) -> None:
        steps.append(stored)

    async with bank_of(places) as (bank, _), places.relay(upload_chunk=100_000) as relay:
        await relay.ready
        content = bytes(1_000_000)
        await relay.upload(content, progress=note)
        assert steps == list(range(100_000, 1_000_001, 100_000))
        steps.clear()
        await upload_dataset(str(bank.ingest), content, chunk=250_000, progress=note)
        assert steps == [250_000, 500_000, 750_000, 1_000_000]


async def test_a_relay_finds_a_bank_through_the_broker(places: Places) -> None:
    async with places.broker(), places.relay() as relay, places.client() as client:
        await relay.ready
        with pytest.raises(LookupError, match="no bank"):
            await relay.upload(b"content")
        async with places.bank("bank-0") as first, places.bank("bank-1") as second:
            await first.ready
            await second.ready
            anywhere = await relay.upload(SCAN, name="scan", meta={"sample": "A1"})
            there = await relay.upload(SCAN, bank="bank-1", dataset_id="scan-42")
            assert there == "scan-42"
            # Both are on one disk: which of them has more room is up to whoever else writes to it.
            banks = [await client.get_databank_agent(each) for each in ("bank-0", "bank-1")]
            listed = [each for bank in banks for each in await bank.list()]
            (record,) = [each for each in listed if each.dataset_id == anywhere]
            assert (record.relay_id, record.name) == ("Inst-0", "scan")
            assert record.meta == {"sample": "A1"}
            assert (await (await client.get_databank_agent("bank-1")).show(there)).size == len(SCAN)
            with pytest.raises(LookupError, match="bank-1") as caught:
                await relay.upload(SCAN, bank="bank-2")
            assert isinstance(caught.value, NotFound)


async def test_the_same_again_is_harmless_and_other_content_is_a_conflict(places: Places) -> None:
    async with bank_of(places) as (bank, proxy):
        first = await proxy.upload(SCAN, dataset_id="scan", name="first")
        for kind in CONTENTS:
            content = CONTENTS[kind](SCAN, places.folder / "again")
            assert await proxy.upload(content, dataset_id="scan", name="again") == first
        for other in (SCAN[:-1], SCAN + b"?", SCAN[:-1] + b"?", b""):
            for content in (other, iter([other])):
                with pytest.raises(Conflict, match="scan is already stored"):
                    await proxy.upload(content, dataset_id="scan")
        copy = await proxy.upload(SCAN, dataset_id="copy")
        assert copy.sha256 == first.sha256
        assert [each.dataset_id for each in await proxy.list()] == ["scan", "copy"]
        assert await proxy.read("scan") == SCAN
        assert (await proxy.status()).facts["uploads_open"] == 0
        assert object_of(places, SCAN[:-1]) is None
        assert bank.ingest.port > 0


async def test_of_two_uploads_of_one_id_at_once_one_wins(places: Places) -> None:
    async with bank_of(places) as (_, proxy):
        contents = [bytes([number]) * 2_000_000 for number in range(4)]
        results = await asyncio.gather(
            *(proxy.upload(each, dataset_id="scan") for each in contents), return_exceptions=True
        )
        refused = [each for each in results if isinstance(each, BaseException)]
        assert [type(each) for each in refused] == [Conflict] * 3
        [won] = [index for index, each in enumerate(results) if each not in refused]
        assert await proxy.read("scan") == contents[won]


@pytest.mark.parametrize(
    ("size", "sha256"),
    [(9, sha256_of(b"0123456789")), (11, sha256_of(b"0123456789")), (10, sha256_of(b"other"))],
)
async def test_bytes_that_are_not_the_announced_ones_are_refused_and_not_kept(
    size: int, sha256: str, places: Places
) -> None:
    key: dict[str, Any] = {"id": "-", "dataset_id": "scan", "session": "0123456789abcdef"}
    async with bank_of(places) as (bank, proxy):
        async with asking(str(bank.ingest)) as link:
            await link.request(UploadStart(**key), UploadGranted, timeout=LIMIT_S)
            chunk = UploadChunk(**key, offset=0)
            await link.request(chunk, ChunkStored, timeout=LIMIT_S, body=b"0123456789")
            with pytest.raises((ChecksumMismatch, Conflict)):
                await link.request(
                    UploadCommit(**key, size=size, sha256=sha256), Committed, timeout=LIMIT_S
                )
        assert await proxy.list() == []
        with pytest.raises(LookupError):
            await proxy.read("scan")
        assert object_of(places, b"0123456789") is None


@pytest.mark.parametrize("dataset_id", ["../../evil", "/etc/passwd", "a/b", "..", ".", "", "a\0b"])
async def test_an_id_that_is_none_is_refused(dataset_id: str, places: Places) -> None:
    async with bank_of(places) as (bank, proxy):
        if dataset_id:
            with pytest.raises(ValueError, match="id"):
                await upload_dataset(str(bank.ingest), b"content", dataset_id=dataset_id)
        with pytest.raises(ValueError, match="id"):
            await proxy.show(dataset_id)
        with pytest.raises(ValueError, match="id"):
            await proxy.download(dataset_id, places.folder / "x")
        assert await proxy.list() == []


@pytest.mark.parametrize(
    ("content", "error"),
    [
        (lambda folder: folder / "missing", FileNotFoundError),
        (lambda folder: io.StringIO("text"), TypeError),
        (lambda folder: iter([b"ab", None]), TypeError),
        (lambda folder: 3, TypeError),
        (lambda folder: _failing(), ZeroDivisionError),
    ],
)
async def test_content_that_fails_leaves_nothing_at_the_bank(
    content: Callable[[Path], Any], error: type[Exception], places: Places
) -> None:
    async with bank_of(places) as (bank, proxy):
        with pytest.raises(error):
            await upload_dataset(str(bank.ingest), content(places.folder))
        assert (await proxy.status()).facts["uploads_open"] == 0
        assert await proxy.list() == []


def _failing() -> Iterator[bytes]:
    yield bytes(100)
    raise ZeroDivisionError("the instrument has no more")


async def test_a_cancelled_upload_is_forgotten_by_the_bank(places: Places) -> None:
    begun = asyncio.Event()

    async def endless() -> AsyncIterator[bytes]:
        yield bytes(100)
        begun.set()
        await asyncio.Event().wait()

    async with bank_of(places) as (bank, proxy):
        uploading = asyncio.create_task(upload_dataset(str(bank.ingest), endless()))
        await begun.wait()
        assert (await proxy.status()).facts["uploads_open"] == 1
        uploading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await uploading
        assert (await proxy.status()).facts["uploads_open"] == 0


async def test_meta_is_plain_values_and_as_large_as_is_told(places: Places) -> None:
    async with bank_of(places) as (_, proxy):
        heard = Heard()
        proxy._client.on_dataset(heard)  # type: ignore[attr-defined]
        meta = {"note": "x" * (256 * 2**10 - 20), "n": 1}
        record = await proxy.upload(b"content", meta=meta, dataset_id="large")
        assert record.meta == meta
        assert (await proxy.show("large")).meta == meta
        deep: dict[str, Any] = {"level": 32}
        for _ in range(31):
            deep = {"in": deep}
        assert (await proxy.upload(b"content", meta=deep, dataset_id="deep")).meta == deep
        assert (await proxy.show("deep")).meta == deep
        assert [each["dataset_id"] for each in await heard.count(2)] == ["large", "deep"]
        with pytest.raises(TooLarge, match="meta"):
            await proxy.upload(b"content", meta={"note": "x" * 300_000})
        with pytest.raises(ProtocolError, match=r"meta\['array'\]"):
            await proxy.upload(b"content", meta={"array": b"bytes"})
        assert (await proxy.status()).facts["uploads_open"] == 0


# ── when the bank is away ───────────────────────────────────────────────────────────────────────


async def test_without_a_bank_an_upload_gives_up_after_its_retries(places: Places) -> None:
    endpoint = f"tcp://127.0.0.1:{free_ports(1)[0]}"
    took_s = []
    for retries in (0, 2):
        began = time.monotonic()
        with pytest.raises(ConnectionError, match=f"{retries + 1} tries did not help") as caught:
            await upload_dataset(endpoint, SCAN, timeout=0.2, retries=retries)
        took_s.append(time.monotonic() - began)
        assert endpoint in str(caught.value)
    # Each try waits 0.2 s for a link; between them it pauses, 0.2 s and then 0.4 s.
    assert 0.2 <= took_s[0] < 0.2 + SLACK_S
    assert 1.2 <= took_s[1] < 1.2 + SLACK_S


async def test_a_relays_own_settings_say_how_patient_its_uploads_are(places: Places) -> None:
    dead = records.bank("bank-0", port=1)
    port = free_ports(1)[0]
    endpoints = {"ingest": f"tcp://127.0.0.1:{port}", "retrieve": f"tcp://127.0.0.1:{port}"}
    async with places.broker(), asking(places.rpc) as link:
        hello = Hello(id="-", node=replace(dead, endpoints=endpoints))
        await link.request(hello, Welcome, timeout=LIMIT_S)
        async with places.relay(upload_timeout=0.15, upload_retries=1) as relay:
            await relay.ready
            began = time.monotonic()
            with pytest.raises(ConnectionError, match="2 tries did not help"):
                await relay.upload(SCAN)
            assert 0.5 <= time.monotonic() - began < 0.5 + SLACK_S


async def test_a_bank_that_does_not_answer_is_given_up_after_the_timeout(places: Places) -> None:
    sockets = Sockets(Security("open"), "mute")
    mute = Service(
        sockets,
        parse_bind("tcp://127.0.0.1:*"),
        role="ingest",
        requests=INGEST_REQUESTS,
        node_id="bank-0",
        kind="bank",
        epoch="e1",
        handle=lambda *_: None,
    )
    try:
        began = time.monotonic()
        with pytest.raises(TimeoutError, match="2 tries did not help") as caught:
            await upload_dataset(str(mute.address), SCAN, timeout=1.0, retries=1)
        assert isinstance(caught.value, NoAnswer)
        assert 2.2 <= time.monotonic() - began < 2.2 + SLACK_S
    finally:
        await mute.close()
        sockets.close_all()


class Halfway:
    """Progress that tells when a quarter is through."""

    def __init__(self) -> None:
        self.reached = asyncio.Event()
        self.steps: list[int] = []

    def __call__(self, done: int, _size: int | None) -> None:
        self.steps.append(done)
        if done >= len(MUCH) // 4:
            self.reached.set()


def fixed_ports() -> dict[str, str]:
    """Addresses at which a bank can be found again after a restart."""
    ingest, retrieve = free_ports(2)
    return {
        "ingest_bind": f"tcp://127.0.0.1:{ingest}",
        "retrieve_bind": f"tcp://127.0.0.1:{retrieve}",
    }


@pytest.mark.parametrize("kind", ["bytes", "path", "iterator"])
async def test_an_upload_survives_a_restart_of_its_bank(kind: str, places: Places) -> None:
    async with bank_of(places, **fixed_ports()) as (bank, proxy):
        half = Halfway()
        content = CONTENTS[kind](MUCH, places.folder / "scan")
        uploading = asyncio.create_task(
            upload_dataset(str(bank.ingest), content, chunk=100_000, progress=half)
        )
        await half.reached.wait()
        assert not uploading.done()
        await bank.stop()
        await bank.start()
        dataset_id = await uploading
        await bank.ready
        assert await proxy.read(dataset_id) == MUCH
        assert half.steps[-1] == len(MUCH)


async def test_a_download_survives_a_restart_of_its_bank(places: Places) -> None:
    async with bank_of(places, **fixed_ports()) as (bank, proxy):
        record = await proxy.upload(MUCH)
        half = Halfway()
        dest = places.folder / "scan"
        downloading = asyncio.create_task(proxy.download(record.dataset_id, dest, progress=half))
        await half.reached.wait()
        assert not downloading.done()
        assert not dest.exists()
        await bank.stop()
        await bank.start()
        await downloading
        assert dest.read_bytes() == MUCH


async def test_what_was_stored_is_there_after_a_restart(places: Places) -> None:
    async with bank_of(places) as (bank, proxy):
        first = await proxy.upload(SCAN, dataset_id="first", meta={"sample": "A1"})
        await bank.stop()
        await bank.start()
        await bank.ready
        second = await proxy.upload(SCAN, dataset_id="second")
        assert await proxy.list() == [first, second]
        assert second.sequence > first.sequence


# ── down ────────────────────────────────────────────────────────────────────────────────────────


async def test_a_download_reports_size_sha256_path_and_the_rest(places: Places) -> None:
    async with bank_of(places) as (_, proxy):
        record = await proxy.upload(SCAN, name="scan", meta={"sample": "A1"})
        dest = places.folder / "scan.bin"
        dest.write_bytes(b"an older file")
        got = await proxy.download(record.dataset_id, str(dest))
        assert dest.read_bytes() == SCAN
        assert got["size"] == len(SCAN)
        assert got["sha256"] == sha256_of(SCAN)
        assert got["path"] == str(dest)
        assert got["dataset_id"] == record.dataset_id
        assert got["meta"] == {"sample": "A1"}
        folder = places.folder / "downloads"
        folder.mkdir()
        inside = await proxy.download(record.dataset_id, folder)
        assert Path(inside["path"]) == folder / record.dataset_id
        assert [each.name for each in folder.iterdir()] == [record.dataset_id]


async def test_an_empty_dataset_is_an_empty_file(places: Places) -> None:
    async with bank_of(places) as (_, proxy):
        record = await proxy.upload(b"")
        await proxy.download(record.dataset_id, places.folder / "empty")
        assert (places.folder / "empty").read_bytes() == b""
        assert await proxy.read(record.dataset_id) == b""


def flipped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    rewritten(path, bytes(content))


def truncated(path: Path) -> None:
    rewritten(path, path.read_bytes()[:-1])


def rewritten(path: Path, content: bytes) -> None:
    path.chmod(0o644)
    path.write_bytes(content)


def removed(path: Path) -> None:
    path.unlink()


@pytest.mark.parametrize("damage", [flipped, truncated, removed])
async def test_damaged_bytes_are_never_delivered(
    damage: Callable[[Path], None], places: Places
) -> None:
    async with bank_of(places) as (_, proxy):
        record = await proxy.upload(SCAN)
        other = await proxy.upload(b"intact")
        stored = object_of(places, SCAN)
        assert stored is not None
        damage(stored)
        dest = places.folder / "scan"
        with pytest.raises((StorageError, ChecksumMismatch)):
            await proxy.download(record.dataset_id, dest)
        with pytest.raises((StorageError, ChecksumMismatch)):
            await proxy.read(record.dataset_id)
        assert [each.name for each in places.folder.iterdir()] == ["bank-0"]
        assert await proxy.read(other.dataset_id) == b"intact"


async def test_a_download_into_a_folder_that_is_missing_says_so(places: Places) -> None:
    async with bank_of(places) as (_, proxy):
        record = await proxy.upload(SCAN)
        with pytest.raises(FileNotFoundError):
            await proxy.download(record.dataset_id, places.folder / "missing" / "scan")


async def test_a_cancelled_download_leaves_no_file(places: Places) -> None:
    async with bank_of(places) as (_, proxy):
        record = await proxy.upload(MUCH)
        half = Halfway()
        dest = places.folder / "scan"
        downloading = asyncio.create_task(proxy.download(record.dataset_id, dest, progress=half))
        await half.reached.wait()
        downloading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await downloading
        # A part that is worth it stays hidden, for the next attempt.
        assert [each.name for each in places.folder.glob("[!.]*")] == ["bank-0"]


async def test_a_download_that_is_cancelled_at_any_step_leaves_a_whole_file_or_none(
    places: Places,
) -> None:
    folder = places.folder / "downloads"
    folder.mkdir()
    async with bank_of(places) as (_, proxy):
        record = await proxy.upload(SCAN)
        for steps in range(1, 1000, 11):
            downloading = asyncio.create_task(proxy.download(record.dataset_id, folder))
            for _ in range(steps):
                await asyncio.sleep(0)
            if downloading.done():
                await downloading
                break
            downloading.cancel()
            with pytest.raises(asyncio.CancelledError):
                await downloading
            for each in folder.glob("[!.]*"):
                assert each.read_bytes() == SCAN
                each.unlink()
    # A file that was just being opened in a thread goes as soon as it is.
    await asyncio.get_running_loop().shutdown_default_executor()
    await asyncio.sleep(0)
    assert {each.name for each in folder.iterdir()} <= {record.dataset_id}


async def test_many_downloads_and_questions_at_once_are_all_answered(places: Places) -> None:
    """A bank takes a limited number of requests of one client; the others wait their turn."""
    async with bank_of(places) as (_, proxy):
        contents = {f"scan-{number}": bytes([number]) * 9_000_000 for number in range(16)}
        for dataset_id, content in contents.items():
            await proxy.upload(content, dataset_id=dataset_id)
        downloads = asyncio.gather(*(proxy.download(each, places.folder) for each in contents))
        shown = await asyncio.gather(*(proxy.show(each) for each in [*contents] * 8))
        assert [each.dataset_id for each in shown] == [*contents] * 8
        await downloads
        for dataset_id, content in contents.items():
            assert (places.folder / dataset_id).read_bytes() == content


async def test_questions_behind_many_others_end_in_time(places: Places) -> None:
    """Nobody answers at the bank's address: each question ends by its own deadline."""
    port = free_ports(1)[0]
    endpoints = {"ingest": f"tcp://127.0.0.1:{port}", "retrieve": f"tcp://127.0.0.1:{port}"}
    async with places.broker(), asking(places.rpc) as link, places.client() as client:
        hello = Hello(id="-", node=replace(records.bank("bank-0"), endpoints=endpoints))
        await link.request(hello, Welcome, timeout=LIMIT_S)
        began = time.monotonic()
        asked = [
            client.request(
                "bank-0",
                GetDataset(id="-", dataset_id=DatasetId("scan")),
                Committed,
                timeout=0.3,
                endpoint="retrieve",
            )
            for _ in range(50)
        ]
        results = await asyncio.gather(*asked, return_exceptions=True)
        assert time.monotonic() - began < 0.3 + SLACK_S
        assert {type(each) for each in results} == {NotSent}


# ── looking around ──────────────────────────────────────────────────────────────────────────────


async def test_records_are_listed_in_the_order_of_their_commits(places: Places) -> None:
    async with bank_of(places) as (_, proxy):
        stored = [await proxy.upload(b"%d" % number, name=f"{number}") for number in range(7)]
        assert await proxy.list() == stored
        assert await proxy.list(limit=3) == stored[:3]
        assert await proxy.list(after=stored[2].sequence, limit=2) == stored[3:5]
        assert await proxy.list(after=stored[-1].sequence) == []
        assert await proxy.list(newest_first=True, limit=2) == [stored[6], stored[5]]
        assert await proxy.list(newest_first=True, after=stored[5].sequence) == stored[4::-1]
        assert await proxy.show(stored[3].dataset_id) == stored[3]


async def test_records_too_large_for_one_page_are_all_listed(places: Places) -> None:
    async with bank_of(places) as (_, proxy):
        meta = {"note": "x" * 200_000}
        stored = [await proxy.upload(b"%d" % number, meta=meta) for number in range(12)]
        assert await proxy.list() == stored
        assert await proxy.list(limit=8) == stored[:8]
        assert await proxy.list(newest_first=True) == stored[::-1]


async def test_an_unknown_dataset_is_a_lookup_error(places: Places) -> None:
    async with bank_of(places) as (_, proxy):
        for ask in (proxy.show, proxy.read, lambda name: proxy.download(name, places.folder)):
            with pytest.raises(LookupError, match="bank-0 has no dataset scan-42") as caught:
                await ask("scan-42")
            assert isinstance(caught.value, LabmeshError)
        assert [each.name for each in places.folder.iterdir()] == ["bank-0"]


async def test_a_bank_tells_how_it_is(places: Places) -> None:
    async with bank_of(places) as (_, proxy):
        await proxy.upload(SCAN)
        status = await proxy.status()
        assert status.kind == "bank"
        assert status.facts["datasets"] == 1
        assert status.facts["free_bytes"] > 0
        assert status.facts["folder"] == str(places.folder / "bank-0")
        assert status.facts["registered"]


async def test_a_bank_is_made_by_keywords_only_and_settings_are_checked() -> None:
    with pytest.raises(TypeError):
        DataBank("tcp://*:5761", "tcp://*:5762")  # type: ignore[call-arg]
    for wrong in ({"timeout_s": 0}, {"retries": -1}, {"chunk_bytes": 0}):
        with pytest.raises(ValueError, match="an upload needs"):
            UploadSettings(**wrong)
