"""The one object through which a bank touches its disk, so that every operation can be observed
and made to fail; the rules for using it; and how its errors are told.

What a double must stand in for: ``open read write fsync close rename unlink mkdir fsync_dir listdir
scan stat fstat exists truncate reserve touch make_private lock free_bytes``. On Linux ``read`` and
``write`` are ``pread64`` and ``pwrite64``, ``reserve`` is ``fallocate``.
"""

from __future__ import annotations

import ctypes
import errno
import logging
import os
import shutil
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, NamedTuple, TypeAlias

from labmesh.errors import ConfigError, LabmeshError, NoSpace, StorageError

if sys.platform == "win32":  # pragma: no cover - the tests run on Linux
    import msvcrt
else:
    import fcntl

__all__ = [
    "FileFacts",
    "FileOps",
    "close_quietly",
    "make_folder",
    "read_file",
    "read_range",
    "remove_quietly",
    "storage_errors",
    "translated",
    "usable_folder",
    "write_all",
    "write_file",
]

log = logging.getLogger(__name__)

#: ``create`` fails when the file exists; ``keep`` opens it for reading and writing or creates it.
Access: TypeAlias = Literal["read", "create", "keep"]

_BINARY = getattr(os, "O_BINARY", 0)
_FLAGS: dict[Access, int] = {
    "read": os.O_RDONLY | _BINARY,
    "create": os.O_WRONLY | os.O_CREAT | os.O_EXCL | _BINARY,
    "keep": os.O_RDWR | os.O_CREAT | _BINARY,
}

#: Read at a time where the size is not known.
_READ_BYTES = 2**20


#: For ``fallocate``: the file keeps its length, so that a part is as long as what was written.
_KEEP_SIZE = 1


class FileFacts(NamedTuple):
    """What a folder says of an entry of it."""

    name: str
    size: int
    mtime_ns: int
    #: of the same inode: the same file
    inode: int
    is_file: bool


class FileOps:
    """Plain file operations. Each raises :class:`OSError`; ``fd`` is a file descriptor."""

    def open(self, path: Path, access: Access) -> int:
        return os.open(path, _FLAGS[access], 0o644)

    def read(self, fd: int, offset: int, size: int) -> bytes:
        """At most ``size`` bytes; empty at the end."""
        if sys.platform == "win32":  # pragma: no cover - the tests run on Linux
            os.lseek(fd, offset, os.SEEK_SET)
            return os.read(fd, size)
        return os.pread(fd, size, offset)

    def write(self, fd: int, offset: int, piece: memoryview) -> int:
        """How many bytes of ``piece`` were written; may be fewer than it has."""
        if sys.platform == "win32":  # pragma: no cover - the tests run on Linux
            os.lseek(fd, offset, os.SEEK_SET)
            return os.write(fd, piece)
        return os.pwrite(fd, piece, offset)

    def fsync(self, fd: int) -> None:
        os.fsync(fd)

    def close(self, fd: int) -> None:
        os.close(fd)

    def rename(self, source: Path, target: Path) -> None:
        """Atomic; replaces ``target``."""
        os.replace(source, target)

    def unlink(self, path: Path) -> None:
        os.unlink(path)

    def mkdir(self, path: Path) -> None:
        os.mkdir(path)

    def fsync_dir(self, path: Path) -> None:
        """Make the names in a folder durable."""
        if sys.platform == "win32":  # pragma: no cover - NTFS keeps a journal of names itself
            return
        fd = os.open(path, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def listdir(self, path: Path) -> list[str]:
        return os.listdir(path)

    def scan(self, path: Path) -> list[FileFacts]:
        """Every entry of a folder with its facts; what vanishes meanwhile may be left out."""
        with os.scandir(path) as entries:
            return [facts for entry in entries if (facts := _facts_of(entry)) is not None]

    def stat(self, path: Path) -> FileFacts:
        return _facts(path.name, os.lstat(path))

    def fstat(self, fd: int) -> FileFacts:
        """The same of an open file; the name is empty."""
        return _facts("", os.fstat(fd))

    def exists(self, path: Path) -> bool:
        return os.path.lexists(path)

    def truncate(self, fd: int, size: int) -> None:
        os.ftruncate(fd, size)

    def reserve(self, fd: int, size: int) -> bool:
        """Have room on the disk for the first ``size`` bytes; the length stays as it is. False:
        the file system cannot.

        Not ``posix_fallocate``: where the file system cannot, that one writes to every block.
        """
        if _fallocate is None:  # pragma: no cover - the tests run on Linux
            return False
        if _fallocate(fd, _KEEP_SIZE, 0, size) == 0:
            return True
        reason = ctypes.get_errno()
        if reason in (errno.EOPNOTSUPP, errno.ENOSYS):
            return False
        raise OSError(reason, os.strerror(reason))

    def touch(self, fd: int) -> None:
        """Give a file the time of now."""
        if os.utime in os.supports_fd:
            os.utime(fd)

    def make_private(self, path: Path) -> None:
        """Let nobody but the owner of a folder look into it."""
        os.chmod(path, 0o700)

    def lock(self, fd: int) -> bool:
        """Lock a file until ``fd`` is closed or the process ends; False: another holds it."""
        try:
            if sys.platform == "win32":  # pragma: no cover - the tests run on Linux
                # Far behind the content, which stays readable for others.
                os.lseek(fd, 2**20, os.SEEK_SET)
                msvcrt.locking(fd, msvcrt.LK_NBLCK, 1)
            else:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            return False
        return True

    def free_bytes(self, path: Path) -> int:
        return shutil.disk_usage(path).free


def _facts_of(entry: os.DirEntry[str]) -> FileFacts | None:
    try:
        return _facts(entry.name, entry.stat(follow_symlinks=False))
    except FileNotFoundError:
        return None


def _facts(name: str, found: os.stat_result) -> FileFacts:
    is_file = stat.S_ISREG(found.st_mode)
    return FileFacts(name, found.st_size, found.st_mtime_ns, found.st_ino, is_file)


def _find_fallocate() -> Callable[[int, int, int, int], int] | None:
    if not sys.platform.startswith("linux"):  # pragma: no cover - the tests run on Linux
        return None
    try:
        function = ctypes.CDLL(None, use_errno=True).fallocate64
    except (OSError, AttributeError):  # pragma: no cover - a C library without it
        return None
    function.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
    function.restype = ctypes.c_int
    found: Callable[[int, int, int, int], int] = function
    return found


_fallocate = _find_fallocate()


def write_all(ops: FileOps, fd: int, offset: int, piece: memoryview) -> None:
    """Write every byte of ``piece``, however little the system takes at a time."""
    while piece:
        try:
            written = ops.write(fd, offset, piece)
        except InterruptedError:
            continue
        if written == 0:
            raise OSError(errno.EIO, "the system wrote nothing and gave no reason")
        offset += written
        piece = piece[written:]


def write_file(ops: FileOps, path: Path, content: bytes) -> None:
    """Create a file and sync its bytes; its name is not durable yet."""
    fd = ops.open(path, "create")
    try:
        write_all(ops, fd, 0, memoryview(content))
        ops.fsync(fd)
    finally:
        ops.close(fd)


def read_range(ops: FileOps, fd: int, offset: int, size: int) -> bytes:
    """``size`` bytes from ``offset`` on; fewer only where the file ends before."""
    piece = b""
    while len(piece) < size:
        try:
            more = ops.read(fd, offset + len(piece), size - len(piece))
        except InterruptedError:
            continue
        if not more:
            break
        piece = piece + more if piece else more
    return piece


def read_file(ops: FileOps, path: Path) -> bytes:
    """All of a file."""
    fd = ops.open(path, "read")
    try:
        pieces: list[bytes] = []
        offset = 0
        while piece := read_range(ops, fd, offset, _READ_BYTES):
            pieces.append(piece)
            offset += len(piece)
    finally:
        ops.close(fd)
    return b"".join(pieces)


def make_folder(ops: FileOps, path: Path) -> None:
    """Have ``path`` as a folder whose own name is durable, and those above it that are made.

    The folder above is synced even where ``path`` exists: who made it may have been killed first.
    """
    if not ops.exists(path.parent):
        make_folder(ops, path.parent)
    made = not ops.exists(path)
    if made:
        try:
            ops.mkdir(path)
        except FileExistsError:
            made = False  # by another thread, just now
    try:
        ops.fsync_dir(path.parent)
    except PermissionError:
        # One may use a folder without the right to read the one above it.
        if made:
            raise


def close_quietly(ops: FileOps, fd: int, path: Path) -> None:
    """Close a file of which nothing is wanted any more; a failure is logged."""
    try:
        ops.close(fd)
    except OSError as error:
        log.warning("closing %s failed (%s)", path, error)


def remove_quietly(ops: FileOps, path: Path) -> None:
    """Remove a file that nobody needs; one that stays is logged, and removed at the next start."""
    try:
        ops.unlink(path)
    except FileNotFoundError:
        return
    except OSError as error:
        log.warning("cannot remove %s (%s); the next start tries again", path, error)


@contextmanager
def storage_errors(action: str) -> Iterator[None]:
    """Raise a failed file operation as :class:`NoSpace` or :class:`StorageError`."""
    try:
        yield
    except LabmeshError:
        # A StorageError is an OSError too; it has its text already.
        raise
    except OSError as error:
        raise translated(error, action) from error


def translated(error: OSError, action: str) -> StorageError:
    """The error to raise for a failed file operation."""
    reason = errno.errorcode.get(error.errno or 0, type(error).__name__)
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return NoSpace(
            f"the bank could not {action}: its disk or quota is full, or no file "
            "may be so large; free space, then try again",
            errno=reason,
        )
    return StorageError(
        f"the bank could not {action}: {error.strerror or error} ({reason}); look at its disk",
        errno=reason,
    )


@contextmanager
def usable_folder(root: Path) -> Iterator[None]:
    """Raise what stands in the way of using a data folder as one line with the way out."""
    try:
        yield
    except LabmeshError:
        raise
    except OSError as error:
        raise ConfigError(
            f"the data folder {root} cannot be used ({error.strerror or error}): choose another "
            "(data_dir of the bank; in labmesh.toml: [bank] default_data_dir), or make this one "
            "writable",
            folder=str(root),
        ) from error
