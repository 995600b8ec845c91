"""Where a download goes: memory, or a file that appears under its name whole."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import secrets
import stat
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Protocol

from labmesh.content.sources import Piece
from labmesh.storage.running_sha256 import RunningSha256

if sys.platform != "win32":
    import fcntl

__all__ = ["KEPT_BYTES", "FileSink", "MemorySink", "Sink", "sync_folder"]

#: What an interrupted download left is kept for the next one from so many bytes on.
KEPT_BYTES = 8 * 2**20
_PIECE_BYTES = 2**20
_NAME_CHARACTERS = 40
#: A part that its holder finishes or drops at the moment of opening is looked for again.
_TRIES = 3


class Sink(Protocol):
    """Where a download goes. Its methods block: they are called off the loop, one at a time.

    A download fetches the bytes from :attr:`offset` on, and writes them in order. When the digest
    of the whole is not the record's, it calls :meth:`restart`; where an earlier attempt had left
    bytes, those were wrong, and it fetches everything again, once.
    """

    @property
    def offset(self) -> int:
        """Bytes, from the first on, that are here: left by an earlier attempt, or written."""

    def write(self, piece: Piece) -> None:
        """Append."""

    def digest(self) -> str:
        """The SHA-256 of all that is here, also of what an earlier attempt left."""

    def restart(self) -> None:
        """What is here is wrong: drop it; ``offset`` is 0 again."""

    def settle(self) -> None:
        """Bring what was written closer to the disk, so that :meth:`keep` has less to do; in
        another thread, it may overlap a :meth:`write`. What goes wrong comes out of :meth:`keep`.
        """

    def keep(self) -> None:
        """All is there and right: make it durable, under its final name."""

    def discard(self) -> None:
        """Let go of it: nothing appears under the final name. Harmless after :meth:`keep`, and
        twice.
        """


class MemorySink:
    """A download into memory."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._kept = False
        self._sha256 = hashlib.sha256()

    @property
    def offset(self) -> int:
        return len(self._buffer)

    def write(self, piece: Piece) -> None:
        self._buffer += piece
        self._sha256.update(piece)

    def digest(self) -> str:
        return self._sha256.hexdigest()

    def restart(self) -> None:
        self._buffer = bytearray()
        self._sha256 = hashlib.sha256()

    def settle(self) -> None:
        """Memory has nothing to settle."""

    def keep(self) -> None:
        self._kept = True

    def discard(self) -> None:
        if not self._kept:
            self.restart()

    @property
    def buffer(self) -> bytearray:
        """What was downloaded, without a copy."""
        return self._buffer

    @property
    def content(self) -> bytes:
        """What was downloaded."""
        return bytes(self._buffer)


class FileSink:
    """A download into a file, which appears under its name whole, verified and synced, or not at
    all.

    Until then its bytes are in a hidden part file beside it. With ``sha256`` the part's name is
    made from it, and what an interrupted download of the same content left there is read again and
    continued. The part is locked meanwhile: who comes second writes one of its own, with a random
    name. Bytes of an attempt that broke off are kept from 8 MiB on, unless their
    digest is wrong.

    On Windows nothing is continued: a part there always has a random name.

    :param sha256: of the dataset, as its record says.
    :param size: of the dataset; an earlier part that is longer is dropped.
    :raises OSError: the folder is missing, or cannot be written; or ``path`` is a device, a pipe or
        the like, in whose place no file is put.
    """

    def __init__(self, path: Path, *, sha256: str = "", size: int | None = None) -> None:
        _refuse_devices(path)
        self.path = path
        self._hashing = ThreadPoolExecutor(1, thread_name_prefix="labmesh-hash")
        self._sha256 = RunningSha256(self._hashing)
        self._offset = 0
        self._finished = self._wrong = False
        self._sync_error: OSError | None = None
        self._expected = sha256
        self._part, self._file = _open_part(path, sha256)
        try:
            self._read_what_is_there(size)
        except BaseException:
            self._file.close()
            raise

    @property
    def offset(self) -> int:
        return self._offset

    @property
    def part(self) -> Path:
        """The file that it writes."""
        return self._part

    def write(self, piece: Piece) -> None:
        self._sha256.update(memoryview(piece))
        self._file.write(piece)
        self._offset += len(piece)

    def digest(self) -> str:
        digest = self._sha256.hexdigest()
        self._wrong = self._expected not in ("", digest)
        return digest

    def restart(self) -> None:
        self._file.seek(0)
        self._file.truncate()
        self._sha256 = RunningSha256(self._hashing)
        self._offset = 0
        self._wrong = False

    def settle(self) -> None:
        try:
            os.fsync(self._file.fileno())
        except ValueError:  # closed meanwhile
            return
        except OSError as exc:
            # The system tells of lost bytes once: the next sync would say that all is well.
            self._sync_error = exc

    def keep(self) -> None:
        self._wrong = True  # what cannot be synced is not believed: it is fetched again
        if self._sync_error is not None:
            raise self._sync_error
        self._file.flush()
        os.fsync(self._file.fileno())
        if sys.platform == "win32":  # an open file cannot be renamed there
            self._file.close()
        # Elsewhere it stays locked until it has its name: nobody takes it for a part to continue.
        self._part.replace(self.path)
        self._finished = True
        sync_folder(self.path.parent)
        self._file.close()

    def discard(self) -> None:
        self._hashing.shutdown(wait=False)
        if self._finished:
            self._file.close()
            return
        self._finished = True
        try:
            with contextlib.suppress(OSError):  # a full disk; what is in its buffer is not needed
                self._file.flush()
            if not self._worth_keeping():
                with contextlib.suppress(FileNotFoundError):
                    self._part.unlink()
        finally:
            with contextlib.suppress(OSError):
                self._file.close()

    def _worth_keeping(self) -> bool:
        is_found_again = self._part == part_path(self.path, self._expected)
        return is_found_again and not self._wrong and self._offset >= KEPT_BYTES

    def _read_what_is_there(self, size: int | None) -> None:
        length = os.fstat(self._file.fileno()).st_size
        if size is not None and length > size:
            self.restart()
            return
        while piece := self._file.read(_PIECE_BYTES):
            self._sha256.update_here(memoryview(piece))
            self._offset += len(piece)


def part_path(path: Path, sha256: str) -> Path | None:
    """Where an interrupted download of this content to ``path`` left its bytes; None: nowhere."""
    if not sha256 or sys.platform == "win32":
        return None
    return path.with_name(f".{path.name[:_NAME_CHARACTERS]}.{sha256[:16]}.part")


def _refuse_devices(path: Path) -> None:
    """A rename would remove them: ``/dev/null`` for everybody, when root downloads."""
    try:
        mode = path.stat().st_mode
    except OSError:  # not there, or what opening the part beside it will tell
        return
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise FileExistsError(
            errno.EEXIST,
            "this is a device, a pipe or a socket, not a file; give another name",
            str(path),
        )


def _open_part(path: Path, sha256: str) -> tuple[Path, IO[bytes]]:
    usual = part_path(path, sha256)
    if usual is not None:
        file = _locked(usual)
        if file is not None:
            return usual, file
    part = path.with_name(f".{path.name[:_NAME_CHARACTERS]}.{secrets.token_hex(8)}.part")
    return part, part.open("x+b")


if sys.platform == "win32":

    def _locked(part: Path) -> IO[bytes] | None:
        return None

else:

    def _locked(part: Path) -> IO[bytes] | None:
        """The part of this name, locked; None: another one writes it, or it is not one's own."""
        for _ in range(_TRIES):
            try:
                # Its name can be guessed: a link that somebody else has put there is not followed.
                flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
                file = os.fdopen(os.open(part, flags, 0o666), "r+b")
            except (PermissionError, IsADirectoryError):
                return None
            except OSError as exc:
                if part.is_symlink():
                    return None
                raise exc
            if not _try_lock(file) or not _is_own(file):
                file.close()
                return None
            if _still_named(file, part):
                return file
            file.close()
        return None

    def _try_lock(file: IO[bytes]) -> bool:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:  # held; or a file system without locks
            return False
        return True

    def _is_own(file: IO[bytes]) -> bool:
        status = os.fstat(file.fileno())
        is_plain = stat.S_ISREG(status.st_mode) and status.st_nlink <= 1
        return is_plain and status.st_uid == os.geteuid()

    def _still_named(file: IO[bytes], part: Path) -> bool:
        """Whoever held the lock before may have given it its final name, or removed it."""
        try:
            return os.path.samestat(os.fstat(file.fileno()), part.stat(follow_symlinks=False))
        except FileNotFoundError:
            return False


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    if sys.platform == "win32":  # a folder cannot be opened there
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
