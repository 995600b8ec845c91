"""Unfinished uploads as files; see :mod:`labmesh.storage.filesystem` for their names.

What is durable of a part is what its record file says, which is written after a sync of the bytes.
A part without one is worth nothing to a later process.
"""

from __future__ import annotations

import base64
import json
import logging
import re
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from labmesh.errors import StorageError
from labmesh.storage.base import Piece, check_finished
from labmesh.storage.fileops import (
    FileOps,
    close_quietly,
    read_range,
    remove_quietly,
    write_all,
    write_file,
)
from labmesh.storage.health import DiskHealth
from labmesh.storage.pieces import PIECE_BYTES, PieceSums, Sums
from labmesh.storage.room import Claim, Room
from labmesh.storage.running_sha256 import RunningSha256

__all__ = ["PART_FILE", "FilePart", "PartFiles", "PartRecord", "Workshop"]

log = logging.getLogger(__name__)

#: Every file in the folder of the parts that is ours, with its number.
PART_FILE = re.compile(r"(\d{8,})\.(part|json|json\.tmp|sums|probe)", re.ASCII)

#: Below this, asking the file system to reserve room costs more than it is worth.
_RESERVE_BYTES = 2**20
#: Hashed at once of a part that an earlier process began, before others have their turn.
_CATCH_UP_BYTES = 8 * PIECE_BYTES

_FORMAT = 1


class PartRecord(NamedTuple):
    """What outlives a crash of a part, beside its bytes."""

    durable: int
    reserved: int
    note: bytes
    #: what the object is called, once it may stand in the place of the part
    sha256: str = ""

    def encode(self) -> bytes:
        fields: dict[str, int | str] = {
            "format": _FORMAT,
            "durable": self.durable,
            "reserved": self.reserved,
            "note": base64.b64encode(self.note).decode(),
        }
        if self.sha256:
            fields["sha256"] = self.sha256
        return (json.dumps(fields) + "\n").encode()

    @classmethod
    def decode(cls, content: bytes) -> PartRecord:
        """:raises ValueError: it is not such a record."""
        fields = json.loads(content)
        if not isinstance(fields, dict) or fields.get("format") != _FORMAT:
            raise ValueError(f"it is not a part record of format {_FORMAT}")
        durable, reserved, note = (fields.get(name) for name in ("durable", "reserved", "note"))
        sha256 = fields.get("sha256", "")
        if not (isinstance(durable, int) and isinstance(reserved, int)):
            raise ValueError("a number of it is missing or of another type")
        if not (isinstance(note, str) and isinstance(sha256, str)):
            raise ValueError("a field of it is missing or of another type")
        if durable <= 0 or reserved < 0:
            raise ValueError("a number in it makes no sense")
        return cls(durable, reserved, base64.b64decode(note, validate=True), sha256)


@dataclass(frozen=True)
class PartFiles:
    """The files of one part."""

    folder: Path
    number: int

    @property
    def content(self) -> Path:
        return self.folder / f"{self.number:08d}.part"

    @property
    def record(self) -> Path:
        return self.folder / f"{self.number:08d}.json"

    @property
    def draft(self) -> Path:
        return self.folder / f"{self.number:08d}.json.tmp"

    @property
    def sums(self) -> Path:
        return self.folder / f"{self.number:08d}.sums"


@dataclass(frozen=True)
class Workshop:
    """What the parts of one store share."""

    ops: FileOps
    health: DiskHealth
    room: Room
    #: for hashing beside the writing
    threads: Executor
    #: renames the file of a part, whose bytes are synced, into the objects
    place: Callable[[PartFiles, Sums, Claim], None]
    #: told when a part has ended
    forget: Callable[[FilePart], None]


class FilePart:
    """A :class:`~labmesh.storage.base.Part`; its digests are taken while the bytes pass.

    Locks are taken in this order: ``_hashing``, ``_syncing``, ``_lock``.
    """

    def __init__(self, shop: Workshop, files: PartFiles, claim: Claim, note: bytes) -> None:
        self._shop = shop
        self._files = files
        self._claim = claim
        self.note = note
        self._size = self._durable = claim.size
        self._record_stands = self._resumed = claim.size > 0
        self._whole = RunningSha256(shop.threads)
        self._sums = PieceSums()
        #: The bytes before ``_hashed`` are in the digests. While they are behind the file, a
        #: thread reads what they lack, and ``write()`` leaves them alone.
        self._hashed = 0
        self._behind = self._resumed
        self._catching_up = False
        self._ended = self._placed = False
        self._fd: int | None = None
        self._hashing = threading.Lock()
        self._syncing = threading.Lock()
        # A file closed under a write would have that write land in whatever is opened next.
        self._lock = threading.Lock()

    @property
    def size(self) -> int:
        return self._size

    @property
    def durable(self) -> int:
        return self._durable

    def open(self) -> None:
        """Create the file of a new part and reserve its room, or reopen an earlier one.

        :raises OSError: nothing is left of a new part.
        """
        ops = self._shop.ops
        path = self._files.content
        self._fd = ops.open(path, "keep" if self._resumed else "create")
        try:
            if self._resumed:
                if ops.fstat(self._fd).size < self._size:
                    raise StorageError(f"{path.name} lost bytes that were synced; upload again")
                # What was written after the last sync is of no known content.
                ops.truncate(self._fd, self._size)
            if self._claim.expected >= _RESERVE_BYTES:
                self._claim.backed = ops.reserve(self._fd, self._claim.reserved)
        except BaseException:
            close_quietly(ops, self._fd, path)
            self._fd = None
            if not self._resumed:
                remove_quietly(ops, path)
            raise

    # ── writing ──

    def write(self, offset: int, piece: Piece) -> None:
        view = memoryview(piece).cast("B")
        with self._abandoned_on_error("write the dataset"), self._lock:
            fd = self._usable_fd()
            if offset != self._size:
                raise ValueError(f"the part continues at {self._size}, not at {offset}")
            self._shop.room.grow(self._claim, self._size + len(view))
            self._write_and_hash(fd, view)
            self._size += len(view)
        if self._behind:
            self._start_catching_up()

    def _write_and_hash(self, fd: int, view: memoryview) -> None:
        if self._behind:
            write_all(self._shop.ops, fd, self._size, view)
            return
        self._whole.update(view)
        write_all(self._shop.ops, fd, self._size, view)
        self._sums.update(view)
        self._hashed += len(view)

    def sync(self) -> int:
        with self._abandoned_on_error("make the upload durable"), self._syncing:
            with self._lock:
                fd, size = self._usable_fd(), self._size
            if size > self._durable:
                self._shop.ops.fsync(fd)
                self._keep_record(size)
                self._durable = size
            return self._durable

    def _keep_record(self, durable: int, sha256: str = "") -> None:
        ops, files = self._shop.ops, self._files
        record = PartRecord(durable, self._claim.reserved, self.note, sha256)
        self._record_stands = True
        write_file(ops, files.draft, record.encode())
        ops.rename(files.draft, files.record)
        # This makes the name of the part durable too.
        ops.fsync_dir(files.folder)

    # ── the digests of a part that an earlier process began ──

    def _start_catching_up(self) -> None:
        if not self._catching_up:
            self._catching_up = True
            self._catch_up_later()

    def _catch_up_later(self) -> None:
        # A turn at a time, for other parts want to be hashed too. Closing the store ends it.
        with suppress(RuntimeError):
            self._shop.threads.submit(self._catch_up_a_bit)

    def _catch_up_a_bit(self) -> None:
        with self._hashing:
            try:
                self._hash_file(min(self._size, self._hashed + _CATCH_UP_BYTES))
            except OSError as error:
                # finish() reads again from here on, and tells its caller if that fails too.
                log.warning("reading %s again failed (%s)", self._files.content, error)
                return
            if self._hashed == self._size:
                with self._lock:
                    self._behind = self._hashed < self._size
        if self._behind and not self._ended:
            self._catch_up_later()

    def _hash_file(self, end: int) -> None:
        ops = self._shop.ops
        if self._ended or self._hashed >= end:
            return
        fd = ops.open(self._files.content, "read")
        try:
            while self._hashed < end and not self._ended:
                piece = read_range(ops, fd, self._hashed, min(PIECE_BYTES, end - self._hashed))
                if not piece:
                    raise StorageError(f"{self._files.content.name} lost bytes; upload again")
                view = memoryview(piece)
                self._whole.update_here(view)
                self._sums.update(view)
                self._hashed += len(piece)
        finally:
            ops.close(fd)

    # ── the end ──

    def finish(self, size: int, sha256: str) -> None:
        with self._abandoned_on_error("store the dataset", always=True):
            if self._behind:
                with self._hashing:
                    self._hash_file(self._size)
                    self._behind = False
            with self._syncing, self._lock:
                fd = self._usable_fd()
                digest = self._whole.hexdigest()
                check_finished(size, sha256, written=self._size, digest=digest)
                self._settle(fd)
                if self._record_stands:
                    # Until the catalogue knows of it, the object is what the sender was told of.
                    self._keep_record(self._size, digest)
                self._shop.place(self._files, self._sums.sums(digest), self._claim)
                self._ended = self._placed = True
                self._shop.forget(self)

    def _settle(self, fd: int) -> None:
        """Have the bytes durable and the file closed."""
        ops = self._shop.ops
        if self._claim.reserved > self._size:
            ops.truncate(fd, self._size)
        if self._record_stands:
            # An object is as old as the end of its upload, however long ago its last byte came.
            ops.touch(fd)
        if self._durable < self._size or not self._size:
            ops.fsync(fd)
        # Gone, whatever close says.
        self._fd = None
        ops.close(fd)

    def leave(self) -> None:
        with self._syncing, self._lock:
            if not self._ended:
                self._end(keep=self._durable > 0)

    def discard(self) -> None:
        with self._syncing, self._lock:
            if not self._ended:
                self._end(keep=False)
            elif self._placed and self._record_stands:
                remove_quietly(self._shop.ops, self._files.record)
                self._record_stands = False

    def _end(self, *, keep: bool) -> None:
        ops, files = self._shop.ops, self._files
        self._ended = True
        if self._fd is not None:
            close_quietly(ops, self._fd, files.content)
            self._fd = None
        if not keep:
            if self._record_stands:
                # First, so that no record speaks of a part that is gone.
                remove_quietly(ops, files.record)
                remove_quietly(ops, files.draft)
            remove_quietly(ops, files.content)
        self._shop.room.dropped(self._claim)
        self._shop.forget(self)

    @contextmanager
    def _abandoned_on_error(self, action: str, *, always: bool = False) -> Iterator[None]:
        """Translate what the disk says. After an error of the medium, or (``always``) any error,
        the part is dropped; the locks are free by then.
        """
        try:
            with self._shop.health.writing(action):
                yield
        except StorageError:
            self.discard()
            raise
        except BaseException:
            if always:
                self.discard()
            raise

    def _usable_fd(self) -> int:
        if self._ended:
            raise StorageError("this upload failed earlier or was given up; start it again")
        if self._fd is None:
            self.open()
        assert self._fd is not None
        return self._fd
