"""An upload whose object stands already, and whose record is missing: only that is to be added.

A crash between the two leaves this. Its sender may be unable to send anything again, for it was
told that every byte is durable.
"""

from __future__ import annotations

from collections.abc import Callable

from labmesh.errors import StorageError
from labmesh.storage.base import Piece, check_finished

__all__ = ["PlacedPart"]


class PlacedPart:
    """A :class:`~labmesh.storage.base.Part` that is complete.

    :param stands: whether the object is there still; if so it is taken for a new one.
    :param drop: removes the note, so that nobody continues this any more.
    """

    def __init__(
        self,
        size: int,
        sha256: str,
        note: bytes,
        *,
        stands: Callable[[str, int], bool],
        drop: Callable[[], None],
    ) -> None:
        self.size = self.durable = size
        self.note = note
        self._sha256 = sha256
        self._stands = stands
        self._drop = drop
        self._ended = False

    def write(self, offset: int, piece: Piece) -> None:
        self._check()
        if offset != self.size:
            raise ValueError(f"the part continues at {self.size}, not at {offset}")
        if memoryview(piece).nbytes:
            self.discard()
            raise StorageError(
                f"this upload ended at byte {self.size} before the bank was started again, and "
                "takes no more; upload under another id"
            )

    def sync(self) -> int:
        self._check()
        return self.size

    def finish(self, size: int, sha256: str) -> None:
        self._check()
        try:
            check_finished(size, sha256, written=self.size, digest=self._sha256)
            if not self._stands(sha256, size):
                raise StorageError("the bytes of this upload are gone; upload the dataset again")
        except BaseException:
            self.discard()
            raise
        self._ended = True

    def leave(self) -> None:
        if not self._ended:
            # It is for the next process from here on.
            self._ended, self._drop = True, _nothing

    def discard(self) -> None:
        self._ended = True
        drop, self._drop = self._drop, _nothing
        drop()

    def _check(self) -> None:
        if self._ended:
            raise StorageError("this upload failed earlier or was given up; start it again")


def _nothing() -> None:
    """Nothing is left to drop."""
