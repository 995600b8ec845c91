"""Datasets in a folder of one bank::

    LOCK                      held by the bank that is running; names its process
    parts/00000001.part       bytes of an unfinished upload
    objects/aa/aa01...        the bytes of datasets, named by their SHA-256
    records/<dataset id>.json one record a dataset; these files are the truth

What is finished is written, synced, renamed, and its folder synced, in this order; so a name in
``objects`` or ``records`` stands for whole content, at any moment and after a power cut. A file
whose sync failed is abandoned: the kernel may have dropped its bytes while a second sync of the
same file would report success.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import threading
from itertools import count
from pathlib import Path
from typing import Any

import msgspec

from labmesh.errors import NoSpace, StorageError
from labmesh.protocol.ids import check_id
from labmesh.protocol.messages import DatasetRecord
from labmesh.storage.base import Page, Piece, check_finished, stored_or_conflict
from labmesh.storage.fileops import (
    FileOps,
    close_quietly,
    make_folder,
    read_file,
    remove_quietly,
    storage_errors,
    usable_folder,
    write_all,
    write_file,
)
from labmesh.storage.memory import RecordIndex

__all__ = ["FileBlobStore", "FileCatalog", "open_folder"]

log = logging.getLogger(__name__)

#: The layout of record files; a file of a higher format is left alone.
RECORD_FORMAT = 1

_SHA256 = re.compile(r"[0-9a-f]{64}")
_PID_WIDTH = 20


def open_folder(
    root: str | os.PathLike[str], *, ops: FileOps | None = None
) -> tuple[FileBlobStore, FileCatalog]:
    """Open the data folder of a bank, which is created if need be. Close the catalog first.

    :raises ConfigError: the folder cannot be created or written.
    :raises StorageError: another bank holds it.
    """
    blobs = FileBlobStore(root, ops=ops)
    try:
        return blobs, FileCatalog(root, ops=ops)
    except BaseException:
        blobs.close()
        raise


class FileBlobStore:
    """A :class:`~labmesh.storage.base.BlobStore` in a folder, which it locks until ``close()``.

    Unfinished parts of an earlier process are removed.

    :raises ConfigError: the folder cannot be created or written.
    :raises StorageError: another bank holds it.
    """

    def __init__(self, root: str | os.PathLike[str], *, ops: FileOps | None = None) -> None:
        self.root = Path(root).absolute()
        self._ops = ops or FileOps()
        self._parts_folder = self.root / "parts"
        self._objects_folder = self.root / "objects"
        self._numbers = count(1)
        self._open_parts: set[_FilePart] = set()
        #: folders in ``objects`` whose names this process has made durable
        self._durable_folders: set[Path] = set()
        self._lock_fd: int | None = None
        with usable_folder(self.root):
            make_folder(self._ops, self.root)
            self._lock_fd = _lock_folder(self._ops, self.root)
            try:
                make_folder(self._ops, self._parts_folder)
                make_folder(self._ops, self._objects_folder)
                for name in sorted(self._ops.listdir(self._parts_folder)):
                    self._ops.unlink(self._parts_folder / name)
            except OSError:
                self.close()
                raise

    def begin(self, size: int | None = None) -> _FilePart:
        if size is not None and size > (free := self.free_bytes()):
            raise NoSpace(
                f"the bank has room for {free} bytes, not for {size}; free space, then try again",
                free=free,
            )
        path = self._parts_folder / f"{next(self._numbers):08d}.part"
        with storage_errors("open a file for the upload"):
            part = _FilePart(self, self._ops, path)
        self._open_parts.add(part)
        return part

    def read(self, sha256: str, offset: int, size: int) -> bytes:
        with storage_errors(f"read object {sha256:.64}"):
            fd = self._ops.open(self._object_path(sha256), "read")
            try:
                piece = self._read_exactly(fd, offset, size)
            finally:
                self._ops.close(fd)
        if piece is None:
            raise StorageError(
                f"object {sha256} ends before byte {offset + size}: it is damaged; "
                "restore it from a copy of the data folder, or upload the dataset again"
            )
        return piece

    def _read_exactly(self, fd: int, offset: int, size: int) -> bytes | None:
        piece = self._ops.read(fd, offset, size)
        while len(piece) < size:
            more = self._ops.read(fd, offset + len(piece), size - len(piece))
            if not more:
                return None
            piece += more
        return piece

    def free_bytes(self) -> int:
        with storage_errors("look at its free space"):
            return self._ops.free_bytes(self.root)

    def close(self) -> None:
        for part in list(self._open_parts):
            part.discard()
        if self._lock_fd is not None:
            close_quietly(self._ops, self._lock_fd, self.root / "LOCK")
            self._lock_fd = None

    def place(self, path: Path, sha256: str) -> None:
        """Rename a synced file into ``objects``, durably. An object of the same content that is
        there already is replaced, which also mends one that was damaged.
        """
        target = self._object_path(sha256)
        if target.parent not in self._durable_folders:
            make_folder(self._ops, target.parent)
            self._durable_folders.add(target.parent)
        self._ops.rename(path, target)
        self._ops.fsync_dir(target.parent)

    def forget(self, part: _FilePart) -> None:
        """The end of a part."""
        self._open_parts.discard(part)

    def _object_path(self, sha256: str) -> Path:
        if not _SHA256.fullmatch(sha256):
            raise StorageError("objects are named by a SHA-256 of 64 lower-case hexadecimal digits")
        return self._objects_folder / sha256[:2] / sha256


class _FilePart:
    """A :class:`~labmesh.storage.base.Part`; the digest is taken while the bytes pass."""

    def __init__(self, store: FileBlobStore, ops: FileOps, path: Path) -> None:
        self._store = store
        self._ops = ops
        self._path = path
        self._digest = hashlib.sha256()
        self._size = 0
        self._ended = False
        # A file closed under a write would have that write land in whatever is opened next.
        self._lock = threading.RLock()
        self._fd: int | None = ops.open(path, "create")

    @property
    def size(self) -> int:
        return self._size

    def write(self, offset: int, piece: Piece) -> None:
        view = memoryview(piece).cast("B")
        with self._lock:
            fd = self._usable_fd()
            if offset != self._size:
                raise ValueError(f"the part continues at {self._size}, not at {offset}")
            try:
                with storage_errors("write the dataset"):
                    write_all(self._ops, fd, offset, view)
            except StorageError:
                self.discard()
                raise
            self._digest.update(view)
            self._size += len(view)

    def finish(self, size: int, sha256: str) -> None:
        with self._lock:
            fd = self._usable_fd()
            try:
                check_finished(size, sha256, written=self._size, digest=self._digest.hexdigest())
                with storage_errors("make the dataset durable"):
                    self._ops.fsync(fd)
                    self._fd = None  # gone, whatever close reports
                    self._ops.close(fd)
                    self._store.place(self._path, sha256)
            except BaseException:
                self.discard()
                raise
            self._ended = True
        self._store.forget(self)

    def discard(self) -> None:
        with self._lock:
            if self._ended:
                return
            self._ended = True
            if self._fd is not None:
                close_quietly(self._ops, self._fd, self._path)
                self._fd = None
            remove_quietly(self._ops, self._path)
        self._store.forget(self)

    def _usable_fd(self) -> int:
        if self._fd is None:
            raise StorageError("this upload failed earlier or was given up; start it again")
        return self._fd


class FileCatalog:
    """A :class:`~labmesh.storage.base.Catalog` of one JSON file a dataset, all kept in memory.

    A file that cannot be used is named in the log and left as it is; its id stays taken.

    Open it while the :class:`FileBlobStore` of the same folder is open: that one holds the lock.

    :raises ConfigError: the folder cannot be created or written.
    """

    def __init__(self, root: str | os.PathLike[str], *, ops: FileOps | None = None) -> None:
        self._ops = ops or FileOps()
        self._folder = Path(root).absolute() / "records"
        self._index = RecordIndex()
        self._adding = threading.Lock()
        with usable_folder(self._folder.parent):
            make_folder(self._ops, self._folder)
            # A name that an earlier process renamed and did not live to sync is believed from now.
            self._ops.fsync_dir(self._folder)
            unusable = self._load()
        # The numbers of files that cannot be read are not given again, as far as one can tell.
        self._next_sequence = self._index.last_sequence() + unusable + 1

    def add(self, record: DatasetRecord) -> DatasetRecord:
        check_id(record.dataset_id, "dataset id")
        with self._adding:
            stored = self._index.get(record.dataset_id)
            if stored is not None:
                return stored_or_conflict(stored, record)
            numbered = msgspec.structs.replace(record, sequence=self._next_sequence)
            # Also a failed attempt uses its number up: its file may outlive a failed removal.
            self._next_sequence += 1
            with storage_errors(f"store the record of dataset {record.dataset_id}"):
                self._write(numbered)
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
        """Every record is in its file; nothing is held open."""

    def _write(self, record: DatasetRecord) -> None:
        target = self._folder / f"{record.dataset_id}.json"
        draft = self._folder / f".{record.dataset_id}.{record.sequence}.tmp"
        if self._ops.exists(target):
            raise StorageError(
                f"the file of record {record.dataset_id} is there but cannot be used (see the log "
                f"of the bank's start); repair it or move it away: {target.name}"
            )
        placed = draft
        try:
            write_file(self._ops, draft, _encode_record(record))
            self._ops.rename(draft, target)
            placed = target
            self._ops.fsync_dir(self._folder)
        except OSError:
            remove_quietly(self._ops, placed)
            raise

    def _load(self) -> int:
        """Read all record files; returns how many cannot be used."""
        records: list[DatasetRecord] = []
        unusable = 0
        for name in sorted(self._ops.listdir(self._folder)):
            path = self._folder / name
            if name.startswith(".") and name.endswith(".tmp"):
                remove_quietly(self._ops, path)
            elif name.endswith(".json"):
                try:
                    records.append(_decode_record(read_file(self._ops, path), path.stem))
                except (OSError, ValueError, RecursionError) as error:
                    unusable += 1
                    _report(path, error)
        for record in sorted(records, key=lambda each: (each.sequence, each.dataset_id)):
            if record.sequence > self._index.last_sequence():
                self._index.insert(record)
            else:
                unusable += 1
                _report(self._folder / f"{record.dataset_id}.json", "its sequence is not its own")
        return unusable


def _report(path: Path, reason: object) -> None:
    log.error(
        "record file %s cannot be used (%s): its dataset is not listed; repair the file, or move "
        "it away to free its id",
        path,
        reason,
    )


def _encode_record(record: DatasetRecord) -> bytes:
    fields: dict[str, Any] = {"format": RECORD_FORMAT, **msgspec.to_builtins(record)}
    # NaN and infinities, which a laboratory has, are written as Python's json does.
    return (json.dumps(fields, ensure_ascii=False, indent=1) + "\n").encode()


def _decode_record(content: bytes, dataset_id: str) -> DatasetRecord:
    """:raises ValueError: with the reason (msgspec's errors and those of json are ValueErrors)."""
    fields = json.loads(content)
    if not isinstance(fields, dict):
        raise ValueError("it is not a JSON object")
    if fields.get("format") != RECORD_FORMAT:
        raise ValueError(f"its format is not {RECORD_FORMAT}: another version of labmesh wrote it")
    record = msgspec.convert(fields, DatasetRecord)
    if record.dataset_id != dataset_id:
        raise ValueError(f"it is the record of {record.dataset_id}")
    return record


def _lock_folder(ops: FileOps, root: Path) -> int:
    path = root / "LOCK"
    fd = ops.open(path, "keep")
    try:
        if not ops.lock(fd):
            holder = ops.read(fd, 0, _PID_WIDTH).decode("ascii", "replace").strip() or "unknown"
            raise StorageError(
                f"the data folder {root} is in use by another bank (process {holder}): "
                "stop that one, or choose another folder",
                folder=str(root),
                pid=holder,
            )
        # Always of the same width, so that nothing of a longer number remains.
        write_all(ops, fd, 0, memoryview(f"{os.getpid():<{_PID_WIDTH}}\n".encode()))
    except BaseException:
        ops.close(fd)
        raise
    return fd
