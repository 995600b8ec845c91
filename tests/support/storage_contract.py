"""What every pair of a blob store and a catalog is held to.

A test module makes a class of it that says how the pair is opened::

    class TestMemoryStorage(StorageContract):
        @pytest.fixture
        def storage(self): ...
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed

import msgspec
import pytest

from labmesh.errors import ChecksumMismatch, Conflict, NoSpace, ProtocolError, StorageError
from labmesh.protocol.messages import DatasetId, DatasetRecord
from labmesh.storage.base import BlobStore, Catalog, Piece

Storage = tuple[BlobStore, Catalog]

CONTENT = bytes(range(256)) * 40


def sha256_of(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def put(blobs: BlobStore, content: bytes) -> str:
    """Store ``content``; returns its name."""
    part = blobs.begin(len(content))
    part.write(0, content)
    part.finish(len(content), sha256_of(content))
    return sha256_of(content)


def record_of(dataset_id: str, content: bytes = CONTENT, **facts: object) -> DatasetRecord:
    fields = {
        "dataset_id": dataset_id,
        "size": len(content),
        "sha256": sha256_of(content),
        "bank_id": "bank-0",
        **facts,
    }
    return msgspec.convert(fields, DatasetRecord)


def is_unreadable(blobs: BlobStore, sha256: str) -> bool:
    try:
        blobs.read(sha256, 0, 0)
    except StorageError:
        return True
    return False


class StorageContract:
    @pytest.fixture
    def storage(self) -> Iterator[Storage]:
        raise NotImplementedError

    @pytest.fixture
    def blobs(self, storage: Storage) -> BlobStore:
        return storage[0]

    @pytest.fixture
    def catalog(self, storage: Storage) -> Catalog:
        return storage[1]

    # ── blobs ──

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

    def test_closing_discards_what_is_unfinished_and_may_be_repeated(
        self, blobs: BlobStore, catalog: Catalog
    ) -> None:
        part = blobs.begin()
        part.write(0, CONTENT)
        catalog.close()
        blobs.close()
        with pytest.raises(StorageError):
            part.write(len(CONTENT), CONTENT)
        catalog.close()
        blobs.close()

    # ── records ──

    def test_a_new_catalog_is_empty(self, catalog: Catalog) -> None:
        assert catalog.count() == 0
        assert catalog.last_sequence() == 0
        assert catalog.get("scan-1") is None
        assert catalog.page() == ([], False)

    def test_a_record_is_kept_as_it_was_and_numbered(self, catalog: Catalog) -> None:
        record = record_of(
            "scan-1",
            relay_id="Inst-0",
            name="µ-sweep",
            kind="npy",
            created=1_700_000_000.25,
            meta={"T": 4.2, "on": True, "none": None, "deep": [{"Ω": [1, -(2**63), "a\nb\x00"]}]},
        )
        stored = catalog.add(record)
        assert stored == msgspec.structs.replace(record, sequence=1)
        assert catalog.get("scan-1") == stored
        assert (catalog.count(), catalog.last_sequence()) == (1, 1)

    def test_not_a_number_is_kept_too(self, catalog: Catalog) -> None:
        catalog.add(record_of("scan-1", meta={"nan": math.nan, "inf": [math.inf, -math.inf]}))
        stored = catalog.get("scan-1")
        assert stored is not None
        assert math.isnan(stored.meta["nan"])
        assert stored.meta["inf"] == [math.inf, -math.inf]

    def test_adding_the_same_content_again_is_harmless(self, catalog: Catalog) -> None:
        first = catalog.add(record_of("scan-1", created=1.0, meta={"try": 1}))
        again = catalog.add(record_of("scan-1", created=2.0, meta={"try": 2}))
        assert again == first
        assert catalog.count() == 1

    @pytest.mark.parametrize("other", [b"other", CONTENT + b"\0"])
    def test_an_id_is_never_given_to_other_content(self, catalog: Catalog, other: bytes) -> None:
        first = catalog.add(record_of("scan-1"))
        with pytest.raises(Conflict, match="already stored with other content") as caught:
            catalog.add(record_of("scan-1", other))
        assert caught.value.detail["sha256"] == first.sha256
        assert catalog.get("scan-1") == first
        assert catalog.count() == 1

    @pytest.mark.parametrize("dataset_id", ["../evil", "a/b", "", ".", "nul"])
    def test_an_id_that_breaks_the_rule_is_refused(self, catalog: Catalog, dataset_id: str) -> None:
        record = msgspec.structs.replace(record_of("scan-1"), dataset_id=DatasetId(dataset_id))
        with pytest.raises(ProtocolError, match="the rule"):
            catalog.add(record)
        assert catalog.count() == 0

    def test_pages_follow_the_order_of_commits(self, catalog: Catalog) -> None:
        for number in (3, 1, 2, 5, 4):
            catalog.add(record_of(f"scan-{number}"))

        def page(**choice: int) -> tuple[list[str], bool]:
            records, more = catalog.page(**choice)
            return [record.dataset_id[-1] for record in records], more

        assert page() == (["3", "1", "2", "5", "4"], False)
        assert page(limit=2) == (["3", "1"], True)
        assert page(after=2, limit=2) == (["2", "5"], True)
        assert page(after=4, limit=2) == (["4"], False)
        assert page(after=5) == ([], False)
        assert page(after=2**60) == ([], False)
        assert page(newest_first=True) == (["4", "5", "2", "1", "3"], False)
        assert page(newest_first=True, limit=2) == (["4", "5"], True)
        assert page(newest_first=True, limit=2, after=4) == (["2", "1"], True)
        assert page(newest_first=True, limit=2, after=2) == (["3"], False)
        assert page(newest_first=True, after=1) == ([], False)

    def test_whoever_has_seen_a_sequence_has_missed_none_before_it(self, catalog: Catalog) -> None:
        def add(number: int) -> int:
            return catalog.add(record_of(f"scan-{number}")).sequence

        seen: list[int] = []
        with ThreadPoolExecutor(8) as pool:
            adding = [pool.submit(add, number) for number in range(40)]
            for added in as_completed(adding):
                while records := catalog.page(after=seen[-1] if seen else 0, limit=7).records:
                    seen += [record.sequence for record in records]
                assert added.result() in seen
        assert seen == sorted(added.result() for added in adding)
        assert len(set(seen)) == 40

    def test_one_id_from_many_threads_has_one_winner(self, catalog: Catalog) -> None:
        def add(number: int) -> str:
            try:
                return catalog.add(record_of("scan-1", bytes([number % 4]))).sha256
            except Conflict:
                return "conflict"

        with ThreadPoolExecutor(8) as pool:
            outcomes = list(pool.map(add, range(20)))
        winner = catalog.get("scan-1")
        assert winner is not None
        assert set(outcomes) == {winner.sha256, "conflict"}
        assert outcomes.count(winner.sha256) == 5
        assert catalog.count() == 1
