"""Files of a bank that change behind its back: damage is found and never served, and what is
derived is made again.

The figures (FD10, FD11, FD18), some minutes::

    python -m pytest -m soak -s --timeout 3600 tests/faults/test_bank_damage.py
"""

from __future__ import annotations

import json
import random
import resource
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest
from tests.support.bank_process import BankProcess, seeded
from tests.support.bank_promises import Keeper, record_of
from tests.support.bank_scenarios import in_memory
from tests.support.promptness import SLACK_S

from labmesh.errors import Damaged, LabmeshError, StorageError
from labmesh.storage.fileops import FileOps
from labmesh.storage.filesystem import open_folder

#: The last has more than one piece, with sums of their own.
SIZES = (0, 1, 700, 5_000, 200_000, 3_000_000)


@pytest.fixture
def disk() -> Iterator[Path]:
    with in_memory() as folder:
        yield folder


def flip(content: bytes, chance: random.Random) -> bytes:
    """One bit is another."""
    at = chance.randrange(len(content))
    return content[:at] + bytes([content[at] ^ 1 << chance.randrange(8)]) + content[at + 1 :]


def cut(content: bytes, chance: random.Random) -> bytes:
    """The end is missing."""
    return content[: chance.randrange(len(content))]


def blank(content: bytes, chance: random.Random) -> bytes:
    """A block reads as zeros."""
    at = chance.randrange(len(content))
    size = min(4096, len(content) - at)
    return content[:at] + bytes(size) + content[at + size :]


def lengthen(content: bytes, chance: random.Random) -> bytes:
    """There is something behind the end."""
    return content + chance.randbytes(chance.randrange(1, 5000))


def rubbish(content: bytes, chance: random.Random) -> bytes:
    """Other bytes, of the same size."""
    return chance.randbytes(len(content))


DAMAGES: list[Callable[[bytes, random.Random], bytes]] = [flip, cut, blank, lengthen, rubbish]


def _stored(root: Path) -> dict[str, bytes]:
    keeper = Keeper(root, FileOps(), lambda what: None)
    contents = {f"dataset-{number}": seeded(size, number) for number, size in enumerate(SIZES)}
    for dataset_id, content in contents.items():
        keeper.upload(dataset_id, content, 10**6)
    keeper.annotate("dataset-3", "tag", "note")
    keeper.close()
    return contents


def test_damaged_bytes_are_found_and_not_served(disk: Path) -> None:
    _rot(disk, trials=60, seed=10)


@pytest.mark.soak
@pytest.mark.timeout(1200)
def test_1000_times_damaged_bytes_are_found_and_not_served(disk: Path) -> None:
    _rot(disk, trials=1000, seed=10)


def _rot(disk: Path, *, trials: int, seed: int) -> None:
    """FD10: one file of objects is damaged while the bank is away or up."""
    chance = random.Random(seed)
    whole = disk / "whole"
    contents = _stored(whole)
    figures: Counter[str] = Counter()
    for _ in range(trials):
        root = disk / "bank"
        shutil.rmtree(root, ignore_errors=True)
        shutil.copytree(whole, root)
        blobs, catalog = open_folder(root)
        try:
            _one_damage(root, blobs, catalog, contents, chance, figures)
        finally:
            catalog.close()
            blobs.close()
    print(
        f"FD10: {trials} damages, seed {seed} / served corrupt {figures['corrupt']}, neighbours "
        f"affected {figures['neighbours']} / detected {figures['detected']} of "
        f"{figures['damaged']}, of {figures['sums']} damaged sums no reader was told"
    )
    assert (figures["corrupt"], figures["neighbours"]) == (0, 0)
    assert figures["detected"] == figures["damaged"]


def _one_damage(
    root: Path,
    blobs: object,
    catalog: object,
    contents: dict[str, bytes],
    chance: random.Random,
    figures: Counter[str],
) -> None:
    if chance.random() < 0.5:  # what was read once must not be believed for ever
        for dataset_id, content in contents.items():
            assert _read(blobs, catalog, dataset_id) == content
    victim = chance.choice([each for each in sorted((root / "objects").glob("*/*")) if _size(each)])
    before = victim.read_bytes()
    if chance.random() < 0.1:  # another object's bytes, under this name
        others = [each for each in (root / "objects").glob("*/*") if each.name != victim.name]
        after = chance.choice(others).read_bytes()
    else:
        after = chance.choice(DAMAGES)(before, chance)
    victim.write_bytes(after)
    is_sums = victim.suffix == ".sums"
    figures["sums" if is_sums else "damaged"] += after != before
    for dataset_id, content in contents.items():
        is_victim = catalog.get(dataset_id).sha256 == victim.name  # type: ignore[attr-defined]
        try:
            read = _read(blobs, catalog, dataset_id)
        except Damaged:
            figures["detected" if is_victim else "neighbours"] += 1
            assert not victim.exists()
            assert any(each.name.startswith(victim.name) for each in _quarantined(root))
            _mend(blobs, catalog, dataset_id, content)
        except StorageError:
            figures["neighbours"] += 1
        else:
            figures["corrupt"] += read != content
            figures["detected"] += is_victim and read == content and after == before


def _size(path: Path) -> int:
    return path.stat().st_size


def _quarantined(root: Path) -> list[Path]:
    return list((root / "quarantine").iterdir())


def _read(blobs: object, catalog: object, dataset_id: str) -> bytes:
    record = catalog.get(dataset_id)  # type: ignore[attr-defined]
    step = 400_000
    pieces = [
        blobs.read(record.sha256, offset, min(step, record.size - offset))  # type: ignore[attr-defined]
        for offset in range(0, max(1, record.size), step)
    ]
    return b"".join(pieces)


def _mend(blobs: object, catalog: object, dataset_id: str, content: bytes) -> None:
    """The same content again puts a good object back."""
    part = blobs.begin(len(content))  # type: ignore[attr-defined]
    part.write(0, content)
    part.finish(len(content), catalog.get(dataset_id).sha256)  # type: ignore[attr-defined]
    assert _read(blobs, catalog, dataset_id) == content


# ── what is derived, and what is foreign ────────────────────────────────────────────────────────


def _index_gone(root: Path) -> None:
    (root / "catalog.sqlite").unlink()


def _index_rubbish(root: Path) -> None:
    (root / "catalog.sqlite").write_bytes(seeded(40_000, 1))


def _index_cut(root: Path) -> None:
    whole = (root / "catalog.sqlite").read_bytes()
    (root / "catalog.sqlite").write_bytes(whole[: len(whole) // 2])


def _index_page_rubbish(root: Path) -> None:
    whole = (root / "catalog.sqlite").read_bytes()
    (root / "catalog.sqlite").write_bytes(whole[:4096] + seeded(len(whole) - 4096, 2))


def _index_empty(root: Path) -> None:
    (root / "catalog.sqlite").write_bytes(b"")


def _index_is_a_folder(root: Path) -> None:
    (root / "catalog.sqlite").unlink()
    (root / "catalog.sqlite").mkdir()


def _wal_rubbish(root: Path) -> None:
    (root / "catalog.sqlite-wal").write_bytes(seeded(50_000, 3))
    (root / "catalog.sqlite-shm").write_bytes(seeded(32_768, 4))


def _foreign_files(root: Path) -> None:
    for folder in ("", "objects", "objects/aa", "records", "notes", "trash", "parts"):
        (root / folder).mkdir(exist_ok=True)
        for name in (".DS_Store", "Thumbs.db", "copy of x.json~", "README", "ä ö.txt"):
            (root / folder / name).write_bytes(seeded(100, 5))
        (root / folder / "a folder").mkdir()
    (root / "records" / "folder.json").mkdir()
    (root / "records" / "link.json").symlink_to("/nowhere")


def _drafts_of_a_kill(root: Path) -> None:
    (root / "records" / ".dataset-1.9.tmp").write_bytes(b'{"format": 1, "data')
    with (root / "notes" / "dataset-3.jsonl").open("ab") as notes:
        notes.write(b'{"time": 1.0, "no')
    (root / "parts" / "00000077.part").write_bytes(b"x")
    (root / "parts" / "00000078.json").write_bytes(b"{")


DERIVED = [
    _index_gone,
    _index_rubbish,
    _index_cut,
    _index_page_rubbish,
    _index_empty,
    _wal_rubbish,
    _foreign_files,
    _drafts_of_a_kill,
]


def test_what_is_derived_or_foreign_loses_no_dataset(disk: Path) -> None:
    """FD11."""
    whole = disk / "whole"
    contents = _stored(whole)
    for spoil in DERIVED:
        root = disk / "bank"
        shutil.rmtree(root, ignore_errors=True)
        shutil.copytree(whole, root)
        spoil(root)
        for _ in range(2):
            blobs, catalog = open_folder(root)
            try:
                assert catalog.count() == len(contents), spoil.__name__
                for dataset_id, content in contents.items():
                    assert _read(blobs, catalog, dataset_id) == content, spoil.__name__
                noted = catalog.get("dataset-3")
                assert noted is not None
                assert noted.tags == ["tag"]
                assert [each.note for each in catalog.history("dataset-3")] == ["note"]
            finally:
                catalog.close()
                blobs.close()
        if spoil is _foreign_files:
            assert (root / "records" / "README").exists()
            assert (root / "objects" / "aa" / "Thumbs.db").exists()
    print(f"FD11: {len(DERIVED)} ways to spoil what is derived / datasets lost 0")


def test_one_record_that_is_spoilt_costs_one_dataset(disk: Path) -> None:
    """FD11: whatever stands in a record's file, the bank starts, and all others are there."""
    whole = disk / "whole"
    contents = _stored(whole)
    chance = random.Random(11)
    good = (whole / "records" / "dataset-2.json").read_bytes()
    foreign = json.dumps({**json.loads(good), "dataset_id": "dataset-1"}).encode()
    spoilt = [damage(good, chance) for damage in (flip, cut, blank, rubbish) for _ in range(6)]
    cases = [*spoilt, b"", b"null", b"[" * 100_000, b"\xff\xfe", foreign, b'{"format": 99}']
    lost = 0
    for case in cases:
        root = disk / "bank"
        shutil.rmtree(root, ignore_errors=True)
        shutil.copytree(whole, root)
        (root / "records" / "dataset-2.json").write_bytes(case)
        blobs, catalog = open_folder(root)
        try:
            for dataset_id, content in contents.items():
                if dataset_id == "dataset-2":
                    lost += catalog.get(dataset_id) is None
                else:
                    assert _read(blobs, catalog, dataset_id) == content
            if catalog.get("dataset-2") is None:
                # Its id is not given away, and its bytes are not taken for an orphan.
                with pytest.raises(LabmeshError):
                    catalog.add(record_of("dataset-2", b"other"))
                assert catalog.refers(record_of("dataset-2", contents["dataset-2"]).sha256)
        finally:
            catalog.close()
            blobs.close()
    print(f"FD11: {len(cases)} spoilt records / other datasets lost 0 / {lost} not listed")
    assert lost >= 10


# ── a hundred thousand ──────────────────────────────────────────────────────────────────────────


def test_a_bank_of_1000_datasets_starts(tmp_path: Path) -> None:
    _many(tmp_path, 1000, limit_s=2.0 + SLACK_S)


@pytest.mark.soak
@pytest.mark.timeout(1200)
def test_a_bank_of_100000_datasets_starts(tmp_path: Path) -> None:
    _many(tmp_path, 100_000, limit_s=2.0)


def _many(folder: Path, count: int, limit_s: float) -> None:
    """FD18, FD11: the start after a kill -9, and the index made anew."""
    root = folder / "bank"
    _write_records(root, count)
    took_s: dict[str, float] = {}
    blobs, catalog = _timed(root, took_s, "index made")
    assert catalog.count() == count
    catalog.close()
    blobs.close()
    with BankProcess(root) as bank:
        bank.start()
        bank.kill9()
        blobs, catalog = _timed(root, took_s, "opened after a kill")
        assert catalog.count() == count
        catalog.close()
        blobs.close()
        bank.start()
        rss = _rss_mb(bank.process.pid)
    starts = ", ".join(f"{name} {each_s:.2f} s" for name, each_s in took_s.items())
    print(
        f"FD18: {count} datasets / lost 0 / {starts}, "
        f"process ready {bank.starts_s[-1]:.2f} s, {rss:.0f} MB"
    )
    assert took_s["opened after a kill"] < limit_s


def _timed(root: Path, took_s: dict[str, float], what: str):  # type: ignore[no-untyped-def]
    begun = time.monotonic()
    opened = open_folder(root)
    took_s[what] = time.monotonic() - begun
    return opened


def _write_records(root: Path, count: int) -> None:
    """As many record files as a bank writes, without the syncs."""
    blobs, catalog = open_folder(root)
    catalog.add(record_of("dataset-0", b""))
    catalog.close()
    blobs.close()
    pattern = json.loads((root / "records" / "dataset-0.json").read_bytes())
    for number in range(1, count):
        fields = {**pattern, "dataset_id": f"dataset-{number}", "sequence": number + 1}
        fields["name"] = f"scan {number}"
        (root / "records" / f"dataset-{number}.json").write_bytes(msgspec.json.encode(fields))


def _rss_mb(pid: int) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 1e6
