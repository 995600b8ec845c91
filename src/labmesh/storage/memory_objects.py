"""The twin in memory of the blob store, for tests and demos."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import NamedTuple

from labmesh.errors import Damaged, LabmeshError, NoSpace, StorageError
from labmesh.storage.base import Part, Piece, StoredObject, check_finished
from labmesh.storage.pieces import PIECE_BYTES, PieceSums, Sums
from labmesh.storage.placed import PlacedPart

__all__ = ["MemoryBlobStore"]


class MemoryBlobStore:
    """A :class:`~labmesh.storage.base.BlobStore` that ends with the process.

    ``close()`` stands for a restart of the bank: the store goes on to work, and ``unfinished()``
    gives the parts that were left. For tests of what is built on a store, :meth:`damage`,
    :meth:`cut` and :meth:`break_medium` make happen what a disk does.

    :param capacity_bytes: the room of the imagined disk; it is full behind that.
    """

    def __init__(self, *, capacity_bytes: int = 2**30) -> None:
        self._capacity_bytes = capacity_bytes
        self._objects: dict[str, _Object] = {}
        self._set_aside: set[str] = set()
        self._parts: set[_MemoryPart] = set()
        self._left: list[_MemoryPart] = []
        #: finished and not discarded: by this process, and by those before it
        self._placed: list[_Placed] = []
        self._placed_before: list[_Placed] = []
        self._broken = ""
        self._refusal = ""
        self._lock = threading.RLock()

    # ── parts ──

    def begin(self, size: int | None = None, note: bytes = b"") -> _MemoryPart:
        with self._lock:
            self.check_medium()
            if (size or 0) > self.free_bytes():
                raise NoSpace(f"the memory store has no room for {size} bytes; try a smaller one")
            part = _MemoryPart(self, bytearray(), bytes(note), size or 0)
            self._parts.add(part)
            return part

    def unfinished(self) -> list[Part]:
        with self._lock:
            left, self._left = self._left, []
            placed, self._placed_before = self._placed_before, []
            self._parts.update(left)
            return [*left, *map(self._continued, placed)]

    def _continued(self, placed: _Placed) -> PlacedPart:
        return PlacedPart(
            placed.size,
            placed.sha256,
            placed.note,
            stands=lambda sha256, _: sha256 in self._objects,
            drop=lambda: self.forget(placed),
        )

    def remember(self, placed: _Placed) -> None:
        """What was finished is offered to the next process."""
        with self._lock:
            self._placed.append(placed)

    def forget(self, placed: _Placed) -> None:
        """It is not any more."""
        with self._lock, suppress(ValueError):
            self._placed.remove(placed)

    def grow(self, part: _MemoryPart, size: int) -> None:
        """Refuse bytes for which there is no room, and all of them on a broken medium."""
        with self._lock:
            self.check_medium()
            if size > self.free_bytes() + part.room:
                raise NoSpace("the memory store is full; try a smaller dataset")

    def keep(self, part: _MemoryPart, sums: Sums, content: bytes) -> None:
        """The end of a part that was verified."""
        with self._lock:
            self.check_medium()
            self._objects[sums.sha256] = _Object(content, sums)
            self._set_aside.discard(sums.sha256)
            self._parts.discard(part)

    def end(self, part: _MemoryPart, left: _MemoryPart | None = None) -> None:
        """The end of a part that nobody writes any more, of which ``left`` remains."""
        with self._lock:
            self._parts.discard(part)
            if left is not None:
                self._left.append(left)

    # ── objects ──

    def read(self, sha256: str, offset: int, size: int) -> bytes:
        stored = self._object(sha256)
        content, sums = stored.content, stored.sums
        if len(content) != sums.size:
            raise self._setting_aside(sha256)
        first, end = offset // PIECE_BYTES, -(-(offset + size) // PIECE_BYTES)
        for number in range(first, min(end, len(sums.pieces))):
            start = number * PIECE_BYTES
            if not sums.agrees(number, memoryview(content)[start : start + PIECE_BYTES]):
                raise self._setting_aside(sha256)
        if offset + size > len(content):
            raise StorageError(f"object {sha256:.64} ends before byte {offset + size}")
        return content[offset : offset + size]

    def verify(self, sha256: str, size: int) -> None:
        content = self._object(sha256).content
        if hashlib.sha256(content).hexdigest() != sha256:
            raise self._setting_aside(sha256)
        if len(content) != size:
            raise StorageError(
                f"object {sha256} is whole and has {len(content)} bytes, but its record says "
                f"{size}: look at the record"
            )

    def remove(self, sha256: str, older_than_s: float = 0.0) -> None:
        with self._lock:
            stored = self._objects.get(sha256)
            if stored is not None and stored.age_s >= older_than_s:
                del self._objects[sha256]

    def objects(self) -> Iterator[StoredObject]:
        for sha256, stored in list(self._objects.items()):
            yield StoredObject(sha256, len(stored.content), stored.age_s)

    def free_bytes(self) -> int:
        with self._lock:
            objects = sum(len(each.content) for each in self._objects.values())
            parts = sum(part.size + part.room for part in [*self._parts, *self._left])
            return self._capacity_bytes - objects - parts

    def refusal(self) -> str:
        return self._refusal

    def probe(self) -> bool:
        self._refusal = self._broken
        return not self._refusal

    def close(self) -> None:
        for part in list(self._parts):
            part.leave()
        self._placed_before = list(self._placed)

    def _object(self, sha256: str) -> _Object:
        if sha256 in self._set_aside:
            raise _damaged(sha256)
        stored = self._objects.get(sha256)
        if stored is None:
            raise StorageError(f"object {sha256:.64} is missing; upload the dataset again")
        return stored

    def _setting_aside(self, sha256: str) -> Damaged:
        with self._lock:
            self._objects.pop(sha256, None)
            self._set_aside.add(sha256)
        return _damaged(sha256)

    # ── what a disk does ──

    def damage(self, sha256: str, offset: int = 0) -> None:
        """Change one byte of an object."""
        with self._lock:
            stored = self._objects[sha256]
            changed = bytearray(stored.content)
            changed[offset] ^= 1
            stored.content = bytes(changed)

    def cut(self, sha256: str, size: int) -> None:
        """Let an object end after ``size`` bytes."""
        with self._lock:
            stored = self._objects[sha256]
            stored.content = stored.content[:size]

    def break_medium(self, reason: str) -> None:
        """Let everything that writes fail from now on."""
        self._broken = reason

    def mend_medium(self) -> None:
        """Let it work again, once :meth:`probe` has found out."""
        self._broken = ""

    def check_medium(self) -> None:
        """:raises StorageError: the medium is broken, or nobody has probed it since."""
        if self._broken and not self._refusal:
            self._refusal = self._broken
        if self._refusal:
            raise StorageError(self._refusal)


class _Placed(NamedTuple):
    """A part that was finished, and of whose record nobody knows."""

    size: int
    sha256: str
    note: bytes


class _Object:
    def __init__(self, content: bytes, sums: Sums) -> None:
        self.content = content
        self.sums = sums
        self._stored = time.monotonic()

    @property
    def age_s(self) -> float:
        return time.monotonic() - self._stored


class _MemoryPart:
    """A :class:`~labmesh.storage.base.Part`; what a sync made durable outlives ``leave()``."""

    def __init__(self, store: MemoryBlobStore, content: bytearray, note: bytes, room: int) -> None:
        self._store = store
        self._content: bytearray | None = content
        self._reserved = room
        self._lock = threading.RLock()
        self.note = note
        self.durable = len(content)
        self._placed: _Placed | None = None

    @property
    def size(self) -> int:
        return len(self._content or b"")

    @property
    def room(self) -> int:
        """Bytes that are reserved and not written yet."""
        return max(0, self._reserved - self.size)

    def write(self, offset: int, piece: Piece) -> None:
        view = memoryview(piece).cast("B")
        with self._lock:
            content = self._open_content()
            if offset != len(content):
                raise ValueError(f"the part continues at {len(content)}, not at {offset}")
            with self._abandoned_on_error():
                self._store.grow(self, len(view))
                content += view

    def sync(self) -> int:
        with self._lock:
            content = self._open_content()
            with self._abandoned_on_error():
                self._store.check_medium()
            self.durable = len(content)
            return self.durable

    def finish(self, size: int, sha256: str) -> None:
        with self._lock:
            content = bytes(self._open_content())
            with self._abandoned_on_error():
                digest = hashlib.sha256(content).hexdigest()
                check_finished(size, sha256, written=len(content), digest=digest)
                sums = PieceSums()
                sums.update(memoryview(content))
                self._store.keep(self, sums.sums(digest), content)
            self._content = None
            if self.durable:
                self._placed = _Placed(size, sha256, self.note)
                self._store.remember(self._placed)

    def leave(self) -> None:
        with self._lock:
            content, self._content = self._content, None
            if content is None:
                return
            del content[self.durable :]
            left = _MemoryPart(self._store, content, self.note, self._reserved)
            self._store.end(self, left if self.durable else None)

    def discard(self) -> None:
        with self._lock:
            self._content = None
            self._store.end(self)
            placed, self._placed = self._placed, None
            if placed is not None:
                self._store.forget(placed)

    @contextmanager
    def _abandoned_on_error(self) -> Iterator[None]:
        try:
            yield
        except LabmeshError:
            self.discard()
            raise

    def _open_content(self) -> bytearray:
        if self._content is None:
            raise StorageError("this upload failed earlier or was given up; start it again")
        return self._content


def _damaged(sha256: str) -> Damaged:
    return Damaged(
        f"object {sha256} changed since it was stored; it is set aside, and never served: upload "
        "the dataset again, or restore it from a copy",
        sha256=sha256,
    )
