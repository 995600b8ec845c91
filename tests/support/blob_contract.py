"""What every blob store is held to.

A test module makes a class of it that says how one is opened::

    class TestMemoryBlobs(BlobContract):
        @pytest.fixture
        def case(self): ...
"""

from __future__ import annotations

import hashlib
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from labmesh.errors import ChecksumMismatch, Damaged, NoSpace, StorageError
from labmesh.storage.base import BlobStore, Piece

CONTENT = bytes(range(256)) * 40
#: Of several pieces, the last of which is not full, and none like another.
LARGE = b"".join(bytes([number]) * 2**18 for number in range(11)) + b"end"
MIB = 2**20


def sha256_of(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def put(blobs: BlobStore, content: bytes) -> str:
    """Store ``content``; returns its name."""
    part = blobs.begin(len(content))
    part.write(0, content)
    part.finish(len(content), sha256_of(content))
    return sha256_of(content)


def is_unreadable(blobs: BlobStore, sha256: str) -> bool:
    try:
        blobs.read(sha256, 0, 0)
    except StorageError:
        return True
    return False


class BlobCase(ABC):
    """A store, and what a test may do to its medium."""

    blobs: BlobStore

    @abstractmethod
    def reopen(self) -> BlobStore:
        """Close the store and open it again, as a restart does."""

    @abstractmethod
    def damage(self, sha256: str, offset: int) -> None:
        """Change one byte of an object."""

    @abstractmethod
    def cut(self, sha256: str, size: int) -> None:
        """Let an object end after ``size`` bytes."""

    @abstractmethod
    def break_medium(self) -> None:
        """Let every write fail for good, until :meth:`mend_medium`."""

    @abstractmethod
    def mend_medium(self) -> None: ...


class BlobContract:
    @pytest.fixture
    def case(self) -> Iterator[BlobCase]:
        raise NotImplementedError

    @pytest.fixture
    def blobs(self, case: BlobCase) -> BlobStore:
        return case.blobs

    def test_content_is_read_back_whole_and_by_range(self, blobs: BlobStore) -> None:
        name = put(blobs, CONTENT)
        assert blobs.read(name, 0, len(CONTENT)) == CONTENT
        assert blobs.read(name, 255, 3) == b"\xff\x00\x01"
        assert blobs.read(name, len(CONTENT) - 1, 1) == b"\xff"
        assert blobs.read(name, len(CONTENT), 0) == b""

    def test_an_empty_object_is_an_object(self, blobs: BlobStore) -> None:
        part = blobs.begin(0)
        part.finish(0, sha256_of(b""))
        assert blobs.read(sha256_of(b""), 0, 0) == b""

    def test_pieces_of_every_kind_and_size_are_joined(self, blobs: BlobStore) -> None:
        pieces: list[Piece] = [
            b"\x01" * 3,
            b"",
            bytearray(b"\x02" * 70_000),
            memoryview(b"\x03" * 5)[1:3],
            memoryview(b"\x04" * 8).cast("d"),
        ]
        part = blobs.begin()
        for piece in pieces:
            part.write(part.size, piece)
        content = b"".join(bytes(piece) for piece in pieces)
        assert part.size == len(content)
        part.finish(len(content), sha256_of(content))
        assert blobs.read(sha256_of(content), 0, len(content)) == content

    def test_a_piece_may_be_changed_once_it_was_written(self, blobs: BlobStore) -> None:
        piece = bytearray(b"first")
        part = blobs.begin()
        part.write(0, piece)
        piece[:] = b"other"
        part.finish(5, sha256_of(b"first"))
        assert blobs.read(sha256_of(b"first"), 0, 5) == b"first"

    @pytest.mark.parametrize("offset", [0, 4, 6])
    def test_a_piece_at_another_offset_is_refused_and_changes_nothing(
        self, blobs: BlobStore, offset: int
    ) -> None:
        part = blobs.begin()
        part.write(0, b"first")
        with pytest.raises(ValueError, match="continues at 5"):
            part.write(offset, b"junk")
        part.write(5, b"second")
        part.finish(11, sha256_of(b"firstsecond"))
        assert blobs.read(sha256_of(b"firstsecond"), 0, 11) == b"firstsecond"

    @pytest.mark.parametrize(
        ("size", "sha256"),
        [
            (len(CONTENT) - 1, sha256_of(CONTENT)),
            (len(CONTENT) + 1, sha256_of(CONTENT)),
            (len(CONTENT), sha256_of(b"other")),
            (len(CONTENT), "0" * 64),
            (len(CONTENT), sha256_of(CONTENT).upper()),
        ],
    )
    def test_content_that_is_not_the_announced_is_not_kept(
        self, blobs: BlobStore, size: int, sha256: str
    ) -> None:
        part = blobs.begin()
        part.write(0, CONTENT)
        with pytest.raises(ChecksumMismatch):
            part.finish(size, sha256)
        assert is_unreadable(blobs, sha256_of(CONTENT))
        assert is_unreadable(blobs, sha256)
        with pytest.raises(StorageError, match="start it again"):
            part.finish(len(CONTENT), sha256_of(CONTENT))

    def test_a_part_cannot_be_read_before_it_is_finished(self, blobs: BlobStore) -> None:
        part = blobs.begin(len(CONTENT))
        part.write(0, CONTENT)
        assert is_unreadable(blobs, sha256_of(CONTENT))
        part.finish(len(CONTENT), sha256_of(CONTENT))
        assert not is_unreadable(blobs, sha256_of(CONTENT))

    def test_a_discarded_part_leaves_nothing(self, blobs: BlobStore) -> None:
        part = blobs.begin()
        part.write(0, CONTENT)
        part.discard()
        part.discard()
        assert is_unreadable(blobs, sha256_of(CONTENT))
        with pytest.raises(StorageError, match="start it again"):
            part.write(part.size, b"more")

    def test_discarding_a_finished_part_keeps_the_object(self, blobs: BlobStore) -> None:
        part = blobs.begin()
        part.write(0, CONTENT)
        part.finish(len(CONTENT), sha256_of(CONTENT))
        part.discard()
        assert blobs.read(sha256_of(CONTENT), 0, len(CONTENT)) == CONTENT

    def test_the_same_content_may_be_stored_twice(self, blobs: BlobStore) -> None:
        assert put(blobs, CONTENT) == put(blobs, CONTENT)
        assert blobs.read(sha256_of(CONTENT), 0, len(CONTENT)) == CONTENT

    def test_parts_may_be_written_at_the_same_time(self, blobs: BlobStore) -> None:
        one, two = blobs.begin(), blobs.begin()
        for offset in range(0, 30, 3):
            one.write(offset, b"abc")
            two.write(offset, b"xyz")
        two.finish(30, sha256_of(b"xyz" * 10))
        one.finish(30, sha256_of(b"abc" * 10))
        assert blobs.read(sha256_of(b"abc" * 10), 0, 30) == b"abc" * 10
        assert blobs.read(sha256_of(b"xyz" * 10), 0, 30) == b"xyz" * 10

    def test_parts_may_be_written_by_many_threads(self, blobs: BlobStore) -> None:
        contents = [bytes([number]) * (1000 + number) for number in range(24)]
        with ThreadPoolExecutor(8) as pool:
            names = list(pool.map(lambda content: put(blobs, content), contents))
        for name, content in zip(names, contents, strict=True):
            assert blobs.read(name, 0, len(content)) == content

    @pytest.mark.parametrize(("offset", "size"), [(0, 1), (len(CONTENT), 1), (5, len(CONTENT))])
    def test_a_range_beyond_the_end_is_never_answered_short(
        self, blobs: BlobStore, offset: int, size: int
    ) -> None:
        name = put(blobs, CONTENT if offset else b"")
        with pytest.raises(StorageError, match="ends before"):
            blobs.read(name, offset, size)

    @pytest.mark.parametrize("name", ["0" * 64, "", "..", "../LOCK", "a" * 63, "A" * 64])
    def test_an_object_that_is_not_there_is_an_error(self, blobs: BlobStore, name: str) -> None:
        with pytest.raises(StorageError):
            blobs.read(name, 0, 1)

    def test_more_than_there_is_room_for_is_refused_before_the_first_byte(
        self, blobs: BlobStore
    ) -> None:
        with pytest.raises(NoSpace, match="room"):
            blobs.begin(blobs.free_bytes() + 2**40)
        put(blobs, CONTENT)

    # ── unfinished uploads ──

    def test_what_was_synced_is_continued_after_a_restart(self, case: BlobCase) -> None:
        part = case.blobs.begin(len(LARGE), b"\x00note\xff")
        assert (part.size, part.durable, part.note) == (0, 0, b"\x00note\xff")
        part.write(0, LARGE[:MIB])
        assert part.sync() == part.durable == MIB
        part.write(MIB, LARGE[MIB : MIB + 5])
        assert (part.size, part.durable) == (MIB + 5, MIB)
        blobs = case.reopen()
        with pytest.raises(StorageError, match="start it again"):
            part.write(MIB + 5, b"more")
        with pytest.raises(StorageError, match="start it again"):
            part.sync()
        [again] = blobs.unfinished()
        assert blobs.unfinished() == []
        assert (again.size, again.durable, again.note) == (MIB, MIB, b"\x00note\xff")
        with pytest.raises(ValueError, match=f"continues at {MIB}"):
            again.write(MIB + 5, b"junk")
        for offset in range(MIB, len(LARGE), 300_000):
            again.write(offset, LARGE[offset : offset + 300_000])
        again.finish(len(LARGE), sha256_of(LARGE))
        assert blobs.read(sha256_of(LARGE), 0, len(LARGE)) == LARGE
        again.discard()
        assert case.reopen().unfinished() == []

    def test_a_finished_part_is_offered_until_its_record_is_known(self, case: BlobCase) -> None:
        part = case.blobs.begin(note=b"stream")
        part.write(0, CONTENT[:9])
        part.sync()
        part.write(9, CONTENT[9:])
        part.finish(len(CONTENT), sha256_of(CONTENT))
        part.leave()
        # What became of it nobody knows; and again.
        for _ in range(2):
            [again] = case.reopen().unfinished()
            assert (again.size, again.durable, again.note) == (
                len(CONTENT),
                len(CONTENT),
                b"stream",
            )
            assert again.sync() == len(CONTENT)
            again.write(len(CONTENT), b"")
            with pytest.raises(ValueError, match=f"continues at {len(CONTENT)}"):
                again.write(0, CONTENT)
            again.finish(len(CONTENT), sha256_of(CONTENT))
            with pytest.raises(StorageError, match="start it again"):
                again.finish(len(CONTENT), sha256_of(CONTENT))
        again.discard()
        again.discard()
        assert case.reopen().unfinished() == []
        assert case.blobs.read(sha256_of(CONTENT), 0, len(CONTENT)) == CONTENT

    def test_a_finished_part_takes_no_more_and_no_other_content(self, case: BlobCase) -> None:
        for spoil in ("more", "other", "gone"):
            part = case.blobs.begin()
            part.write(0, CONTENT)
            part.sync()
            part.finish(len(CONTENT), sha256_of(CONTENT))
            [again] = case.reopen().unfinished()
            if spoil == "more":
                with pytest.raises(StorageError, match="takes no more"):
                    again.write(len(CONTENT), b"more")
            elif spoil == "other":
                with pytest.raises(ChecksumMismatch):
                    again.finish(len(CONTENT), sha256_of(b"other"))
            else:
                case.blobs.remove(sha256_of(CONTENT))
                with pytest.raises(StorageError, match="upload the dataset again"):
                    again.finish(len(CONTENT), sha256_of(CONTENT))
            assert case.reopen().unfinished() == []

    def test_a_part_may_be_continued_again_and_again(self, case: BlobCase) -> None:
        part = case.blobs.begin(note=b"stream")
        for offset in range(0, 30, 3):
            part.write(offset, b"abc")
            part.sync()
            [part] = case.reopen().unfinished()
        # All of it was durable already: nothing is written any more.
        part.finish(30, sha256_of(b"abc" * 10))
        assert case.blobs.read(sha256_of(b"abc" * 10), 0, 30) == b"abc" * 10

    def test_a_continued_part_with_other_content_is_refused(self, case: BlobCase) -> None:
        part = case.blobs.begin(6)
        part.write(0, b"abc")
        part.sync()
        [part] = case.reopen().unfinished()
        part.write(3, b"xyz")
        with pytest.raises(ChecksumMismatch):
            part.finish(6, sha256_of(b"abcdef"))
        assert case.reopen().unfinished() == []

    def test_a_part_without_durable_bytes_is_not_kept(self, case: BlobCase) -> None:
        part = case.blobs.begin()
        part.write(0, CONTENT)
        assert case.blobs.begin().sync() == 0
        assert case.reopen().unfinished() == []

    def test_what_ended_is_not_continued(self, case: BlobCase) -> None:
        finished, discarded = case.blobs.begin(), case.blobs.begin()
        for part in (finished, discarded):
            part.write(0, CONTENT)
            part.sync()
        finished.finish(len(CONTENT), sha256_of(CONTENT))
        discarded.discard()
        for part in (finished, discarded):
            part.leave()
            part.leave()
            part.discard()
        blobs = case.reopen()
        assert blobs.unfinished() == []
        assert blobs.read(sha256_of(CONTENT), 0, len(CONTENT)) == CONTENT

    def test_a_part_that_was_left_is_one_for_the_next_process(self, case: BlobCase) -> None:
        part = case.blobs.begin(note=b"left")
        part.write(0, CONTENT)
        part.sync()
        part.leave()
        part.discard()
        with pytest.raises(StorageError, match="start it again"):
            part.finish(len(CONTENT), sha256_of(CONTENT))
        [again] = case.reopen().unfinished()
        again.discard()
        assert case.reopen().unfinished() == []

    def test_a_sync_may_overlap_the_writes(self, blobs: BlobStore) -> None:
        part = blobs.begin()
        ended = threading.Event()

        def sync_on() -> list[int]:
            seen = [part.sync()]
            while not ended.is_set():
                seen.append(part.sync())
            return seen

        with ThreadPoolExecutor(1) as pool:
            syncing = pool.submit(sync_on)
            for offset in range(0, len(LARGE), 200_000):
                part.write(offset, LARGE[offset : offset + 200_000])
            ended.set()
            seen = syncing.result()
        assert seen == sorted(seen)
        assert part.sync() == len(LARGE)
        part.finish(len(LARGE), sha256_of(LARGE))
        assert blobs.read(sha256_of(LARGE), 0, len(LARGE)) == LARGE

    def test_room_that_is_reserved_is_given_to_one_upload_alone(self, blobs: BlobStore) -> None:
        free = blobs.free_bytes()
        half = free // 2 + 1
        part = blobs.begin(half)
        with pytest.raises(NoSpace, match="room"):
            blobs.begin(half)
        part.discard()
        assert blobs.free_bytes() == free
        blobs.begin(half).discard()

    # ── damage ──

    @pytest.mark.parametrize(
        ("content", "offset", "asked"),
        [
            (CONTENT, 0, 0),
            (CONTENT, len(CONTENT) - 1, 17),
            (LARGE, 0, 0),
            (LARGE, MIB + 7, MIB),
            (LARGE, len(LARGE) - 1, len(LARGE) - 2),
        ],
    )
    def test_a_damaged_object_is_never_served_and_is_mended_by_storing_it_again(
        self, case: BlobCase, content: bytes, offset: int, asked: int
    ) -> None:
        blobs = case.blobs
        name, neighbour = put(blobs, content), put(blobs, b"neighbour")
        case.damage(name, offset)
        for _ in range(2):
            with pytest.raises(Damaged, match="never served"):
                blobs.read(name, asked, 1)
        # The rest of it is not served any more either.
        with pytest.raises(Damaged):
            blobs.read(name, 2**20 if offset < 2**20 < len(content) else 0, 1)
        with pytest.raises(Damaged):
            blobs.verify(name, len(content))
        assert [each.sha256 for each in blobs.objects()] == [neighbour]
        assert blobs.read(neighbour, 0, 9) == b"neighbour"
        put(blobs, content)
        assert blobs.read(name, 0, len(content)) == content
        blobs.verify(name, len(content))

    @pytest.mark.parametrize(
        ("content", "size"),
        [(CONTENT, 0), (CONTENT, 5), (LARGE, 0), (LARGE, 10), (LARGE, MIB), (LARGE, 2 * MIB + 1)],
    )
    def test_an_object_that_lost_its_end_is_never_served(
        self, case: BlobCase, content: bytes, size: int
    ) -> None:
        name = put(case.blobs, content)
        case.cut(name, size)
        with pytest.raises(Damaged):
            case.blobs.read(name, 0, 1)
        assert is_unreadable(case.blobs, name)

    def test_verifying_finds_what_no_read_came_across(self, case: BlobCase) -> None:
        blobs = case.blobs
        name = put(blobs, LARGE)
        blobs.verify(name, len(LARGE))
        # The record is wrong about it, so that the object stays.
        with pytest.raises(StorageError, match="record") as caught:
            blobs.verify(name, len(LARGE) + 1)
        assert not isinstance(caught.value, Damaged)
        case.damage(name, len(LARGE) - 1)
        assert blobs.read(name, 0, MIB) == LARGE[:MIB]
        with pytest.raises(Damaged):
            blobs.verify(name, len(LARGE))
        with pytest.raises(Damaged):
            blobs.read(name, 0, MIB)
        with pytest.raises(StorageError, match="missing"):
            blobs.verify("0" * 64, 0)

    def test_every_range_of_a_large_object_is_its_own(self, blobs: BlobStore) -> None:
        name = put(blobs, LARGE)
        edges = (0, 1, MIB - 1, MIB, MIB + 1, 2 * MIB, len(LARGE) - 1, len(LARGE))
        for start in edges:
            for end in edges:
                if start <= end:
                    assert blobs.read(name, start, end - start) == LARGE[start:end]
        # The caller was wrong, and the object is as good as before.
        for offset, size in ((len(LARGE), 1), (0, len(LARGE) + 1), (9 * MIB, 5)):
            with pytest.raises(StorageError, match="ends before") as caught:
                blobs.read(name, offset, size)
            assert not isinstance(caught.value, Damaged)
        assert blobs.read(name, 5, MIB) == LARGE[5 : MIB + 5]

    def test_an_object_of_exactly_one_piece_ends_there(self, blobs: BlobStore) -> None:
        name = put(blobs, LARGE[:MIB])
        for _ in range(2):
            assert blobs.read(name, MIB, 0) == b""
            with pytest.raises(StorageError, match="ends before"):
                blobs.read(name, MIB, 1)
            assert blobs.read(name, MIB - 1, 1) == LARGE[MIB - 1 : MIB]

    # ── listing and removal ──

    def test_objects_are_listed_and_removed(self, blobs: BlobStore) -> None:
        assert list(blobs.objects()) == []
        names = {put(blobs, content): len(content) for content in (b"", CONTENT, LARGE)}
        listed = list(blobs.objects())
        assert {each.sha256: each.size for each in listed} == names
        assert all(0 <= each.age_s < 600 for each in listed)
        name = sha256_of(LARGE)
        blobs.remove(name, older_than_s=600)
        assert blobs.read(name, 0, 5) == LARGE[:5]
        blobs.remove(name)
        blobs.remove(name)
        with pytest.raises(StorageError, match="missing"):
            blobs.read(name, 0, 5)
        assert name not in {each.sha256 for each in blobs.objects()}
        put(blobs, LARGE)
        assert blobs.read(name, 0, len(LARGE)) == LARGE

    # ── media that refuse ──

    def test_a_broken_medium_takes_no_writes_until_a_probe_works(self, case: BlobCase) -> None:
        blobs = case.blobs
        kept = put(blobs, CONTENT)
        assert (blobs.refusal(), blobs.probe()) == ("", True)
        part = blobs.begin()
        part.write(0, b"abc")
        case.break_medium()
        with pytest.raises(StorageError):
            part.sync()
        with pytest.raises(StorageError, match="start it again"):
            part.write(3, b"def")
        assert blobs.refusal() != ""
        with pytest.raises(StorageError) as caught:
            blobs.begin(1)
        assert str(caught.value) == blobs.refusal()
        assert not isinstance(caught.value, NoSpace)
        assert blobs.read(kept, 0, len(CONTENT)) == CONTENT
        assert not blobs.probe()
        case.mend_medium()
        assert blobs.refusal() != ""
        assert blobs.probe()
        assert blobs.refusal() == ""
        assert blobs.read(put(blobs, b"next"), 0, 4) == b"next"

    # ── the end ──

    def test_closing_leaves_what_is_unfinished_and_may_be_repeated(self, blobs: BlobStore) -> None:
        part = blobs.begin()
        part.write(0, CONTENT)
        blobs.close()
        with pytest.raises(StorageError, match="start it again"):
            part.write(len(CONTENT), CONTENT)
        part.leave()
        part.discard()
        blobs.close()
