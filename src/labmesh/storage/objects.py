"""The blob store in a folder; see :mod:`labmesh.storage.filesystem` for the names in it."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path

from labmesh.errors import StorageError
from labmesh.storage.base import Part, StoredObject
from labmesh.storage.fileops import (
    FileOps,
    close_quietly,
    make_folder,
    read_file,
    read_range,
    remove_quietly,
    usable_folder,
    write_all,
    write_file,
)
from labmesh.storage.health import DiskHealth
from labmesh.storage.object_folder import ObjectFolder
from labmesh.storage.parts import PART_FILE, FilePart, PartFiles, PartRecord, Workshop
from labmesh.storage.pieces import Sums
from labmesh.storage.placed import PlacedPart
from labmesh.storage.room import Claim, Room

__all__ = ["FileBlobStore"]

log = logging.getLogger(__name__)

_PID_WIDTH = 20
_PROBE_BYTES = 4096


class FileBlobStore:
    """A :class:`~labmesh.storage.base.BlobStore` in a folder, which it locks until ``close()``.

    While it is read-only nothing new is begun; parts that are open go on, for each of them learns
    from its own sync whether its bytes are safe.

    :param quota_bytes: how many bytes objects and parts may have together; None: what the disk has.
    :param health: shared with the catalog of the same folder.
    :raises ConfigError: the folder cannot be created or written.
    :raises StorageError: another bank holds it.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        *,
        ops: FileOps | None = None,
        quota_bytes: int | None = None,
        health: DiskHealth | None = None,
    ) -> None:
        self.root = Path(root).absolute()
        self.health = health or DiskHealth()
        self._ops = ops or FileOps()
        self._parts_folder = self.root / "parts"
        self._open_parts: set[FilePart] = set()
        self._left: list[tuple[int, PartRecord]] = []
        self._closing = threading.Lock()
        self._lock_fd: int | None = None
        with usable_folder(self.root):
            make_folder(self._ops, self.root)
            self._lock_fd = _lock_folder(self._ops, self.root)
            try:
                self._open_folders(quota_bytes)
            except BaseException:
                self._unlock()
                raise

    def _open_folders(self, quota_bytes: int | None) -> None:
        make_folder(self._ops, self._parts_folder)
        _keep_private(self._ops, self._parts_folder)
        self._objects = ObjectFolder(
            self._ops, self.root, self.health, draft=self._draft, freed=self._freed
        )
        self._numbers = count(self._look_at_parts() + 1)
        used = 0
        if quota_bytes is not None:
            used = sum(each.size for each in self._objects.objects())
        self._room = Room(self._ops, self.root, quota_bytes=quota_bytes, used_bytes=used)
        self._threads = ThreadPoolExecutor(os.cpu_count() or 1, "labmesh-hash")
        self._shop = Workshop(
            self._ops,
            self.health,
            self._room,
            self._threads,
            self._place,
            self._open_parts.discard,
        )

    # ── parts ──

    def begin(self, size: int | None = None, note: bytes = b"") -> FilePart:
        self._check_open()
        self.health.check()
        claim = self._room.claim(size or 0)
        part = FilePart(self._shop, self._files(next(self._numbers)), claim, bytes(note))
        try:
            with self.health.writing("open a file for the upload"):
                part.open()
        except BaseException:
            self._room.dropped(claim)
            raise
        self._open_parts.add(part)
        return part

    def unfinished(self) -> list[Part]:
        self._check_open()
        left, self._left = self._left, []
        return [self._continued(self._files(number), record) for number, record in left]

    def _continued(self, files: PartFiles, record: PartRecord) -> Part:
        if not self._ops.exists(files.content):
            return PlacedPart(
                record.durable,
                record.sha256,
                record.note,
                stands=self._objects.stands,
                drop=lambda: remove_quietly(self._ops, files.record),
            )
        # Its bytes are there already; what is refused now would be refused for ever.
        claim = self._room.adopt(record.reserved, record.durable)
        part = FilePart(self._shop, files, claim, record.note)
        self._open_parts.add(part)
        return part

    def _look_at_parts(self) -> int:
        """Find what can be continued and remove the rest that is ours; the highest number there."""
        names = self._ops.listdir(self._parts_folder)
        ours = {name: match for name in names if (match := PART_FILE.fullmatch(name))}
        kept = set()
        for name, match in sorted(ours.items()):
            if match[2] == "json":
                try:
                    self._left.append((int(match[1]), self._read_record(int(match[1]))))
                except OSError as error:
                    # It may be readable at the next start.
                    log.warning("%s cannot be read (%s): it is left alone", name, error)
                except (ValueError, RecursionError) as error:
                    log.warning("%s is of no use (%s): the upload begins again", name, error)
                    continue
                kept.add(match[1])
        for name, match in sorted(ours.items()):
            if match[1] not in kept or match[2] not in ("part", "json"):
                remove_quietly(self._ops, self._parts_folder / name)
        return max((int(match[1]) for match in ours.values()), default=0)

    def _read_record(self, number: int) -> PartRecord:
        """:raises ValueError: it is of no use, or the part beside it is not what it says."""
        files = self._files(number)
        record = PartRecord.decode(read_file(self._ops, files.record))
        if not self._ops.exists(files.content):
            if not self._objects.stands(record.sha256, record.durable):
                raise ValueError("neither the part nor its object is there")
        elif self._ops.stat(files.content).size < record.durable:
            raise ValueError("the part is shorter than it says")
        return record

    def _place(self, files: PartFiles, sums: Sums, claim: Claim) -> None:
        self._objects.place(
            files.content, sums, files.sums, lambda replaced: self._room.stored(claim, replaced)
        )

    def _files(self, number: int) -> PartFiles:
        return PartFiles(self._parts_folder, number)

    def _draft(self) -> Path:
        return self._files(next(self._numbers)).sums

    # ── objects ──

    def read(self, sha256: str, offset: int, size: int) -> bytes:
        return self._objects.read(sha256, offset, size)

    def verify(self, sha256: str, size: int) -> None:
        self._objects.verify(sha256, size)

    def remove(self, sha256: str, older_than_s: float = 0.0) -> None:
        self._objects.remove(sha256, older_than_s)

    def objects(self) -> Iterator[StoredObject]:
        return self._objects.objects()

    def _freed(self, size: int) -> None:
        self._room.freed(size)

    # ── the disk ──

    def free_bytes(self) -> int:
        return self._room.free_bytes()

    def refusal(self) -> str:
        return self.health.refusal

    def probe(self) -> bool:
        if not self.health.refusal:
            return True
        # A new file each time: one whose sync failed is never synced again.
        path = self._parts_folder / f"{next(self._numbers):08d}.probe"
        content = os.urandom(_PROBE_BYTES)
        try:
            write_file(self._ops, path, content)
            self._ops.fsync_dir(self._parts_folder)
            works = read_file(self._ops, path) == content
        except OSError as error:
            log.debug("the disk still refuses (%s)", error)
            works = False
        remove_quietly(self._ops, path)
        if works:
            self.health.mended()
        return works

    def close(self) -> None:
        with self._closing:
            if self._lock_fd is None:
                return
            for part in list(self._open_parts):
                part.leave()
            self._threads.shutdown()
            self._unlock()

    def _unlock(self) -> None:
        if self._lock_fd is not None:
            close_quietly(self._ops, self._lock_fd, self.root / "LOCK")
            self._lock_fd = None

    def _check_open(self) -> None:
        if self._lock_fd is None:
            raise StorageError(f"the data folder {self.root} is closed: start the bank again")


def _keep_private(ops: FileOps, folder: Path) -> None:
    """The notes of the parts are for the bank alone."""
    try:
        ops.make_private(folder)
    except OSError as error:
        # Some file systems know no rights, and some owners are others.
        log.warning("others may be able to look into %s (%s)", folder, error)


def _lock_folder(ops: FileOps, root: Path) -> int:
    path = root / "LOCK"
    fd = ops.open(path, "keep")
    try:
        if not ops.lock(fd):
            holder = read_range(ops, fd, 0, _PID_WIDTH).decode("ascii", "replace").strip()
            raise StorageError(
                f"the data folder {root} is in use by another bank (process {holder or 'unknown'}"
                "): stop that one, or choose another folder",
                folder=str(root),
                pid=holder or "unknown",
            )
        # Always of the same width, so that nothing of a longer number remains.
        write_all(ops, fd, 0, memoryview(f"{os.getpid():<{_PID_WIDTH}}\n".encode()))
    except BaseException:
        ops.close(fd)
        raise
    return fd
