"""Whether the disk of a bank takes writes, shared by all who write to it."""

from __future__ import annotations

import errno
import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from labmesh.errors import LabmeshError, StorageError
from labmesh.storage.fileops import translated

__all__ = ["DiskHealth"]

log = logging.getLogger(__name__)

#: A disk, quota, or process at its limit refuses one write and takes the next; it is not broken.
_AT_A_LIMIT = frozenset(
    {
        errno.ENOSPC,
        errno.EDQUOT,
        errno.EFBIG,
        errno.EMFILE,
        errno.ENFILE,
        errno.ENOMEM,
        errno.EINTR,
        errno.EAGAIN,
    }
)


class DiskHealth:
    """Since when, and why, nothing is written. The blob store and the catalog of one folder share
    one, so that a failure of either stops both. Any thread may use it.
    """

    def __init__(self) -> None:
        self._refusal = ""
        self._lock = threading.Lock()

    @property
    def refusal(self) -> str:
        """Why nothing can be written for now; empty when all is well."""
        return self._refusal

    @contextmanager
    def writing(self, action: str) -> Iterator[None]:
        """Raise a failed operation of a write as :class:`~labmesh.errors.NoSpace` or
        :class:`~labmesh.errors.StorageError`, and remember one that speaks of a broken disk.
        """
        try:
            yield
        except LabmeshError:
            # A StorageError is an OSError too; it has its text already.
            raise
        except OSError as error:
            self.failed(error, action)
            raise translated(error, action) from error

    def failed(self, error: OSError, action: str) -> None:
        """Remember what broke; only the first reason is kept."""
        if error.errno in _AT_A_LIMIT:
            return
        with self._lock:
            if self._refusal:
                return
            since = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())
            reason = errno.errorcode.get(error.errno or 0, type(error).__name__)
            self._refusal = (
                f"the bank takes no writes since {since}, when it could not {action} "
                f"({error.strerror or error}, {reason}); it tries its disk by itself, look at it"
            )
            log.error("%s", self._refusal)

    def check(self) -> None:
        """:raises StorageError: nothing is written for now."""
        if refusal := self._refusal:
            raise StorageError(refusal)

    def mended(self) -> None:
        """The disk takes writes again."""
        with self._lock:
            if self._refusal:
                log.warning("the disk takes writes again")
            self._refusal = ""
