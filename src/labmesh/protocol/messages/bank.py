"""A bank's two sockets: uploads, and reading what is stored."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from msgspec import Meta, Struct, field

from labmesh.protocol.messages.base import ID, SHA256, SHORT_TEXT, SIZE, DatasetId, Reply, Request

__all__ = [
    "ChunkStored",
    "Committed",
    "DatasetPage",
    "DatasetRecord",
    "Fetch",
    "Fetched",
    "GetDataset",
    "ListDatasets",
    "UploadAbort",
    "UploadChunk",
    "UploadCommit",
    "UploadGranted",
    "UploadStart",
]


class DatasetRecord(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a bank knows of one stored dataset."""

    dataset_id: Annotated[DatasetId, ID]
    size: Annotated[int, SIZE]
    sha256: Annotated[str, SHA256]
    bank_id: Annotated[str, Meta(max_length=128)]
    relay_id: Annotated[str, Meta(max_length=128)] = ""
    name: Annotated[str, SHORT_TEXT] = ""
    #: how ``read()`` turns the bytes back: ``bytes``, ``npy``, ``text``, ``json``
    kind: Annotated[str, Meta(max_length=32)] = "bytes"
    #: POSIX seconds (UTC) at commit
    created: float = 0.0
    #: position in the bank's order of commits, from 1
    sequence: int = 0
    meta: dict[str, Any] = field(default_factory=dict)


class UploadStart(Request, frozen=True, kw_only=True, omit_defaults=True, tag="upload_start"):
    """Begin or resume an upload → UploadGranted, or Committed when it is already stored whole.

    A dataset of this id that is stored is a 409, unless ``sha256`` shows that it is the same.
    """

    dataset_id: Annotated[DatasetId, ID]
    #: a fresh random token; only its bearer may send chunks or resume
    session: Annotated[str, Meta(min_length=8, max_length=64)]
    #: bytes; None: a stream whose length is not known yet
    size: Annotated[int, SIZE] | None = None
    #: of the whole content, where the sender knows it already
    sha256: Annotated[str, SHA256] | None = None
    relay_id: Annotated[str, Meta(max_length=128)] = ""
    name: Annotated[str, SHORT_TEXT] = ""
    kind: Annotated[str, Meta(max_length=32)] = "bytes"
    meta: dict[str, Any] = field(default_factory=dict)


class UploadGranted(Reply, frozen=True, kw_only=True, omit_defaults=True, tag="upload_granted"):
    """Send from ``offset`` on, at most ``window`` chunks unanswered, each ≤ ``chunk_bytes``."""

    offset: Annotated[int, SIZE]
    chunk_bytes: int
    window: int


class UploadChunk(Request, frozen=True, kw_only=True, omit_defaults=True, tag="upload_chunk"):
    """One piece; its bytes are the frame behind the header → ChunkStored.

    A repeat of stored bytes is acknowledged; a gap is a 409 whose detail has ``offset``.
    """

    has_body: ClassVar[bool] = True

    dataset_id: Annotated[DatasetId, ID]
    session: Annotated[str, Meta(min_length=8, max_length=64)]
    offset: Annotated[int, SIZE]


class ChunkStored(Reply, frozen=True, kw_only=True, omit_defaults=True, tag="chunk_stored"):
    """Written: everything before ``offset``."""

    offset: Annotated[int, SIZE]


class UploadCommit(Request, frozen=True, kw_only=True, omit_defaults=True, tag="upload_commit"):
    """That was all → Committed once size and digest are checked and the bytes are on disk."""

    dataset_id: Annotated[DatasetId, ID]
    session: Annotated[str, Meta(min_length=8, max_length=64)]
    size: Annotated[int, SIZE]
    sha256: Annotated[str, SHA256]


class Committed(Reply, frozen=True, kw_only=True, omit_defaults=True, tag="committed"):
    """Stored, verified and durable."""

    record: DatasetRecord


class UploadAbort(Request, frozen=True, kw_only=True, omit_defaults=True, tag="upload_abort"):
    """Forget an unfinished upload → Done."""

    dataset_id: Annotated[DatasetId, ID]
    session: Annotated[str, Meta(min_length=8, max_length=64)]


class ListDatasets(Request, frozen=True, kw_only=True, omit_defaults=True, tag="list_datasets"):
    """A page of records in commit order, after ``after`` → DatasetPage."""

    after: Annotated[int, Meta(ge=0)] = 0
    limit: Annotated[int, Meta(ge=1, le=1000)] = 100
    newest_first: bool = False


class DatasetPage(Reply, frozen=True, kw_only=True, omit_defaults=True, tag="dataset_page"):
    """Records; ``more``: there are others behind the last one."""

    records: list[DatasetRecord]
    more: bool = False


class GetDataset(Request, frozen=True, kw_only=True, omit_defaults=True, tag="get_dataset"):
    """The record of one dataset → Committed, or 404."""

    dataset_id: Annotated[DatasetId, ID]


class Fetch(Request, frozen=True, kw_only=True, omit_defaults=True, tag="fetch"):
    """``size`` bytes of a dataset from ``offset`` on → Fetched."""

    dataset_id: Annotated[DatasetId, ID]
    offset: Annotated[int, SIZE] = 0
    size: Annotated[int, Meta(ge=1, le=8 * 2**20)]


class Fetched(Reply, frozen=True, kw_only=True, omit_defaults=True, tag="fetched"):
    """Bytes of a dataset: the frame behind the header; fewer than asked only at its end."""

    has_body: ClassVar[bool] = True

    offset: Annotated[int, SIZE]
