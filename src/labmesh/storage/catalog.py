"""The catalogue of a bank: records in files, which are the truth, and an index of them in SQLite.

Whatever happens to the index costs time and no data. What is durable in its file counts as stored,
though the index may have failed to take it: it is built anew then.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import msgspec
from msgspec.structs import replace

from labmesh.errors import ProtocolError, StorageError
from labmesh.protocol.ids import check_id
from labmesh.protocol.messages import Annotation, DatasetRecord, SearchDatasets, TrashEntry
from labmesh.protocol.search import checked
from labmesh.storage.base import (
    Found,
    Page,
    annotated_tags,
    in_trash,
    no_dataset,
    not_in_trash,
    stored_or_conflict,
)
from labmesh.storage.commit_line import CommitLine
from labmesh.storage.fileops import FileOps, storage_errors, translated, usable_folder
from labmesh.storage.health import DiskHealth
from labmesh.storage.kept_index import KeptIndex
from labmesh.storage.records import RECORDS, Draft, RecordFiles
from labmesh.storage.sqlite_changes import Changes, without_provenance

__all__ = ["FileCatalog"]


class _New:
    """A record that is being added."""

    def __init__(self, record: DatasetRecord) -> None:
        self.record = record
        self.draft: Draft | None = None


class FileCatalog:
    """A :class:`~labmesh.storage.base.Catalog` in the data folder of a bank.

    Records that are added at the same time share one sync of their folder and one transaction. A
    file that cannot be used is named in the log and left as it is; its id stays taken.

    Open it while the :class:`~labmesh.storage.objects.FileBlobStore` of the same folder is open:
    that one holds the lock.

    :param health: shared with that store, so that a failure of either stops both.
    :param full_text: False: words are looked for without an index, as where SQLite has none.
    :raises ConfigError: the folder cannot be created or written.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        *,
        ops: FileOps | None = None,
        health: DiskHealth | None = None,
        full_text: bool = True,
    ) -> None:
        folder = Path(root).absolute()
        self._health = health or DiskHealth()
        self._files = RecordFiles(folder, ops or FileOps())
        self._line: CommitLine[_New] = CommitLine(self._commit)
        with usable_folder(folder):
            self._index = KeptIndex(folder, self._files, full_text=full_text)
            last = self._index.read(lambda index: index.highest())
            # The numbers of files that cannot be read are not given again, as far as one can tell.
            self._purged = self._files.purged_sequence()
            self._last_given = max(last, self._purged) + len(self._index.unusable)

    # ── adding ──

    def add(self, record: DatasetRecord) -> DatasetRecord:
        check_id(record.dataset_id, "dataset id")
        _check_encodable(record)
        place = None
        while place is None:
            place = self._line.join(record.dataset_id, lambda: self._numbered(record))
            if place is None and (stored := self.get(record.dataset_id)) is not None:
                return stored_or_conflict(stored, record)
        new = place.item
        try:
            with self._health.writing(_storing(record)):
                new.draft = self._files.draft(new.record)
        except BaseException:
            self._line.leave(place)
            raise
        self._line.commit(place)
        return without_provenance(new.record)

    def _numbered(self, record: DatasetRecord) -> _New | None:
        """The record with its sequence; None when there is one of this id by now."""
        dataset_id = record.dataset_id
        if self.get(dataset_id) is not None:
            return None
        if self._index.read(lambda index: index.trash_entry(dataset_id)) is not None:
            raise in_trash(dataset_id)
        if dataset_id in self._index.unusable:
            raise StorageError(
                f"the file of record {dataset_id} is there but cannot be used (see the log of the "
                f"bank's start); repair it or move it away: {self._index.unusable[dataset_id].name}"
            )
        self._health.check()
        # Also a failed attempt uses its number up: its file may outlive a failed removal.
        self._last_given += 1
        return _New(replace(record, sequence=self._last_given))

    def _commit(self, items: Sequence[_New]) -> list[BaseException | None]:
        drafts = [each.draft for each in items if each.draft is not None]

        def make(changes: Changes) -> None:
            changes.put(each.record for each in placed)
            changes.put_files({(RECORDS, each.target.name): each.stamp for each in placed})

        with self._index.lock:
            failed = self._files.place(drafts)
            placed = [each for each in drafts if each.record.dataset_id not in failed]
            if placed:
                self._index.change(make)
        return [self._refusal(each.record, failed) for each in items]

    def _refusal(self, record: DatasetRecord, failed: dict[str, OSError]) -> StorageError | None:
        error = failed.get(record.dataset_id)
        if error is None:
            return None
        self._health.failed(error, _storing(record))
        refusal = translated(error, _storing(record))
        refusal.__cause__ = error
        return refusal

    # ── reading ──

    def get(self, dataset_id: str) -> DatasetRecord | None:
        return self._index.read(lambda index: index.get(dataset_id))

    def full(self, dataset_id: str) -> DatasetRecord | None:
        with self._index.lock:
            record = self.get(dataset_id)
            if record is None:
                return None
            with _reading(f"read the record of dataset {dataset_id}"):
                return replace(self._files.record(dataset_id), tags=record.tags)

    def page(self, after: int = 0, limit: int = 100, newest_first: bool = False) -> Page:
        return self._index.read(lambda index: index.page(after, limit, newest_first))

    def search(self, query: SearchDatasets) -> Found:
        search = checked(query)
        return self._index.read(lambda index: index.search(search))

    def history(self, dataset_id: str) -> list[Annotation]:
        with self._index.lock:
            self._existing(dataset_id)
            with _reading(f"read the notes of dataset {dataset_id}"):
                return self._files.history(dataset_id)

    def trashed(self, after: str = "", limit: int = 100) -> list[TrashEntry]:
        return self._index.read(lambda index: index.trashed(after, limit))

    def refers(self, sha256: str) -> bool:
        return bool(self._index.unusable) or self._index.read(lambda index: index.refers(sha256))

    def count(self) -> int:
        return self._index.read(lambda index: index.totals().datasets)

    def total_bytes(self) -> int:
        return self._index.read(lambda index: index.totals().size)

    def last_sequence(self) -> int:
        return self._index.read(lambda index: index.last_sequence())

    def highest_given(self) -> int:
        return self._last_given

    def mark(self, name: str) -> int:
        return self._index.mark(name)

    def set_mark(self, name: str, value: int) -> None:
        self._index.set_mark(name, value)

    def close(self) -> None:
        self._index.close()

    # ── changing ──

    def annotate(self, dataset_id: str, annotation: Annotation) -> DatasetRecord:
        with self._changing(dataset_id, "write a note to"):
            record = self._existing(dataset_id)
            annotated = replace(record, tags=annotated_tags(record.tags, annotation))
            self._files.append_note(dataset_id, annotation)
            self._index.show(dataset_id, annotated)
            return annotated

    def trash(self, entry: TrashEntry) -> None:
        dataset_id = entry.record.dataset_id
        with self._changing(dataset_id, "delete"):
            record = self._existing(dataset_id)
            with _reading(f"read the record of dataset {dataset_id}"):
                whole = self._files.record(dataset_id)
            self._files.put_in_trash(replace(entry, record=whole))
            self._index.show(dataset_id, entry=replace(entry, record=record))

    def restore(self, dataset_id: str) -> DatasetRecord:
        with self._changing(dataset_id, "restore"):
            record = self._trashed(dataset_id).record
            with _reading(f"read the record of dataset {dataset_id}"):
                whole = self._files.entry(dataset_id)
            self._files.take_from_trash(whole)
            self._index.show(dataset_id, record)
            return record

    def purge(self, dataset_id: str) -> None:
        with self._changing(dataset_id, "purge"):
            sequence = self._trashed(dataset_id).record.sequence
            highest = self._index.read(lambda index: index.highest())
            if self._purged < sequence == highest:
                self._files.keep_sequence(sequence)
                self._purged = sequence
            self._files.purge(dataset_id)
            self._index.show(dataset_id)

    @contextmanager
    def _changing(self, dataset_id: str, action: str) -> Iterator[None]:
        """Alone among all changes. After one that failed midway the files say how things are."""
        self._health.check()
        with self._index.lock, self._health.writing(f"{action} dataset {dataset_id:.128}"):
            try:
                yield
            except OSError as error:
                # Errors of labmesh came before anything was changed.
                if not isinstance(error, StorageError):
                    self._index.follow(dataset_id)
                raise

    def _existing(self, dataset_id: str) -> DatasetRecord:
        record = self.get(dataset_id)
        if record is None:
            raise no_dataset(dataset_id)
        return record

    def _trashed(self, dataset_id: str) -> TrashEntry:
        entry = self._index.read(lambda index: index.trash_entry(dataset_id))
        if entry is None:
            raise not_in_trash(dataset_id)
        return entry


def _storing(record: DatasetRecord) -> str:
    return f"store the record of dataset {record.dataset_id}"


def _check_encodable(record: DatasetRecord) -> None:
    """Nothing is to be durable that cannot be read again."""
    try:
        msgspec.msgpack.encode(record)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise ProtocolError(
            f"the record of dataset {record.dataset_id} cannot be written ({error}); its metadata "
            "may have text, numbers, booleans, None, lists and dicts"
        ) from error


@contextmanager
def _reading(action: str) -> Iterator[None]:
    """Raise what stands in the way of reading a file, or of making sense of it."""
    try:
        with storage_errors(action):
            yield
    except ValueError as error:
        raise StorageError(
            f"the bank could not {action} ({error}); restore the file from a copy of the data "
            "folder"
        ) from error
