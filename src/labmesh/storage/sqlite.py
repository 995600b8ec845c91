"""The index of a catalogue in SQLite: derived from the files of the records, and never the truth.

Whatever of it fails is raised as :class:`sqlite3.Error`; its owner builds another one then. Each
record carries a checksum, so that one that changed on the disk is never served.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from labmesh.protocol.messages import DatasetRecord, TrashEntry
from labmesh.protocol.search import Search
from labmesh.storage.base import Found, Page
from labmesh.storage.sqlite_changes import Changes, FileStamp, unsummed
from labmesh.storage.sqlite_search import found_rows

__all__ = ["CatalogIndex", "Totals"]

#: Of the tables and of what is derived into them; a database of another one is made anew.
_VERSION = 1

_SCHEMA = """
CREATE TABLE datasets (
    sequence INTEGER PRIMARY KEY, dataset_id TEXT NOT NULL, relay_id TEXT NOT NULL,
    name TEXT NOT NULL, kind TEXT NOT NULL, size INTEGER NOT NULL, created REAL NOT NULL,
    sha256 TEXT NOT NULL, record BLOB NOT NULL);
CREATE UNIQUE INDEX datasets_by_id ON datasets (dataset_id);
CREATE INDEX datasets_by_relay ON datasets (relay_id);
CREATE INDEX datasets_by_name ON datasets (name);
CREATE INDEX datasets_by_kind ON datasets (kind);
CREATE INDEX datasets_by_size ON datasets (size);
CREATE INDEX datasets_by_created ON datasets (created);
CREATE INDEX datasets_by_sha256 ON datasets (sha256);
CREATE TABLE names (number INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE,
    several INTEGER NOT NULL);
CREATE TABLE facts (name INTEGER NOT NULL, value NOT NULL, sequence INTEGER NOT NULL,
    PRIMARY KEY (name, value, sequence)) WITHOUT ROWID;
CREATE INDEX facts_by_sequence ON facts (sequence, name, value);
CREATE TABLE texts (sequence INTEGER PRIMARY KEY, text TEXT NOT NULL);
CREATE TABLE trash (dataset_id TEXT PRIMARY KEY, sequence INTEGER NOT NULL,
    size INTEGER NOT NULL, sha256 TEXT NOT NULL, entry BLOB NOT NULL) WITHOUT ROWID;
CREATE INDEX trash_by_sha256 ON trash (sha256);
CREATE TABLE files (folder TEXT NOT NULL, name TEXT NOT NULL, mtime_ns INTEGER NOT NULL,
    size INTEGER NOT NULL, usable INTEGER NOT NULL, PRIMARY KEY (folder, name)) WITHOUT ROWID;
CREATE TABLE marks (name TEXT PRIMARY KEY, value INTEGER NOT NULL);
"""
#: Words inside of words; the text is without case already.
_WORDS = """
CREATE VIRTUAL TABLE words USING fts5(
    text, content = 'texts', content_rowid = 'sequence', tokenize = 'trigram case_sensitive 1')
"""
_CACHE = "PRAGMA cache_size = -16384"

_record_decoder = msgspec.msgpack.Decoder(DatasetRecord)
_entry_decoder = msgspec.msgpack.Decoder(TrashEntry)


class Totals(NamedTuple):
    """Of the whole catalogue."""

    datasets: int
    #: the trash included
    size: int


class CatalogIndex:
    """Tables that are read by any number of threads and written by one at a time.

    :param path: None: in memory.
    :param full_text: False: words are looked for without an index of them.
    :raises sqlite3.Error: there is no such file, or it is no whole database of this version.
    """

    def __init__(self, path: Path | None, *, new: bool = False, full_text: bool = True) -> None:
        self._path = path
        self._writing = threading.Lock()
        self._pooling = threading.Lock()
        self._idle: list[sqlite3.Connection] = []
        self._closed = False
        self._writer = self._connect()
        try:
            if new or path is None:
                self._create(full_text)
            self._check()
            tables = {name for (name,) in self._writer.execute("SELECT name FROM sqlite_master")}
            self._full_text = "words" in tables
            self._totals = self._count()
        except BaseException:
            self._writer.close()
            raise

    # ── reading ──

    def get(self, dataset_id: str) -> DatasetRecord | None:
        """The record of this id, without its provenance."""
        rows = self._rows(
            "SELECT sequence, record FROM datasets WHERE dataset_id = ?", (dataset_id,)
        )
        return _records(rows)[0] if rows else None

    def page(self, after: int, limit: int, newest_first: bool) -> Page:
        """As :meth:`~labmesh.storage.base.Catalog.page`."""
        if newest_first:
            condition, order = "sequence < ?", "DESC"
            after = after or 2**63 - 1
        else:
            condition, order = "sequence > ?", "ASC"
        rows = self._rows(
            f"SELECT sequence, record FROM datasets WHERE {condition} ORDER BY sequence {order} "
            "LIMIT ?",
            (after, limit + 1),
        )
        return Page(_records(rows[:limit]), len(rows) > limit)

    def search(self, search: Search) -> Found:
        """As :meth:`~labmesh.storage.base.Catalog.search`."""
        with self._reader() as connection:
            rows = found_rows(connection, search, self._full_text)
        records = _records(rows[: search.limit])
        return Found(records, search.after(records[-1]) if len(rows) > len(records) else "")

    def trash_entry(self, dataset_id: str) -> TrashEntry | None:
        """What the trash has of this id."""
        rows = self._rows("SELECT sequence, entry FROM trash WHERE dataset_id = ?", (dataset_id,))
        return _entries(rows)[0] if rows else None

    def trashed(self, after: str, limit: int) -> list[TrashEntry]:
        """As :meth:`~labmesh.storage.base.Catalog.trashed`."""
        rows = self._rows(
            "SELECT sequence, entry FROM trash WHERE dataset_id > ? ORDER BY dataset_id LIMIT ?",
            (after, limit),
        )
        return _entries(rows)

    def refers(self, sha256: str) -> bool:
        """Whether a record, in the trash or not, has this digest."""
        question = (
            "SELECT EXISTS (SELECT 1 FROM datasets WHERE sha256 = ?1) "
            "OR EXISTS (SELECT 1 FROM trash WHERE sha256 = ?1)"
        )
        return bool(self._rows(question, (sha256,))[0][0])

    def totals(self) -> Totals:
        """Numbers that are kept up to date."""
        return self._totals

    def last_sequence(self) -> int:
        """The greatest one of a dataset; 0 when there is none."""
        return self._rows("SELECT coalesce(max(sequence), 0) FROM datasets")[0][0]  # type: ignore[no-any-return]

    def highest(self) -> int:
        """The greatest sequence, the trash included; 0 when there is none."""
        rows = self._rows(
            "SELECT max(coalesce((SELECT max(sequence) FROM datasets), 0), "
            "coalesce((SELECT max(sequence) FROM trash), 0))"
        )
        return rows[0][0]  # type: ignore[no-any-return]

    def sequences(self) -> dict[int, str]:
        """Every sequence with the id that has it, the trash included."""
        rows = self._rows(
            "SELECT sequence, dataset_id FROM datasets UNION ALL "
            "SELECT sequence, dataset_id FROM trash"
        )
        return dict(rows)

    def files(self) -> dict[tuple[str, str], FileStamp]:
        """What it has seen of the files, by folder and name."""
        rows = self._rows("SELECT folder, name, mtime_ns, size, usable FROM files")
        return {
            (folder, name): FileStamp(mtime_ns, size, bool(usable))
            for folder, name, mtime_ns, size, usable in rows
        }

    def marks(self) -> dict[str, int]:
        """What was stored by :meth:`Changes.set_marks`."""
        return dict(self._rows("SELECT name, value FROM marks"))

    # ── writing ──

    @contextmanager
    def changing(self, *, durable: bool = True) -> Iterator[Changes]:
        """A transaction: its changes are seen together, and durably, at its end; or not at all."""
        with self._writing:
            writer = self._usable_writer()
            writer.execute(f"PRAGMA synchronous = {'FULL' if durable else 'NORMAL'}")
            changes = Changes(writer, self._full_text)
            writer.execute("BEGIN IMMEDIATE")
            try:
                yield changes
                writer.execute("COMMIT")
            except BaseException:
                with suppress(sqlite3.Error):
                    writer.execute("ROLLBACK")
                raise
            datasets, size = self._totals
            self._totals = Totals(datasets + changes.added, size + changes.added_size)

    def close(self) -> None:
        """Let go of the file; twice is fine."""
        with self._writing, self._pooling:
            self._closed = True
            while self._idle:
                self._idle.pop().close()
            self._writer.close()

    def _create(self, full_text: bool) -> None:
        self._writer.execute("PRAGMA journal_mode = WAL")
        self._writer.execute("BEGIN IMMEDIATE")
        for statement in filter(str.strip, _SCHEMA.split(";")):
            self._writer.execute(statement)
        if full_text:
            # A SQLite without FTS5, or one of before 3.34, looks through the texts.
            with suppress(sqlite3.OperationalError):
                self._writer.execute(_WORDS)
        self._writer.execute(f"PRAGMA user_version = {_VERSION}")
        self._writer.execute("COMMIT")

    def _check(self) -> None:
        ((version,),) = self._writer.execute("PRAGMA user_version").fetchall()
        if version != _VERSION:
            raise sqlite3.DatabaseError(f"it is of version {version}, not {_VERSION}")
        found = self._writer.execute("PRAGMA quick_check(1)").fetchall()
        if found != [("ok",)]:
            raise sqlite3.DatabaseError(f"it is damaged: {found[0][0]}")

    def _count(self) -> Totals:
        ((number, size),) = self._writer.execute(
            "SELECT count(*), coalesce(sum(size), 0) FROM datasets"
        ).fetchall()
        ((trashed,),) = self._writer.execute("SELECT coalesce(sum(size), 0) FROM trash").fetchall()
        return Totals(number, size + trashed)

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(
            ":memory:" if self._path is None else self._path,
            isolation_level=None,
            check_same_thread=False,
        )
        connection.create_function("fold", 1, str.casefold, deterministic=True)
        connection.execute(_CACHE)
        return connection

    def _usable_writer(self) -> sqlite3.Connection:
        if self._closed:
            raise sqlite3.ProgrammingError("the index is closed")
        return self._writer

    def _rows(self, question: str, parameters: tuple[Any, ...] = ()) -> list[Any]:
        with self._reader() as connection:
            return connection.execute(question, parameters).fetchall()

    @contextmanager
    def _reader(self) -> Iterator[sqlite3.Connection]:
        """A connection of one's own; in memory there is only the writer's."""
        if self._path is None:
            with self._writing:
                yield self._usable_writer()
            return
        if self._closed:
            raise sqlite3.ProgrammingError("the index is closed")
        try:
            connection = self._idle.pop()
        except IndexError:
            connection = self._connect()
        try:
            yield connection
        except BaseException:
            connection.close()
            raise
        self._give_back(connection)

    def _give_back(self, connection: sqlite3.Connection) -> None:
        with self._pooling:
            if not self._closed:
                self._idle.append(connection)
                return
        connection.close()


def _records(rows: list[Any]) -> list[DatasetRecord]:
    records = [unsummed(content, _record_decoder) for _, content in rows]
    if any(record.sequence != row[0] for record, row in zip(records, rows, strict=True)):
        raise sqlite3.DatabaseError("a record stands in the place of another")
    return records


def _entries(rows: list[Any]) -> list[TrashEntry]:
    return [unsummed(content, _entry_decoder) for _, content in rows]
