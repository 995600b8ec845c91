"""The checks of a bank's storage find what they are for: each of these sabotages of one line is
found, by the rule that is named beside it.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from tests.support.bank_promises import Acknowledged, Begun, Ending, Keeper, Kept, Violation, check
from tests.support.bank_scenarios import (
    LARGER,
    Scenario,
    annotate,
    dedupe,
    delete,
    in_memory,
    promised,
    record,
    resume,
    upload,
)
from tests.support.crash_states import Event, Recorder, Sync, crash_states
from tests.support.failing_disk import Failing

from labmesh.errors import ChecksumMismatch, Damaged, LabmeshError, StorageError
from labmesh.storage import filesystem, object_folder, parts
from labmesh.storage.fileops import FileOps
from labmesh.storage.parts import FilePart

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="files are looked at in Linux's /proc"
)


@pytest.fixture
def disk() -> Iterator[Path]:
    with in_memory() as folder:
        yield folder


def without_sync(folder: str, suffix: str) -> type[Recorder]:
    """Files of this folder with this suffix are not synced."""

    class Unsynced(Recorder):
        def fsync(self, fd: int) -> None:
            path = self.paths[fd]
            if not (path.name.endswith(suffix) and folder in path.parts[-3:]):
                super().fsync(fd)

    return Unsynced


def without_sync_of_names(folder: str) -> type[Recorder]:
    """The names in this folder, and in those in it, are not synced."""

    class Unsynced(Recorder):
        def fsync_dir(self, path: Path) -> None:
            if folder not in path.parts[-2:]:
                super().fsync_dir(path)

    return Unsynced


class RenamedBeforeSync(Recorder):
    """The bytes of an object are synced once it has its name."""

    _late = 0

    def fsync(self, fd: int) -> None:
        if self.paths[fd].suffix == ".part":
            self._late = self._open[fd]
        else:
            super().fsync(fd)

    def fsync_dir(self, path: Path) -> None:
        super().fsync_dir(path)
        if "objects" in path.parts[-2:] and self._late:
            self.events.append(Sync(self._late))


class DeletedBeforeTrashed(Recorder):
    """A record is removed before it is in the trash."""

    def open(self, path: Path, access: Any) -> int:
        if path.parent.name == "trash" and access == "create":
            for each in (self.root / "records").glob("thrown-away.json"):
                self.unlink(each)
                self.fsync_dir(each.parent)
        return super().open(path, access)

    def unlink(self, path: Path) -> None:
        with suppress(FileNotFoundError):
            super().unlink(path)


class HastyKeeper(Keeper):
    """Acknowledges before the record is stored."""

    def finish(self, part: Any, dataset_id: str, content: bytes) -> None:
        self.note(Begun(dataset_id, Kept(content)))
        self.note(Ending(part.note))
        self.note(Acknowledged(dataset_id))
        super().finish(part, dataset_id, content)


#: What is sabotaged → how, in which scenario, and by which rules it may be found.
DISK_MUTANTS: dict[str, tuple[type[Recorder], Scenario, set[str]]] = {
    "the bytes of an object are not synced": (
        without_sync("parts", ".part"),
        upload,
        {"whole or not at all"},
    ),
    "the name of an object is not synced": (
        without_sync_of_names("objects"),
        upload,
        {"whole or not at all"},
    ),
    "an object has its name before it is synced": (
        RenamedBeforeSync,
        dedupe,
        {"whole or not at all"},
    ),
    "a record is not synced": (
        without_sync("records", ".tmp"),
        upload,
        {"acknowledged is there", "readable"},
    ),
    "the name of a record is not synced": (
        without_sync_of_names("records"),
        upload,
        {"acknowledged is there"},
    ),
    "an offset is durable before its bytes are synced": (
        without_sync("parts", ".part"),
        resume,
        {"durable offset"},
    ),
    "an offset is durable before its record is synced": (
        without_sync("parts", ".tmp"),
        resume,
        {"durable offset"},
    ),
    "an offset is durable before the names are synced": (
        without_sync_of_names("parts"),
        resume,
        {"durable offset"},
    ),
    "a note is not synced": (without_sync("notes", ""), annotate, {"as acknowledged"}),
    "the name of the notes is not synced": (
        without_sync_of_names("notes"),
        annotate,
        {"as acknowledged"},
    ),
    "an entry of the trash is not synced": (
        without_sync("trash", ".tmp"),
        delete,
        {"acknowledged is there", "as acknowledged", "readable"},
    ),
    "a record is removed before it is in the trash": (
        DeletedBeforeTrashed,
        delete,
        {"acknowledged is there"},
    ),
}


#: Every so-manieth state is tried first, then those between: a fault that lasts for a while is
#: found early. That none is left out is what lets "not found" mean it.
_STRIDE = 16
_STARTS = (0, 8, 4, 12, 2, 10, 6, 14, 1, 9, 5, 13, 3, 11, 7, 15)


def found_by(disk: Path, events: list[Event]) -> str:
    """The first rule that a crash breaks, of those that were tried; empty: none breaks any."""
    expected = promised(events)
    states = list(crash_states(events))
    for state in (each for start in _STARTS for each in states[start::_STRIDE]):
        state.build(disk / "crashed")
        try:
            check(disk / "crashed", expected[state.at])
        except Violation as violation:
            return violation.rule
    return ""


def test_every_sabotage_of_the_disk_is_found(disk: Path) -> None:
    for what, (make, scenario, rules) in DISK_MUTANTS.items():
        rule = found_by(disk, record(scenario, disk / "bank", make))
        assert rule in rules, f"{what}: {rule or 'not found'}"
    print(f"FD4: {len(DISK_MUTANTS)} sabotages of the disk / {len(DISK_MUTANTS)} found")


def test_an_acknowledgement_before_its_record_is_found(disk: Path) -> None:
    root = disk / "bank"
    root.mkdir()
    recorder = Recorder(root)
    keeper = HastyKeeper(root, recorder, recorder.note)
    upload(keeper)
    keeper.close()
    assert found_by(disk, recorder.events) == "acknowledged is there"


# ── sabotages that show without a crash ─────────────────────────────────────────────────────────


def lies_are_refused(root: Path) -> None:
    """Bytes that are not the announced ones are not stored."""
    blobs, catalog = filesystem.open_folder(root)
    try:
        part = blobs.begin(len(LARGER))
        part.write(0, LARGER)
        with pytest.raises(ChecksumMismatch):
            part.finish(len(LARGER), "0" * 64)
    finally:
        catalog.close()
        blobs.close()


def damage_is_found(root: Path) -> None:
    """Damaged bytes are not served."""
    blobs, catalog = filesystem.open_folder(root)
    keeper = Keeper.__new__(Keeper)
    keeper.blobs, keeper.catalog, keeper.note, keeper.known = blobs, catalog, lambda what: None, {}
    try:
        keeper.upload("damaged", LARGER)
        stored = catalog.get("damaged")
        assert stored is not None
        path = root / "objects" / stored.sha256[:2] / stored.sha256
        path.write_bytes(LARGER[:-1] + bytes([LARGER[-1] ^ 1]))
        with pytest.raises(Damaged):
            blobs.read(stored.sha256, 0, len(LARGER))
    finally:
        catalog.close()
        blobs.close()


def one_bank_a_folder(root: Path) -> None:
    """A second bank is refused."""
    blobs, catalog = filesystem.open_folder(root)
    try:
        with pytest.raises(StorageError):
            filesystem.open_folder(root)[1].close()
    finally:
        catalog.close()
        blobs.close()


def no_sync_twice(root: Path) -> None:
    """After a failed sync the same file is not synced again, and nothing is acknowledged."""
    root.mkdir(exist_ok=True)
    ops = Failing(root, first=0, failure=5, count=1, only=frozenset({"fsync"}))
    keeper = Keeper(root, ops, ops.note)
    try:
        keeper.upload("refused", LARGER)
    except LabmeshError:
        assert not ops.syncs_again, ops.syncs_again
    else:
        raise AssertionError("acknowledged after a failed sync")
    finally:
        keeper.close()


def _again(fsync: Callable[..., None]) -> Callable[..., None]:
    def twice(self: Any, fd: int) -> None:
        try:
            fsync(self, fd)
        except OSError:
            fsync(self, fd)

    return twice


def _as_if_synced(self: FilePart) -> int:
    self._durable = self._size
    return self._size


LIVE_MUTANTS: dict[str, tuple[Any, str, Any, Callable[[Path], None]]] = {
    "the digest is not compared": (
        parts,
        "check_finished",
        lambda *_, **__: None,
        lies_are_refused,
    ),
    "what is read is not verified": (
        object_folder.hashlib,
        "sha256",
        None,
        damage_is_found,
    ),
    "the folder is not locked": (FileOps, "lock", lambda self, fd: True, one_bank_a_folder),
    "a failed sync is tried again": (Failing, "fsync", _again(Failing.fsync), no_sync_twice),
}


def _blind(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reads believe every object to be what its name says."""

    class Believed:
        def __init__(self, content: bytes = b"") -> None:
            self._content = content

        def hexdigest(self) -> str:
            return next(each.name for each in (root / "objects").glob("*/*"))

    monkeypatch.setattr(
        object_folder, "hashlib", type("Blind", (), {"sha256": staticmethod(Believed)})
    )


@pytest.mark.parametrize("what", LIVE_MUTANTS)
def test_a_sabotage_that_shows_at_once(
    what: str, disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, name, replacement, promise = LIVE_MUTANTS[what]
    promise(disk / "bank")
    shutil.rmtree(disk / "bank")
    if replacement is None:
        _blind(disk / "bank", monkeypatch)
    else:
        monkeypatch.setattr(target, name, replacement)
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        promise(disk / "bank")


def test_an_offset_that_is_told_before_the_sync_is_found(
    disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FilePart, "sync", _as_if_synced)
    with suppress(LabmeshError, KeyError):
        record(resume, disk / "bank", Remembered)
    assert found_by(disk, Remembered.last.events) == "durable offset"


class Remembered(Recorder):
    """A recorder that is found again when its scenario did not come to its end."""

    last: Remembered

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        Remembered.last = self
