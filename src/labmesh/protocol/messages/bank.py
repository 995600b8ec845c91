"""A bank's two sockets: uploads, and reading what is stored."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from msgspec import Meta, Struct, field

from labmesh.protocol.messages.base import ID, SHA256, SHORT_TEXT, SIZE, DatasetId, Reply, Request

__all__ = [
    "Annotate",
    "Annotation",
    "ChunkStored",
    "Committed",
    "Condition",
    "DatasetPage",
    "DatasetRecord",
    "DeleteDataset",
    "Fetch",
    "Fetched",
    "GetDataset",
    "GetHistory",
    "History",
    "ListDatasets",
    "ListTrash",
    "PurgeDataset",
    "RestoreDataset",
    "SearchDatasets",
    "TrashEntry",
    "TrashPage",
    "UploadAbort",
    "UploadChunk",
    "UploadCommit",
    "UploadGranted",
    "UploadStart",
    "UploadWhole",
    "Verified",
    "VerifyDataset",
]

_TAG = Meta(min_length=1, max_length=64)
_TAGS = Meta(max_length=64)
_PARENTS = Meta(max_length=64)


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
    #: the datasets that this one was made from
    parents: Annotated[list[Annotated[DatasetId, ID]], _PARENTS] = field(default_factory=list)
    #: as they are now; :class:`Annotate` changes them
    tags: Annotated[list[Annotated[str, _TAG]], _TAGS] = field(default_factory=list)
    #: who, from where, with which settings; only in an answer to ``GetDataset(full=True)``
    provenance: dict[str, Any] = field(default_factory=dict)


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
    parents: Annotated[list[Annotated[DatasetId, ID]], _PARENTS] = field(default_factory=list)
    tags: Annotated[list[Annotated[str, _TAG]], _TAGS] = field(default_factory=list)
    #: what the sender knows of itself: user, host, program, driver, lease, ...
    provenance: dict[str, Any] = field(default_factory=dict)


class UploadWhole(Request, frozen=True, kw_only=True, omit_defaults=True, tag="upload_whole"):
    """A small dataset in one message; its bytes are the frame behind the header → Committed.

    Asked again it is answered again: the same id with the same bytes is the same dataset. More than
    the bank's ``chunk_bytes`` is a 413: begin an upload instead.
    """

    has_body: ClassVar[bool] = True

    dataset_id: Annotated[DatasetId, ID]
    #: of the body
    sha256: Annotated[str, SHA256]
    relay_id: Annotated[str, Meta(max_length=128)] = ""
    name: Annotated[str, SHORT_TEXT] = ""
    kind: Annotated[str, Meta(max_length=32)] = "bytes"
    meta: dict[str, Any] = field(default_factory=dict)
    parents: Annotated[list[Annotated[DatasetId, ID]], _PARENTS] = field(default_factory=list)
    tags: Annotated[list[Annotated[str, _TAG]], _TAGS] = field(default_factory=list)
    provenance: dict[str, Any] = field(default_factory=dict)


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
    """Written: everything before ``offset``. On disk, come what may: everything before ``durable``.

    A sender that cannot go back keeps its bytes until they are durable.
    """

    offset: Annotated[int, SIZE]
    durable: Annotated[int, SIZE] = 0


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
    """Records; ``more``: there are others behind the last one.

    ``next``: what a search gives as ``after`` to go on.
    """

    records: list[DatasetRecord]
    more: bool = False
    next: str = ""
    #: the highest ``sequence`` that the bank ever gave, also to what is deleted; 0: not said
    highest: Annotated[int, Meta(ge=0)] = 0
    #: the bank's clock, POSIX seconds (UTC); 0: not said
    time: float = 0.0


class Condition(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One condition of a search.

    ``field`` is ``relay_id``, ``name``, ``kind``, ``size``, ``created``, ``dataset_id`` or ``meta``
    followed by keys (``meta.sample.id``). Numbers are compared with numbers, text with text; a
    dataset that has no such value does not match (it does match ``!=``).
    """

    field: Annotated[str, SHORT_TEXT]
    #: ``like`` is a pattern with ``*`` and ``?``; ``in`` finds text inside, in any case
    op: Literal["==", "!=", "<", "<=", ">", ">=", "like", "in"] = "=="
    value: Annotated[str, Meta(max_length=1000)] | int | float | bool | None


class SearchDatasets(Request, frozen=True, kw_only=True, omit_defaults=True, tag="search_datasets"):
    """The datasets that meet every condition → DatasetPage"""

    where: Annotated[list[Condition], Meta(max_length=32)] = field(default_factory=list)
    #: words, each of which is in the id, name, tags or text values of meta, in any case
    text: Annotated[str, Meta(max_length=1000)] = ""
    tags: Annotated[list[Annotated[str, _TAG]], _TAGS] = field(default_factory=list)
    #: made from this dataset
    parent: Annotated[str, Meta(max_length=128)] = ""
    sort: Literal["sequence", "created", "size", "name"] = "sequence"
    descending: bool = True
    #: ``next`` of the page before
    after: Annotated[str, Meta(max_length=1000)] = ""
    limit: Annotated[int, Meta(ge=1, le=1000)] = 100


class Annotate(Request, frozen=True, kw_only=True, omit_defaults=True, tag="annotate"):
    """Add a note, add and remove tags → Committed with the record as it is now, or 404."""

    dataset_id: Annotated[DatasetId, ID]
    add_tags: Annotated[list[Annotated[str, _TAG]], _TAGS] = field(default_factory=list)
    remove_tags: Annotated[list[Annotated[str, _TAG]], _TAGS] = field(default_factory=list)
    note: Annotated[str, Meta(max_length=10_000)] = ""
    who: Annotated[str, SHORT_TEXT] = ""


class Annotation(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One change of tags and notes; they are only ever added."""

    #: POSIX seconds (UTC)
    time: float
    who: str = ""
    add_tags: list[str] = field(default_factory=list)
    remove_tags: list[str] = field(default_factory=list)
    note: str = ""


class GetHistory(Request, frozen=True, kw_only=True, omit_defaults=True, tag="get_history"):
    """Every annotation of a dataset → History, or 404."""

    dataset_id: Annotated[DatasetId, ID]


class History(Reply, frozen=True, kw_only=True, omit_defaults=True, tag="history"):
    """The newest annotations that fit one message, oldest first."""

    annotations: list[Annotation]


class DeleteDataset(Request, frozen=True, kw_only=True, omit_defaults=True, tag="delete_dataset"):
    """Into the trash, from which it can be restored until its grace period ends → Done, or 404."""

    dataset_id: Annotated[DatasetId, ID]
    who: Annotated[str, SHORT_TEXT] = ""
    why: Annotated[str, Meta(max_length=1000)] = ""


class RestoreDataset(Request, frozen=True, kw_only=True, omit_defaults=True, tag="restore_dataset"):
    """Out of the trash → Committed, or 404."""

    dataset_id: Annotated[DatasetId, ID]


class PurgeDataset(Request, frozen=True, kw_only=True, omit_defaults=True, tag="purge_dataset"):
    """Out of the trash for ever, before its grace period ends → Done, or 404."""

    dataset_id: Annotated[DatasetId, ID]


class TrashEntry(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A dataset in the trash."""

    record: DatasetRecord
    #: POSIX seconds (UTC): deleted then, and gone for ever then
    deleted: float
    purge: float
    who: str = ""
    why: str = ""


class ListTrash(Request, frozen=True, kw_only=True, omit_defaults=True, tag="list_trash"):
    """The trash, in the order of ids, behind the id ``after`` → TrashPage"""

    after: Annotated[str, Meta(max_length=128)] = ""
    limit: Annotated[int, Meta(ge=1, le=1000)] = 100


class TrashPage(Reply, frozen=True, kw_only=True, omit_defaults=True, tag="trash_page"):
    """Entries; ``more``: there are others behind the last one."""

    entries: list[TrashEntry]
    more: bool = False


class VerifyDataset(Request, frozen=True, kw_only=True, omit_defaults=True, tag="verify_dataset"):
    """Read all of a stored dataset and compare it with its SHA-256 → Verified, or 404."""

    dataset_id: Annotated[DatasetId, ID]


class Verified(Reply, frozen=True, kw_only=True, omit_defaults=True, tag="verified"):
    """``damage``: what is wrong with the bytes; empty: they are what was stored."""

    damage: str = ""


class GetDataset(Request, frozen=True, kw_only=True, omit_defaults=True, tag="get_dataset"):
    """The record of one dataset → Committed, or 404.

    ``full`` adds its ``provenance``.
    """

    dataset_id: Annotated[DatasetId, ID]
    full: bool = False


class Fetch(Request, frozen=True, kw_only=True, omit_defaults=True, tag="fetch"):
    """``size`` bytes of a dataset from ``offset`` on → Fetched."""

    dataset_id: Annotated[DatasetId, ID]
    offset: Annotated[int, SIZE] = 0
    size: Annotated[int, Meta(ge=1, le=8 * 2**20)]


class Fetched(Reply, frozen=True, kw_only=True, omit_defaults=True, tag="fetched"):
    """Bytes of a dataset: the frame behind the header; fewer than asked only at its end."""

    has_body: ClassVar[bool] = True

    offset: Annotated[int, SIZE]
