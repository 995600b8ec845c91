"""How much room a bank has, when others are writing at the same time."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path

from labmesh.errors import NoSpace
from labmesh.storage.fileops import FileOps, storage_errors

__all__ = ["Claim", "Room"]


@dataclass(slots=True, eq=False)
class Claim:
    """The room of one part."""

    reserved: int
    size: int = 0
    #: the file system itself has set the reserved room aside
    backed: bool = False

    @property
    def expected(self) -> int:
        """Bytes that are reserved and not written yet."""
        return max(0, self.reserved - self.size)


class Room:
    """The room of a disk, and of a quota if there is one. Any thread may use it.

    :param used_bytes: the objects that are stored already; only the quota needs it.
    """

    def __init__(
        self, ops: FileOps, root: Path, *, quota_bytes: int | None, used_bytes: int
    ) -> None:
        self._ops = ops
        self._root = root
        self._quota_bytes = quota_bytes
        self._used_bytes = used_bytes
        self._claims: set[Claim] = set()
        self._lock = threading.Lock()

    def claim(self, reserved: int) -> Claim:
        """Set room aside for a new part.

        :raises NoSpace: there is less.
        """
        claim = Claim(reserved)
        with self._lock:
            if reserved and reserved > (free := self._free()):
                raise NoSpace(
                    f"the bank has room for {free} bytes, not for {reserved}; free space, then "
                    "try again",
                    free=free,
                )
            self._claims.add(claim)
        return claim

    def adopt(self, reserved: int, size: int) -> Claim:
        """Count a part of an earlier process, of which ``size`` bytes are there already."""
        claim = Claim(reserved, size)
        with self._lock:
            self._claims.add(claim)
        return claim

    def grow(self, claim: Claim, size: int) -> None:
        """A part is about to have ``size`` bytes.

        :raises NoSpace: the quota does not allow it. A disk says so itself.
        """
        if self._quota_bytes is None or size <= claim.reserved:
            claim.size = size
            return
        with self._lock:
            more = size - max(claim.size, claim.reserved)
            if more > (free := self._quota_left()):
                raise NoSpace(
                    f"the quota of the bank has {max(0, free)} bytes left, not {more}; free space, "
                    "then try again",
                    free=max(0, free),
                )
            claim.size = size

    def stored(self, claim: Claim, replaced: int) -> None:
        """A part became an object, in the place of one of ``replaced`` bytes."""
        with self._lock:
            self._used_bytes += claim.size - replaced
            self._claims.discard(claim)

    def dropped(self, claim: Claim) -> None:
        """A part came to nothing."""
        with self._lock:
            self._claims.discard(claim)

    def freed(self, size: int) -> None:
        """An object is gone."""
        with self._lock:
            self._used_bytes -= size

    def free_bytes(self) -> int:
        """What nobody has claimed."""
        with self._lock:
            return self._free()

    def _free(self) -> int:
        with storage_errors("look at its free space"):
            disk = self._ops.free_bytes(self._root)
        free = disk - sum(each.expected for each in self._claims if not each.backed)
        if self._quota_bytes is not None:
            free = min(free, self._quota_left())
        return max(0, free)

    def _quota_left(self) -> int:
        assert self._quota_bytes is not None
        claimed = sum(max(each.size, each.reserved) for each in self._claims)
        return self._quota_bytes - self._used_bytes - claimed
