"""The storage seam in memory: the index of records, and the twins that tests and demos use."""

from __future__ import annotations

import hashlib
import threading
from bisect import bisect_left, bisect_right
from operator import attrgetter

import msgspec

from labmesh.errors import NoSpace, StorageError
from labmesh.protocol.ids import check_id
from labmesh.protocol.messages import DatasetRecord
from labmesh.storage.base import Page, Piece, check_finished, stored_or_conflict

__all__ = ["MemoryBlobStore", "MemoryCatalog", "RecordIndex"]

_sequence = attrgetter("sequence")


class RecordIndex:
    """Records by id and by sequence. One thread at a time inserts; any number read meanwhile."""

    def __init__(self) -> None:
        self._by_id: dict[str, DatasetRecord] = {}
        self._ordered: list[DatasetRecord] = []

    def insert(self, record: DatasetRecord) -> None:
        """Add a record of a new id and a sequence above all others."""
        # By id first: who finds a record on a page can get it.
        self._by_id[record.dataset_id] = record
        self._ordered.append(record)

    def get(self, dataset_id: str) -> DatasetRecord | None:
        return self._by_id.get(dataset_id)

    def page(self, after: int, limit: int, newest_first: bool) -> Page:
        """As :meth:`~labmesh.storage.base.Catalog.page`."""
        records = self._ordered
        if not newest_first:
            first = bisect_right(records, after, key=_sequence)
            found = records[first : first + limit + 1]
            return Page(found[:limit], len(found) > limit)
        end = bisect_left(records, after, key=_sequence) if after else len(records)
        start = max(0, end - limit)
        return Page(records[start:end][::-1], start > 0)

    def last_sequence(self) -> int:
        return self._ordered[-1].sequence if self._ordered else 0

    def __len__(self) -> int:
        return len(self._ordered)


class MemoryCatalog:
    """A :class:`~labmesh.storage.base.Catalog` that ends with the process."""

    def __init__(self) -> None:
        self._index = RecordIndex()
        self._adding = threading.Lock()

    def add(self, record: DatasetRecord) -> DatasetRecord:
        check_id(record.dataset_id, "dataset id")
        with self._adding:
            stored = self._index.get(record.dataset_id)
            if stored is not None:
                return stored_or_conflict(stored, record)
            sequence = self._index.last_sequence() + 1
            numbered = msgspec.structs.replace(record, sequence=sequence)
            self._index.insert(numbered)
            return numbered

    def get(self, dataset_id: str) -> DatasetRecord | None:
        return self._index.get(dataset_id)

    def page(self, after: int = 0, limit: int = 100, newest_first: bool = False) -> Page:
        return self._index.page(after, limit, newest_first)

    def count(self) -> int:
        return len(self._index)

    def last_sequence(self) -> int:
        return self._index.last_sequence()

    def close(self) -> None:
        """There is nothing to let go of."""


class MemoryBlobStore:
    """A :class:`~labmesh.storage.base.BlobStore` that ends with the process.

    :param capacity_bytes: the room of the imagined disk; it is full behind that.
    """

    def __init__(self, *, capacity_bytes: int = 2**30) -> None:
        self._capacity_bytes = capacity_bytes
        self._objects: dict[str, bytes] = {}
        self._parts: set[_MemoryPart] = set()
        self._lock = threading.Lock()

    def begin(self, size: int | None = None) -> _MemoryPart:
        with self._lock:
            if (size or 0) > self._free_bytes():
                raise NoSpace(f"the memory store has no room for {size} bytes; try a smaller one")
            part = _MemoryPart(self)
            self._parts.add(part)
            return part

    def read(self, sha256: str, offset: int, size: int) -> bytes:
        content = self._objects.get(sha256)
        if content is None:
            raise StorageError(f"object {sha256:.64} is missing; upload the dataset again")
        piece = content[offset : offset + size]
        if len(piece) != size:
            raise StorageError(f"object {sha256:.64} ends before byte {offset + size}")
        return piece

    def free_bytes(self) -> int:
        with self._lock:
            return self._free_bytes()

    def _free_bytes(self) -> int:
        objects = sum(map(len, self._objects.values()))
        return self._capacity_bytes - objects - sum(part.size for part in self._parts)

    def close(self) -> None:
        for part in list(self._parts):
            part.discard()

    def reserve(self, size: int) -> None:
        """Refuse a piece for which there is no room."""
        if size > self.free_bytes():
            raise NoSpace("the memory store is full; try a smaller dataset")

    def keep(self, part: _MemoryPart, sha256: str, content: bytes) -> None:
        """The end of a part that was verified."""
        with self._lock:
            self._objects[sha256] = content
            self._parts.discard(part)

    def forget(self, part: _MemoryPart) -> None:
        """The end of a part that nobody wants."""
        with self._lock:
            self._parts.discard(part)


class _MemoryPart:
    def __init__(self, store: MemoryBlobStore) -> None:
        self._store = store
        self._content: bytearray | None = bytearray()

    @property
    def size(self) -> int:
        return len(self._content or b"")

    def write(self, offset: int, piece: Piece) -> None:
        content = self._open_content()
        if offset != len(content):
            raise ValueError(f"the part continues at {len(content)}, not at {offset}")
        try:
            self._store.reserve(memoryview(piece).nbytes)
        except NoSpace:
            self.discard()
            raise
        content += piece

    def finish(self, size: int, sha256: str) -> None:
        content = bytes(self._open_content())
        digest = hashlib.sha256(content).hexdigest()
        try:
            check_finished(size, sha256, written=len(content), digest=digest)
            self._store.keep(self, digest, content)
        finally:
            self.discard()

    def discard(self) -> None:
        # A write under way has its own reference, so that it ends where nobody looks.
        self._content = None
        self._store.forget(self)

    def _open_content(self) -> bytearray:
        if self._content is None:
            raise StorageError("this upload failed earlier or was given up; start it again")
        return self._content
