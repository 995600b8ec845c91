"""What a bank's storage promises, as it is checked after a crash: :class:`Keeper` does what a bank
does and notes each promise when it is made; :func:`check` opens the folder and holds it to them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from labmesh.errors import Conflict, LabmeshError
from labmesh.protocol.messages import Annotation, DatasetRecord, SearchDatasets, TrashEntry
from labmesh.storage.base import BlobStore, Catalog, Part
from labmesh.storage.fileops import FileOps
from labmesh.storage.filesystem import open_folder

__all__ = ["Expected", "Keeper", "Violation", "check", "expectations"]

_WHEN = 1_700_000_000.0


class Violation(AssertionError):
    """A promise that was not kept; ``rule`` names it."""

    def __init__(self, rule: str, text: str) -> None:
        super().__init__(f"{rule}: {text}")
        self.rule = rule


@dataclass(frozen=True)
class Kept:
    """How a dataset is to be found: visible, or in the trash."""

    content: bytes
    tags: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    trashed: bool = False


#: None: there is no such dataset.
Condition = Kept | None


@dataclass(frozen=True)
class Begun:
    """Something was asked for that changes a dataset to ``after``."""

    dataset_id: str
    after: Condition


@dataclass(frozen=True)
class Acknowledged:
    """It was done, says the storage; ``sequence`` is that of the record."""

    dataset_id: str
    sequence: int = 0


@dataclass(frozen=True)
class Failed:
    """It was refused: it may have been done or not."""

    dataset_id: str


@dataclass(frozen=True)
class Durable:
    """So many bytes of the upload with this note will be there."""

    note: bytes
    content: bytes
    durable: int


@dataclass(frozen=True)
class Ending:
    """The upload with this note is being finished or dropped."""

    note: bytes


@dataclass
class Expected:
    """What may be found of each dataset, and what must be found of each upload."""

    may_be: dict[str, list[Condition]] = field(default_factory=dict)
    sequences: dict[str, int] = field(default_factory=dict)
    uploads: dict[bytes, Durable] = field(default_factory=dict)
    #: the greatest sequence that anybody was told
    told: int = 0
    #: sha256 → bytes of all that was ever written
    contents: dict[str, bytes] = field(default_factory=dict)

    def after(self, promise: Any) -> Expected:
        """With one promise more."""
        may_be, sequences, uploads = dict(self.may_be), dict(self.sequences), dict(self.uploads)
        told, contents = self.told, dict(self.contents)
        match promise:
            case Begun(dataset_id, after):
                may_be[dataset_id] = [*may_be.get(dataset_id, [None])[-1:], after]
                if after is not None:
                    contents[_sha256(after.content)] = after.content
            case Acknowledged(dataset_id, sequence):
                may_be[dataset_id] = may_be[dataset_id][-1:]
                told = max(told, sequence)
                if sequence:
                    sequences[dataset_id] = sequence
                if may_be[dataset_id] == [None]:
                    sequences.pop(dataset_id, None)
            case Failed(dataset_id):
                pass
            case Durable(note):
                uploads[note] = promise
            case Ending(note):
                uploads.pop(note, None)
        return Expected(may_be, sequences, uploads, told, contents)


def expectations(promises: Iterable[Any]) -> list[Expected]:
    """What is expected before the first promise, after it, after the second, ..."""
    found = [Expected()]
    for each in promises:
        found.append(found[-1].after(each))
    return found


class Keeper:
    """The storage in use, in the order in which a bank uses it.

    :param ops: the file operations.
    :param note: where promises go.
    """

    def __init__(self, root: Path, ops: FileOps, note: Callable[[Any], None]) -> None:
        self.root, self.ops, self.note = root, ops, note
        self.known: dict[str, Kept] = {}
        self.open()

    def open(self) -> None:
        """Begin, or begin again."""
        self.blobs, self.catalog = open_folder(self.root, ops=self.ops)

    def close(self) -> None:
        """End."""
        self.catalog.close()
        self.blobs.close()

    def upload(self, dataset_id: str, content: bytes, piece_bytes: int = 5000) -> None:
        """A whole upload."""
        part = self.blobs.begin(len(content), note=dataset_id.encode())
        self.send(part, content, piece_bytes)
        self.finish(part, dataset_id, content)

    def send(self, part: Part, content: bytes, piece_bytes: int = 5000) -> None:
        """Write what is missing."""
        while part.size < len(content):
            part.write(part.size, content[part.size : part.size + piece_bytes])

    def sync(self, part: Part, content: bytes) -> None:
        """Tell the sender what is durable."""
        durable = part.sync()
        self.note(Durable(part.note, content, durable))

    def finish(self, part: Part, dataset_id: str, content: bytes) -> None:
        """Check, make it durable, add its record, acknowledge."""
        kept = Kept(content)
        self.note(Begun(dataset_id, kept))
        try:
            part.finish(len(content), _sha256(content))
            stored = self.catalog.add(record_of(dataset_id, content))
        except BaseException:
            # Its sender is told that it failed.
            self.note(Ending(part.note))
            part.discard()
            raise
        self.note(Acknowledged(dataset_id, stored.sequence))
        # Until here its sender may have to end it once more.
        self.note(Ending(part.note))
        part.discard()
        self.known[dataset_id] = kept

    def drop(self, part: Part) -> None:
        """The sender does not want it any more."""
        self.note(Ending(part.note))
        part.discard()

    def annotate(self, dataset_id: str, tag: str, note: str) -> None:
        """Add a tag and a note."""
        kept = self.known[dataset_id]
        after = Kept(kept.content, (*kept.tags, tag), (*kept.notes, note))
        self.note(Begun(dataset_id, after))
        self.catalog.annotate(dataset_id, Annotation(time=_WHEN, add_tags=[tag], note=note))
        self._done(dataset_id, after)

    def trash(self, dataset_id: str) -> None:
        """Delete it, for now."""
        kept = self.known[dataset_id]
        after = Kept(kept.content, kept.tags, kept.notes, trashed=True)
        self.note(Begun(dataset_id, after))
        record = self.catalog.full(dataset_id)
        assert record is not None
        self.catalog.trash(TrashEntry(record=record, deleted=_WHEN, purge=_WHEN + 1, who="me"))
        self._done(dataset_id, after)

    def restore(self, dataset_id: str) -> None:
        """Have it back."""
        kept = self.known[dataset_id]
        after = Kept(kept.content, kept.tags, kept.notes)
        self.note(Begun(dataset_id, after))
        self.catalog.restore(dataset_id)
        self._done(dataset_id, after)

    def purge(self, dataset_id: str) -> None:
        """Forget it, and free its room when nobody else needs it."""
        kept = self.known[dataset_id]
        self.note(Begun(dataset_id, None))
        self.catalog.purge(dataset_id)
        sha256 = _sha256(kept.content)
        if not self.catalog.refers(sha256):
            self.blobs.remove(sha256)
        self.note(Acknowledged(dataset_id))
        del self.known[dataset_id]

    def _done(self, dataset_id: str, after: Kept) -> None:
        self.note(Acknowledged(dataset_id))
        self.known[dataset_id] = after


def record_of(dataset_id: str, content: bytes) -> DatasetRecord:
    """The record that a bank makes."""
    return msgspec.convert(
        {
            "dataset_id": dataset_id,
            "size": len(content),
            "sha256": _sha256(content),
            "bank_id": "bank-0",
            "relay_id": "Inst-0",
            "name": f"name of {dataset_id}",
            "created": _WHEN,
            "meta": {"points": 3, "temperature": 4.2},
            "provenance": {"user": "me"},
        },
        DatasetRecord,
    )


def check(root: Path, expected: Expected, *, again: bool = False) -> None:
    """Open the folder, and hold it to what is expected.

    :param again: open it a second time afterwards, and look again.
    :raises Violation: it is otherwise.
    """
    _checked_once(root, expected, change=not again)
    if again:
        _checked_once(root, expected, change=True)


def _checked_once(root: Path, expected: Expected, *, change: bool) -> None:
    try:
        blobs, catalog = open_folder(root)
    except Exception as error:  # whatever it is, a bank that does not start is the finding
        raise Violation("opens", f"{type(error).__name__}: {error}") from error
    try:
        _check_datasets(blobs, catalog, expected)
        _check_uploads(blobs, expected, change=change)
        if change:
            _check_goes_on(blobs, catalog, expected)
    except LabmeshError as error:
        raise Violation("readable", str(error)) from error
    finally:
        catalog.close()
        blobs.close()


def _check_datasets(blobs: BlobStore, catalog: Catalog, expected: Expected) -> None:
    visible = {each.dataset_id: each for each in catalog.page(0, 1000).records}
    trash = {each.record.dataset_id: each.record for each in catalog.trashed(limit=1000)}
    for dataset_id, record in {**visible, **trash}.items():
        if dataset_id not in expected.may_be:
            raise Violation("nothing unknown", f"{dataset_id} was never stored")
        _check_whole(blobs, record, expected)
    if both := visible.keys() & trash.keys():
        raise Violation("one place", f"{both} are visible and in the trash")
    for dataset_id, may_be in expected.may_be.items():
        found = _found(catalog, visible.get(dataset_id), trash.get(dataset_id), expected)
        if found not in may_be:
            rule = "acknowledged is there" if found is None else "as acknowledged"
            raise Violation(rule, f"{dataset_id} is {_brief(found)}, not {_briefs(may_be)}")
        sequence = expected.sequences.get(dataset_id)
        record = visible.get(dataset_id) or trash.get(dataset_id)
        if record is not None and sequence not in (None, record.sequence):
            raise Violation(
                "sequences stay", f"{dataset_id} has {record.sequence}, and had {sequence}"
            )
    sequences = [each.sequence for each in visible.values()]
    if sequences != sorted(set(sequences)):
        raise Violation("sequences rise", f"{sequences}")
    searched = {
        each.dataset_id for each in catalog.search(SearchDatasets(id="-", limit=1000)).records
    }
    if searched != visible.keys() or catalog.count() != len(visible):
        raise Violation(
            "index in step", f"{catalog.count()} counted, {searched} found of {visible.keys()}"
        )


def _check_whole(blobs: BlobStore, record: DatasetRecord, expected: Expected) -> None:
    content = expected.contents.get(record.sha256)
    try:
        read = blobs.read(record.sha256, 0, record.size)
    except OSError as error:
        raise Violation("whole or not at all", f"{record.dataset_id}: {error}") from error
    if read != content:
        raise Violation("whole or not at all", f"{record.dataset_id} has other bytes")
    wanted = record_of(record.dataset_id, read)
    seen = msgspec.structs.replace(record, sequence=0, tags=[], provenance=wanted.provenance)
    if seen != wanted:
        raise Violation("as acknowledged", f"the record of {record.dataset_id} is {seen}")


def _found(
    catalog: Catalog, record: DatasetRecord | None, trash: DatasetRecord | None, expected: Expected
) -> Condition:
    if record is not None:
        notes = tuple(each.note for each in catalog.history(record.dataset_id))
        full = catalog.full(record.dataset_id)
        if full is None or full.provenance != {"user": "me"}:
            raise Violation("as acknowledged", f"the provenance of {record.dataset_id} is lost")
        return Kept(expected.contents[record.sha256], tuple(record.tags), notes)
    if trash is not None:
        content = expected.contents[trash.sha256]
        known = [each for each in expected.may_be[trash.dataset_id] if each is not None]
        # Whoever is in the trash has no history to be asked for; it is looked at once restored.
        return Kept(content, known[-1].tags, known[-1].notes, trashed=True)
    return None


def _check_uploads(blobs: BlobStore, expected: Expected, *, change: bool) -> None:
    parts = {part.note: part for part in blobs.unfinished()}
    for note, durable in expected.uploads.items():
        part = parts.get(note)
        if part is None or part.durable < durable.durable:
            there = "gone" if part is None else f"at {part.durable}"
            raise Violation("durable offset", f"{note!r} is {there}, not at {durable.durable}")
        if part.size != part.durable:
            raise Violation("durable offset", f"{part.size} bytes, of which {part.durable} last")
        if not change:
            part.leave()
            continue
        content = durable.content
        try:
            part.write(part.size, content[part.size :])
            part.finish(len(content), _sha256(content))
        except OSError as error:
            raise Violation("durable offset", f"{note!r} cannot go on: {error}") from error
        if blobs.read(_sha256(content), 0, len(content)) != content:
            raise Violation("whole or not at all", f"{note!r} has other bytes")
        del parts[note]
    for part in parts.values():
        part.leave()


def _check_goes_on(blobs: BlobStore, catalog: Catalog, expected: Expected) -> None:
    for dataset_id, may_be in expected.may_be.items():
        if len(may_be) == 1 and may_be[0] is not None and not may_be[0].trashed:
            _check_create_only(catalog, dataset_id, may_be[0].content)
            break
    content = b"after the crash"
    part = blobs.begin(len(content))
    part.write(0, content)
    part.finish(len(content), _sha256(content))
    stored = catalog.add(record_of("after-the-crash", content))
    if stored.sequence <= expected.told:
        raise Violation(
            "sequences rise", f"{stored.sequence} is given after {expected.told} was told"
        )
    if catalog.get("after-the-crash") != msgspec.structs.replace(stored, provenance={}):
        raise Violation("goes on", "what is stored after the crash is not there")


def _check_create_only(catalog: Catalog, dataset_id: str, content: bytes) -> None:
    try:
        catalog.add(record_of(dataset_id, content + b"other"))
    except Conflict:
        pass
    else:
        raise Violation("ids stay", f"{dataset_id} took other content")
    try:
        catalog.add(record_of(dataset_id, content))
    except OSError as error:
        raise Violation("ids stay", f"{dataset_id} again is refused: {error}") from error


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _brief(condition: Condition) -> str:
    if condition is None:
        return "absent"
    where = "in the trash" if condition.trashed else "visible"
    return f"{where} ({len(condition.content)} bytes, {condition.tags}, {condition.notes})"


def _briefs(conditions: list[Condition]) -> str:
    return " or ".join(map(_brief, conditions))
