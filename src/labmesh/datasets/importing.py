"""A folder into a bank: one that an export wrote, or any folder of files."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import msgspec

from labmesh.content import kind_of_file
from labmesh.datasets.export import FORMAT, README, RECORD, SUMS, FolderReport, Step, sha256_of
from labmesh.errors import (
    ChecksumMismatch,
    Conflict,
    Damaged,
    LabmeshError,
    LinkLost,
    NotFound,
    ProtocolError,
    StorageError,
    TooLarge,
)
from labmesh.protocol.codec import Limits, decode_value
from labmesh.protocol.messages import Annotation, DatasetRecord

__all__ = ["import_folder"]

log = logging.getLogger(__name__)

_MAX_RECORD_BYTES = 64 * 2**20
_LIMITS = Limits(
    max_header_bytes=_MAX_RECORD_BYTES,
    max_value_bytes=_MAX_RECORD_BYTES,
    max_text_bytes=_MAX_RECORD_BYTES,
)
_MAX_NOTE = 10_000
#: How the formats of all versions begin.
_ANY_FORMAT = FORMAT.rstrip("0123456789")


class ImportBank(Protocol):
    """What an import needs of a bank."""

    async def show(self, dataset_id: str, *, full: bool = ...) -> DatasetRecord:
        """The record."""

    async def history(self, dataset_id: str) -> list[Annotation]:
        """What was noted."""

    async def note(self, dataset_id: str, note: str) -> DatasetRecord:
        """Note something."""

    async def verify(self, dataset_id: str) -> DatasetRecord:
        """Have it read whole and compared."""

    @property
    def upload(self) -> Callable[..., Awaitable[DatasetRecord]]:
        """Store a file."""


class _Item(NamedTuple):
    """A file to import, and what is to be known of it."""

    path: Path
    #: as people know it
    label: str
    details: dict[str, Any]
    #: as the record of an export says; empty: a plain file
    sha256: str = ""
    size: int = 0
    history: list[Annotation] = []  # noqa: RUF012  # never changed


async def import_folder(
    bank: ImportBank, folder: Path, *, dry_run: bool = False, step: Step | None = None
) -> FolderReport:
    """Store what is in a folder.

    What an export wrote keeps its id, name, kind, metadata, tags and parents; its former record is
    in ``provenance["imported"]``, and what was noted in the new history. Any other file has its
    path in the folder as its name, the kind of its suffix, and an id of its content, so that the
    same content is stored once. What is in the bank already is left as it is; the bank verifies it,
    and what is damaged there is mended. Hidden files, and
    links to elsewhere, are left out.

    :raises OSError: the folder cannot be read.
    :raises ConnectionError: the bank was lost.
    """
    report = FolderReport()
    exports = await asyncio.to_thread(_exported, folder)
    paths = await asyncio.to_thread(lambda: list(_files(folder, exports, report)))
    for path in [*sorted(exports), *sorted(paths)]:
        label = path.relative_to(folder).as_posix()
        try:
            read = _item_of_export if path in exports else _item_of_file
            item = await asyncio.to_thread(read, path, label)
            what = await _import(bank, item, report, dry_run)
        except LinkLost:
            raise
        except (LabmeshError, OSError) as exc:
            report.failed[label] = exc
            what = f"failed: {exc}"
        if step is not None:
            step(label, what)
    return report


async def _import(bank: ImportBank, item: _Item, report: FolderReport, dry_run: bool) -> str:
    digest = await asyncio.to_thread(sha256_of, item.path)
    if item.sha256 and digest != item.sha256:
        raise ChecksumMismatch(
            f"{item.path} is not what its {RECORD} says: the SHA-256 differs; export it again"
        )
    dataset_id = item.details.get("dataset_id") or f"file-{digest[:32]}"
    try:
        stored = await bank.show(dataset_id, full=True)
    except NotFound:
        size = item.path.stat().st_size
        if not dry_run:
            await _upload(bank, item, dataset_id)
            await _replay(bank, item, dataset_id)
        report.done += 1
        report.bytes += size
        return "would be imported" if dry_run else "imported"
    if stored.sha256 != digest:
        raise Conflict(
            f"dataset {dataset_id} is in the bank with other content, which is kept; import into "
            "another bank",
            dataset_id=dataset_id,
        )
    if not await _is_whole(bank, dataset_id):
        report.done += 1
        report.bytes += stored.size
        if dry_run:
            return "damaged in the bank; would be mended"
        await _upload(bank, item, dataset_id)
        return "was damaged in the bank; mended"
    if "imported" in stored.provenance and not dry_run:
        await _replay(bank, item, dataset_id)
    report.already += 1
    return "already there"


async def _is_whole(bank: ImportBank, dataset_id: str) -> bool:
    """The bank reads it, for what is damaged and was not read since is not known to be so."""
    try:
        await bank.verify(dataset_id)
    except Damaged:
        return False
    except StorageError as exc:
        # Its object is missing; any other trouble of the disk is told by the upload.
        log.warning("dataset %s cannot be verified (%s): it is sent again", dataset_id, exc)
        return False
    return True


async def _upload(bank: ImportBank, item: _Item, dataset_id: str) -> None:
    details = {**item.details, "dataset_id": dataset_id}
    try:
        await bank.upload(item.path, **details)
    except TooLarge:
        imported = dict(details["provenance"]["imported"])
        if not imported.pop("provenance", None):
            raise
        # Its states at that time are too many for a record within a record; the rest is kept.
        details["provenance"] = {"imported": imported}
        await bank.upload(item.path, **details)


async def _replay(bank: ImportBank, item: _Item, dataset_id: str) -> None:
    """What was noted before, as notes; those that an earlier import has written are left out."""
    texts = [_as_note(each) for each in item.history]
    if not texts:
        return
    noted = {each.note for each in await bank.history(dataset_id)}
    for text in texts:
        if text not in noted:
            await bank.note(dataset_id, text)


def _as_note(annotation: Annotation) -> str:
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(annotation.time))
    tags = [f"+{each}" for each in annotation.add_tags]
    tags += [f"-{each}" for each in annotation.remove_tags]
    words = " ".join(filter(None, (*tags, annotation.note)))
    return f"[{when} UTC, {annotation.who or 'somebody'}] {words}"[:_MAX_NOTE]


# ── what is in the folder ───────────────────────────────────────────────────────────────────────


def _exported(folder: Path) -> set[Path]:
    """The folders of datasets that an export wrote."""
    with os.scandir(folder) as entries:
        names = [Path(each.path) for each in entries if each.is_dir(follow_symlinks=False)]
    return {each for each in names if _is_record(each / RECORD)}


def _is_record(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return f'"{_ANY_FORMAT}'.encode() in file.read(200)
    except (FileNotFoundError, IsADirectoryError):
        return False


def _files(folder: Path, exports: set[Path], report: FolderReport) -> Iterator[Path]:
    for root, folders, names in os.walk(folder):
        here = Path(root)
        left_out = {each for each in folders if _is_left_out(here / each)}
        report.skipped += sorted((here / each).relative_to(folder).as_posix() for each in left_out)
        folders[:] = [
            each for each in folders if each not in left_out and here / each not in exports
        ]
        for name in names:
            path = here / name
            if exports and here == folder and name in (SUMS, README):
                continue
            if _is_left_out(path) or not path.is_file():
                report.skipped.append(path.relative_to(folder).as_posix())
            else:
                yield path


def _is_left_out(path: Path) -> bool:
    return path.name.startswith(".") or path.is_symlink()


def _item_of_file(path: Path, label: str) -> _Item:
    status = path.stat()
    origin = {"file": label, "modified": status.st_mtime}
    details = {"name": label[-256:], "kind": kind_of_file(path), "provenance": {"imported": origin}}
    return _Item(path, label, details)


def _item_of_export(folder: Path, label: str) -> _Item:
    known = _read_record(folder / RECORD)
    name = known.pop("file", None)
    if not isinstance(name, str) or Path(name).name != name or "\\" in name:
        raise ProtocolError(f"{folder / RECORD} names no file of its folder")
    path = folder / name
    if path.is_symlink() or not path.is_file():
        raise NotFound(f"{path} is missing; export {label} again")
    try:
        history = msgspec.convert(known.pop("history", []), list[Annotation])
        record = msgspec.convert(known, DatasetRecord)
    except msgspec.ValidationError as exc:
        raise ProtocolError(f"{folder / RECORD} is no record: {exc}; export it again") from exc
    details = {
        "dataset_id": record.dataset_id,
        "name": record.name,
        "kind": record.kind,
        "meta": record.meta,
        "tags": record.tags,
        "parents": record.parents,
        "relay_id": record.relay_id,
        "provenance": {"imported": msgspec.structs.asdict(record)},
    }
    return _Item(path, label, details, record.sha256, record.size, history)


def _read_record(path: Path) -> dict[str, Any]:
    if path.stat().st_size > _MAX_RECORD_BYTES:
        raise TooLarge(f"{path} is larger than any record; it is not read")
    try:
        known = decode_value(
            msgspec.json.encode(msgspec.json.decode(path.read_bytes())), json=True, limits=_LIMITS
        )
    except (msgspec.DecodeError, UnicodeError, RecursionError) as exc:
        raise ProtocolError(f"{path} is no JSON: {exc}; export it again") from exc
    if not isinstance(known, Mapping) or known.get("format") != FORMAT:
        raise ProtocolError(f"{path} is not of the format {FORMAT}; use a newer labmesh")
    return {key: value for key, value in known.items() if key != "format"}
