"""The blob store on files: what the contract of every store does not say."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

import pytest
from tests.support.blob_contract import CONTENT, LARGE, MIB, BlobCase, BlobContract, put, sha256_of
from tests.support.file_faults import FaultyFileOps, Operation

from labmesh.errors import ChecksumMismatch, Damaged, NoSpace, StorageError
from labmesh.storage.fileops import FileOps
from labmesh.storage.objects import FileBlobStore

NAME = sha256_of(CONTENT)
LARGE_NAME = sha256_of(LARGE)
#: The least that has two pieces, for what is done a hundred times.
TWO = LARGE[: MIB + 3]
TWO_NAME = sha256_of(TWO)


class FileCase(BlobCase):
    def __init__(self, root: Path) -> None:
        self.root = root
        self.ops = FaultyFileOps()
        self.blobs = self._open()

    def _open(self) -> FileBlobStore:
        # The disk itself has room that others use too.
        return FileBlobStore(self.root, ops=self.ops, quota_bytes=256 * MIB)

    def reopen(self) -> FileBlobStore:
        self.blobs.close()
        self.blobs = self._open()
        return self.blobs

    def damage(self, sha256: str, offset: int) -> None:
        path = object_path(self.root, sha256)
        with path.open("r+b") as file:
            file.seek(offset)
            [byte] = file.read(1)
            file.seek(offset)
            file.write(bytes([byte ^ 1]))

    def cut(self, sha256: str, size: int) -> None:
        os.truncate(object_path(self.root, sha256), size)

    def break_medium(self) -> None:
        self.ops.faults["fsync"] = errno.EIO

    def mend_medium(self) -> None:
        self.ops.faults.clear()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "bank"


@pytest.fixture
def ops() -> FaultyFileOps:
    return FaultyFileOps()


@pytest.fixture
def blobs(root: Path, ops: FaultyFileOps) -> Iterator[FileBlobStore]:
    store = FileBlobStore(root, ops=ops)
    ops.journal()
    yield store
    ops.faults.clear()
    store.close()
    assert ops.open_files == {}


class TestFileBlobs(BlobContract):
    @pytest.fixture
    def case(self, root: Path) -> Iterator[FileCase]:
        case = FileCase(root)
        yield case
        case.blobs.close()
        assert case.ops.open_files == {}


def object_path(root: Path, sha256: str) -> Path:
    return root / "objects" / sha256[:2] / sha256


def sums_path(root: Path, sha256: str) -> Path:
    return root / "objects" / sha256[:2] / f"{sha256}.sums"


def tree(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}


# ── what is done, and in which order ──


def test_a_large_object_is_synced_step_by_step_with_its_sums(
    root: Path, blobs: FileBlobStore, ops: FaultyFileOps
) -> None:
    part = blobs.begin(len(LARGE), b"note")
    part.write(0, LARGE[:MIB])
    part.sync()
    assert ops.journal() == [
        "open 00000001.part",
        "reserve 00000001.part",
        "write 00000001.part",
        "fsync 00000001.part",
        "open 00000001.json.tmp",
        "write 00000001.json.tmp",
        "fsync 00000001.json.tmp",
        "close 00000001.json.tmp",
        "rename 00000001.json.tmp 00000001.json",
        "fsync_dir parts",
    ]
    part.sync()
    assert ops.journal() == []
    part.write(MIB, LARGE[MIB:])
    part.finish(len(LARGE), LARGE_NAME)
    folder = LARGE_NAME[:2]
    assert ops.journal() == [
        "write 00000001.part",
        "touch 00000001.part",
        "fsync 00000001.part",
        "close 00000001.part",
        "open 00000001.json.tmp",
        "write 00000001.json.tmp",
        "fsync 00000001.json.tmp",
        "close 00000001.json.tmp",
        "rename 00000001.json.tmp 00000001.json",
        "fsync_dir parts",
        f"mkdir {folder}",
        "fsync_dir objects",
        "open 00000001.sums",
        "write 00000001.sums",
        "fsync 00000001.sums",
        "close 00000001.sums",
        f"rename 00000001.sums {LARGE_NAME}.sums",
        f"rename 00000001.part {LARGE_NAME}",
        f"fsync_dir {folder}",
    ]
    part.discard()
    assert ops.journal() == ["unlink 00000001.json"]
    assert tree(root) == {
        "LOCK",
        f"objects/{folder}/{LARGE_NAME}",
        f"objects/{folder}/{LARGE_NAME}.sums",
    }
    blobs.remove(LARGE_NAME)
    assert ops.journal() == [
        f"unlink {LARGE_NAME}.sums",
        f"unlink {LARGE_NAME}",
        f"fsync_dir {folder}",
    ]
    assert tree(root) == {"LOCK"}


def test_what_is_durable_already_is_not_synced_again(
    blobs: FileBlobStore, ops: FaultyFileOps
) -> None:
    part = blobs.begin()
    part.write(0, CONTENT)
    part.sync()
    part.finish(len(CONTENT), NAME)
    syncs = [each.path.name for each in ops.done if each.name == "fsync"]
    assert syncs == ["00000001.part", "00000001.json.tmp", "00000001.json.tmp"]


def test_a_reservation_does_not_lengthen_the_file_and_goes_with_the_rest(
    root: Path, blobs: FileBlobStore
) -> None:
    part = blobs.begin(64 * MIB)
    part.write(0, CONTENT)
    path = root / "parts" / "00000001.part"
    assert path.stat().st_size == len(CONTENT)
    assert path.stat().st_blocks * 512 >= 64 * MIB
    part.finish(len(CONTENT), NAME)
    assert object_path(root, NAME).stat().st_blocks * 512 <= 2 * len(CONTENT)


def test_a_file_system_that_cannot_reserve_is_kept_account_of(root: Path) -> None:
    class Old(FaultyFileOps):
        def reserve(self, fd: int, size: int) -> bool:
            return False

        def free_bytes(self, path: Path) -> int:
            return 10 * MIB

    blobs = FileBlobStore(root, ops=Old())
    part = blobs.begin(6 * MIB)
    assert blobs.free_bytes() == 4 * MIB
    with pytest.raises(NoSpace, match=f"room for {4 * MIB} bytes, not for {5 * MIB}"):
        blobs.begin(5 * MIB)
    part.write(0, LARGE)
    assert blobs.free_bytes() == 4 * MIB + len(LARGE)
    part.discard()
    assert blobs.free_bytes() == 10 * MIB
    blobs.close()


def test_a_disk_that_is_full_says_so_before_the_first_byte(
    root: Path, blobs: FileBlobStore, ops: FaultyFileOps, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Others write to the disk of the tests at the same time.
    monkeypatch.setattr(ops, "free_bytes", lambda _path: 100 * MIB)
    free = blobs.free_bytes()
    ops.faults["reserve"] = errno.ENOSPC
    with pytest.raises(NoSpace, match="full"):
        blobs.begin(2 * MIB)
    assert tree(root) == {"LOCK"}
    assert blobs.free_bytes() == free
    ops.faults.clear()
    put(blobs, LARGE)


# ── the quota ──


def test_a_quota_counts_objects_and_parts_and_what_is_freed(root: Path) -> None:
    blobs = FileBlobStore(root, quota_bytes=10 * MIB)
    put(blobs, LARGE)
    left = 10 * MIB - len(LARGE)
    assert blobs.free_bytes() == left
    assert put(blobs, LARGE) == LARGE_NAME
    assert blobs.free_bytes() == left
    known = blobs.begin(5 * MIB)
    with pytest.raises(NoSpace, match="room"):
        blobs.begin(3 * MIB)
    stream = blobs.begin()
    stream.write(0, LARGE[: 2 * MIB])
    with pytest.raises(NoSpace, match="quota"):
        stream.write(2 * MIB, LARGE[: 2 * MIB])
    known.write(0, LARGE)
    known.sync()
    blobs.close()

    blobs = FileBlobStore(root, quota_bytes=10 * MIB)
    [known] = blobs.unfinished()
    assert blobs.free_bytes() == left - 5 * MIB
    known.discard()
    assert blobs.free_bytes() == left
    blobs.remove(LARGE_NAME)
    assert blobs.free_bytes() == 10 * MIB
    blobs.remove(LARGE_NAME)
    assert blobs.free_bytes() == 10 * MIB
    blobs.close()


def test_a_damaged_object_frees_its_share_of_the_quota(root: Path) -> None:
    blobs = FileBlobStore(root, quota_bytes=MIB)
    put(blobs, CONTENT)
    object_path(root, NAME).write_bytes(bytes(len(CONTENT)))
    with pytest.raises(Damaged):
        blobs.read(NAME, 0, 1)
    assert blobs.free_bytes() == MIB
    assert put(blobs, CONTENT) == NAME
    assert blobs.free_bytes() == MIB - len(CONTENT)
    blobs.close()


# ── disks that refuse ──

#: Errors of a disk that cannot be trusted, and of one that is at a limit.
BROKEN = (errno.EIO, errno.EROFS)
AT_A_LIMIT = (errno.ENOSPC, errno.EFBIG, errno.EMFILE, errno.EINTR)


@pytest.mark.parametrize("reason", BROKEN + AT_A_LIMIT, ids=errno.errorcode.get)
def test_each_operation_of_an_upload_may_fail(tmp_path: Path, reason: int) -> None:
    points = 0
    for number in range(100):
        root = tmp_path / str(number)
        ops = FaultyFileOps()
        blobs = FileBlobStore(root, ops=ops)
        put(blobs, CONTENT)
        ops.done.clear()
        ops.faults[number] = reason
        refusal = None
        try:
            part = blobs.begin(len(TWO))
            part.write(0, TWO[:MIB])
            part.sync()
            part.write(MIB, TWO[MIB:])
            part.finish(len(TWO), TWO_NAME)
            part.discard()
        except StorageError as error:
            refusal = error
        ops.faults.clear()
        if ops.failed is None:
            assert refusal is None
            break
        points += 1
        failed = ops.failed
        if refusal is None:
            # It was looped, or of no consequence.
            assert reason == errno.EINTR or failed.name in ("unlink", "stat"), failed
            assert blobs.read(TWO_NAME, 0, len(TWO)) == TWO
        else:
            full = reason in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
            assert isinstance(refusal, NoSpace) == full
            shut = reason in BROKEN and failed.name != "free_bytes"
            assert bool(blobs.refusal()) == shut, failed
        assert blobs.read(NAME, 0, len(CONTENT)) == CONTENT
        assert blobs.probe()
        put(blobs, TWO)
        assert blobs.read(TWO_NAME, 0, len(TWO)) == TWO
        assert synced_again(ops, failed) == []
        blobs.close()
        assert ops.open_files == {}
        blobs = FileBlobStore(root)
        left = blobs.unfinished()
        # The bank knows its record, and tries once more.
        assert not left or (refusal is None and failed.name == "unlink")
        for each in left:
            each.discard()
        blobs.close()
        assert not list((root / "parts").iterdir())
    assert points >= 25
    blobs.close()


def synced_again(ops: FaultyFileOps, failed: Operation) -> list[Operation]:
    """Syncs of a file after one of it failed. (Its number is never used again.)"""
    if failed.name != "fsync":
        return []
    [number] = [number for number, each in enumerate(ops.done) if each is failed]
    after = ops.done[number + 1 :]
    return [each for each in after if (each.name, each.path) == (failed.name, failed.path)]


def test_each_operation_of_a_repair_may_fail_and_damage_is_never_served(tmp_path: Path) -> None:
    for number in range(100):
        root = tmp_path / str(number)
        ops = FaultyFileOps()
        blobs = FileBlobStore(root, ops=ops)
        for content in (CONTENT, TWO):
            put(blobs, content)
        FileCase.damage(Case(root), TWO_NAME, MIB)
        ops.done.clear()
        ops.faults[number] = errno.EIO
        with pytest.raises(StorageError):
            blobs.read(TWO_NAME, MIB, 3)
        ops.faults.clear()
        with pytest.raises(Damaged):
            blobs.read(TWO_NAME, MIB, 1)
        assert blobs.read(NAME, 0, len(CONTENT)) == CONTENT
        assert blobs.probe()
        put(blobs, TWO)
        assert blobs.read(TWO_NAME, 0, len(TWO)) == TWO
        blobs.close()
        assert ops.open_files == {}
        if ops.failed is None:
            break
    else:
        pytest.fail("a repair takes more operations than expected")
    assert number > 10


class Case(FileCase):
    def __init__(self, root: Path) -> None:
        self.root = root


def test_a_refusal_tells_since_when_and_why_and_others_go_on(
    blobs: FileBlobStore, ops: FaultyFileOps
) -> None:
    one, other = blobs.begin(), blobs.begin()
    one.write(0, b"abc")
    other.write(0, CONTENT)
    ops.faults["fsync"] = errno.EIO
    with pytest.raises(StorageError, match="EIO"):
        one.sync()
    ops.faults.clear()
    assert "since 2" in blobs.refusal()
    assert "make the upload durable" in blobs.refusal()
    assert "EIO" in blobs.refusal()
    # The other one learns from its own sync whether its bytes are safe.
    other.finish(len(CONTENT), NAME)
    ops.faults["fsync_dir"] = errno.EROFS
    first = blobs.refusal()
    assert not blobs.probe()
    assert blobs.refusal() == first
    ops.faults.clear()
    assert blobs.probe()


def test_a_probe_reads_back_what_it_wrote_in_a_new_file_each_time(root: Path) -> None:
    class Lying(FaultyFileOps):
        lies = False

        def read(self, fd: int, offset: int, size: int) -> bytes:
            return (
                bytes(len(super().read(fd, offset, size)))
                if self.lies
                else super().read(fd, offset, size)
            )

    ops = Lying()
    blobs = FileBlobStore(root, ops=ops)
    blobs.health.failed(OSError(errno.EIO, "Input/output error"), "try")
    ops.journal()
    ops.lies = True
    assert not blobs.probe()
    ops.lies = False
    assert blobs.probe()
    synced = [line for line in ops.journal() if line.startswith("fsync ")]
    assert synced == ["fsync 00000001.probe", "fsync 00000002.probe"]
    assert tree(root) == {"LOCK"}
    blobs.close()


def test_closing_while_a_disk_refuses_leaves_nothing_open(
    blobs: FileBlobStore, ops: FaultyFileOps
) -> None:
    part = blobs.begin()
    part.write(0, CONTENT)
    ops.faults |= {"close": errno.EIO, "unlink": errno.EIO}
    blobs.close()
    with pytest.raises(StorageError, match="closed"):
        blobs.begin()
    with pytest.raises(StorageError, match="closed"):
        blobs.unfinished()


# ── unfinished uploads ──


def leave_part(root: Path, content: bytes = LARGE, durable: int = 2 * MIB) -> None:
    blobs = FileBlobStore(root)
    part = blobs.begin(len(content), b"note")
    part.write(0, content[:durable])
    part.sync()
    part.write(durable, content[durable:])
    blobs.close()


def test_bytes_behind_the_durable_ones_are_not_trusted(root: Path) -> None:
    leave_part(root)
    path = root / "parts" / "00000001.part"
    # As a power cut may leave it: longer, and of other content.
    with path.open("r+b") as file:
        file.seek(2 * MIB)
        file.write(b"junk" * MIB)
    blobs = FileBlobStore(root)
    [part] = blobs.unfinished()
    assert part.size == 2 * MIB
    part.write(2 * MIB, LARGE[2 * MIB :])
    part.finish(len(LARGE), LARGE_NAME)
    assert blobs.read(LARGE_NAME, 0, len(LARGE)) == LARGE
    blobs.verify(LARGE_NAME, len(LARGE))
    blobs.close()


def test_durable_bytes_that_rotted_are_found_at_the_end(root: Path) -> None:
    leave_part(root)
    with (root / "parts" / "00000001.part").open("r+b") as file:
        file.write(b"rot")
    blobs = FileBlobStore(root)
    [part] = blobs.unfinished()
    part.write(2 * MIB, LARGE[2 * MIB :])
    with pytest.raises(ChecksumMismatch):
        part.finish(len(LARGE), LARGE_NAME)
    blobs.close()
    assert tree(root) == {"LOCK"}


@pytest.mark.parametrize("mended", [False, True])
def test_a_continued_part_that_cannot_be_read_again_fails_at_its_end(
    root: Path, mended: bool
) -> None:
    leave_part(root)
    ops = FaultyFileOps()
    blobs = FileBlobStore(root, ops=ops)
    [part] = blobs.unfinished()
    ops.faults["read"] = errno.EIO
    # Nobody waits for the reading until the end, where it is tried again.
    part.write(2 * MIB, LARGE[2 * MIB :])
    if mended:
        ops.faults.clear()
        part.finish(len(LARGE), LARGE_NAME)
        assert blobs.read(LARGE_NAME, 0, 5) == LARGE[:5]
    else:
        with pytest.raises(StorageError, match="EIO"):
            part.finish(len(LARGE), LARGE_NAME)
        ops.faults.clear()
    blobs.close()
    assert ops.open_files == {}


def test_a_part_that_lost_durable_bytes_after_the_start_fails(root: Path) -> None:
    leave_part(root)
    blobs = FileBlobStore(root)
    [part] = blobs.unfinished()
    os.truncate(root / "parts" / "00000001.part", MIB)
    with pytest.raises(StorageError, match="lost bytes"):
        part.write(2 * MIB, b"more")
    with pytest.raises(StorageError, match="start it again"):
        part.sync()
    blobs.close()
    assert tree(root) == {"LOCK"}


def test_hashing_what_was_there_keeps_pace_with_the_writes(root: Path) -> None:
    content = os.urandom(MIB) * 24
    leave_part(root, content, durable=20 * MIB)
    hashing, go_on = threading.Event(), threading.Event()

    class Slow(FaultyFileOps):
        def read(self, fd: int, offset: int, size: int) -> bytes:
            if offset == MIB and self.open_files[fd].suffix == ".part":
                hashing.set()
                assert go_on.wait(10)
            return super().read(fd, offset, size)

    blobs = FileBlobStore(root, ops=Slow())
    [part] = blobs.unfinished()
    part.write(20 * MIB, content[20 * MIB : 21 * MIB])
    assert hashing.wait(10)
    part.write(21 * MIB, content[21 * MIB : 22 * MIB])
    go_on.set()
    for offset in range(22 * MIB, 24 * MIB, 2**16):
        part.write(offset, content[offset : offset + 2**16])
    part.finish(len(content), sha256_of(content))
    assert blobs.read(sha256_of(content), 23 * MIB, MIB) == content[23 * MIB :]
    blobs.close()


BAD_RECORDS = {
    "empty": b"",
    "cut": b'{"format": 1, "dura',
    "binary": bytes(range(256)),
    "deep": b"[" * 100_000,
    "not an object": b"[]",
    "a later format": b'{"format": 2, "durable": 5, "reserved": 0, "note": ""}',
    "no note": b'{"format": 1, "durable": 5, "reserved": 0}',
    "a bad note": b'{"format": 1, "durable": 5, "reserved": 0, "note": "?"}',
    "nothing durable": b'{"format": 1, "durable": 0, "reserved": 0, "note": ""}',
    "more than there is": b'{"format": 1, "durable": 500000000, "reserved": 0, "note": ""}',
    "a wrong type": b'{"format": 1, "durable": "5", "reserved": 0, "note": ""}',
}


def test_parts_that_cannot_be_continued_are_removed_and_files_of_others_are_not(
    root: Path,
) -> None:
    leave_part(root)
    parts = root / "parts"
    number = 1
    for number, content in enumerate(BAD_RECORDS.values(), 2):
        (parts / f"{number:08d}.part").write_bytes(b"0123456789")
        (parts / f"{number:08d}.json").write_bytes(content)
    (parts / f"{number + 1:08d}.json").write_bytes((parts / "00000001.json").read_bytes())
    for name in ("00000777.part", "00000777.sums", "00000001.json.tmp", "00000001.sums"):
        (parts / name).write_bytes(b"left behind")
    foreign = {"README", "1.part", "00000001.part~", ".DS_Store", "left.part"}
    for name in foreign:
        (parts / name).write_bytes(b"mine")
    (parts / "00000009").mkdir()
    for name in ("00000100.part", "00000200.json"):
        (parts / name).mkdir()
    (parts / "00000200.part").write_bytes(b"nobody knows")
    foreign.add("00000200.part")
    blobs = FileBlobStore(root)
    kept = {"00000001.part", "00000001.json"}
    assert {path.name for path in parts.iterdir() if path.is_file()} == kept | foreign
    [part] = blobs.unfinished()
    # No number is used twice.
    blobs.begin().write(0, b"x")
    assert (parts / "00000778.part").exists()
    part.write(2 * MIB, LARGE[2 * MIB :])
    part.finish(len(LARGE), LARGE_NAME)
    part.discard()
    blobs.close()
    assert {path.name for path in parts.iterdir() if path.is_file()} == foreign


def test_the_folder_of_the_parts_is_private(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    root.mkdir()
    (root / "parts").mkdir(mode=0o755)
    FileBlobStore(root).close()
    assert (root / "parts").stat().st_mode & 0o777 == 0o700
    assert caplog.text == ""
    FileBlobStore(root, ops=FaultyFileOps(faults={"make_private": errno.EPERM})).close()
    assert "may be able to look into" in caplog.text


def test_a_sync_that_is_under_way_holds_up_neither_writes_nor_is_it_cut_off(root: Path) -> None:
    syncing, go_on = threading.Event(), threading.Event()

    class Slow(FaultyFileOps):
        def fsync(self, fd: int) -> None:
            if self.open_files[fd].suffix == ".part":
                syncing.set()
                assert go_on.wait(10)
            super().fsync(fd)

    ops = Slow()
    blobs = FileBlobStore(root, ops=ops)
    part = blobs.begin()
    part.write(0, b"abc")
    with ThreadPoolExecutor(2) as pool:
        sync = pool.submit(part.sync)
        assert syncing.wait(10)
        part.write(3, b"def")
        assert (part.size, part.durable) == (6, 0)
        discard = pool.submit(part.discard)
        assert wait([discard], timeout=0.05).done == set()
        go_on.set()
        assert sync.result() == 3
        discard.result()
    with pytest.raises(StorageError, match="start it again"):
        part.write(6, b"ghi")
    blobs.close()
    assert tree(root) == {"LOCK"}


# ── sums of pieces, damage ──


@pytest.mark.parametrize("harm", ["missing", "cut", "of another", "a flipped bit", "folder"])
def test_sums_that_cannot_be_used_are_written_again(root: Path, harm: str) -> None:
    blobs = FileBlobStore(root)
    put(blobs, LARGE)
    other = put(blobs, LARGE[::-1])
    blobs.close()
    path = sums_path(root, LARGE_NAME)
    good = path.read_bytes()
    path.unlink()
    if harm == "cut":
        path.write_bytes(good[:-40])
    elif harm == "of another":
        path.write_bytes(sums_path(root, other).read_bytes())
    elif harm == "a flipped bit":
        path.write_bytes(good[:60] + bytes([good[60] ^ 4]) + good[61:])
    elif harm == "folder":
        path.mkdir()
    blobs = FileBlobStore(root)
    assert blobs.read(LARGE_NAME, MIB, 5) == LARGE[MIB : MIB + 5]
    if harm != "folder":
        assert path.read_bytes() == good
    assert blobs.read(LARGE_NAME, 0, 5) == LARGE[:5]
    assert blobs.probe()
    blobs.close()
    assert not list((root / "parts").iterdir())


def test_objects_of_the_first_format_have_no_sums_and_are_served(root: Path) -> None:
    for content in (CONTENT, LARGE):
        path = object_path(root, sha256_of(content))
        path.parent.mkdir(parents=True)
        path.write_bytes(content)
    blobs = FileBlobStore(root)
    assert blobs.read(NAME, 3, 9) == CONTENT[3:12]
    assert blobs.read(LARGE_NAME, MIB, MIB) == LARGE[MIB : 2 * MIB]
    assert sums_path(root, LARGE_NAME).exists()
    assert not sums_path(root, NAME).exists()
    blobs.close()


def test_objects_that_were_swapped_with_their_sums_are_damaged(root: Path) -> None:
    blobs = FileBlobStore(root)
    other = put(blobs, LARGE[::-1])
    put(blobs, LARGE)
    blobs.close()
    for path in (object_path, sums_path):
        one, two = path(root, LARGE_NAME), path(root, other)
        swap = one.read_bytes()
        one.write_bytes(two.read_bytes())
        two.write_bytes(swap)
    blobs = FileBlobStore(root)
    for name in (LARGE_NAME, other):
        with pytest.raises(Damaged):
            blobs.read(name, 0, 1)
    assert list(blobs.objects()) == []
    blobs.close()


def test_what_is_damaged_is_kept_in_quarantine_and_stays_so(
    root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    blobs = FileBlobStore(root)
    for attempt in range(3):
        put(blobs, LARGE)
        object_path(root, LARGE_NAME).write_bytes(bytes([attempt]) * len(LARGE))
        with pytest.raises(Damaged):
            blobs.read(LARGE_NAME, 0, 1)
    assert str(object_path(root, LARGE_NAME)) in caplog.text
    found = {path.name: path.read_bytes()[0] for path in (root / "quarantine").iterdir()}
    assert found == {LARGE_NAME: 0, f"{LARGE_NAME}.1": 1, f"{LARGE_NAME}.2": 2}
    assert not list((root / "objects" / LARGE_NAME[:2]).iterdir())
    blobs.close()
    blobs = FileBlobStore(root)
    with pytest.raises(Damaged):
        blobs.read(LARGE_NAME, 0, 1)
    blobs.close()


def test_damage_on_a_disk_that_takes_no_writes_is_refused_all_the_same(
    root: Path, blobs: FileBlobStore, ops: FaultyFileOps
) -> None:
    put(blobs, LARGE)
    object_path(root, LARGE_NAME).write_bytes(LARGE[:-1] + b"\0")
    ops.faults["rename"] = errno.EROFS
    # Also the pieces of it that are as they were.
    for offset in (len(LARGE) - 1, len(LARGE) - 1, 0):
        with pytest.raises(Damaged):
            blobs.read(LARGE_NAME, offset, 1)
    assert "EROFS" in blobs.refusal()
    ops.faults.clear()
    assert blobs.probe()
    put(blobs, LARGE)
    assert blobs.read(LARGE_NAME, 0, len(LARGE)) == LARGE


def test_an_object_that_is_stored_again_during_a_read_of_the_damaged_one_stays(
    root: Path,
) -> None:
    class Meanwhile(FileOps):
        content: bytes | None = None

        def read(self, fd: int, offset: int, size: int) -> bytes:
            piece = super().read(fd, offset, size)
            if self.content is not None:
                content, self.content = self.content, None
                put(blobs, content)
            return piece

    ops = Meanwhile()
    blobs = FileBlobStore(root, ops=ops)
    for content in (CONTENT, LARGE):
        name = put(blobs, content)
        for look in (lambda name=name: blobs.read(name, 0, 9), lambda: None):
            object_path(root, name).write_bytes(bytes(len(content)))
            ops.content = content
            assert look() in (content[:9], None)
            blobs.verify(name, len(content))
            assert blobs.read(name, 0, 9) == content[:9]
    assert not (root / "quarantine").exists()
    blobs.close()


def test_a_piece_that_was_read_wrongly_once_is_read_again(root: Path) -> None:
    class Glitch(FileOps):
        left = 0

        def read(self, fd: int, offset: int, size: int) -> bytes:
            piece = super().read(fd, offset, size)
            if offset == MIB and self.left:
                self.left -= 1
                return bytes(len(piece))
            return piece

    ops = Glitch()
    blobs = FileBlobStore(root, ops=ops)
    put(blobs, LARGE)
    ops.left = 1
    assert blobs.read(LARGE_NAME, MIB, MIB) == LARGE[MIB : 2 * MIB]
    assert not (root / "quarantine").exists()
    blobs.close()


def test_a_part_of_a_piece_is_read_once_for_many_reads(
    blobs: FileBlobStore, ops: FaultyFileOps
) -> None:
    put(blobs, LARGE)
    ops.done.clear()
    for offset in range(0, MIB, 2**16):
        assert blobs.read(LARGE_NAME, offset, 2**16) == LARGE[offset : offset + 2**16]
    assert [each.name for each in ops.done].count("open") == 2  # the object and its sums
    blobs.remove(LARGE_NAME)
    with pytest.raises(StorageError, match="missing"):
        blobs.read(LARGE_NAME, 0, 1)


def test_many_readers_see_each_its_own_bytes_while_objects_come_and_go(root: Path) -> None:
    contents = [hashlib.sha256(bytes([each])).digest() * (MIB // 20) for each in range(6)]
    blobs = FileBlobStore(root)
    names = [put(blobs, content) for content in contents]

    def read(number: int) -> bool:
        content, start = contents[number % 6], number * 99_991 % MIB
        return blobs.read(names[number % 6], start, 200_000) == content[start : start + 200_000]

    with ThreadPoolExecutor(8) as pool:
        storing = [pool.submit(put, blobs, content) for content in contents]
        assert all(pool.map(read, range(120)))
        for stored in storing:
            stored.result()
    blobs.close()


# ── listing, removal, files of others ──


def test_files_of_others_among_the_objects_are_neither_listed_nor_touched(root: Path) -> None:
    blobs = FileBlobStore(root)
    put(blobs, LARGE)
    folder = object_path(root, LARGE_NAME).parent
    for path in (
        root / "objects" / "README",
        root / "objects" / "zz",
        folder / "note.txt",
        folder / ("0" * 64 if folder.name != "00" else "1" * 64),
        folder / f"{LARGE_NAME}.bak",
    ):
        path.write_bytes(b"mine")
    (root / "objects" / "0f0").mkdir()
    strange = folder / (folder.name + "e" * 62)
    strange.mkdir()
    before = tree(root)
    assert [each.sha256 for each in blobs.objects()] == [LARGE_NAME]
    with pytest.raises(StorageError):
        blobs.read(strange.name, 0, 1)
    with pytest.raises(StorageError):
        blobs.remove(strange.name)
    assert tree(root) == before
    blobs.close()


def test_an_object_is_as_old_as_its_last_upload(root: Path) -> None:
    blobs = FileBlobStore(root)
    put(blobs, CONTENT)
    put(blobs, LARGE)
    day = 86_400
    for name in (NAME, LARGE_NAME):
        stat = object_path(root, name).stat()
        os.utime(object_path(root, name), (stat.st_atime, stat.st_mtime - day))
    # A clock that jumped ahead makes nothing old that was stored a moment ago.
    assert all(each.age_s < 60 for each in blobs.objects())
    blobs.close()
    blobs = FileBlobStore(root)
    put(blobs, CONTENT)
    ages = {each.sha256: each.age_s for each in blobs.objects()}
    assert ages[NAME] < 60
    assert day - 60 < ages[LARGE_NAME] < day + 60
    blobs.remove(NAME, older_than_s=day / 2)
    blobs.remove(LARGE_NAME, older_than_s=day / 2)
    assert [each.sha256 for each in blobs.objects()] == [NAME]
    blobs.close()


def test_a_long_upload_is_as_old_as_its_end(root: Path) -> None:
    leave_part(root, durable=len(LARGE))
    os.utime(root / "parts" / "00000001.part", (0, 0))
    blobs = FileBlobStore(root)
    [part] = blobs.unfinished()
    part.finish(len(LARGE), LARGE_NAME)
    blobs.close()
    blobs = FileBlobStore(root)
    [stored] = blobs.objects()
    assert stored.age_s < 60
    blobs.close()


def test_a_folder_that_somebody_removed_is_made_again(root: Path) -> None:
    blobs = FileBlobStore(root)
    put(blobs, LARGE)
    for path in object_path(root, LARGE_NAME).parent.iterdir():
        path.unlink()
    object_path(root, LARGE_NAME).parent.rmdir()
    assert list(blobs.objects()) == []
    with pytest.raises(StorageError):
        put(blobs, LARGE)
    assert blobs.probe()
    put(blobs, LARGE)
    assert blobs.read(LARGE_NAME, 0, 5) == LARGE[:5]
    blobs.close()


def test_the_record_of_a_part_is_plain_json(root: Path) -> None:
    leave_part(root)
    record = json.loads((root / "parts" / "00000001.json").read_text())
    assert record == {"format": 1, "durable": 2 * MIB, "reserved": len(LARGE), "note": "bm90ZQ=="}
