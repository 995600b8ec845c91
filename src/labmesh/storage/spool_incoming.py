"""A dataset on its way into a relay's spool, and what it is once it is whole."""

from __future__ import annotations

import hashlib
import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from msgspec.structs import replace

from labmesh.errors import ProtocolError, StorageError
from labmesh.protocol.spooling import SpoolEntry
from labmesh.storage.fileops import close_quietly, write_all
from labmesh.storage.spool_folder import SpoolFolder

__all__ = ["Incoming", "OnEnd", "Spooled"]

log = logging.getLogger(__name__)

#: A stream is synced when so much has come, or so long after the last time.
_SYNC_BYTES, _SYNC_S = 16 * 2**20, 1.0


class Spooled(NamedTuple):
    """A whole dataset that waits."""

    number: int
    entry: SpoolEntry
    path: Path
    #: the bank that may have begun to take it; empty: none has
    begun_at: str = ""

    @property
    def size(self) -> int:
        """Bytes."""
        return self.entry.start.size or 0

    @property
    def bank(self) -> str:
        """The bank that alone may get it; empty: any."""
        return self.entry.bank or self.begun_at


#: Called when a dataset is whole (with it), or will not become so (put aside, or gone).
OnEnd = Callable[["Incoming", Spooled | None, bool], None]


class Incoming:
    """A dataset on its way into a spool; one thread at a time writes it.

    After an error it takes nothing more, and none of its bytes is ever synced again.
    """

    def __init__(
        self, folder: SpoolFolder, number: int, entry: SpoolEntry, fd: int, on_end: OnEnd
    ) -> None:
        self._folder = folder
        self._number = number
        self._entry = entry
        self._fd = fd
        self._on_end = on_end
        self._sha256 = hashlib.sha256()
        self._size = 0
        self._synced, self._synced_at = 0, time.monotonic()
        self._lock = threading.Lock()
        self._open = True
        self._failed = False

    @property
    def size(self) -> int:
        """Bytes stored so far."""
        return self._size

    @property
    def dataset_id(self) -> str:
        """Its id."""
        return self._entry.start.dataset_id

    def write(self, piece: bytes | bytearray | memoryview) -> None:
        """Append.

        :raises NoSpace: the spool or its disk is full.
        :raises StorageError: the disk refused, or the spool is closed.
        :raises ProtocolError: the content is longer than it was said to be.
        """
        view = memoryview(piece).cast("B")
        with self._lock, self._failing():
            declared = self._entry.start.size
            if declared is None:
                self._folder.take_room(len(view))
            elif self._size + len(view) > declared:
                raise self._changed()
            offset, self._size = self._size, self._size + len(view)
            write_all(self._folder.ops, self._fd, offset, view)
            self._sha256.update(view)
        self.sync_if_due()

    def sync_if_due(self) -> None:
        """Make durable what has come, when it is much or a second old. In any thread.

        :raises StorageError: the disk refused.
        """
        with self._lock:
            behind, age_s = self._size - self._synced, time.monotonic() - self._synced_at
            is_due = behind >= _SYNC_BYTES or (behind > 0 and age_s >= _SYNC_S)
            if not is_due or not self._open or self._failed:
                return
            with self._failing():
                self._folder.ops.fsync(self._fd)
                if not self._synced:
                    self._folder.ops.fsync_dir(self._folder.root)
                self._synced, self._synced_at = self._size, time.monotonic()

    def finish(self) -> Spooled:
        """That was all: durable from here on, and to be sent.

        :raises ProtocolError: it is shorter than it was said to be.
        :raises StorageError: the disk refused; it is not stored.
        """
        with self._lock, self._failing():
            if self._entry.start.size not in (None, self._size):
                raise self._changed()
            self._folder.ops.fsync(self._fd)
            start = replace(self._entry.start, size=self._size, sha256=self._sha256.hexdigest())
            entry = replace(self._entry, start=start, ended=time.time())
            with self._folder.step("store this dataset"):
                self._folder.write_entry(self._number, entry)
            self._close()
        spooled = Spooled(self._number, entry, self._folder.path(self._number, "data"))
        self._on_end(self, spooled, False)
        return spooled

    def abandon(self, reason: str, *, keep: bool) -> Path | None:
        """It will not become whole. ``keep``: what there is of it is put aside; returns where.

        Without ``keep`` nothing is left of it. Harmless after :meth:`finish`; never raises.
        """
        with self._lock:
            if not self._open:
                return None
            self._close()
        where = None
        try:
            with self._folder.step("put away what is not whole"):
                where = self._leave(reason, keep=keep and self._size > 0)
        except OSError as exc:
            # Also when the relay has let go of the folder: the next start finds it.
            log.warning("what came of %s stays where it is (%s)", self.dataset_id, exc)
        self._on_end(self, None, where is not None)
        return where

    def _leave(self, reason: str, *, keep: bool) -> Path | None:
        if keep:
            entry = replace(self._entry, aside="incomplete", reason=reason)
            self._folder.write_entry(self._number, entry)
            return self._folder.move_aside(self._number, entry, "incomplete", reason)
        self._folder.remove(self._number)
        declared = self._entry.start.size
        self._folder.give_room(self._size if declared is None else declared)
        return None

    def _close(self) -> None:
        self._open = False
        close_quietly(self._folder.ops, self._fd, self._folder.path(self._number, "data"))

    def _changed(self) -> ProtocolError:
        return ProtocolError(
            f"the content of {self.dataset_id} has another length than the "
            f"{self._entry.start.size} bytes that it had; did it change meanwhile? Upload it again"
        )

    @contextmanager
    def _failing(self) -> Iterator[None]:
        """An error is the last one."""
        if self._failed or not self._open:
            raise StorageError(f"{self.dataset_id} was given up before; upload it again")
        try:
            self._folder.check_open()
            with self._folder.errors("store this dataset"):
                yield
        except BaseException:
            self._failed = True
            raise
