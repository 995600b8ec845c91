"""An audit journal on disk: crashes, full disks, several writers, and its files."""

from __future__ import annotations

import errno
import json
import os
import threading
from pathlib import Path

import pytest

from labmesh.errors import ConfigError
from labmesh.protocol.audit import Entry
from labmesh.protocol.audit_check import Checker, Verdict
from labmesh.storage.journal import Journal
from labmesh.storage.journal_reading import (
    check_journal,
    entries_of,
    head_beside,
    journal_files,
)

LIMIT_S = 10.0


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "audit" / "relay-psu-1.jsonl"


def entry(method: str) -> Entry:
    return Entry(time=1.0, what="call", method=method)


def write(path: Path, *methods: str, **options: int) -> Journal:
    """A journal to which these lines were added, closed."""
    journal = Journal(path, **options)
    for each in methods:
        journal.put(entry(each))
    journal.close()
    return journal


def check(path: Path, head: str = "") -> Verdict:
    heads = filter(None, [head or head_beside(path)])
    return check_journal(journal_files(path), Checker(heads=heads))


def methods(path: Path) -> list[str]:
    return [each.entry.method for each in entries_of(journal_files(path))]


class Disk:
    """What writes to a file, and is full when it is told to be."""

    def __init__(self) -> None:
        self.room: int | None = None
        self.refused = threading.Event()

    def write(self, fd: int, piece: bytes) -> int:
        if self.room is None:
            return os.write(fd, piece)
        if not self.room:
            self.refused.set()
            raise OSError(errno.ENOSPC, "No space left on device")
        written = os.write(fd, piece[: self.room])
        self.room -= written
        return written


def test_a_journal_goes_on_where_the_process_before_ended(path: Path) -> None:
    write(path, "a", "b")
    write(path, "c")
    verdict = check(path)
    assert methods(path) == ["a", "b", "c"]
    assert not verdict.faults
    assert verdict.n == 3
    assert head_beside(path) == verdict.hash
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700


def test_a_journal_without_lines_makes_no_file(path: Path) -> None:
    write(path)
    assert not journal_files(path)
    assert head_beside(path) == ""


def test_a_large_file_is_put_aside_and_the_chain_goes_on(path: Path) -> None:
    for number in range(12):
        write(path, f"m{number}", max_bytes=400)
    files = journal_files(path)
    assert len(files) > 3
    assert files[0].name.startswith("relay-psu-1@0000000000")
    verdict = check(path)
    assert not verdict.faults
    assert verdict.n == 12
    files[1].unlink()
    assert [each.kind for each in check(path).faults] == ["removed"]
    alone = check_journal(files[2:3], Checker(whole=False))
    assert not alone.faults


def test_an_end_that_was_cut_off_shows_by_the_head(path: Path) -> None:
    write(path, "a", "b", "c")
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:2]))
    assert [each.kind for each in check(path).faults] == ["cut"]
    path.with_suffix(".head").unlink()
    assert not check(path).faults
    path.with_suffix(".head").write_text("[]")
    assert head_beside(path) == ""


@pytest.mark.parametrize("left", [3, 1])
def test_a_line_that_a_crash_tore_is_kept_and_noted(path: Path, left: int) -> None:
    write(path, "a", "b", "c")
    content = path.read_bytes()
    lines = content.splitlines(keepends=True)
    torn = b"".join(lines[: left - 1]) + lines[left - 1][:-30]
    path.write_bytes(torn)
    path.with_suffix(".head").unlink()
    assert [each.kind for each in check(path).faults] == ["torn"]
    write(path, "d")
    assert path.read_bytes().startswith(torn + b"\n")
    verdict = check(path)
    assert not verdict.faults
    assert "kept as it is" in verdict.notes[0]
    assert methods(path)[-2:] == ["torn", "d"]


def test_a_line_without_its_end_alone_is_whole(path: Path) -> None:
    write(path, "a", "b")
    path.write_bytes(path.read_bytes()[:-1])
    write(path, "c")
    assert methods(path) == ["a", "b", "c"]
    assert not check(path).faults


def test_a_last_line_that_was_damaged_stays_a_fault(path: Path) -> None:
    write(path, "a", "b")
    path.write_bytes(path.read_bytes().replace(b'"b"', b'"B"'))
    path.with_suffix(".head").unlink()
    write(path, "c")
    assert [each.kind for each in check(path).faults] == ["changed"]
    assert methods(path) == ["a", "damaged", "c"]


def test_two_writers_make_one_chain(path: Path) -> None:
    node, command = Journal(path), Journal(path)
    node.put(entry("a"))
    for number in range(20):
        command.append([entry(f"c{number}")])
        node.put(entry(f"n{number}"))
    node.close()
    verdict = check(path)
    assert not verdict.faults
    assert verdict.n == 41
    assert sorted(methods(path)) == sorted(["a", *(f"{k}{n}" for k in "cn" for n in range(20))])


def test_a_full_disk_holds_nobody_up_and_what_is_lost_is_counted(path: Path) -> None:
    disk = Disk()
    journal = Journal(path, max_waiting=3, write=disk.write)
    disk.room = 100
    for number in range(3):
        journal.put(entry(f"m{number}"))
    assert disk.refused.wait(LIMIT_S)
    while len(journal._waiting) < 3:
        journal.put(entry("later"))
    for _ in range(5):
        journal.put(entry("too many"))
    assert journal.lost >= 5
    disk.room = None
    journal.close()
    verdict = check(path)
    assert not verdict.faults, path.read_text()
    assert "lost" in methods(path)
    assert "too many" not in methods(path)


def test_what_a_full_disk_refuses_to_the_end_is_lost(path: Path) -> None:
    disk = Disk()
    write(path, "a")
    journal = Journal(path, write=disk.write)
    disk.room = 10
    journal.put(entry("b"))
    journal.close()
    assert journal.lost == 1
    assert methods(path) == ["a"]
    assert not check(path).faults
    journal.put(entry("c"))
    assert journal.lost == 2


def test_a_folder_that_cannot_be_used_is_told_with_the_way_out(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="LMH_AUDIT_DIR"):
        Journal(tmp_path / "file" / "relay-a.jsonl")


def test_somebody_who_holds_the_lock_for_ever_is_told_of(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fcntl = pytest.importorskip("fcntl")
    monkeypatch.setattr("labmesh.storage.journal_reading._LOCK_S", 0.02)
    write(path, "a")
    fd = os.open(path.with_suffix(".lock"), os.O_RDWR)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        with pytest.raises(OSError, match="lock"):
            Journal(path).append([entry("b")])
        assert methods(path) == ["a"]
    finally:
        os.close(fd)


def test_lines_that_time_brings_about_come_with_the_others(path: Path) -> None:
    due = [entry("counted")]

    def more() -> list[Entry]:
        found, due[:] = [*due], []
        return found

    journal = Journal(path, more=more)
    journal.put(entry("a"))
    journal.close()
    assert methods(path) == ["a", "counted"]
    assert json.loads(path.with_suffix(".head").read_text())["n"] == 2
