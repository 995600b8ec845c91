"""A catalogue in memory: the twin of the one in files, for tests and demonstrations."""

from __future__ import annotations

import threading
from bisect import bisect_left, bisect_right, insort
from operator import attrgetter

from msgspec.structs import replace

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

__all__ = ["MemoryCatalog"]

_sequence = attrgetter("sequence")


class MemoryCatalog:
    """A :class:`~labmesh.storage.base.Catalog` that ends with the process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        #: with their provenance, and the tags of now
        self._by_id: dict[str, DatasetRecord] = {}
        self._ordered: list[DatasetRecord] = []
        self._annotations: dict[str, list[Annotation]] = {}
        self._trash: dict[str, TrashEntry] = {}
        self._marks: dict[str, int] = {}
        self._last_given = 0

    def add(self, record: DatasetRecord) -> DatasetRecord:
        check_id(record.dataset_id, "dataset id")
        with self._lock:
            if record.dataset_id in self._trash:
                raise in_trash(record.dataset_id)
            stored = self._by_id.get(record.dataset_id)
            if stored is not None:
                return _brief(stored_or_conflict(stored, record))
            self._last_given += 1
            numbered = replace(record, sequence=self._last_given)
            self._insert(numbered)
            return _brief(numbered)

    def get(self, dataset_id: str) -> DatasetRecord | None:
        record = self._by_id.get(dataset_id)
        return None if record is None else _brief(record)

    def full(self, dataset_id: str) -> DatasetRecord | None:
        return self._by_id.get(dataset_id)

    def page(self, after: int = 0, limit: int = 100, newest_first: bool = False) -> Page:
        with self._lock:
            records = self._ordered
            if newest_first:
                end = bisect_left(records, after, key=_sequence) if after else len(records)
                start = max(0, end - limit)
                found, more = records[start:end][::-1], start > 0
            else:
                first = bisect_right(records, after, key=_sequence)
                found, more = records[first : first + limit], first + limit < len(records)
        return Page([_brief(each) for each in found], more)

    def search(self, query: SearchDatasets) -> Found:
        search = checked(query)
        with self._lock:
            records = list(self._ordered)
        found = [each for each in records if search.follows(each) and search.meets(each)]
        found.sort(key=search.place, reverse=search.descending)
        page = [_brief(each) for each in found[: search.limit]]
        return Found(page, search.after(page[-1]) if len(found) > len(page) else "")

    def annotate(self, dataset_id: str, annotation: Annotation) -> DatasetRecord:
        with self._lock:
            record = self._existing(dataset_id)
            annotated = replace(record, tags=annotated_tags(record.tags, annotation))
            self._remove(record)
            self._insert(annotated)
            self._annotations.setdefault(dataset_id, []).append(annotation)
            return _brief(annotated)

    def history(self, dataset_id: str) -> list[Annotation]:
        with self._lock:
            self._existing(dataset_id)
            return list(self._annotations.get(dataset_id, ()))

    def trash(self, entry: TrashEntry) -> None:
        with self._lock:
            record = self._existing(entry.record.dataset_id)
            self._remove(record)
            self._trash[record.dataset_id] = replace(entry, record=record)

    def restore(self, dataset_id: str) -> DatasetRecord:
        with self._lock:
            record = self._trashed_entry(dataset_id).record
            del self._trash[dataset_id]
            self._insert(record)
            return _brief(record)

    def trashed(self, after: str = "", limit: int = 100) -> list[TrashEntry]:
        with self._lock:
            names = sorted(each for each in self._trash if each > after)[:limit]
            entries = [self._trash[each] for each in names]
        return [replace(each, record=_brief(each.record)) for each in entries]

    def purge(self, dataset_id: str) -> None:
        with self._lock:
            self._trashed_entry(dataset_id)
            del self._trash[dataset_id]
            self._annotations.pop(dataset_id, None)

    def refers(self, sha256: str) -> bool:
        return any(each.sha256 == sha256 for each in self._everything())

    def count(self) -> int:
        return len(self._ordered)

    def total_bytes(self) -> int:
        return sum(each.size for each in self._everything())

    def last_sequence(self) -> int:
        with self._lock:
            return self._ordered[-1].sequence if self._ordered else 0

    def highest_given(self) -> int:
        return self._last_given

    def mark(self, name: str) -> int:
        return self._marks.get(name, 0)

    def set_mark(self, name: str, value: int) -> None:
        self._marks[name] = value

    def close(self) -> None:
        """There is nothing to let go of."""

    def _everything(self) -> list[DatasetRecord]:
        with self._lock:
            return [*self._ordered, *(each.record for each in self._trash.values())]

    def _existing(self, dataset_id: str) -> DatasetRecord:
        record = self._by_id.get(dataset_id)
        if record is None:
            raise no_dataset(dataset_id)
        return record

    def _trashed_entry(self, dataset_id: str) -> TrashEntry:
        entry = self._trash.get(dataset_id)
        if entry is None:
            raise not_in_trash(dataset_id)
        return entry

    def _insert(self, record: DatasetRecord) -> None:
        self._by_id[record.dataset_id] = record
        insort(self._ordered, record, key=_sequence)

    def _remove(self, record: DatasetRecord) -> None:
        del self._by_id[record.dataset_id]
        del self._ordered[bisect_left(self._ordered, record.sequence, key=_sequence)]


def _brief(record: DatasetRecord) -> DatasetRecord:
    return replace(record, provenance={}) if record.provenance else record
