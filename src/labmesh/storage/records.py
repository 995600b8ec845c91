"""The records of datasets as files, which are the truth that a catalogue's index is made from::

    records/<dataset id>.json   a dataset
    records/.sequence           the highest sequence that was purged, if no record has a higher one
    notes/<dataset id>.jsonl    its annotations, a line each
    trash/<dataset id>.json     a dataset in the trash; where it stands here it is in no list,
                                even if a crash has left its file in ``records``

A file is written under another name, synced, renamed, and its folder synced; only notes are
appended to. What cannot be used is left as it is.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import NamedTuple, TypeVar

import msgspec
from msgspec.structs import replace

from labmesh.errors import ProtocolError, StorageError
from labmesh.protocol.messages import Annotation, DatasetRecord, TrashEntry
from labmesh.storage.base import annotated_tags
from labmesh.storage.fileops import (
    FileOps,
    close_quietly,
    make_folder,
    read_file,
    remove_quietly,
    usable_folder,
    write_all,
)
from labmesh.storage.record_format import (
    decoded_entry,
    decoded_record,
    encoded_entry,
    encoded_record,
)
from labmesh.storage.sqlite_changes import FileStamp

__all__ = [
    "FOLDERS",
    "NOTES",
    "RECORDS",
    "TRASH",
    "Draft",
    "FileState",
    "RecordFiles",
    "dataset_of",
]

log = logging.getLogger(__name__)

T = TypeVar("T")

RECORDS, NOTES, TRASH = "records", "notes", "trash"
FOLDERS = {RECORDS: ".json", NOTES: ".jsonl", TRASH: ".json"}

#: Everything that reading a file of whatever content may raise.
_UNUSABLE = (OSError, ValueError, OverflowError, RecursionError)


_annotation_decoder = msgspec.json.Decoder(Annotation)


class Draft(NamedTuple):
    """A record that is durable under another name, which nobody reads."""

    record: DatasetRecord
    path: Path
    target: Path
    stamp: FileStamp


class FileState(NamedTuple):
    """What the files say of one dataset: it is in a list, or in the trash, or nowhere."""

    record: DatasetRecord | None = None
    entry: TrashEntry | None = None
    #: files that cannot be used, with the reason
    unusable: tuple[tuple[Path, str], ...] = ()


class RecordFiles:
    """The three folders of a data folder; every operation raises :class:`OSError`.

    One thread at a time changes something, but for :meth:`draft`.

    :raises ConfigError: a folder cannot be created or written.
    """

    def __init__(self, root: Path, ops: FileOps) -> None:
        self._ops = ops
        self._root = root
        self._drafts = count(1)
        #: whose notes this process has written, so that it can append to the file
        self._own_notes: set[str] = set()
        with usable_folder(root):
            for folder in FOLDERS:
                make_folder(ops, root / folder)
                # A name that an earlier process did not live to sync is believed from now on.
                ops.fsync_dir(root / folder)

    def path(self, folder: str, dataset_id: str) -> Path:
        return self._root / folder / f"{dataset_id}{FOLDERS[folder]}"

    # ── reading ──

    def scan(self) -> dict[tuple[str, str], FileStamp]:
        """Every file by folder and name. What an earlier process left half-written is removed."""
        found = {}
        for folder, suffix in FOLDERS.items():
            for facts in self._ops.scan(self._root / folder):
                if facts.name.startswith("."):
                    if facts.name.endswith(".tmp"):
                        remove_quietly(self._ops, self._root / folder / facts.name)
                elif facts.name.endswith(suffix) and facts.is_file:
                    found[folder, facts.name] = FileStamp(facts.mtime_ns, facts.size)
        return found

    def stamps(self, dataset_id: str) -> dict[tuple[str, str], FileStamp]:
        """The files of one dataset, as :meth:`scan` has them."""
        found = {}
        for folder, suffix in FOLDERS.items():
            with suppress(FileNotFoundError):
                facts = self._ops.stat(self.path(folder, dataset_id))
                found[folder, f"{dataset_id}{suffix}"] = FileStamp(facts.mtime_ns, facts.size)
        return found

    def load(self, dataset_id: str, folders: Collection[str] = tuple(FOLDERS)) -> FileState:
        """What the files of one dataset say; ``folders``: where it has one."""
        unusable: list[tuple[Path, str]] = []

        def usable(folder: str, read: Callable[[str], T]) -> T | None:
            if folder not in folders:
                return None
            try:
                return read(dataset_id)
            except FileNotFoundError:
                return None
            except _UNUSABLE as error:
                unusable.append((self.path(folder, dataset_id), str(error)))
                return None

        entry, record = usable(TRASH, self.entry), usable(RECORDS, self.record)
        found = record if entry is None else entry.record
        if found is None:
            return FileState(unusable=tuple(unusable))
        annotated = _annotated(found, usable(NOTES, self.history) or [])
        if entry is None:
            return FileState(annotated, None, tuple(unusable))
        return FileState(None, replace(entry, record=annotated), tuple(unusable))

    def record(self, dataset_id: str) -> DatasetRecord:
        """The record as its file has it: all of it, with the tags that it began with.

        :raises ValueError: the file cannot be used.
        """
        return decoded_record(read_file(self._ops, self.path(RECORDS, dataset_id)), dataset_id)

    def entry(self, dataset_id: str) -> TrashEntry:
        """The same from the trash.

        :raises ValueError: the file cannot be used.
        """
        return decoded_entry(read_file(self._ops, self.path(TRASH, dataset_id)), dataset_id)

    def history(self, dataset_id: str) -> list[Annotation]:
        """The annotations of a dataset, oldest first; a line that cannot be read is left out."""
        path = self.path(NOTES, dataset_id)
        try:
            content = read_file(self._ops, path)
        except FileNotFoundError:
            return []
        whole = content.rpartition(b"\n")[0]
        annotations = []
        for number, line in enumerate(whole.splitlines(), 1):
            try:
                annotations.append(_annotation_decoder.decode(line))
            except msgspec.MsgspecError as error:
                log.error("line %d of %s cannot be used (%s): it is left out", number, path, error)
        return annotations

    def purged_sequence(self) -> int:
        """The highest sequence of a record that is gone for ever, as far as it matters."""
        path = self._root / RECORDS / ".sequence"
        try:
            return int(read_file(self._ops, path))
        except FileNotFoundError:
            return 0
        except ValueError:
            log.error("%s does not hold a number: it is ignored", path)
            return 0

    # ── a new record ──

    def draft(self, record: DatasetRecord) -> Draft:
        """Write a record, durably, where nobody looks. Any number of threads may.

        :raises StorageError: its place is taken by a file that cannot be used.
        """
        target = self.path(RECORDS, record.dataset_id)
        if self._ops.exists(target):
            raise StorageError(
                f"the file of record {record.dataset_id} is there but cannot be used (see the log "
                f"of the bank's start); repair it or move it away: {target.name}"
            )
        path = target.parent / f".{record.dataset_id}.{record.sequence}.tmp"
        return Draft(record, path, target, self._write(path, encoded_record(record)))

    def place(self, drafts: Iterable[Draft]) -> dict[str, OSError]:
        """Make drafts records, with one sync for all; returns what failed, by dataset id."""
        failed: dict[str, OSError] = {}
        placed: list[Draft] = []
        for draft in drafts:
            try:
                self._ops.rename(draft.path, draft.target)
                placed.append(draft)
            except OSError as error:
                remove_quietly(self._ops, draft.path)
                failed[draft.record.dataset_id] = error
        if placed:
            try:
                self._ops.fsync_dir(self._root / RECORDS)
            except OSError as error:
                # Nobody knows what of it is durable: none of it is acknowledged, or stays.
                for draft in placed:
                    remove_quietly(self._ops, draft.target)
                    failed[draft.record.dataset_id] = error
        return failed

    def give_up(self, draft: Draft) -> None:
        """Remove a draft that nobody wants."""
        remove_quietly(self._ops, draft.path)

    # ── changes ──

    def append_note(self, dataset_id: str, annotation: Annotation) -> None:
        """Add an annotation, durably."""
        path = self.path(NOTES, dataset_id)
        line = msgspec.json.encode(annotation) + b"\n"
        is_own = dataset_id in self._own_notes
        self._own_notes.discard(dataset_id)
        content = read_file(self._ops, path) if self._ops.exists(path) else b""
        whole = content[: content.rfind(b"\n") + 1]
        if is_own and whole == content:
            self._append(path, len(content), line)
        elif content:
            # Of what another process left, or a failed append, nobody knows what is on the disk.
            self._replace(path, whole + line)
        else:
            self._place(path, line)
        self._own_notes.add(dataset_id)

    def put_in_trash(self, entry: TrashEntry) -> None:
        """Write an entry of the trash, durably; from then on the dataset is in the trash. Then
        remove its record, which is as well if it fails.
        """
        path = self.path(TRASH, entry.record.dataset_id)
        self._place(path, encoded_entry(entry))
        remove_quietly(self._ops, self.path(RECORDS, entry.record.dataset_id))

    def take_from_trash(self, entry: TrashEntry) -> None:
        """Write the record of an entry, durably, and remove the entry."""
        record = entry.record
        self._place(self.path(RECORDS, record.dataset_id), encoded_record(record))
        try:
            self._remove(self.path(TRASH, record.dataset_id))
        except OSError:
            # A name may be gone whose removal is not known to be durable: then the record is all
            # that there is of the dataset.
            if self._ops.exists(self.path(TRASH, record.dataset_id)):
                remove_quietly(self._ops, self.path(RECORDS, record.dataset_id))
            raise

    def clear_leftover(self, dataset_id: str) -> None:
        """Remove the record of a dataset in the trash, which a crash has left."""
        remove_quietly(self._ops, self.path(RECORDS, dataset_id))

    def purge(self, dataset_id: str) -> None:
        """Remove all files of a dataset in the trash, durably; the entry last."""
        for folder in (RECORDS, NOTES, TRASH):
            self._remove(self.path(folder, dataset_id))
        self._own_notes.discard(dataset_id)

    def keep_sequence(self, sequence: int) -> None:
        """Remember a sequence, durably, that must not be given again."""
        self._replace(self._root / RECORDS / ".sequence", f"{sequence}\n".encode())

    # ── steps ──

    def _write(self, path: Path, content: bytes) -> FileStamp:
        """A new file with its bytes synced; the name is not durable yet."""
        fd: int | None = None
        try:
            fd = self._ops.open(path, "create")
            write_all(self._ops, fd, 0, memoryview(content))
            self._ops.fsync(fd)
            facts = self._ops.fstat(fd)
            closing, fd = fd, None  # gone, whatever close reports
            self._ops.close(closing)
        except OSError:
            if fd is not None:
                close_quietly(self._ops, fd, path)
            remove_quietly(self._ops, path)
            raise
        return FileStamp(facts.mtime_ns, facts.size)

    def _draft_path(self, path: Path) -> Path:
        return path.parent / f".{path.name}.{next(self._drafts)}.tmp"

    def _replace(self, path: Path, content: bytes) -> None:
        """Write a file durably in the place of what is there."""
        draft = self._draft_path(path)
        self._write(draft, content)
        try:
            self._ops.rename(draft, path)
        except OSError:
            remove_quietly(self._ops, draft)
            raise
        self._ops.fsync_dir(path.parent)

    def _place(self, path: Path, content: bytes) -> None:
        """Write a file durably that is not there, and is not after a failure."""
        try:
            self._replace(path, content)
        except OSError:
            remove_quietly(self._ops, path)
            raise

    def _remove(self, path: Path) -> None:
        if self._ops.exists(path):
            self._ops.unlink(path)
            self._ops.fsync_dir(path.parent)

    def _append(self, path: Path, offset: int, line: bytes) -> None:
        fd = self._ops.open(path, "keep")
        try:
            write_all(self._ops, fd, offset, memoryview(line))
            self._ops.fsync(fd)
        except OSError:
            close_quietly(self._ops, fd, path)
            raise
        self._ops.close(fd)


def dataset_of(folder: str, name: str) -> str:
    """The dataset that a file is about."""
    return name.removesuffix(FOLDERS[folder])


def _annotated(record: DatasetRecord, annotations: Sequence[Annotation]) -> DatasetRecord:
    tags = record.tags
    for each in annotations:
        # One that was written by other means is not to hide the others.
        with suppress(ProtocolError):
            tags = annotated_tags(tags, each)
    return record if tags == record.tags else replace(record, tags=tags)
