"""A download as the client sees it: which bytes to ask for, which to believe."""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

from labmesh.errors import ChecksumMismatch, ProtocolError
from labmesh.protocol.messages import DatasetId, DatasetRecord

__all__ = ["Download", "Range"]


class Range(NamedTuple):
    """Bytes to ask for in one :class:`~labmesh.protocol.messages.Fetch`."""

    offset: int
    size: int


class Download:
    """The ranges of one dataset: asked for within a window, taken strictly in order.

    The shell sends what ``next_range()`` offers, awaits the answers in the order in which it asked
    (they may arrive in any), gives each to ``fetched()`` and writes its bytes behind those before.
    So whatever a bank sends, no more bytes are written than the record says. When ``complete``, it
    gives the SHA-256 of what it wrote to ``verify()``, and only then uses the file's final name.

    :param dataset_id: the one that was asked for.
    :param record: the bank's answer.
    :param offset: bytes that an earlier attempt wrote; the final digest covers them.
    :raises ProtocolError: the record is of another dataset.
    :raises ChecksumMismatch: the earlier attempt wrote more than the dataset has.
    """

    def __init__(
        self,
        dataset_id: str,
        record: DatasetRecord,
        *,
        offset: int = 0,
        chunk_bytes: int = 2**20,
        window: int = 8,
    ) -> None:
        if record.dataset_id != dataset_id:
            raise ProtocolError(
                f"the bank answered with dataset {record.dataset_id}, not with {dataset_id}"
            )
        if offset > record.size:
            raise ChecksumMismatch(
                f"{offset} bytes are here of a dataset of {record.size}; download it from the start"
            )
        self.record = record
        self._chunk_bytes = chunk_bytes
        self._window = window
        self._written = self._asked = offset
        self._under_way: deque[Range] = deque()

    @property
    def dataset_id(self) -> DatasetId:
        """Of the dataset."""
        return self.record.dataset_id

    @property
    def written(self) -> int:
        """Bytes that were taken, from the start of the dataset on."""
        return self._written

    @property
    def complete(self) -> bool:
        """All bytes were taken."""
        return self._written == self.record.size

    def next_range(self) -> Range | None:
        """The next bytes to ask for; None: wait for answers, or nothing is left."""
        # From one multiple of a chunk to the next: a bank verifies whole mebibytes.
        size = self._chunk_bytes - self._asked % self._chunk_bytes
        size = min(size, self.record.size - self._asked)
        if size == 0 or len(self._under_way) >= self._window:
            return None
        asked = Range(self._asked, size)
        self._asked += size
        self._under_way.append(asked)
        return asked

    def fetched(self, offset: int, size: int) -> None:
        """Take the answer to the oldest open range: ``size`` bytes that begin at ``offset``.

        :raises ProtocolError: these are not the bytes that were asked for; nothing is written.
        """
        if not self._under_way or (offset, size) != self._under_way[0]:
            wanted = self._under_way[0] if self._under_way else Range(self._written, 0)
            raise ProtocolError(
                f"the bank sent {size} bytes at {offset} of {self.record.dataset_id}, where "
                f"{wanted.size} at {wanted.offset} were to come; try another bank or version",
                offset=self._written,
            )
        self._under_way.popleft()
        self._written += size

    def lost(self) -> None:
        """The link broke: what was asked for is asked for again."""
        self._under_way.clear()
        self._asked = self._written

    def verify(self, sha256: str) -> None:
        """Compare the digest of all that was written with the record.

        :raises ChecksumMismatch: bytes are missing or differ; the file must not be used.
        """
        if not self.complete or sha256 != self.record.sha256:
            raise ChecksumMismatch(
                f"what arrived of dataset {self.record.dataset_id} ({self._written} of "
                f"{self.record.size} bytes) is not what its record says; nothing was kept, "
                "download it again",
                dataset_id=self.record.dataset_id,
            )
