"""What a transaction writes into the tables of :mod:`labmesh.storage.sqlite`."""

from __future__ import annotations

import sqlite3
import zlib
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple, TypeVar

import msgspec

from labmesh.protocol.messages import DatasetRecord, TrashEntry
from labmesh.protocol.search import Value, facts, searchable
from labmesh.storage.sqlite_search import stored_value

__all__ = ["Changes", "FileStamp", "unsummed", "without_provenance"]

#: the facts of a record begin with those that have a column
_COLUMNS = 6
_SUM_BYTES = 4

T = TypeVar("T")


class FileStamp(NamedTuple):
    """A file as the index has seen it."""

    mtime_ns: int
    size: int
    #: False: its content could not be used, and is looked at again at the next start
    usable: bool = True


class Changes:
    """What one transaction changes."""

    def __init__(self, writer: sqlite3.Connection, full_text: bool) -> None:
        self._writer = writer
        self._full_text = full_text
        #: number, and whether any dataset has several values
        self._names: dict[str, tuple[int, bool]] = {}
        self.added = 0
        self.added_size = 0

    def put(self, records: Iterable[DatasetRecord]) -> None:
        """Add records of new ids and sequences; their provenance is left out."""
        datasets: list[tuple[Any, ...]] = []
        found: list[tuple[int, Any, int]] = []
        texts: list[tuple[int, str]] = []
        for record in records:
            brief = without_provenance(record)
            values = list(facts(brief))
            datasets.append(_dataset_row(brief, dict(values[:_COLUMNS])))
            found += self._fact_rows(brief, values[_COLUMNS:])
            texts.append((brief.sequence, searchable(brief)))
            self.added += 1
            self.added_size += brief.size
        write = self._writer.executemany
        write("INSERT INTO datasets VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", datasets)
        write("INSERT OR IGNORE INTO facts VALUES (?, ?, ?)", found)
        write("INSERT INTO texts VALUES (?, ?)", texts)
        if self._full_text:
            write("INSERT INTO words (rowid, text) VALUES (?, ?)", texts)

    def drop(self, dataset_id: str) -> None:
        """Remove a record; one that is not there is removed already."""
        row = self._writer.execute(
            "SELECT d.sequence, d.size, t.text FROM datasets d JOIN texts t USING (sequence) "
            "WHERE dataset_id = ?",
            (dataset_id,),
        ).fetchone()
        if row is None:
            return
        sequence, size, text = row
        if self._full_text:
            self._writer.execute(
                "INSERT INTO words (words, rowid, text) VALUES ('delete', ?, ?)", (sequence, text)
            )
        for table in ("datasets", "facts", "texts"):
            self._writer.execute(f"DELETE FROM {table} WHERE sequence = ?", (sequence,))
        self.added -= 1
        self.added_size -= size

    def put_trash(self, entry: TrashEntry) -> None:
        """Add to the trash; its provenance is left out."""
        brief = msgspec.structs.replace(entry, record=without_provenance(entry.record))
        record = brief.record
        self._writer.execute(
            "INSERT INTO trash VALUES (?, ?, ?, ?, ?)",
            (
                record.dataset_id,
                record.sequence,
                record.size,
                record.sha256,
                _summed(msgspec.msgpack.encode(brief)),
            ),
        )
        self.added_size += record.size

    def drop_trash(self, dataset_id: str) -> None:
        """Remove from the trash; what is not there is removed already."""
        key = (dataset_id,)
        row = self._writer.execute("SELECT size FROM trash WHERE dataset_id = ?", key).fetchone()
        if row is not None:
            self._writer.execute("DELETE FROM trash WHERE dataset_id = ?", key)
            self.added_size -= row[0]

    def put_files(self, files: dict[tuple[str, str], FileStamp]) -> None:
        """What was seen of files."""
        self._writer.executemany(
            "INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?, ?)",
            [(*place, *stamp) for place, stamp in files.items()],
        )

    def drop_files(self, places: Iterable[tuple[str, str]]) -> None:
        """Forget files that are gone."""
        self._writer.executemany("DELETE FROM files WHERE folder = ? AND name = ?", places)

    def set_marks(self, marks: dict[str, int]) -> None:
        """Store marks."""
        self._writer.executemany("INSERT OR REPLACE INTO marks VALUES (?, ?)", marks.items())

    def _fact_rows(
        self, record: DatasetRecord, values: list[tuple[str, Value]]
    ) -> Iterator[tuple[int, Any, int]]:
        several: set[str] = set()
        for name, value in [*values, *(("parents", each) for each in record.parents)]:
            yield self._name(name, name in several), stored_value(value), record.sequence
            several.add(name)

    def _name(self, name: str, several: bool) -> int:
        number, known = self._names.get(name) or self._stored_name(name)
        if several and not known:
            self._writer.execute("UPDATE names SET several = 1 WHERE number = ?", (number,))
            known = True
        self._names[name] = number, known
        return number

    def _stored_name(self, name: str) -> tuple[int, bool]:
        select = "SELECT number, several FROM names WHERE name = ?"
        row = self._writer.execute(select, (name,)).fetchone()
        if row is None:
            self._writer.execute("INSERT INTO names (name, several) VALUES (?, 0)", (name,))
            row = self._writer.execute(select, (name,)).fetchone()
        return row[0], bool(row[1])


def without_provenance(record: DatasetRecord) -> DatasetRecord:
    """A record as lists have it."""
    return msgspec.structs.replace(record, provenance={}) if record.provenance else record


def _dataset_row(record: DatasetRecord, columns: dict[str, Value]) -> tuple[Any, ...]:
    return (
        record.sequence,
        columns["dataset_id"],
        columns["relay_id"],
        columns["name"],
        columns["kind"],
        columns["size"],
        columns["created"],
        record.sha256,
        _summed(msgspec.msgpack.encode(record)),
    )


def _summed(encoded: bytes) -> bytes:
    return zlib.crc32(encoded).to_bytes(_SUM_BYTES, "big") + encoded


def unsummed(content: bytes, decoder: msgspec.msgpack.Decoder[T]) -> T:
    """What a row holds.

    :raises sqlite3.DatabaseError: it is not what was written.
    """
    encoded = content[_SUM_BYTES:]
    if _summed(encoded) != content:
        raise sqlite3.DatabaseError("a record has changed on the disk")
    try:
        return decoder.decode(encoded)
    except msgspec.DecodeError as error:
        raise sqlite3.DatabaseError(f"a record cannot be read ({error})") from error
