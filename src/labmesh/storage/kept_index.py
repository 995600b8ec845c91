"""The index of a catalogue, kept in step with the files that it is made from.

It is compared with the files at the start, where names, sizes and times of change decide what is
read again. When it is missing, broken or of another version, it is built anew; and when that cannot
be done on the disk, in memory, until the next start.
"""

from __future__ import annotations

import logging
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from labmesh.errors import StorageError
from labmesh.protocol.messages import DatasetRecord, TrashEntry
from labmesh.storage.fileops import storage_errors
from labmesh.storage.records import FOLDERS, NOTES, RECORDS, TRASH, RecordFiles, dataset_of
from labmesh.storage.sqlite import CatalogIndex
from labmesh.storage.sqlite_changes import Changes, FileStamp

__all__ = ["KeptIndex"]

log = logging.getLogger(__name__)

T = TypeVar("T")
Stamps = dict[tuple[str, str], FileStamp]

_NAME = "catalog.sqlite"
#: Datasets that are read before they are written together.
_BATCH = 2000


class KeptIndex:
    """Reads of any number of threads; changes under ``lock``, together with those of the files.

    :param full_text: False: as if SQLite had no index of words.
    :raises OSError: the folders cannot be read.
    """

    def __init__(self, root: Path, files: RecordFiles, *, full_text: bool = True) -> None:
        self.lock = threading.RLock()
        #: datasets of which a file cannot be used, and that file
        self.unusable: dict[str, Path] = {}
        self._files = files
        self._path = root / _NAME
        self._full_text = full_text
        self._marks: dict[str, int] = {}
        self._closed = False
        self._index: CatalogIndex | None = self._open()
        self._marks = self._index.marks()

    def read(self, ask: Callable[[CatalogIndex], T]) -> T:
        """What ``ask`` reads. An index that fails is built anew, and asked once more.

        :raises StorageError: that fails too.
        """
        index = self._index
        try:
            if index is not None:
                return ask(index)
        except sqlite3.Error as error:
            self._report(error)
        try:
            with storage_errors("build its catalogue from the files"):
                return ask(self._rebuilt(index))
        except sqlite3.Error as error:
            raise StorageError(
                f"the catalogue of the bank failed ({error}); its records are safe in their "
                "files: look at the disk and the memory, then start the bank again"
            ) from error

    def change(self, make: Callable[[Changes], None], *, durable: bool = True) -> None:
        """Take what has become of the files. It never fails: what the index did not take, it has
        when it is built anew.

        :param durable: False: it may be lost with a power cut.
        """
        with self.lock:
            index = self._index
            try:
                if index is not None:
                    with index.changing(durable=durable) as changes:
                        make(changes)
                    return
            except sqlite3.Error as error:
                self._report(error)
            try:
                self._rebuilt(index)
            except (OSError, sqlite3.Error) as error:
                log.error("the catalogue cannot be built now (%s): the next reader tries", error)

    def show(
        self,
        dataset_id: str,
        record: DatasetRecord | None = None,
        entry: TrashEntry | None = None,
    ) -> None:
        """Have a dataset in the lists, or in the trash, or nowhere."""

        def make(changes: Changes) -> None:
            changes.drop(dataset_id)
            changes.drop_trash(dataset_id)
            if record is not None:
                changes.put([record])
            if entry is not None:
                changes.put_trash(entry)
            changes.drop_files(_places(dataset_id))
            changes.put_files(stamps)

        try:
            stamps = self._files.stamps(dataset_id)
        except OSError:
            stamps = {}  # without them it is read again at the next start
        self.change(make)

    def follow(self, dataset_id: str) -> None:
        """Have a dataset as its files are, after a change of them failed midway."""
        with self.lock:
            state = self._files.load(dataset_id)
            for path, reason in state.unusable:
                log.error("%s cannot be used (%s); the next start looks again", path, reason)
            if not state.unusable:
                self.show(dataset_id, state.record, state.entry)

    def mark(self, name: str) -> int:
        """As :meth:`~labmesh.storage.base.Catalog.mark`."""
        return self._marks.get(name, 0)

    def set_mark(self, name: str, value: int) -> None:
        """As :meth:`~labmesh.storage.base.Catalog.set_mark`; a kill does not lose it."""
        with self.lock:
            self._marks[name] = value
            self.change(lambda changes: changes.set_marks(self._marks), durable=False)

    def close(self) -> None:
        """Let go of the index; twice is fine."""
        with self.lock:
            if self._index is not None and not self._closed:
                _close(self._index)
            self._closed = True

    # ── building ──

    def _open(self) -> CatalogIndex:
        try:
            # Where there is none, what is beside it belongs to one that is gone.
            if self._path.exists():
                return self._caught_up(lambda: CatalogIndex(self._path))
        except sqlite3.Error as error:
            log.warning("%s cannot be used (%s): it is built anew", self._path, error)
        return self._built()

    def _built(self) -> CatalogIndex:
        """A new one, made from the files."""
        began = time.monotonic()
        try:
            self._remove()
            index = self._caught_up(
                lambda: CatalogIndex(self._path, new=True, full_text=self._full_text)
            )
        except sqlite3.Error as error:
            log.error(
                "%s cannot be written (%s): until the next start the catalogue is in memory",
                self._path,
                error,
            )
            index = self._caught_up(lambda: CatalogIndex(None, full_text=self._full_text))
        log.info(
            "built the catalogue of %d datasets in %.1f s",
            index.totals().datasets,
            time.monotonic() - began,
        )
        return index

    def _rebuilt(self, failed: CatalogIndex | None) -> CatalogIndex:
        with self.lock:
            if self._closed:
                raise StorageError("the catalogue is closed")
            index = self._index
            if index is None or index is failed:
                self._index = None
                if failed is not None:
                    _close(failed)
                index = self._built()
                with index.changing(durable=False) as changes:
                    changes.set_marks(self._marks)
                self._index = index
            return index

    def _remove(self) -> None:
        for suffix in ("-wal", "-shm", ""):
            try:
                Path(f"{self._path}{suffix}").unlink(missing_ok=True)
            except OSError as error:
                raise sqlite3.OperationalError(f"it cannot be removed: {error}") from error

    def _report(self, error: sqlite3.Error) -> None:
        if not self._closed:
            log.error("the catalogue failed (%s): it is built anew from the records", error)

    def _caught_up(self, make: Callable[[], CatalogIndex]) -> CatalogIndex:
        index = make()
        try:
            self._catch_up(index)
        except BaseException:
            _close(index)
            raise
        return index

    def _catch_up(self, index: CatalogIndex) -> None:
        """Read every file that is not as the index has seen it."""
        self.unusable = {}
        files = self._files.scan()
        held = index.files()
        places = [each for each, stamp in files.items() if held.get(each) != stamp]
        places += [each for each in held if each not in files]
        dataset_ids = sorted({dataset_of(*each) for each in places})
        if not dataset_ids:
            return
        reread = set(dataset_ids)
        taken = {number for number, each in index.sequences().items() if each not in reread}
        if held:
            log.info("%d datasets changed while the catalogue was closed", len(dataset_ids))
        for batch in _batches(dataset_ids, _BATCH):
            with index.changing(durable=False) as changes:
                self._load(changes, batch, files, taken)

    def _load(
        self, changes: Changes, dataset_ids: Sequence[str], files: Stamps, taken: set[int]
    ) -> None:
        records: list[DatasetRecord] = []
        seen: Stamps = {}
        for dataset_id in dataset_ids:
            changes.drop(dataset_id)
            changes.drop_trash(dataset_id)
            stamps = {each: files[each] for each in _places(dataset_id) if each in files}
            state = self._files.load(dataset_id, [folder for folder, _ in stamps])
            found = state.record if state.entry is None else state.entry.record
            for path, reason in state.unusable:
                self._leave(dataset_id, path, reason, stamps)
            if found is not None and found.sequence in taken:
                folder = RECORDS if state.entry is None else TRASH
                path = self._files.path(folder, dataset_id)
                self._leave(dataset_id, path, "its sequence is not its own", stamps)
            elif found is not None:
                taken.add(found.sequence)
                if state.entry is not None:
                    changes.put_trash(state.entry)
                    if (RECORDS, f"{dataset_id}{FOLDERS[RECORDS]}") in stamps:
                        self._files.clear_leftover(dataset_id)
                else:
                    records.append(found)
            seen |= stamps
        changes.drop_files(place for each in dataset_ids for place in _places(each))
        changes.put(records)
        changes.put_files(seen)

    def _leave(self, dataset_id: str, path: Path, reason: str, stamps: Stamps) -> None:
        """Report a file that cannot be used; it is looked at again at each start."""
        log.error(
            "%s file %s cannot be used (%s): its dataset is not listed as it should be; repair "
            "the file, or move it away to free its id",
            "note" if path.parent.name == NOTES else "record",
            path,
            reason,
        )
        place = (path.parent.name, path.name)
        stamps[place] = stamps[place]._replace(usable=False)
        if path.parent.name != NOTES:
            self.unusable[dataset_id] = path


def _places(dataset_id: str) -> Iterator[tuple[str, str]]:
    """Where a dataset may have files."""
    for folder, suffix in FOLDERS.items():
        yield folder, f"{dataset_id}{suffix}"


def _close(index: CatalogIndex) -> None:
    try:
        index.close()
    except sqlite3.Error as error:
        log.warning("the catalogue was not closed well: %s", error)


def _batches(items: Sequence[str], size: int) -> Iterator[Sequence[str]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
