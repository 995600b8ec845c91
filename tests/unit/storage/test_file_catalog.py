"""The catalogue in files: what it leaves on the disk, and what it makes of what it finds there."""

from __future__ import annotations

import errno
import json
import shutil
import sqlite3
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest
from tests.support.file_faults import FaultyFileOps
from tests.support.storage_contract import entry_of, record_of, search_of

from labmesh.errors import LabmeshError, StorageError
from labmesh.protocol.messages import Annotation, Condition
from labmesh.storage.base import Catalog
from labmesh.storage.catalog import FileCatalog

NOTE = Annotation(time=1.0, who="ada", add_tags=["good"], note="µ")
DATABASE = "catalog.sqlite"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "bank"


def everything(catalog: Catalog) -> object:
    """All that a catalogue answers, but for the log."""
    records = catalog.page().records
    return (
        records,
        [catalog.full(each.dataset_id) for each in records],
        [catalog.history(each.dataset_id) for each in records],
        catalog.trashed(),
        (catalog.count(), catalog.total_bytes(), catalog.last_sequence()),
        catalog.search(search_of(Condition(field="meta.T", op=">", value=2))),
        catalog.search(search_of(tags=["good"], text="SCAN")),
        catalog.refers(records[0].sha256 if records else "0" * 64),
    )


def filled(root: Path) -> object:
    """A closed catalogue with some of everything; returns all that it answered."""
    catalog = FileCatalog(root)
    for number in range(6):
        catalog.add(record_of(f"scan-{number}", bytes(number), meta={"T": number}))
    catalog.annotate("scan-1", NOTE)
    catalog.annotate("scan-4", NOTE)
    catalog.trash(entry_of("scan-4"))
    catalog.trash(entry_of("scan-5"))
    said = everything(catalog)
    catalog.close()
    return said


def reopened(root: Path) -> object:
    catalog = FileCatalog(root)
    said = everything(catalog)
    catalog.close()
    return said


def without_index(root: Path) -> object:
    """What the files alone say."""
    shutil.copytree(root, root.with_name("copy"), dirs_exist_ok=True)
    for path in root.with_name("copy").glob(f"{DATABASE}*"):
        path.unlink()
    said = reopened(root.with_name("copy"))
    shutil.rmtree(root.with_name("copy"))
    return said


# ── the index is derived ──


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:5000])


def _garble(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[4096 : 4096 * 6] = bytes(range(256)) * 80
    path.write_bytes(content)


def _change_a_record(path: Path) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE datasets SET record = replace(record, 'scan-2', 'scan-9')")
    connection.close()


def _swap_records(path: Path) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE datasets SET record = (SELECT max(record) FROM datasets)")
    connection.close()


def _other_version(path: Path) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version = 99")
    connection.close()


def _garbage_beside(path: Path) -> None:
    path.with_name(f"{DATABASE}-wal").write_bytes(b"garbage" * 9999)
    path.with_name(f"{DATABASE}-shm").write_bytes(b"garbage" * 999)


def _gone_but_for_its_log(path: Path) -> None:
    path.unlink()
    _garbage_beside(path)


def _a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()
    (path / "mine").write_text("not to be removed")


DAMAGES = [
    Path.unlink,
    _cut,
    _garble,
    _change_a_record,
    _swap_records,
    _other_version,
    _garbage_beside,
    _gone_but_for_its_log,
    _a_folder,
    lambda path: path.write_bytes(b""),
    lambda path: path.write_bytes(b"not a database" * 1000),
]


@pytest.mark.parametrize("damage", DAMAGES)
def test_an_index_that_is_gone_or_damaged_is_made_anew(
    root: Path, damage: Callable[[Path], None]
) -> None:
    before = filled(root)
    damage(root / DATABASE)
    assert reopened(root) == before
    catalog = FileCatalog(root)
    assert catalog.add(record_of("next")).sequence == 7
    catalog.close()


@pytest.mark.parametrize("broken", ["writer", "readers", "file"])
def test_an_index_that_fails_while_it_is_used_is_made_anew_and_nothing_is_lost(
    root: Path, broken: str, caplog: pytest.LogCaptureFixture
) -> None:
    before = filled(root)
    catalog = FileCatalog(root)
    index = catalog._index._index
    assert index is not None
    everything(catalog)
    if broken == "writer":
        index._writer.execute("DROP TABLE facts")
    elif broken == "readers":
        for connection in index._idle:
            connection.close()
    else:
        catalog.close()
        catalog = FileCatalog(root)
        _garble(root / DATABASE)
    stored = catalog.add(record_of("during"))
    assert catalog.get("during") == stored
    catalog.annotate("during", NOTE)
    catalog.trash(entry_of("during"))
    catalog.purge("during")
    assert everything(catalog) == before
    catalog.close()
    assert "built anew" in caplog.text
    assert reopened(root) == before


def test_what_is_durable_is_stored_though_no_index_can_be_made_for_now(
    root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Breaking(FaultyFileOps):
        def fsync_dir(self, path: Path) -> None:
            # Between a record and its row: the index breaks, and no folder can be listed.
            super().fsync_dir(path)
            if index is not None:
                index._writer.execute("DROP TABLE texts")
                self.faults["scan"] = errno.EIO

    index = None
    ops = Breaking()
    catalog = FileCatalog(root, ops=ops)
    first = catalog.add(record_of("first"))
    index = catalog._index._index
    stored = catalog.add(record_of("second"))
    index = None
    assert "the next reader tries" in caplog.text
    with pytest.raises(StorageError, match="EIO"):
        catalog.get("second")
    ops.faults.clear()
    assert catalog.page().records == [first, stored]
    catalog.close()


def test_a_closed_catalogue_says_so(root: Path) -> None:
    catalog = FileCatalog(root)
    catalog.close()
    with pytest.raises(StorageError, match="closed"):
        catalog.get("scan-1")
    assert {each.name for each in root.iterdir()} == {"records", "notes", "trash", DATABASE}


def test_marks_outlive_a_restart_and_are_lost_with_the_index(root: Path) -> None:
    catalog = FileCatalog(root)
    catalog.set_mark("announced", 7)
    catalog.close()
    catalog = FileCatalog(root)
    assert catalog.mark("announced") == 7
    catalog.close()
    (root / DATABASE).unlink()
    catalog = FileCatalog(root)
    assert catalog.mark("announced") == 0
    catalog.close()


def test_files_that_came_went_and_changed_while_it_was_closed_are_seen(root: Path) -> None:
    filled(root)
    records = root / "records"
    fields = json.loads((records / "scan-1.json").read_text("utf-8"))
    (records / "scan-1.json").write_text(json.dumps({**fields, "name": "changed by hand"}))
    (records / "scan-2.json").unlink()
    new = {**fields, "dataset_id": "copied", "sequence": 50}
    (records / "copied.json").write_text(json.dumps(new))
    catalog = FileCatalog(root)
    names = [(each.dataset_id, each.name, each.tags) for each in catalog.page().records]
    assert names == [
        ("scan-0", "", []),
        ("scan-1", "changed by hand", ["good"]),
        ("scan-3", "", []),
        ("copied", "", []),
    ]
    assert [each.dataset_id for each in catalog.search(search_of(text="hand")).records] == [
        "scan-1"
    ]
    said = everything(catalog)
    catalog.close()
    assert without_index(root) == said


# ── steps that fail, and crashes between them ──

STEPS: dict[str, Callable[[FileCatalog], object]] = {
    "add": lambda catalog: catalog.add(record_of("new")),
    "annotate": lambda catalog: catalog.annotate("scan-2", NOTE),
    "annotate again": lambda catalog: catalog.annotate("scan-1", NOTE),
    "trash": lambda catalog: catalog.trash(entry_of("scan-1")),
    "restore": lambda catalog: catalog.restore("scan-4"),
    "purge": lambda catalog: catalog.purge("scan-4"),
    "purge the last": lambda catalog: catalog.purge("scan-5"),
}


@pytest.mark.parametrize("step", STEPS.values(), ids=STEPS.keys())
def test_whatever_operation_of_a_change_fails_the_index_is_as_the_files_are(
    tmp_path: Path, step: Callable[[FileCatalog], object]
) -> None:
    filled(tmp_path / "first")
    for number in range(60):
        root = tmp_path / str(number)
        shutil.copytree(tmp_path / "first", root)
        ops = FaultyFileOps()
        catalog = FileCatalog(root, ops=ops)
        ops.done.clear()
        ops.faults[number] = errno.EIO
        failed = False
        try:
            step(catalog)
        except StorageError:
            failed = True
        ops.faults.clear()
        said = everything(catalog)
        assert without_index(root) == said
        catalog.close()
        assert reopened(root) == said
        assert not list(root.glob("*/.*.tmp"))
        assert ops.open_files == {}
        if ops.failed is None:
            assert not failed
            break
    else:
        pytest.fail("the change takes more operations than expected")
    assert number > 2


@pytest.mark.parametrize("step", ["annotate again", "trash", "restore"])
def test_no_operation_that_fails_once_loses_a_dataset(tmp_path: Path, step: str) -> None:
    filled(tmp_path / "first")
    for number in range(30):
        root = tmp_path / str(number)
        shutil.copytree(tmp_path / "first", root)
        ops = FaultyFileOps()
        catalog = FileCatalog(root, ops=ops)
        before = _kept(catalog)
        ops.done.clear()
        ops.faults[number] = errno.EIO
        with suppress(StorageError):
            STEPS[step](catalog)
        ops.faults.clear()
        assert _kept(catalog) == before, (number, ops.failed)
        catalog.close()
        if ops.failed is None:
            return
    pytest.fail("the change takes more operations than expected")


def _kept(catalog: Catalog) -> set[str]:
    """The ids of what can be read or restored."""
    trashed = {each.record.dataset_id for each in catalog.trashed()}
    return trashed | {each.dataset_id for each in catalog.page().records}


def test_what_stands_in_the_records_and_in_the_trash_is_in_the_trash(root: Path) -> None:
    before = filled(root)
    entry = json.loads((root / "trash" / "scan-4.json").read_text("utf-8"))
    deleted = entry.pop("trash")
    assert deleted == {"deleted": 100.0, "purge": 200.0}
    leftover = root / "records" / "scan-4.json"
    leftover.write_text(json.dumps(entry))
    assert reopened(root) == before
    assert not leftover.exists()


def test_a_torn_note_is_left_out_and_cut_before_the_next(root: Path) -> None:
    before = filled(root)
    notes = root / "notes" / "scan-1.jsonl"
    whole = notes.read_bytes()
    notes.write_bytes(whole + b'{"time": 2.0, "no')
    assert reopened(root) == before
    catalog = FileCatalog(root)
    catalog.annotate("scan-1", NOTE)
    catalog.annotate("scan-1", NOTE)
    assert catalog.history("scan-1") == [NOTE] * 3
    catalog.close()
    assert notes.read_bytes() == whole * 3


def test_a_note_that_cannot_be_read_hides_no_other(
    root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    filled(root)
    notes = root / "notes" / "scan-1.jsonl"
    notes.write_bytes(b'{"time": 0}\nnoise\n' + notes.read_bytes())
    catalog = FileCatalog(root)
    assert catalog.history("scan-1") == [Annotation(time=0.0), NOTE]
    assert "line 2 of" in caplog.text
    catalog.close()


def test_a_sequence_is_never_given_twice_though_its_dataset_is_gone_for_ever(root: Path) -> None:
    catalog = FileCatalog(root)
    for name in ("first", "last"):
        catalog.add(record_of(name))
        catalog.trash(entry_of(name))
        catalog.purge(name)
    catalog.close()
    for path in root.glob(f"{DATABASE}*"):
        path.unlink()
    catalog = FileCatalog(root)
    assert catalog.add(record_of("next")).sequence == 3
    catalog.close()
    (root / "records" / ".sequence").write_text("many")
    assert reopened(root)


# ── many at once ──


def test_records_that_are_added_at_once_share_the_sync_of_their_folder(root: Path) -> None:
    waiting = threading.Barrier(8)

    class Together(FaultyFileOps):
        def fsync(self, fd: int) -> None:
            super().fsync(fd)
            waiting.wait(20)

    ops = Together()
    catalog = FileCatalog(root, ops=ops)
    ops.journal()
    with ThreadPoolExecutor(8) as pool:
        added = list(pool.map(lambda number: catalog.add(record_of(f"scan-{number}")), range(8)))
    assert sorted(each.sequence for each in added) == list(range(1, 9))
    # The first may go alone; those behind it go together.
    assert ops.journal().count("fsync_dir records") <= 7
    catalog.close()


def test_one_that_fails_among_many_harms_no_other(root: Path) -> None:
    class OneBad(FaultyFileOps):
        def rename(self, source: Path, target: Path) -> None:
            if target.name == "scan-3.json":
                raise OSError(errno.ENOSPC, "No space left on device")
            super().rename(source, target)

    catalog = FileCatalog(root, ops=OneBad())

    def add(number: int) -> str:
        try:
            return catalog.add(record_of(f"scan-{number}")).dataset_id
        except LabmeshError as error:
            return type(error).__name__

    with ThreadPoolExecutor(8) as pool:
        added = list(pool.map(add, range(16)))
    assert added.pop(3) == "NoSpace"
    assert sorted(each.dataset_id for each in catalog.page().records) == sorted(added)
    catalog.close()


# ── records that cannot be used ──


def test_while_a_record_cannot_be_read_every_object_may_be_needed(
    root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    filled(root)
    (root / "trash" / "scan-4.json").write_bytes(b"noise")
    (root / "records" / "scan-2.json").write_bytes(b'{"format": 2, "shape": "of tomorrow"}')
    for _ in range(2):
        caplog.clear()
        catalog = FileCatalog(root)
        assert catalog.refers("0" * 64)
        assert catalog.count() == 3
        for name in ("scan-2", "scan-4"):
            with pytest.raises(StorageError, match=f"{name}.json"):
                catalog.add(record_of(name))
        catalog.close()
        assert "another version" in caplog.text
        assert "trash/scan-4.json" in caplog.text
    assert (root / "trash" / "scan-4.json").read_bytes() == b"noise"


def test_a_record_that_rots_while_it_is_open_is_told_when_it_is_read(root: Path) -> None:
    filled(root)
    catalog = FileCatalog(root)
    (root / "records" / "scan-1.json").write_bytes(b"noise")
    with pytest.raises(StorageError, match="scan-1"):
        catalog.full("scan-1")
    with pytest.raises(StorageError, match="scan-1"):
        catalog.trash(entry_of("scan-1"))
    assert catalog.get("scan-1") is not None
    catalog.close()
