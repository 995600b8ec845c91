"""The files of a spool, and the steps that keep them whole through a kill and a power cut::

    LOCK                        held by the relay that is running; names its process
    00000001.data               the bytes of a dataset
    00000001.json               what is known of it; the last step of storing it
    00000001.bank               the bank that may have begun to take it
    00000001.sent               what .json becomes when the rest of it may go
    refused/<number>-<id>/      data, entry.json and reason.txt of what no bank takes
    incomplete/<number>-<id>/   of what was interrupted while it came in
    damaged/<number>-<id>/      of what is no longer what was stored

What is finished is written, synced, renamed, and its folder synced, in this order; so a ``.json``
with a SHA-256 stands for a whole dataset. Nothing is removed but what a bank has, or what its
sender still has.
"""

from __future__ import annotations

import errno
import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from labmesh.errors import ConfigError, LabmeshError, NoSpace, ProtocolError, StorageError
from labmesh.protocol.ids import check_id
from labmesh.protocol.spooling import Place, SpoolEntry, encode_entry
from labmesh.storage.fileops import (
    FileOps,
    close_quietly,
    make_folder,
    read_file,
    remove_quietly,
    write_all,
    write_file,
)

__all__ = ["PLACES", "SpoolFolder"]

PLACES: tuple[Place, ...] = ("refused", "incomplete", "damaged")
_FILE = re.compile(r"(\d{8,})\.(data|json|bank|sent|new)")
_ASIDE = re.compile(r"(\d{8,})(?:-.*)?")
_PID_WIDTH = 20


class SpoolFolder:
    """The folder of one relay: files by number. Each method blocks on the disk; any thread.

    :param limit_bytes: all that datasets may take in it, also those put aside.
    :raises ConfigError: it cannot be used, or another relay uses it.
    """

    def __init__(self, root: Path, limit_bytes: int, ops: FileOps) -> None:
        self.root = root
        self.ops = ops
        self.limit_bytes = limit_bytes
        self._lock = threading.Lock()
        self._steps = threading.Lock()
        self._used = 0
        #: what was put aside: file → bytes, which count until somebody clears it away
        self._aside: dict[Path, int] = {}
        self._lock_fd: int | None = None
        try:
            make_folder(ops, root)
            self._lock_fd = self._take_lock()
        except LabmeshError:
            raise
        except OSError as exc:
            raise ConfigError(
                f"the spool folder {root} cannot be used ({exc.strerror or exc}): choose another "
                "(spool_dir of the relay, --spool), or make this one writable",
                folder=str(root),
            ) from exc

    # ── room ────────────────────────────────────────────────────────────────────────────────────

    @property
    def used_bytes(self) -> int:
        """What the datasets take."""
        return self._used

    def take_room(self, size: int, *, at_start: bool = False) -> None:
        """Count ``size`` bytes more.

        :raises NoSpace: they do not fit. (What the start finds is there, whatever the limit.)
        """
        with self._lock:
            if self._used + size > self.limit_bytes and not at_start:
                self._notice_what_was_cleared_away()
            if self._used + size > self.limit_bytes and not at_start:
                raise NoSpace(
                    f"the spool {self.root} is full: it holds {self._used} of {self.limit_bytes} "
                    f"bytes, and {size} more do not fit; start the bank that they wait for, clear "
                    f"away what is in {', '.join(PLACES)}, or raise spool_limit",
                    limit=self.limit_bytes,
                    used=self._used,
                )
            self._used += size

    def _notice_what_was_cleared_away(self) -> None:
        for path in list(self._aside):
            with suppress(OSError):  # who cannot look takes it to be there
                if not self.ops.exists(path):
                    self._used -= self._aside.pop(path)

    def give_room(self, size: int) -> None:
        """So many bytes are gone."""
        with self._lock:
            self._used -= size

    # ── one dataset ─────────────────────────────────────────────────────────────────────────────

    def path(self, number: int, suffix: str) -> Path:
        """One of its files."""
        return self.root / f"{number:08}.{suffix}"

    def size(self, number: int) -> int:
        """How many bytes it has; 0 also when there are none."""
        return self._size(self.path(number, "data"))

    def write_entry(self, number: int, entry: SpoolEntry) -> None:
        """Store what is known of it, durably, in place of what was."""
        self._write(number, "json", encode_entry(entry))

    def write_bank(self, number: int, bank_id: str) -> None:
        """Note durably which bank may have it."""
        self._write(number, "bank", bank_id.encode())

    def read_bank(self, number: int) -> str:
        """The bank that may have it; empty: none has."""
        try:
            return check_id(read_file(self.ops, self.path(number, "bank")).decode())
        except (FileNotFoundError, ValueError, ProtocolError):
            return ""

    def forget_bank(self, number: int) -> None:
        """No bank has it."""
        remove_quietly(self.ops, self.path(number, "bank"))
        self.ops.fsync_dir(self.root)

    def remove(self, number: int) -> None:
        """All of it goes; a kill in the middle leaves what the next start knows to be rubbish."""
        if self.ops.exists(self.path(number, "json")):
            self.ops.rename(self.path(number, "json"), self.path(number, "sent"))
            self.ops.fsync_dir(self.root)
        self.clear_away(number)

    def clear_away(self, number: int) -> None:
        """Remove the rubbish; the mark that it is some goes last."""
        for suffix in ("new", "data", "bank", "sent"):
            remove_quietly(self.ops, self.path(number, suffix))

    def move_aside(self, number: int, entry: SpoolEntry | None, place: Place, reason: str) -> Path:
        """Put it into a folder of its own; the entry goes last, so that a start finds and finishes
        what was interrupted.
        """
        name = f"{number:08}" if entry is None else f"{number:08}-{entry.start.dataset_id}"
        folder = self.root / place / name
        make_folder(self.ops, folder)
        remove_quietly(self.ops, folder / "reason.txt")
        write_file(self.ops, folder / "reason.txt", (reason + "\n").encode())
        for suffix, target in (("data", "data"), ("json", "entry.json")):
            if self.ops.exists(self.path(number, suffix)):
                self.ops.rename(self.path(number, suffix), folder / target)
                self.ops.fsync_dir(folder)
        self.ops.fsync_dir(self.root)
        for suffix in ("new", "bank"):
            remove_quietly(self.ops, self.path(number, suffix))
        self._aside[folder / "data"] = self._size(folder / "data")
        return folder

    def _write(self, number: int, suffix: str, content: bytes) -> None:
        new = self.path(number, "new")
        remove_quietly(self.ops, new)
        write_file(self.ops, new, content)
        self.ops.rename(new, self.path(number, suffix))
        self.ops.fsync_dir(self.root)

    # ── all of it ───────────────────────────────────────────────────────────────────────────────

    def numbers(self) -> dict[int, set[str]]:
        """The datasets in it, each with the suffixes of its files."""
        found: dict[int, set[str]] = {}
        for name in self.ops.listdir(self.root):
            if match := _FILE.fullmatch(name):
                found.setdefault(int(match[1]), set()).add(match[2])
        return found

    def aside(self, place: Place) -> dict[int, int]:
        """What was put there: number → bytes."""
        folder = self.root / place
        if not self.ops.exists(folder):
            return {}
        names = [each for each in self.ops.listdir(folder) if _ASIDE.fullmatch(each)]
        sizes = {each: self._size(folder / each / "data") for each in names}
        self._aside.update({folder / each / "data": size for each, size in sizes.items()})
        return {int(each.partition("-")[0]): size for each, size in sizes.items()}

    @contextmanager
    def errors(self, action: str) -> Iterator[None]:
        """Raise a failed file operation as :class:`NoSpace` or :class:`StorageError`."""
        try:
            yield
        except LabmeshError:
            raise  # a StorageError is an OSError too; it has its text already
        except OSError as exc:
            reason = errno.errorcode.get(exc.errno or 0, type(exc).__name__)
            if exc.errno in (errno.ENOSPC, errno.EDQUOT):
                raise NoSpace(
                    f"the relay could not {action}: the disk of its spool {self.root} is full; "
                    "free space, then try again",
                    errno=reason,
                ) from exc
            raise StorageError(
                f"the relay could not {action}: {exc.strerror or exc} ({reason}); look at the disk "
                f"of its spool {self.root}",
                errno=reason,
            ) from exc

    @contextmanager
    def step(self, action: str) -> Iterator[None]:
        """:meth:`errors`, for what changes a dataset: the folder is not let go of meanwhile, or the
        next relay would find it half done.
        """
        with self._steps, self.errors(action):
            self.check_open()
            yield

    def check_open(self) -> None:
        """Raise :class:`StorageError` when this relay has let go of the folder."""
        if self._lock_fd is None:
            raise StorageError("the spool is closed: its relay has stopped")

    def close(self) -> None:
        """Let go of it, behind the step that is under way; twice is fine."""
        with self._steps:
            fd, self._lock_fd = self._lock_fd, None
            if fd is not None:
                close_quietly(self.ops, fd, self.root / "LOCK")

    def _take_lock(self) -> int:
        fd = self.ops.open(self.root / "LOCK", "keep")
        try:
            if not self.ops.lock(fd):
                holder = self.ops.read(fd, 0, _PID_WIDTH).decode("ascii", "replace").strip()
                raise ConfigError(
                    f"the spool folder {self.root} is in use by another relay (process "
                    f"{holder or 'unknown'}): stop that one, or give this one a folder of its own",
                    folder=str(self.root),
                    pid=holder,
                )
            write_all(self.ops, fd, 0, memoryview(f"{os.getpid():<{_PID_WIDTH}}\n".encode()))
        except BaseException:
            self.ops.close(fd)
            raise
        return fd

    def _size(self, path: Path) -> int:
        try:
            return self.ops.stat(path).size
        except FileNotFoundError:
            return 0
