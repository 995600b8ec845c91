"""The file in which a client keeps how far it has come in the datasets of each bank."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import msgspec

from labmesh.errors import ConfigError, Conflict, StorageError
from labmesh.protocol.dataset_cursor import SavedCursor
from labmesh.storage.fileops import (
    FileOps,
    close_quietly,
    make_folder,
    read_file,
    remove_quietly,
    write_file,
)

__all__ = ["CursorFile"]

_VERSION = 1


class CursorFile:
    """A cursor on a disk, which one process at a time has open.

    What is saved replaces what was there at once: whenever the process or the power ends, the file
    holds one or the other, whole. Beside it there are ``<name>.lock``, which stays, and
    ``<name>.new`` while it is being saved. Any thread may use this.

    :raises Conflict: another program (or this one) has it open.
    :raises ConfigError: it cannot be read or created. A file that makes no sense stays as it is.
    """

    def __init__(
        self, path: str | os.PathLike[str], *, begun: float, ops: FileOps | None = None
    ) -> None:
        self.path = Path(path).absolute()
        self._new = self.path.with_name(self.path.name + ".new")
        self._lock_path = self.path.with_name(self.path.name + ".lock")
        self._ops = ops or FileOps()
        self._turn = threading.Lock()
        self._closed = False
        #: it was not there before
        self.is_new = False
        try:
            self._lock = self._locked()
        except OSError as error:
            raise self._unusable(error) from error
        try:
            self.saved = self._read(begun)
        except OSError as error:
            self.close()
            raise self._unusable(error) from error
        except BaseException:
            self.close()
            raise

    def save(self, content: bytes) -> None:
        """Have this (of :meth:`encoded`) on the disk, durably; after :meth:`close` nothing happens.

        :raises StorageError: the disk refused; what was saved before is still there.
        """
        with self._turn:
            if self._closed:
                return
            try:
                self._replace(content)
            except OSError as error:
                raise StorageError(
                    f"the cursor {self.path} cannot be saved ({error.strerror or error}); look at "
                    "its disk. Datasets wait meanwhile, and none is lost"
                ) from error

    def encoded(self) -> bytes:
        """The cursor as it is now."""
        return msgspec.json.format(msgspec.json.encode(self.saved), indent=1) + b"\n"

    def close(self) -> None:
        """Let another process have it; twice is fine."""
        with self._turn:
            if not self._closed:
                self._closed = True
                close_quietly(self._ops, self._lock, self._lock_path)

    def _locked(self) -> int:
        make_folder(self._ops, self.path.parent)
        fd = self._ops.open(self._lock_path, "keep")
        try:
            if not self._ops.lock(fd):
                raise Conflict(
                    f"the cursor {self.path} is in use by another program, or by another "
                    "subscription of this one; end that one, or give this one a file of its own",
                    file=str(self.path),
                )
        except BaseException:
            self._ops.close(fd)
            raise
        return fd

    def _read(self, begun: float) -> SavedCursor:
        try:
            content = read_file(self._ops, self.path)
        except FileNotFoundError:
            self.saved, self.is_new = SavedCursor(begun=begun), True
            self._replace(self.encoded())
            return self.saved
        try:
            saved = msgspec.json.decode(content, type=SavedCursor)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise self._broken(str(error)) from error
        if saved.version != _VERSION:
            raise self._broken(f"it is of version {saved.version}, not {_VERSION}")
        return saved

    def _replace(self, content: bytes) -> None:
        # What a killed process left there is of no use to anybody.
        remove_quietly(self._ops, self._new)
        write_file(self._ops, self._new, content)
        self._ops.rename(self._new, self.path)
        self._ops.fsync_dir(self.path.parent)

    def _broken(self, why: str) -> ConfigError:
        return ConfigError(
            f"the cursor {self.path} is broken ({why}); it was left as it is. Put a copy of it "
            "back; or move it away and say with since= from when on datasets are new",
            file=str(self.path),
        )

    def _unusable(self, error: OSError) -> ConfigError:
        return ConfigError(
            f"the cursor {self.path} cannot be used ({error.strerror or error}); give a file in a "
            "folder in which this program may write",
            file=str(self.path),
        )
