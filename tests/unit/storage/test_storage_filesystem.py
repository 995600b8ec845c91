from __future__ import annotations

import errno
import json
import logging
import os
import resource
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import suppress
from pathlib import Path

import pytest
from tests.support.file_faults import DISK_ERRORS, FaultyFileOps
from tests.support.storage_contract import (
    CONTENT,
    Storage,
    StorageContract,
    put,
    record_of,
    sha256_of,
)

from labmesh.errors import ConfigError, Damaged, NoSpace, StorageError
from labmesh.protocol.messages import DatasetRecord
from labmesh.storage.base import BlobStore, Catalog
from labmesh.storage.fileops import FileOps, write_all
from labmesh.storage.filesystem import FileBlobStore, FileCatalog, open_folder

NAME = sha256_of(CONTENT)


class TestFilesystemStorage(StorageContract):
    @pytest.fixture
    def storage(self, tmp_path: Path) -> Iterator[Storage]:
        blobs, catalog = open_folder(tmp_path / "bank")
        yield blobs, catalog
        catalog.close()
        blobs.close()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "bank"


def store(storage: tuple[BlobStore, Catalog], dataset_id: str, content: bytes) -> DatasetRecord:
    """All of a commit; what it returns would be acknowledged."""
    blobs, catalog = storage
    put(blobs, content)
    return catalog.add(record_of(dataset_id, content))


def close(storage: tuple[BlobStore, Catalog]) -> None:
    blobs, catalog = storage
    catalog.close()
    blobs.close()


def tree(root: Path) -> set[str]:
    """Every file but those of the index, which is derived."""
    files = (path for path in root.rglob("*") if path.is_file())
    return {str(path.relative_to(root)) for path in files if "sqlite" not in path.name}


# ── layout ──


def test_a_dataset_is_an_object_named_by_its_digest_and_a_readable_record(root: Path) -> None:
    storage = open_folder(root)
    store(storage, "scan-1", CONTENT)
    store(storage, "scan-2", CONTENT)
    assert tree(root) == {
        "LOCK",
        f"objects/{NAME[:2]}/{NAME}",
        "records/scan-1.json",
        "records/scan-2.json",
    }
    assert (root / "objects" / NAME[:2] / NAME).read_bytes() == CONTENT
    assert json.loads((root / "records" / "scan-2.json").read_text("utf-8")) == {
        "format": 1,
        "dataset_id": "scan-2",
        "size": len(CONTENT),
        "sha256": NAME,
        "bank_id": "bank-0",
        "sequence": 2,
    }
    close(storage)


def test_what_was_stored_is_there_after_a_restart(root: Path) -> None:
    storage = open_folder(root)
    stored = [store(storage, f"scan-{n}", bytes([n]) * n) for n in range(12)]
    close(storage)
    blobs, catalog = open_folder(root)
    assert catalog.page().records == stored
    assert blobs.read(stored[7].sha256, 0, 7) == b"\7" * 7
    assert catalog.add(record_of("scan-new")).sequence == 13
    close((blobs, catalog))


def test_a_relative_folder_stays_the_same_when_the_program_changes_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    storage = open_folder("bank")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    store(storage, "scan-1", CONTENT)
    assert (tmp_path / "bank" / "records" / "scan-1.json").exists()
    close(storage)


def test_what_an_upload_left_unfinished_is_removed_at_start(root: Path) -> None:
    storage = open_folder(root)
    store(storage, "scan-1", CONTENT)
    close(storage)
    before = tree(root)
    (root / "parts" / "00000001.part").write_bytes(b"half")
    (root / "records" / ".scan-2.2.tmp").write_bytes(b"{")
    storage = open_folder(root)
    assert tree(root) == before
    store(storage, "scan-2", b"next")
    close(storage)


# ── the order of a commit ──


def test_what_is_acknowledged_was_synced_step_by_step(root: Path) -> None:
    ops = FaultyFileOps()
    storage = open_folder(root, ops=ops)
    ops.journal()
    store(storage, "scan-1", CONTENT)
    assert ops.journal() == [
        "open 00000001.part",
        "write 00000001.part",
        "fsync 00000001.part",
        "close 00000001.part",
        f"mkdir {NAME[:2]}",
        "fsync_dir objects",
        f"rename 00000001.part {NAME}",
        f"fsync_dir {NAME[:2]}",
        "open .scan-1.1.tmp",
        "write .scan-1.1.tmp",
        "fsync .scan-1.1.tmp",
        "close .scan-1.1.tmp",
        "rename .scan-1.1.tmp scan-1.json",
        "fsync_dir records",
    ]
    store(storage, "scan-2", CONTENT)
    assert "fsync_dir objects" not in ops.journal()
    close(storage)
    assert ops.open_files == {}


def test_new_folders_are_made_durable_from_the_top(tmp_path: Path) -> None:
    ops = FaultyFileOps()
    close(open_folder(tmp_path / "a" / "bank", ops=ops))
    folders = [line for line in ops.journal() if "dir" in line]
    assert folders == [
        *("mkdir a", f"fsync_dir {tmp_path.name}"),
        *("mkdir bank", "fsync_dir a"),
        *("mkdir parts", "fsync_dir bank"),
        *("mkdir objects", "fsync_dir bank"),
        *("mkdir records", "fsync_dir bank", "fsync_dir records"),
        *("mkdir notes", "fsync_dir bank", "fsync_dir notes"),
        *("mkdir trash", "fsync_dir bank", "fsync_dir trash"),
    ]


def test_folders_of_an_earlier_process_are_synced_again(root: Path) -> None:
    first = open_folder(root)
    store(first, "scan-1", CONTENT)
    close(first)
    ops = FaultyFileOps()
    second = open_folder(root, ops=ops)
    store(second, "scan-2", CONTENT)
    # The first process may have been killed between making a folder and syncing the one above it.
    journal = ops.journal()
    assert [line for line in journal if line.startswith("mkdir")] == []
    assert journal.index("fsync_dir objects") < journal.index(f"rename 00000001.part {NAME}")
    close(second)


def test_a_folder_above_that_may_not_be_read_is_no_obstacle(root: Path) -> None:
    class Unreadable(FaultyFileOps):
        def fsync_dir(self, path: Path) -> None:
            if path == root.parent:
                raise PermissionError(errno.EACCES, "Permission denied")
            super().fsync_dir(path)

    with pytest.raises(ConfigError):
        open_folder(root, ops=Unreadable())
    close(open_folder(root, ops=Unreadable()))


def test_a_folder_that_another_thread_makes_just_now_is_taken(root: Path) -> None:
    class Blind(FaultyFileOps):
        def exists(self, path: Path) -> bool:
            return super().exists(path) and path.parent != root / "objects"

    first = open_folder(root)
    put(first[0], CONTENT)
    close(first)
    storage = open_folder(root, ops=Blind())
    store(storage, "scan-1", CONTENT)
    close(storage)


# ── one bank a folder ──


def test_a_second_bank_is_refused_and_told_who_holds_the_folder(root: Path) -> None:
    first = open_folder(root)
    part = first[0].begin()
    part.write(0, CONTENT)
    with pytest.raises(StorageError) as caught:
        open_folder(root)
    assert str(root) in str(caught.value)
    assert f"process {os.getpid()}" in str(caught.value)
    assert "\n" not in str(caught.value)
    # The refused one has not touched what the first is doing.
    part.finish(len(CONTENT), NAME)
    close(first)
    close(open_folder(root))


def test_a_bank_in_another_process_is_named_and_its_end_frees_the_folder(root: Path) -> None:
    program = """
        import sys
        from labmesh.storage.filesystem import open_folder
        storage = open_folder(sys.argv[1])
        print("open", flush=True)
        sys.stdin.read()
    """
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program), str(root)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "open\n"
        with pytest.raises(StorageError, match=f"process {other.pid}"):
            open_folder(root)
        other.kill()
    close(open_folder(root))


def test_a_lock_that_names_nobody_is_still_a_lock(root: Path) -> None:
    first = open_folder(root)
    (root / "LOCK").write_bytes(b"")
    with pytest.raises(StorageError, match="process unknown"):
        open_folder(root)
    close(first)


# ── folders that cannot be used ──


def test_a_file_in_the_place_of_the_folder_is_told_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "bank").write_text("something else")
    with pytest.raises(ConfigError) as caught:
        open_folder(tmp_path / "bank")
    text = str(caught.value)
    assert str(tmp_path / "bank") in text
    assert "data_dir" in text
    assert "\n" not in text
    assert isinstance(caught.value.__cause__, OSError)


@pytest.mark.parametrize("operation", ["mkdir", "open", "lock", "write", "fsync_dir", "listdir"])
@pytest.mark.parametrize("reason", [errno.EACCES, errno.EROFS, errno.ENOSPC])
def test_a_folder_that_cannot_be_opened_names_the_way_out_and_leaves_nothing_open(
    root: Path, operation: str, reason: int
) -> None:
    ops = FaultyFileOps(faults={operation: reason})
    with pytest.raises((ConfigError, StorageError), match="choose another"):
        open_folder(root, ops=ops)
    assert ops.open_files == {}
    close(open_folder(root))


def test_each_operation_of_opening_may_fail(root: Path) -> None:
    storage = open_folder(root)
    store(storage, "scan-1", CONTENT)
    close(storage)
    (root / "parts" / "left.part").write_bytes(b"half")
    (root / "records" / ".left.1.tmp").write_bytes(b"half")
    for number in range(200):
        ops = FaultyFileOps(faults={number: errno.EIO})
        with suppress(ConfigError, StorageError):
            close(open_folder(root, ops=ops))
        assert ops.open_files == {}
        if ops.failed is None:
            break
    else:
        pytest.fail("opening takes more operations than expected")
    blobs, catalog = open_folder(root)
    assert [record.dataset_id for record in catalog.page().records] == ["scan-1"]
    close((blobs, catalog))


# ── disks that refuse ──


@pytest.mark.parametrize("reason", DISK_ERRORS, ids=errno.errorcode.get)
def test_each_operation_of_a_commit_may_fail_and_nothing_acknowledged_is_lost(
    tmp_path: Path, reason: int
) -> None:
    points = 0
    for number in range(200):
        root = tmp_path / str(number)
        ops = FaultyFileOps()
        storage = open_folder(root, ops=ops)
        before = store(storage, "before", b"before")
        ops.done.clear()
        ops.faults[number] = reason
        acknowledged, refusals = [before], []
        try:
            acknowledged.append(store(storage, "scan-1", CONTENT))
        except StorageError as error:
            refusals.append(error)
        ops.faults.clear()
        if ops.failed is None:
            break
        points += 1
        for refusal in refusals:
            assert isinstance(refusal, NoSpace) == (reason in (errno.ENOSPC, errno.EDQUOT))
            assert isinstance(refusal.__cause__, OSError)
        assert storage[1].page().records == acknowledged
        assert storage[0].probe()
        again = store(storage, "scan-1", CONTENT)
        assert storage[1].page().records == [before, again]
        close(storage)
        assert ops.open_files == {}
        blobs, catalog = open_folder(root)
        assert catalog.page().records == [before, again]
        assert blobs.read(NAME, 0, len(CONTENT)) == CONTENT
        assert not list((root / "parts").iterdir())
        assert blobs.unfinished() == []
        close((blobs, catalog))
    assert points >= 14
    close(storage)


@pytest.mark.parametrize("what", ["dataset", "record"])
def test_a_file_whose_sync_failed_is_never_synced_again(root: Path, what: str) -> None:
    ops = FaultyFileOps()
    storage = open_folder(root, ops=ops)
    if what == "record":
        put(storage[0], CONTENT)
    ops.journal()
    ops.faults["fsync"] = errno.EIO
    with pytest.raises(StorageError, match=f"the {what}.*EIO"):
        _ = storage[1].add(record_of("scan-1")) if what == "record" else put(storage[0], CONTENT)
    abandoned = ops.failed
    assert abandoned is not None
    assert not abandoned.path.exists()
    ops.faults.clear()
    # Nothing is written, of neither kind, before a probe has worked.
    for write in (lambda: put(storage[0], CONTENT), lambda: storage[1].add(record_of("scan-2"))):
        with pytest.raises(StorageError, match="takes no writes since"):
            write()
    assert storage[0].probe()
    store(storage, "scan-1", CONTENT)
    close(storage)
    assert [each.path for each in ops.done if each.name == "fsync"].count(abandoned.path) == 1


def test_a_record_of_which_nobody_knows_whether_it_is_durable_keeps_its_number(root: Path) -> None:
    ops = FaultyFileOps()
    storage = open_folder(root, ops=ops)
    put(storage[0], CONTENT)
    ops.faults |= {"fsync_dir": errno.EIO, "unlink": errno.EIO}
    with pytest.raises(StorageError, match="EIO"):
        storage[1].add(record_of("in-doubt"))
    ops.faults.clear()
    assert storage[1].get("in-doubt") is None
    assert storage[0].probe()
    after = store(storage, "after", CONTENT)
    close(storage)
    # Its file could not be removed again: it is found at the next start, without harm to others.
    blobs, catalog = open_folder(root)
    found = [(record.dataset_id, record.sequence) for record in catalog.page().records]
    assert found == [("in-doubt", 1), ("after", after.sequence)]
    close((blobs, catalog))


def test_a_part_that_failed_stays_failed(root: Path) -> None:
    ops = FaultyFileOps()
    blobs = FileBlobStore(root, ops=ops)
    part = blobs.begin()
    part.write(0, b"abc")
    ops.faults["write"] = errno.EIO
    with pytest.raises(StorageError, match="could not write"):
        part.write(3, b"def")
    ops.faults.clear()
    with pytest.raises(StorageError, match="start it again"):
        part.write(3, b"def")
    with pytest.raises(StorageError, match="start it again"):
        part.finish(3, sha256_of(b"abc"))
    assert not list((root / "parts").iterdir())
    blobs.close()


def test_a_part_that_is_discarded_while_it_is_written_waits_for_the_write(root: Path) -> None:
    writing, go_on = threading.Event(), threading.Event()

    class Slow(FaultyFileOps):
        def write(self, fd: int, offset: int, piece: memoryview) -> int:
            if offset == 3:
                writing.set()
                assert go_on.wait(10)
            return super().write(fd, offset, piece)

    ops = Slow()
    blobs = FileBlobStore(root, ops=ops)
    part = blobs.begin()
    part.write(0, b"abc")
    ops.journal()
    with ThreadPoolExecutor(2) as pool:
        write = pool.submit(part.write, 3, b"def")
        assert writing.wait(10)
        discard = pool.submit(part.discard)
        assert wait([discard], timeout=0.05).done == set()
        go_on.set()
        write.result()
        discard.result()
    assert ops.journal() == [
        "write 00000001.part",
        "close 00000001.part",
        "unlink 00000001.part",
    ]
    blobs.close()


def test_a_discarded_part_that_cannot_be_removed_is_logged_and_goes_at_the_next_start(
    root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ops = FaultyFileOps()
    blobs = FileBlobStore(root, ops=ops)
    part = blobs.begin()
    ops.faults |= {"unlink": errno.EIO, "close": errno.EIO}
    part.discard()
    assert "00000001.part" in caplog.text
    assert "closing" in caplog.text
    ops.faults.clear()
    blobs.close()
    FileBlobStore(root).close()
    assert not list((root / "parts").iterdir())


def test_a_write_that_takes_little_at_a_time_is_continued(root: Path) -> None:
    storage = open_folder(root, ops=FaultyFileOps(write_bytes=1000))
    store(storage, "scan-1", CONTENT)
    assert storage[0].read(NAME, 0, len(CONTENT)) == CONTENT
    close(storage)


def test_a_write_that_takes_nothing_is_an_error_and_not_a_loop(root: Path) -> None:
    blobs = FileBlobStore(root)
    part = blobs.begin()

    class Stuck(FileOps):
        def write(self, fd: int, offset: int, piece: memoryview) -> int:
            return 0

    with pytest.raises(OSError, match="wrote nothing"):
        write_all(Stuck(), 0, 0, memoryview(b"abc"))
    part.discard()
    blobs.close()


def test_a_read_that_returns_little_at_a_time_is_continued(root: Path) -> None:
    class Sipping(FileOps):
        def read(self, fd: int, offset: int, size: int) -> bytes:
            return super().read(fd, offset, min(size, 100))

    storage = open_folder(root, ops=Sipping())
    store(storage, "scan-1", CONTENT)
    assert storage[0].read(NAME, 10, 5000) == CONTENT[10:5010]
    close(storage)
    blobs, catalog = open_folder(root, ops=Sipping())
    assert catalog.count() == 1
    close((blobs, catalog))


def test_an_object_that_cannot_be_read_is_an_error_of_that_object_alone(root: Path) -> None:
    ops = FaultyFileOps()
    storage = open_folder(root, ops=ops)
    store(storage, "scan-1", CONTENT)
    other = store(storage, "scan-2", b"other")
    (root / "objects" / NAME[:2] / NAME).write_bytes(CONTENT[:-1])
    with pytest.raises(Damaged):
        storage[0].read(NAME, 0, len(CONTENT))
    assert storage[0].read(other.sha256, 0, 5) == b"other"
    ops.faults["read"] = errno.EIO
    with pytest.raises(StorageError, match="EIO"):
        storage[0].read(other.sha256, 0, 5)
    ops.faults.clear()
    # The same content, uploaded again, mends it.
    put(storage[0], CONTENT)
    assert storage[0].read(NAME, 0, len(CONTENT)) == CONTENT
    close(storage)


def run_program(program: str, *arguments: str, before: tuple[str, ...] = ()) -> str:
    """What a program of its own process, started by the command ``before``, prints."""
    ended = subprocess.run(
        [*before, sys.executable, "-c", textwrap.dedent(program), *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


#: A mount that ends with the process, however that ends.
OWN_MOUNTS = ("unshare", "--mount", "--propagation", "private")


def may_mount() -> bool:
    try:
        return subprocess.run([*OWN_MOUNTS, "true"], capture_output=True).returncode == 0
    except FileNotFoundError:
        return False


def test_a_full_disk_refuses_and_works_again_when_there_is_room(tmp_path: Path) -> None:
    program = """
        import subprocess, sys
        from pathlib import Path
        from labmesh.errors import NoSpace
        from labmesh.storage.filesystem import open_folder
        from tests.support.storage_contract import put, record_of, sha256_of
        mount = ["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", sys.argv[1]]
        subprocess.run(mount, check=True)
        blobs, catalog = open_folder(Path(sys.argv[1]) / "bank")
        kept = put(blobs, b"k" * 100_000)
        catalog.add(record_of("kept", b"k" * 100_000))
        try:
            blobs.begin(2**20)
        except NoSpace as error:
            print("before the first byte:", error)
        stream = blobs.begin()
        try:
            stream.write(0, b"x" * 2**20)
        except NoSpace as error:
            print("midway:", error)
        assert blobs.read(kept, 0, 100_000) == b"k" * 100_000
        fits = put(blobs, b"f" * 200_000)
        catalog.add(record_of("fits", b"f" * 200_000))
        assert blobs.read(fits, 0, 200_000) == b"f" * 200_000
        print(catalog.count(), "stored")
    """
    if not may_mount():
        pytest.skip("a small tmpfs needs unshare and the right to mount")
    lines = run_program(program, str(tmp_path), before=OWN_MOUNTS).splitlines()
    assert len(lines) == 3
    assert "room for" in lines[0]
    assert "disk or quota is full" in lines[1]
    assert lines[2] == "2 stored"


def test_a_limit_of_the_file_size_never_cuts_a_dataset_short(root: Path) -> None:
    program = """
        import resource, sys
        from labmesh.errors import StorageError
        from labmesh.storage.filesystem import open_folder
        blobs, catalog = open_folder(sys.argv[1])
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
        part = blobs.begin()
        part.write(0, b"a" * 60_000)
        try:
            part.write(60_000, b"a" * 60_000)
        except StorageError as error:
            print(type(error).__name__, error.detail["errno"])
        catalog.close()
        blobs.close()
    """
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[1] == resource.RLIM_INFINITY
    assert run_program(program, str(root)) == "NoSpace EFBIG\n"
    assert tree(root) == {"LOCK"}


# ── records that cannot be used ──

GOOD = {"format": 1, "dataset_id": "bad", "size": 0, "sha256": "0" * 64, "bank_id": "b"}

BROKEN = {
    "empty": b"",
    "cut": b'{"format": 1, "dataset_id": "b',
    "binary": bytes(range(256)),
    "not an object": b"[]",
    "deep": b"[" * 100_000,
    "no format": b'{"dataset_id": "bad"}',
    "a later format": json.dumps({**GOOD, "sequence": 9, "format": 2}).encode(),
    "another id": json.dumps({**GOOD, "sequence": 9, "dataset_id": "other"}).encode(),
    "an id out of the folder": json.dumps({**GOOD, "sequence": 9, "dataset_id": "../x"}).encode(),
    "a wrong type": json.dumps({**GOOD, "sequence": 9, "size": "10"}).encode(),
    "no sequence": json.dumps(GOOD).encode(),
    "the sequence of another": json.dumps({**GOOD, "sequence": 1}).encode(),
}


@pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN.keys())
def test_a_broken_record_is_named_and_kept_and_harms_no_other(
    root: Path, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    storage = open_folder(root)
    first = store(storage, "a-first", CONTENT)
    close(storage)
    path = root / "records" / "bad.json"
    path.write_bytes(content)

    blobs, catalog = open_folder(root)
    reports = [each.getMessage() for each in caplog.records if each.levelno == logging.ERROR]
    assert len(reports) == 1
    assert str(path) in reports[0]
    assert catalog.page().records == [first]
    assert blobs.read(NAME, 0, len(CONTENT)) == CONTENT
    # Its number stays taken, and its id too.
    assert store((blobs, catalog), "next", b"next").sequence == 3
    with pytest.raises(StorageError, match=r"bad\.json"):
        catalog.add(record_of("bad"))
    close((blobs, catalog))
    assert path.read_bytes() == content


def test_a_record_that_cannot_be_read_is_skipped(
    root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    storage = open_folder(root)
    store(storage, "scan-1", CONTENT)
    close(storage)

    (root / "catalog.sqlite").unlink()

    class Unreadable(FileOps):
        def read(self, fd: int, offset: int, size: int) -> bytes:
            raise OSError(errno.EIO, "Input/output error")

    catalog = FileCatalog(root, ops=Unreadable())
    assert catalog.count() == 0
    assert "scan-1.json" in caplog.text


def test_files_of_others_among_the_records_are_left_alone(
    root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    storage = open_folder(root)
    store(storage, "scan-1", CONTENT)
    close(storage)
    for name in ("README.txt", ".DS_Store", "scan-1.json~"):
        (root / "records" / name).write_bytes(b"mine")
    (root / "records" / "folder").mkdir()
    before = tree(root)
    blobs, catalog = open_folder(root)
    assert catalog.count() == 1
    assert caplog.text == ""
    close((blobs, catalog))
    assert tree(root) == before


def test_fields_that_a_later_version_added_are_no_obstacle(root: Path) -> None:
    storage = open_folder(root)
    stored = store(storage, "scan-1", CONTENT)
    close(storage)
    path = root / "records" / "scan-1.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "of a later version": ["new"]}))
    blobs, catalog = open_folder(root)
    assert catalog.get("scan-1") == stored
    close((blobs, catalog))
