"""A relay's spool on its disk: what it takes it has, and it says what it cannot take."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.file_faults import DISK_ERRORS, FaultyFileOps
from tests.support.spools import upload_start

from labmesh.errors import ConfigError, Damaged, NoSpace, ProtocolError, StorageError
from labmesh.protocol.spooling import decode_entry
from labmesh.storage.spool import Spool, Spooled

LIMIT = 10_000_000


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "spool"


@pytest.fixture
def spool(root: Path) -> Iterator[Spool]:
    spool = Spool(root, LIMIT)
    yield spool
    spool.close()


def store(spool: Spool, name: str, content: bytes = b"content", bank: str = "") -> Spooled:
    incoming = spool.begin(upload_start(name, size=len(content), meta={"of": name}), bank)
    incoming.write(content)
    return incoming.finish()


def names(spool: Spool) -> list[str]:
    return [str(each.entry.start.dataset_id) for each in spool.waiting()]


def test_what_was_stored_waits_in_order_also_after_a_start(spool: Spool, root: Path) -> None:
    stored = [store(spool, name) for name in ("b", "a", "c")]
    stored[1] = spool.bind(stored[1], "bank-1")
    spool.sent(stored[0])
    assert names(spool) == ["a", "c"]
    spool.close()
    again = Spool(root, LIMIT)
    assert again.waiting() == stored[1:]
    assert [each.bank for each in again.waiting()] == ["bank-1", ""]
    assert again.waiting()[0].entry.start.meta == {"of": "a"}
    again.verify(again.waiting()[0])
    assert again.facts().waiting_bytes == again.facts().used_bytes == 2 * len(b"content")
    assert store(again, "d").number > stored[2].number
    unbound = again.bind(again.waiting()[0], "")
    assert unbound.bank == ""
    for each in again.waiting():
        again.sent(each)
    assert [each.name for each in root.iterdir()] == ["LOCK"]
    assert again.facts().used_bytes == 0
    again.close()


def test_a_second_relay_is_refused(spool: Spool, root: Path) -> None:
    with pytest.raises(ConfigError, match="in use by another relay"):
        Spool(root, LIMIT)
    spool.close()
    Spool(root, LIMIT).close()


def test_a_folder_that_cannot_be_used_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="spool_dir of the relay, --spool"):
        Spool(tmp_path / "file" / "spool", LIMIT)


def test_a_full_spool_refuses_at_once_and_takes_again_what_fits(root: Path) -> None:
    spool = Spool(root, 100)
    first = store(spool, "first", b"x" * 60)
    with pytest.raises(NoSpace, match=r"holds 60 of 100 bytes.*raise spool_limit"):
        spool.begin(upload_start("second", size=60))
    incoming = spool.begin(upload_start("stream"))
    incoming.write(b"y" * 40)
    with pytest.raises(NoSpace):
        incoming.write(b"y")
    where = incoming.abandon("the spool is full", keep=True)
    assert where is not None
    assert (where / "data").read_bytes() == b"y" * 40
    spool.sent(first)
    # What was put aside counts, too.
    assert spool.facts().used_bytes == 40
    store(spool, "third", b"z" * 60)
    with pytest.raises(NoSpace):
        spool.begin(upload_start("fourth", size=40))
    # It says to clear that away; then there is room at once, also for what an earlier start found.
    (where / "data").unlink()
    store(spool, "fourth", b"4" * 30).path.write_bytes(b"")
    spool.close()
    again = Spool(root, 100)
    assert again.facts().aside["damaged"] == 1
    again.close()
    last = Spool(root, 70)
    for each in (root / "damaged").glob("*/data"):
        each.unlink()
    store(last, "fifth", b"5" * 10)
    assert last.facts().used_bytes == 70
    last.close()


def test_what_was_interrupted_is_put_aside_and_never_sent(spool: Spool, root: Path) -> None:
    stream = spool.begin(upload_start("stream", name="night scan"))
    stream.write(b"the first half")
    small = spool.begin(upload_start("small", size=100))
    small.write(b"some")
    empty = spool.begin(upload_start("empty"))
    assert empty.size == 0
    spool.close()  # as a kill does: nobody says a word
    with pytest.raises(StorageError, match="the spool is closed"):
        stream.write(b"more")
    again = Spool(root, LIMIT)
    assert again.waiting() == []
    assert again.facts().aside == {"refused": 0, "incomplete": 2, "damaged": 0}
    assert len(again.found) == 2
    assert any("stream is incomplete" in each for each in again.found)
    (folder,) = (root / "incomplete").glob("*-stream")
    assert (folder / "data").read_bytes() == b"the first half"
    assert "relay ended before all of it" in (folder / "reason.txt").read_text()
    entry = decode_entry((folder / "entry.json").read_bytes())
    assert (entry.start.name, entry.start.sha256, entry.aside) == ("night scan", None, "incomplete")
    again.close()
    third = Spool(root, LIMIT)
    assert third.found == []
    assert third.facts() == again.facts()
    third.close()


def test_what_its_sender_still_has_leaves_nothing(spool: Spool, root: Path) -> None:
    incoming = spool.begin(upload_start("scan", size=2_000_000))
    incoming.write(b"x" * 1000)
    assert incoming.abandon("cancelled", keep=False) is None
    assert incoming.abandon("again", keep=True) is None
    assert [each.name for each in root.iterdir()] == ["LOCK"]
    assert spool.facts().used_bytes == 0


@pytest.mark.parametrize("content", [b"too short", b"too long for what was said before"])
def test_content_of_another_length_is_refused(content: bytes, spool: Spool) -> None:
    incoming = spool.begin(upload_start("scan", size=20))

    def write_all() -> None:
        incoming.write(content)
        incoming.finish()

    with pytest.raises(ProtocolError, match="did it change meanwhile"):
        write_all()
    with pytest.raises(StorageError, match="given up before"):
        incoming.finish()
    incoming.abandon("changed", keep=False)
    assert spool.facts().used_bytes == 0


def test_damaged_files_are_put_aside_with_the_reason(spool: Spool, root: Path) -> None:
    stored = {name: store(spool, name) for name in ("flipped", "short", "gone", "garbled", "good")}
    spool.close()
    stored["flipped"].path.write_bytes(b"CONTENT")
    stored["short"].path.write_bytes(b"con")
    stored["gone"].path.unlink()
    (root / f"{stored['garbled'].number:08}.json").write_bytes(b"\0" * 50)
    (root / f"{stored['good'].number:08}.bank").write_bytes(b"\0\0\0")
    (root / "notes.txt").write_text("not ours")
    again = Spool(root, LIMIT)
    assert names(again) == ["flipped", "good"]
    assert again.waiting()[1].bank == ""
    with pytest.raises(Damaged, match="stored were 7 bytes"):
        again.verify(again.waiting()[0])
    where = again.put_aside(again.waiting()[0], "damaged", "other bytes")
    assert (where / "reason.txt").read_text() == "other bytes\n"
    assert again.facts().aside["damaged"] == 4
    assert (root / "notes.txt").is_file()
    again.close()


def test_a_disk_that_refuses_any_operation_loses_nothing(tmp_path: Path) -> None:
    """What was stored before stays; what fails now says so, and the next one works."""
    operation = 0
    while True:
        ops = FaultyFileOps()
        root = tmp_path / str(operation)
        error = DISK_ERRORS[operation % len(DISK_ERRORS)]
        spool = Spool(root, LIMIT, ops)
        kept = store(spool, "kept")
        gone = store(spool, "gone")
        ops.faults = {len(ops.done) + operation: error}
        new = None
        try:
            incoming = spool.begin(upload_start("new"))
            try:
                incoming.write(b"new")
                new = incoming.finish()
            except StorageError:
                incoming.abandon("the disk refused", keep=True)
            spool.bind(kept, "bank-1")
            spool.sent(gone)
            spool.put_aside(kept, "refused", "no")
        except StorageError:
            pass
        was_hit, ops.faults = ops.failed is not None, {}
        store(spool, "after")
        spool.close()
        again = Spool(root, LIMIT)
        waiting = {str(each.entry.start.dataset_id): each for each in again.waiting()}
        for each in waiting.values():
            again.verify(each)
        assert "after" in waiting
        assert new is None or "new" in waiting
        refused = [*(root / "refused").glob("*-kept/data")]
        assert "kept" in waiting or refused[0].read_bytes() == b"content"
        again.close()
        if not was_hit:
            break
        operation += 1
    assert operation > 30


def test_after_a_failed_sync_a_file_is_never_synced_again(root: Path) -> None:
    ops = FaultyFileOps()
    spool = Spool(root, LIMIT, ops)
    incoming = spool.begin(upload_start("scan"))
    incoming.write(b"x" * 1000)
    ops.journal()
    ops.faults = {"fsync": 5}
    with pytest.raises(StorageError):
        incoming.finish()
    ops.faults = {}
    spool.sync_incoming()
    with pytest.raises(StorageError):
        incoming.finish()
    incoming.abandon("EIO", keep=True)
    data = [each for each in ops.journal() if each.startswith("fsync") and each.endswith(".data")]
    assert len(data) == 1
    spool.close()


def test_a_stream_that_pauses_is_synced_after_a_second(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr("labmesh.storage.spool_incoming.time.monotonic", lambda: now[0])
    ops = FaultyFileOps()
    spool = Spool(root, LIMIT, ops)
    incoming = spool.begin(upload_start("scan"))
    incoming.write(b"x")
    ops.journal()
    now[0] += 0.5
    spool.sync_incoming()
    assert ops.journal() == []
    now[0] += 0.5
    spool.sync_incoming()
    assert [each.split()[0] for each in ops.journal()] == ["fsync", "fsync_dir"]
    spool.sync_incoming()
    assert ops.journal() == []
    incoming.abandon("done", keep=False)
    spool.close()
