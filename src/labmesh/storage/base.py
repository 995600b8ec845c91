"""The storage seam of the bank: bytes in a :class:`BlobStore`, records in a :class:`Catalog`.

Nothing above this seam knows paths or SQL. All methods are synchronous and may block on a disk or
a network: the bank calls them off its event loop.

Threads: every method of a store and of a catalog may be called by any thread, and calls of
different threads may overlap. The exceptions: ``write()`` and ``finish()`` of one :class:`Part`
never overlap (different parts may be written at the same time), though ``discard()`` may come at
any moment; and ``close()`` is called when nobody begins anything new.

The order of a commit, which makes an acknowledged dataset survive a power cut: ``part.finish()``
returns, then ``catalog.add()`` returns, and only then the dataset is acknowledged and announced. A
crash in between leaves an object without a record, which nobody can see, and which is removed once
it is old. Its upload, when bytes of it were acknowledged as durable, can be ended by its sender:
the part is offered again, complete, until ``part.discard()`` after ``catalog.add()``.

Errors: :class:`~labmesh.errors.NoSpace` for a full disk or quota, :class:`~labmesh.errors.Damaged`
for bytes that changed, :class:`~labmesh.errors.StorageError` for everything else that the medium
refuses.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol, TypeAlias

from labmesh.errors import ChecksumMismatch, Conflict, NotFound, ProtocolError
from labmesh.protocol.ids import shown
from labmesh.protocol.messages import Annotation, DatasetRecord, SearchDatasets, TrashEntry

__all__ = [
    "BlobStore",
    "Catalog",
    "Found",
    "Page",
    "Part",
    "Piece",
    "StoredObject",
    "annotated_tags",
    "check_finished",
    "in_trash",
    "no_dataset",
    "not_in_trash",
    "stored_or_conflict",
]

#: of one dataset
MAX_TAGS = 64

#: Contiguous bytes of any kind; they are not kept after the call.
Piece: TypeAlias = bytes | bytearray | memoryview


class Part(Protocol):
    """An object that is being written; nobody can read it."""

    @property
    def size(self) -> int:
        """Bytes written so far; the next piece belongs at this offset."""

    @property
    def durable(self) -> int:
        """Bytes, from the first on, that outlive a kill and a power cut."""

    @property
    def note(self) -> bytes:
        """What :meth:`BlobStore.begin` was given; durable as soon as any byte is."""

    def write(self, offset: int, piece: Piece) -> None:
        """Append all of ``piece``, which begins at ``offset``. It is not used after the return.

        After an error the part is abandoned: every later call but ``discard()`` raises.

        :raises ValueError: ``offset`` is not ``size``.
        :raises StorageError: the medium refused, now or earlier.
        """

    def sync(self) -> int:
        """Make what was written durable; returns ``durable``. It may overlap a ``write()``.

        After an error the part is abandoned, and none of its bytes is ever synced again.

        :raises StorageError: the medium refused, now or earlier.
        """

    def finish(self, size: int, sha256: str) -> None:
        """Make the bytes durable and readable under ``sha256`` (lower-case hexadecimal).

        A part of which any byte was durable before stays one for :meth:`BlobStore.unfinished`
        until ``discard()``, which is called once its record is in the catalogue: a crash in
        between must not leave a sender without what it was told is durable.

        All or nothing: after an error the part is gone, and what a reader can see is whole content
        or none. The same content may be stored any number of times; it is one object, and storing
        it again mends one that was damaged.

        :raises ChecksumMismatch: the size or digest of what was written differs.
        :raises StorageError: the medium refused; it is never asked twice to sync the same bytes.
        """

    def leave(self) -> None:
        """Let go of it, and keep what is durable for :meth:`BlobStore.unfinished`.

        Harmless after ``finish()`` and ``discard()``, and twice; never raises.
        """

    def discard(self) -> None:
        """Drop what was written, once the call that is under way has returned.

        After ``finish()`` the object stays, and nobody is offered the part any more. Harmless
        twice; never raises.
        """


class StoredObject(NamedTuple):
    """An object of a store, as :meth:`BlobStore.objects` lists it."""

    sha256: str
    size: int
    #: seconds since it was stored last
    age_s: float


class BlobStore(Protocol):
    """Immutable bytes under their SHA-256."""

    def begin(self, size: int | None = None, note: bytes = b"") -> Part:
        """Open a part for ``size`` bytes (None: not known yet), for which room is reserved.

        ``note`` is kept beside the part, so that whoever opens the store again knows what it is.

        :raises NoSpace: there is not room for so many bytes.
        :raises StorageError: the store is read-only for now; the text says why.
        """

    def unfinished(self) -> Sequence[Part]:
        """The parts that an earlier process left with durable bytes: each once, ``size`` equal to
        ``durable``, ready to be continued. One that was finished is among them, complete, until it
        was discarded.
        """

    def read(self, sha256: str, offset: int, size: int) -> bytes:
        """Exactly ``size`` bytes from ``offset`` on; the caller keeps within the object's size.

        :raises Damaged: the bytes are not what was stored (or not all of them are there); the
            object is set aside and no longer served.
        :raises StorageError: the object is missing or cannot be read.
        """

    def verify(self, sha256: str, size: int) -> None:
        """Read the whole object and compare it with its name and ``size``.

        :raises Damaged: as :meth:`read`.
        :raises StorageError: as :meth:`read`; or the object is whole, and has another size.
        """

    def remove(self, sha256: str, older_than_s: float = 0.0) -> None:
        """Free the room of an object, durably; one that is missing is removed already.

        One that was stored (again) within the last ``older_than_s`` stays: an upload of the same
        content may be about to add its record.
        """

    def objects(self) -> Iterator[StoredObject]:
        """Every object, in no order. One that comes or goes meanwhile may be in it or not."""

    def free_bytes(self) -> int:
        """Room that is left, in bytes."""

    def refusal(self) -> str:
        """Why nothing can be written for now; empty when all is well."""

    def probe(self) -> bool:
        """While read-only: write, sync and read back a file of its own. When that works, the store
        takes writes again. True: it is writable (again).
        """

    def close(self) -> None:
        """Leave the parts that are open, and let go of the medium; twice is fine."""


class Page(NamedTuple):
    """Some records; ``more``: others follow behind the last one."""

    records: list[DatasetRecord]
    more: bool


class Found(NamedTuple):
    """A page of a search; ``next`` continues behind it, and is empty at the end."""

    records: list[DatasetRecord]
    next: str


class Catalog(Protocol):
    """The records of the datasets, in the order of their commits.

    Records come without their ``provenance``, except from :meth:`full`; their ``tags`` are those
    of now.
    """

    def add(self, record: DatasetRecord) -> DatasetRecord:
        """Store a new record durably and return it with its ``sequence``, which the catalog gives.

        Sequences begin at 1 and rise in the order in which records become visible (numbers may be
        left out), so that whoever has seen one has missed none before it. An id is created once: a
        record of the same id, size and digest is already stored and is returned unchanged.

        :raises Conflict: the id is taken by other content, which is kept; or it is in the trash.
        :raises ProtocolError: the id breaks the rule for ids.
        :raises StorageError: the medium refused; the record is not stored.
        """

    def get(self, dataset_id: str) -> DatasetRecord | None:
        """The record of this id, or None."""

    def full(self, dataset_id: str) -> DatasetRecord | None:
        """The record of this id with its ``provenance``, or None."""

    def page(self, after: int = 0, limit: int = 100, newest_first: bool = False) -> Page:
        """At most ``limit`` records that follow the sequence ``after``.

        Oldest first they are those with a greater sequence; newest first those with a smaller one,
        where 0 means from the newest on.
        """

    def search(self, query: SearchDatasets) -> Found:
        """At most ``query.limit`` records that meet every condition.

        :raises ProtocolError: a condition or ``after`` makes no sense; the text says what does.
        """

    def annotate(self, dataset_id: str, annotation: Annotation) -> DatasetRecord:
        """Add a note and change tags, durably; returns the record as it is now.

        :raises NotFound: there is no such dataset.
        :raises ProtocolError: it would have more than 64 tags.
        """

    def history(self, dataset_id: str) -> list[Annotation]:
        """Every annotation of a dataset, oldest first.

        :raises NotFound: there is no such dataset.
        """

    def trash(self, entry: TrashEntry) -> None:
        """Take the dataset of ``entry.record`` out of sight, durably, for later restoring.

        :raises NotFound: there is no such dataset.
        """

    def restore(self, dataset_id: str) -> DatasetRecord:
        """The other way, with the sequence that it had.

        :raises NotFound: it is not in the trash.
        """

    def trashed(self, after: str = "", limit: int = 100) -> list[TrashEntry]:
        """At most ``limit`` entries of the trash, by id, whose ids follow ``after``."""

    def purge(self, dataset_id: str) -> None:
        """Forget a dataset of the trash for ever. Its id is free again; its bytes are an orphan
        once :meth:`refers` says so.

        :raises NotFound: it is not in the trash.
        """

    def refers(self, sha256: str) -> bool:
        """Whether any record needs (or may need) this object, also one in the trash, or one that
        cannot be read.
        """

    def count(self) -> int:
        """How many records there are, without those in the trash."""

    def total_bytes(self) -> int:
        """The sizes of all records, the trash included."""

    def last_sequence(self) -> int:
        """The greatest sequence of a record; 0 when there is none."""

    def highest_given(self) -> int:
        """The greatest sequence that was given, also to records that are gone; 0: none was."""

    def mark(self, name: str) -> int:
        """A number that :meth:`set_mark` stored, or 0. Marks may be lost (with a power cut, or when
        the catalogue is rebuilt): they save work, no more.
        """

    def set_mark(self, name: str, value: int) -> None:
        """Remember a number, such as up to which sequence datasets were announced."""

    def close(self) -> None:
        """Let go of the medium; twice is fine."""


def check_finished(size: int, sha256: str, *, written: int, digest: str) -> None:
    """Refuse a part whose ``written`` bytes or ``digest`` are not what its sender announced."""
    if written != size:
        raise ChecksumMismatch(
            f"{written} bytes arrived where {size} were announced; nothing was kept, upload again",
            size=written,
        )
    if digest != sha256:
        raise ChecksumMismatch(
            "the SHA-256 of the bytes that arrived is not the announced one; nothing was kept, "
            "upload again",
            sha256=digest,
        )


def stored_or_conflict(stored: DatasetRecord, record: DatasetRecord) -> DatasetRecord:
    """``stored``, when ``record`` has the same content; the rule of :meth:`Catalog.add`."""
    if (stored.size, stored.sha256) == (record.size, record.sha256):
        return stored
    raise Conflict(
        f"dataset {stored.dataset_id} is already stored with other content, which is kept; "
        "upload under another id",
        dataset_id=stored.dataset_id,
        size=stored.size,
        sha256=stored.sha256,
    )


def annotated_tags(tags: list[str], annotation: Annotation) -> list[str]:
    """``tags`` as they are after ``annotation``: the removed ones are gone, the new ones last.

    :raises ProtocolError: there would be more than 64.
    """
    kept = [each for each in tags if each not in annotation.remove_tags]
    changed = list(dict.fromkeys([*kept, *annotation.add_tags]))
    if len(changed) > MAX_TAGS:
        raise ProtocolError(
            f"it would have {len(changed)} tags, and a dataset has at most {MAX_TAGS}; remove "
            "some, or write a note"
        )
    return changed


def no_dataset(dataset_id: str) -> NotFound:
    """The error of an id that no dataset has."""
    return NotFound(
        f"there is no dataset {shown(dataset_id, 128)}; a search shows what there is, and the "
        "trash what was deleted",
        dataset_id=dataset_id[:128],
    )


def not_in_trash(dataset_id: str) -> NotFound:
    """The error of an id that nothing in the trash has."""
    return NotFound(
        f"{shown(dataset_id, 128)} is not in the trash; list the trash to see what is",
        dataset_id=dataset_id[:128],
    )


def in_trash(dataset_id: str) -> Conflict:
    """The error of a new dataset whose id is in the trash."""
    return Conflict(
        f"dataset {dataset_id} is in the trash: restore it, wait until it is gone for ever, or "
        "upload under another id",
        dataset_id=dataset_id,
    )
