"""What a bank takes of uploads, and the words in which it refuses the rest."""

from __future__ import annotations

from dataclasses import dataclass

from labmesh.errors import Conflict, ProtocolError, TooLarge
from labmesh.protocol.messages import DatasetRecord
from labmesh.protocol.meta import MAX_META_BYTES

__all__ = [
    "MAX_CHUNK_BYTES",
    "UploadLimits",
    "check_same",
    "not_open",
    "taken_by_another",
]

MAX_CHUNK_BYTES = 8 * 2**20


@dataclass(frozen=True, slots=True)
class UploadLimits:
    """What one bank takes. An upload holds at most ``window * chunk_bytes`` in its memory.

    :param max_sessions: uploads that are being sent at a time.
    :param quiet_s: an upload of which nothing was heard for so long counts no longer as being sent,
        and another sender may begin the same id anew.
    :param max_quiet: quiet uploads that are kept; those that were heard of last.
    :param idle_s: an upload of which nothing was heard for so long is given up.
    """

    max_sessions: int = 64
    max_dataset_bytes: int = 2**40
    max_meta_bytes: int = MAX_META_BYTES
    chunk_bytes: int = 2**20
    window: int = 8
    quiet_s: float = 300.0
    max_quiet: int = 256
    idle_s: float = 24 * 3600.0

    def __post_init__(self) -> None:
        if not 1 <= self.chunk_bytes <= MAX_CHUNK_BYTES:
            raise ValueError(f"chunk_bytes is between 1 and {MAX_CHUNK_BYTES}")
        if self.window < 1:
            raise ValueError("window is at least 1 chunk")

    def check_chunk(self, size: int, end: int, declared: int | None) -> None:
        """Refuse a chunk of ``size`` bytes that reaches ``end`` of a dataset."""
        if size == 0:
            raise ProtocolError("a chunk has at least one byte; to end an upload, commit it")
        self.check_body(size)
        if declared is not None and end > declared:
            raise TooLarge(
                f"the chunk reaches byte {end} of a dataset declared with {declared} bytes"
            )
        self.check_size(end)

    def check_body(self, size: int) -> None:
        """Refuse a message with more bytes than a chunk may have."""
        if size > self.chunk_bytes:
            raise TooLarge(
                f"a chunk of {size} bytes is over the limit of {self.chunk_bytes}; send smaller "
                "ones",
                chunk_bytes=self.chunk_bytes,
            )

    def check_size(self, size: int) -> None:
        """Refuse a dataset of ``size`` bytes or more."""
        limit = self.max_dataset_bytes
        if size > limit:
            raise TooLarge(
                f"a dataset of {size} bytes or more is over the bank's limit of {limit}; split it, "
                "or raise the limit of the bank",
                limit=limit,
            )


def not_open(dataset_id: str) -> Conflict:
    """A request for an upload that the bank does not know."""
    return Conflict(
        f"no upload of {dataset_id} is open: it was not started, has failed, expired or ended; "
        "start it again",
        dataset_id=dataset_id,
    )


def taken_by_another(dataset_id: str) -> Conflict:
    """The id is being uploaded by somebody else."""
    return Conflict(
        f"dataset {dataset_id} is being uploaded by another sender; wait for it, or upload under "
        "another id",
        dataset_id=dataset_id,
    )


def check_same(stored: DatasetRecord, size: int | None, sha256: str | None) -> DatasetRecord:
    """``stored``, when it is the dataset that is to be uploaded.

    :raises Conflict: it differs, or nobody can tell.
    """
    if sha256 == stored.sha256 and size in (None, stored.size):
        return stored
    raise Conflict(
        f"dataset {stored.dataset_id} is already stored; the stored one ({stored.size} bytes, "
        f"SHA-256 {stored.sha256}) is kept: upload under another id",
        dataset_id=stored.dataset_id,
        size=stored.size,
        sha256=stored.sha256,
    )
