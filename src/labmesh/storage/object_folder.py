"""Finished objects as files: verified reads, quarantine, removal.

Nothing is served that was not compared with what was stored: an object of one piece with the
SHA-256 that names it, a larger one piece by piece with the sums beside it. The file of the sums
only saves work: where it is missing, or its own seal is broken, the whole object is read once, and
it is written again.
"""

from __future__ import annotations

import hashlib
import logging
import re
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from labmesh.errors import Damaged, StorageError
from labmesh.storage.base import StoredObject
from labmesh.storage.fileops import (
    FileFacts,
    FileOps,
    make_folder,
    read_file,
    read_range,
    remove_quietly,
    storage_errors,
    write_file,
)
from labmesh.storage.health import DiskHealth
from labmesh.storage.pieces import PIECE_BYTES, PieceSums, Sums
from labmesh.storage.recent import Recent

__all__ = ["ObjectFolder"]

log = logging.getLogger(__name__)

_SHA256 = re.compile(r"[0-9a-f]{64}")
_TWO_DIGITS = re.compile(r"[0-9a-f]{2}")

#: Pieces whose bytes are kept for the next read of the same piece, and sums of objects.
_KEPT_PIECES = 8
_KEPT_SUMS = 256
#: For so long it is remembered that this process stored an object, whatever the wall clock says.
_FRESH_S = 120.0


class _Replaced(Exception):
    """The file that was read has no longer the name."""


class ObjectFolder:
    """The folders ``objects`` and ``quarantine``. Any thread may use it.

    :param draft: gives a new path, of a file that is removed at the next start if it stays.
    :param freed: told how many bytes an object had that is gone.
    """

    def __init__(
        self,
        ops: FileOps,
        root: Path,
        health: DiskHealth,
        *,
        draft: Callable[[], Path],
        freed: Callable[[int], None],
    ) -> None:
        self._ops = ops
        self._folder = root / "objects"
        self._quarantine = root / "quarantine"
        self._health = health
        self._draft = draft
        self._freed = freed
        #: folders in ``objects`` whose names this process has made durable
        self._durable_folders: set[Path] = set()
        #: damaged ones that could not be moved away
        self._refused: set[str] = set()
        self._fresh: OrderedDict[str, float] = OrderedDict()
        self._sums: Recent[str, Sums] = Recent(_KEPT_SUMS)
        self._pieces: Recent[tuple[str, int], bytes] = Recent(_KEPT_PIECES)
        # Guards the first tables, and which file has which name. No read waits for it.
        self._lock = threading.RLock()
        #: Where sums are missing, many may ask at once for what takes long to read.
        self._confirming = threading.Lock()
        make_folder(ops, self._folder)

    # ── storing ──

    def place(
        self, content: Path, sums: Sums, sums_file: Path, placed: Callable[[int], None]
    ) -> None:
        """Give a synced file its name, durably. An object of the same content that is there already
        is replaced, which also mends one that was damaged.

        :param sums_file: where its sums may be drafted.
        :param placed: told how many bytes were replaced, as soon as the name is given.
        """
        target = self._path(sums.sha256)
        self._have_folder(target.parent)
        try:
            self._name(content, target, sums, sums_file, placed)
        except FileNotFoundError:
            # Somebody removed the folder: the next one makes it again.
            self._durable_folders.discard(target.parent)
            raise

    def _name(
        self,
        content: Path,
        target: Path,
        sums: Sums,
        sums_file: Path,
        placed: Callable[[int], None],
    ) -> None:
        if len(sums.pieces) > 1:
            self._write_sums(target, sums, sums_file)
        with self._lock:
            replaced = self._size_of(target)
            self._ops.rename(content, target)
            self._forget(sums.sha256)
            self._remember_fresh(sums.sha256)
            placed(replaced)
        # Others may see the name before it is durable: who asks for it has no record of it yet.
        self._ops.fsync_dir(target.parent)

    def stands(self, sha256: str, size: int) -> bool:
        """Whether an object of this size is there. If so it counts as stored just now."""
        if not _SHA256.fullmatch(sha256) or sha256 in self._refused:
            return False
        with self._lock:
            if not 0 < size == self._size_of(self._path(sha256)):
                return False
            self._remember_fresh(sha256)
        return True

    def _have_folder(self, folder: Path) -> None:
        if folder not in self._durable_folders:
            make_folder(self._ops, folder)
            self._durable_folders.add(folder)

    def _write_sums(self, target: Path, sums: Sums, draft: Path) -> None:
        try:
            write_file(self._ops, draft, sums.encode())
            self._ops.rename(draft, _sums_path(target))
        except OSError:
            remove_quietly(self._ops, draft)
            raise

    def _size_of(self, path: Path) -> int:
        try:
            return self._ops.stat(path).size
        except FileNotFoundError:
            return 0

    def _remember_fresh(self, sha256: str) -> None:
        now = time.monotonic()
        self._fresh[sha256] = now
        self._fresh.move_to_end(sha256)
        while self._fresh and next(iter(self._fresh.values())) < now - _FRESH_S:
            self._fresh.popitem(last=False)

    # ── reading ──

    def read(self, sha256: str, offset: int, size: int) -> bytes:
        """As :meth:`~labmesh.storage.base.BlobStore.read`."""
        path = self._path(sha256)
        first = offset // PIECE_BYTES
        if offset + size <= (first + 1) * PIECE_BYTES:
            kept = self._pieces.get((sha256, first))
            if kept is not None and offset - first * PIECE_BYTES + size <= len(kept):
                return kept[offset - first * PIECE_BYTES :][:size]
        with storage_errors(f"read object {sha256:.64}"):
            while True:
                fd = self._open(path, sha256)
                try:
                    return self._read_verified(fd, sha256, offset, size)
                except _Replaced:
                    continue
                finally:
                    self._ops.close(fd)

    def _open(self, path: Path, sha256: str) -> int:
        if sha256 in self._refused:
            raise _damaged(sha256)
        try:
            return self._ops.open(path, "read")
        except FileNotFoundError:
            if self._ops.exists(self._quarantine / sha256):
                raise _damaged(sha256) from None
            raise StorageError(f"object {sha256} is missing; upload the dataset again") from None

    def _read_verified(self, fd: int, sha256: str, offset: int, size: int) -> bytes:
        facts = self._ops.fstat(fd)
        first = offset // PIECE_BYTES
        start = first * PIECE_BYTES
        end = -(-(offset + size) // PIECE_BYTES) * PIECE_BYTES
        if facts.size <= PIECE_BYTES:
            content = read_range(self._ops, fd, 0, facts.size)
            start = 0
            if hashlib.sha256(content).hexdigest() != sha256:
                raise self._set_aside(fd, sha256)
        else:
            sums = self._sums_of(fd, sha256)
            content = read_range(self._ops, fd, start, max(0, min(end, facts.size) - start))
            if facts.size != sums.size or not _agree(sums, first, content):
                self._confirm(fd, sha256)
                # The sums were wrong, and are mended; or the bytes were read wrongly just now.
                content = read_range(self._ops, fd, start, len(content))
                if not _agree(self._sums_of(fd, sha256), first, content):
                    raise StorageError(f"object {sha256} reads differently each time")
        if offset + size > facts.size:
            raise StorageError(f"object {sha256} ends before byte {offset + size}")
        if offset == start and size == len(content):
            return content
        if len(content) <= PIECE_BYTES:
            self._pieces.put((sha256, start // PIECE_BYTES), content)
        return content[offset - start :][:size]

    def verify(self, sha256: str, size: int) -> None:
        """As :meth:`~labmesh.storage.base.BlobStore.verify`."""
        with storage_errors(f"verify object {sha256:.64}"):
            found = self._verified(sha256)
        if found.size != size:
            raise StorageError(
                f"object {sha256} is whole and has {found.size} bytes, but its record says {size}: "
                "look at the record"
            )

    def _verified(self, sha256: str) -> Sums:
        while True:
            fd = self._open(self._path(sha256), sha256)
            try:
                return self._confirm(fd, sha256)
            except _Replaced:
                continue
            finally:
                self._ops.close(fd)

    def _confirm(self, fd: int, sha256: str) -> Sums:
        """Read all of an object; its sums are written again if they were wrong.

        :raises Damaged: it was set aside.
        """
        whole, pieces, offset = hashlib.sha256(), PieceSums(), 0
        while piece := read_range(self._ops, fd, offset, PIECE_BYTES):
            whole.update(piece)
            pieces.update(memoryview(piece))
            offset += len(piece)
        if whole.hexdigest() != sha256:
            raise self._set_aside(fd, sha256)
        sums = pieces.sums(sha256)
        if len(sums.pieces) > 1 and self._stored_sums(sha256) != sums:
            log.warning(
                "the piece sums of object %s were missing or damaged: written again", sha256
            )
            # They save work, no more: a disk that takes no writes is no reason not to serve.
            with suppress(StorageError), self._health.writing("write piece sums"):
                self._write_sums(self._path(sha256), sums, self._draft())
        self._sums.put(sha256, sums)
        return sums

    def _sums_of(self, fd: int, sha256: str) -> Sums:
        sums = self._sums.get(sha256) or self._stored_sums(sha256)
        if sums is None:
            with self._confirming:
                return self._sums.get(sha256) or self._confirm(fd, sha256)
        self._sums.put(sha256, sums)
        return sums

    def _stored_sums(self, sha256: str) -> Sums | None:
        try:
            return Sums.decode(read_file(self._ops, _sums_path(self._path(sha256))), sha256)
        except OSError:
            return None

    def _forget(self, sha256: str) -> None:
        """Another file has the name now, or none."""
        self._refused.discard(sha256)
        self._sums.drop(lambda name: name == sha256)
        self._pieces.drop(lambda key: key[0] == sha256)

    # ── damage ──

    def _set_aside(self, fd: int, sha256: str) -> Damaged:
        """Move an object away whose content, read through ``fd``, is not its own.

        :raises _Replaced: it was stored again after ``fd`` was opened.
        """
        path = self._path(sha256)
        with self._lock:
            try:
                named = self._ops.stat(path)
            except FileNotFoundError:
                return _damaged(sha256)
            if named.inode != self._ops.fstat(fd).inode:
                raise _Replaced
            self._forget(sha256)
            self._refused.add(sha256)
            log.error("object %s is damaged: it is set aside and no longer served", path)
            with suppress(StorageError), self._health.writing("set a damaged object aside"):
                make_folder(self._ops, self._quarantine)
                self._ops.rename(path, self._free_name(sha256))
                self._refused.discard(sha256)
                self._freed(named.size)
                self._ops.fsync_dir(self._quarantine)
                self._ops.fsync_dir(path.parent)
                remove_quietly(self._ops, _sums_path(path))
        return _damaged(sha256)

    def _free_name(self, sha256: str) -> Path:
        name, number = self._quarantine / sha256, 0
        while self._ops.exists(name):
            number += 1
            name = self._quarantine / f"{sha256}.{number}"
        return name

    # ── removal and listing ──

    def remove(self, sha256: str, older_than_s: float) -> None:
        """As :meth:`~labmesh.storage.base.BlobStore.remove`."""
        path = self._path(sha256)
        with self._health.writing(f"remove object {sha256:.64}"):
            with self._lock:
                try:
                    facts = self._ops.stat(path)
                except FileNotFoundError:
                    return
                if self._age_s(sha256, facts) < older_than_s:
                    return
                with suppress(FileNotFoundError):
                    # First, for nobody would ever look for them again.
                    self._ops.unlink(_sums_path(path))
                self._ops.unlink(path)
                self._forget(sha256)
                self._freed(facts.size)
            self._ops.fsync_dir(path.parent)

    def objects(self) -> Iterator[StoredObject]:
        """As :meth:`~labmesh.storage.base.BlobStore.objects`."""
        with storage_errors("list its objects"):
            folders = sorted(filter(_TWO_DIGITS.fullmatch, self._ops.listdir(self._folder)))
        for folder in folders:
            yield from self._objects_in(folder)

    def _objects_in(self, folder: str) -> list[StoredObject]:
        try:
            with storage_errors("list its objects"):
                entries = self._ops.scan(self._folder / folder)
        except StorageError as error:
            if isinstance(error.__cause__, (FileNotFoundError, NotADirectoryError)):
                return []
            raise
        return [
            StoredObject(each.name, each.size, self._age_s(each.name, each))
            for each in entries
            if each.is_file and each.name.startswith(folder) and _SHA256.fullmatch(each.name)
        ]

    def _age_s(self, sha256: str, facts: FileFacts) -> float:
        age_s = max(0.0, time.time() - facts.mtime_ns / 1e9)
        stored = self._fresh.get(sha256)
        # A wall clock that jumps ahead must not make old what was stored a moment ago.
        return age_s if stored is None else min(age_s, time.monotonic() - stored)

    def _path(self, sha256: str) -> Path:
        if not _SHA256.fullmatch(sha256):
            raise StorageError("objects are named by a SHA-256 of 64 lower-case hexadecimal digits")
        return self._folder / sha256[:2] / sha256


def _sums_path(path: Path) -> Path:
    return path.with_name(f"{path.name}.sums")


def _agree(sums: Sums, first: int, content: bytes) -> bool:
    """Whether ``content`` is what the pieces from ``first`` on were."""
    view = memoryview(content)
    return all(
        sums.agrees(first + number, view[start : start + PIECE_BYTES])
        for number, start in enumerate(range(0, len(view), PIECE_BYTES))
    )


def _damaged(sha256: str) -> Damaged:
    return Damaged(
        f"object {sha256} changed since it was stored; it is set aside, and never served: upload "
        "the dataset again, or restore it from a copy of the data folder",
        sha256=sha256,
    )
