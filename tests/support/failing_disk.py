"""A disk whose operations fail on demand, as Linux's do: what a failed sync did not write is given
up by the kernel, which reports success to whoever asks again.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.support.crash_states import Recorder

__all__ = ["SHORT", "Failing"]

#: Half of what is to be written is; the rest is to be written by another call.
SHORT = -1


class Failing(Recorder):
    """Records; from operation ``first`` on (counted from 0), ``count`` operations fail.

    :param failure: the errno, or ``SHORT``, which only writes know.
    :param count: None: for ever, until :meth:`mend`.
    :param only: the names of the operations that may fail.
    """

    def __init__(
        self,
        root: Path,
        *,
        first: int = 10**9,
        failure: int = errno.EIO,
        count: int | None = 1,
        only: frozenset[str] = Recorder.KNOWN,
    ) -> None:
        super().__init__(root)
        self.done = 0
        self.failed: list[str] = []
        #: syncs of a file after one of it failed
        self.syncs_again: list[str] = []
        self._first, self._failure, self._left, self._only = first, failure, count, only
        self._given_up: set[int] = set()
        self._mended = False

    def mend(self) -> None:
        """From now on everything works."""
        self._mended = True

    def fails(self, name: str) -> bool:
        """Whether the next operation, which is called so, is to fail."""
        number, self.done = self.done, self.done + 1
        if self._mended or number < self._first or name not in self._only or self._left == 0:
            return False
        if self._failure == SHORT and name != "write":
            return False
        if self._left is not None:
            self._left -= 1
        self.failed.append(name)
        return True

    def error(self) -> OSError:
        """What it fails with."""
        return OSError(self._failure, os.strerror(self._failure))

    def write(self, fd: int, offset: int, piece: memoryview) -> int:
        with self.turn:
            if self.fails("write"):
                if self._failure != SHORT:
                    raise self.error()
                piece = piece[: max(1, len(piece) // 2)]
            return super().write(fd, offset, piece)

    def fsync(self, fd: int) -> None:
        with self.turn:
            inode = self._open.get(fd, -fd)
            if inode in self._given_up:
                self.syncs_again.append(str(self.paths.get(fd)))
            if self.fails("fsync"):
                self._given_up.add(inode)
                raise self.error()
            if inode in self._given_up:
                return  # it says so, and has lost the bytes
            super().fsync(fd)

    def close(self, fd: int) -> None:
        with self.turn:
            # As in Linux: the descriptor is gone, whatever close reports.
            super().close(fd)
            if self.fails("close"):
                raise self.error()


def _failing(name: str) -> Callable[..., Any]:
    def operation(self: Failing, *arguments: Any) -> Any:
        with self.turn:
            if self.fails(name):
                raise self.error()
            return getattr(super(Failing, self), name)(*arguments)

    operation.__name__ = name
    return operation


for _name in sorted(Recorder.KNOWN - {"write", "fsync", "close"}):
    if hasattr(Recorder, _name):
        setattr(Failing, _name, _failing(_name))
