"""File operations that are recorded, and fail when they are told to."""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass, field
from pathlib import Path

from labmesh.storage.fileops import Access, FileFacts, FileOps


@dataclass(frozen=True)
class Operation:
    """One file operation: its name and the paths that it was about."""

    name: str
    path: Path
    target: Path | None = None

    def __str__(self) -> str:
        places = [self.path] if self.target is None else [self.path, self.target]
        return " ".join([self.name, *(place.name for place in places)])


@dataclass
class FaultyFileOps(FileOps):
    """The real operations, all recorded; the first that matches a fault fails by it.

    :param faults: number of the operation, counted from 0, or its name → errno.
    :param write_bytes: more than so many are never written at once.
    """

    faults: dict[int | str, int] = field(default_factory=dict)
    write_bytes: int | None = None
    done: list[Operation] = field(default_factory=list)
    open_files: dict[int, Path] = field(default_factory=dict)
    failed: Operation | None = None

    def _record(self, name: str, path: Path, target: Path | None = None) -> None:
        operation = Operation(name, path, target)
        number = len(self.done)
        self.done.append(operation)
        fault = self.faults.get(number, self.faults.get(name))
        if fault is not None:
            self.failed = operation
            raise OSError(fault, os.strerror(fault), str(path))

    def open(self, path: Path, access: Access) -> int:
        self._record("open", path)
        fd = super().open(path, access)
        self.open_files[fd] = path
        return fd

    def read(self, fd: int, offset: int, size: int) -> bytes:
        self._record("read", self.open_files[fd])
        return super().read(fd, offset, size)

    def write(self, fd: int, offset: int, piece: memoryview) -> int:
        self._record("write", self.open_files[fd])
        return super().write(fd, offset, piece[: self.write_bytes])

    def fsync(self, fd: int) -> None:
        self._record("fsync", self.open_files[fd])
        super().fsync(fd)

    def close(self, fd: int) -> None:
        # As in Linux: the descriptor is gone, whatever close reports. Another thread may have its
        # number at once.
        path = self.open_files.pop(fd)
        super().close(fd)
        self._record("close", path)

    def rename(self, source: Path, target: Path) -> None:
        self._record("rename", source, target)
        super().rename(source, target)

    def unlink(self, path: Path) -> None:
        self._record("unlink", path)
        super().unlink(path)

    def mkdir(self, path: Path) -> None:
        self._record("mkdir", path)
        super().mkdir(path)

    def fsync_dir(self, path: Path) -> None:
        self._record("fsync_dir", path)
        super().fsync_dir(path)

    def listdir(self, path: Path) -> list[str]:
        self._record("listdir", path)
        return super().listdir(path)

    def scan(self, path: Path) -> list[FileFacts]:
        self._record("scan", path)
        return super().scan(path)

    def stat(self, path: Path) -> FileFacts:
        self._record("stat", path)
        return super().stat(path)

    def fstat(self, fd: int) -> FileFacts:
        self._record("fstat", self.open_files[fd])
        return super().fstat(fd)

    def truncate(self, fd: int, size: int) -> None:
        self._record("truncate", self.open_files[fd])
        super().truncate(fd, size)

    def reserve(self, fd: int, size: int) -> bool:
        self._record("reserve", self.open_files[fd])
        return super().reserve(fd, size)

    def touch(self, fd: int) -> None:
        self._record("touch", self.open_files[fd])
        super().touch(fd)

    def make_private(self, path: Path) -> None:
        self._record("make_private", path)
        super().make_private(path)

    def exists(self, path: Path) -> bool:
        self._record("exists", path)
        return super().exists(path)

    def lock(self, fd: int) -> bool:
        self._record("lock", self.open_files[fd])
        return super().lock(fd)

    def free_bytes(self, path: Path) -> int:
        self._record("free_bytes", path)
        return super().free_bytes(path)

    def journal(self) -> list[str]:
        """What was done since the last call, as text, without mere looks."""
        looks = ("exists", "free_bytes", "fstat", "listdir", "read", "scan", "stat")
        lines = [str(each) for each in self.done if each.name not in looks]
        self.done.clear()
        return lines


#: The errors of a disk that the seam must bear at any operation.
DISK_ERRORS = (errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EMFILE)
