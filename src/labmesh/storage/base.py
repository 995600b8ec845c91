"""The storage seam of the bank: bytes in a :class:`BlobStore`, records in a :class:`Catalog`.

Nothing above this seam knows paths or SQL. All methods are synchronous and may block on a disk or
a network: the bank calls them off its event loop.

Threads: every method of a store and of a catalog may be called by any thread, and calls of
different threads may overlap. The exceptions: ``write()`` and ``finish()`` of one :class:`Part`
never overlap (different parts may be written at the same time), though ``discard()`` may come at
any moment; and ``close()`` is called when nobody begins anything new.

The order of a commit, which makes an acknowledged dataset survive a power cut: ``part.finish()``
returns, then ``catalog.add()`` returns, and only then the dataset is acknowledged and announced. A
crash in between leaves an object without a record, which nobody can see.

Errors: :class:`~labmesh.errors.NoSpace` for a full disk or quota, and
:class:`~labmesh.errors.StorageError` for everything else that the medium refuses.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol, TypeAlias

from labmesh.errors import ChecksumMismatch, Conflict
from labmesh.protocol.messages import DatasetRecord

__all__ = ["BlobStore", "Catalog", "Page", "Part", "Piece", "check_finished", "stored_or_conflict"]

#: Contiguous bytes of any kind; they are not kept after the call.
Piece: TypeAlias = bytes | bytearray | memoryview


class Part(Protocol):
    """An object that is being written; nobody can read it."""

    @property
    def size(self) -> int:
        """Bytes written so far; the next piece belongs at this offset."""

    def write(self, offset: int, piece: Piece) -> None:
        """Append all of ``piece``, which begins at ``offset``.

        After an error the part is abandoned: every later call but ``discard()`` raises.

        :raises ValueError: ``offset`` is not ``size``.
        :raises StorageError: the medium refused, now or earlier.
        """

    def finish(self, size: int, sha256: str) -> None:
        """Make the bytes durable and readable under ``sha256`` (lower-case hexadecimal).

        All or nothing: after an error the part is gone, and no reader sees any of it. The same
        content may be stored any number of times; it is one object.

        :raises ChecksumMismatch: the size or digest of what was written differs.
        :raises StorageError: the medium refused; it is never asked twice to sync the same bytes.
        """

    def discard(self) -> None:
        """Drop what was written, once the call that is under way has returned.

        Harmless after ``finish()`` and twice; never raises.
        """


class BlobStore(Protocol):
    """Immutable bytes under their SHA-256."""

    def begin(self, size: int | None = None) -> Part:
        """Open a part for ``size`` bytes (None: not known yet).

        :raises NoSpace: there is not room for so many bytes.
        """

    def read(self, sha256: str, offset: int, size: int) -> bytes:
        """Exactly ``size`` bytes from ``offset`` on; the caller keeps within the object's size.

        :raises StorageError: the object is missing, shorter, or cannot be read. A store that can
            tell that bytes have changed raises it too: damaged bytes are never returned.
        """

    def free_bytes(self) -> int:
        """Room that is left, in bytes."""

    def close(self) -> None:
        """Discard the parts that are open, and let go of the medium; twice is fine."""


class Page(NamedTuple):
    """Some records; ``more``: others follow behind the last one."""

    records: list[DatasetRecord]
    more: bool


class Catalog(Protocol):
    """The records of the datasets, in the order of their commits."""

    def add(self, record: DatasetRecord) -> DatasetRecord:
        """Store a new record durably and return it with its ``sequence``, which the catalog gives.

        Sequences begin at 1 and rise in the order in which records become visible (numbers may be
        left out), so that whoever has seen one has missed none before it. An id is created once: a
        record of the same id, size and digest is already stored and is returned unchanged.

        :raises Conflict: the id is taken by other content, which is kept.
        :raises ProtocolError: the id breaks the rule for ids.
        """

    def get(self, dataset_id: str) -> DatasetRecord | None:
        """The record of this id, or None."""

    def page(self, after: int = 0, limit: int = 100, newest_first: bool = False) -> Page:
        """At most ``limit`` records that follow the sequence ``after``.

        Oldest first they are those with a greater sequence; newest first those with a smaller one,
        where 0 means from the newest on.
        """

    def count(self) -> int:
        """How many records there are."""

    def last_sequence(self) -> int:
        """The greatest sequence of a record; 0 when there is none."""

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
