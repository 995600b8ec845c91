"""Datasets with their records as a plain folder, which is readable without labmesh."""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
import secrets
import shutil
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Iterable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import msgspec

from labmesh.content.sinks import sync_folder
from labmesh.datasets.names import file_name, folder_name
from labmesh.errors import LabmeshError, LinkLost, NoSpace
from labmesh.protocol.codec import Limits, encode_value
from labmesh.protocol.ids import check_id
from labmesh.protocol.messages import Annotation, DatasetRecord

__all__ = ["FORMAT", "RECORD", "SUMS", "FolderReport", "Step", "export_datasets", "sha256_of"]

FORMAT = "labmesh-export-1"
RECORD, SUMS, README = "record.json", "SHA256SUMS", "README.txt"
_PIECE_BYTES = 2**20
_SUM = re.compile(r"([0-9a-f]{64})  ([^\\\n]+)")
#: A record has gone through the limits of the wire already.
_NO_LIMITS = Limits(
    max_header_bytes=2**40,
    max_value_bytes=2**40,
    max_text_bytes=2**40,
    max_keys=2**31,
    max_containers=2**31,
)
_README_TEXT = """\
Datasets of the labmesh databank {bank}.

Each folder is one dataset, under its id: its file, and record.json with what is known of it (name,
time, metadata, tags, history, where it comes from). Nothing of labmesh is needed to read them:
.npy is numpy, .nc is netCDF 4, .parquet is Parquet, .txt and .json are UTF-8.

Check that all is as it was:    sha256sum -c SHA256SUMS
Into a databank again:          labmesh data import .
"""

#: Called for each dataset with its id or file, and what became of it.
Step = Callable[[str, str], None]


class ExportBank(Protocol):
    """What an export needs of a bank."""

    @property
    def bank_id(self) -> str: ...

    async def show(self, dataset_id: str, *, full: bool = ...) -> DatasetRecord:
        """The record."""

    async def history(self, dataset_id: str) -> list[Annotation]:
        """What was noted."""

    async def download(self, dataset_id: str, dest: Path) -> Mapping[str, Any]:
        """Into a file."""


@dataclass
class FolderReport:
    """What an export or import did; of a dry run: what it would do."""

    done: int = 0
    #: was there already, and was verified
    already: int = 0
    #: of those that were done
    bytes: int = 0
    #: id or file → why not
    failed: dict[str, Exception] = field(default_factory=dict)
    #: left out: hidden, or not a file
    skipped: list[str] = field(default_factory=list)


async def export_datasets(
    bank: ExportBank,
    folder: Path,
    dataset_ids: Iterable[str] | AsyncIterable[str],
    *,
    step: Step | None = None,
) -> FolderReport:
    """Write datasets into ``folder``, which is made when it is missing.

    What is there already and has the right digest is kept, so that an export that broke off goes on
    where it was. One dataset that cannot be had does not stop the others.

    :raises OSError: the folder cannot be written.
    :raises ConnectionError: the bank was lost.
    """
    report = FolderReport()
    sums: dict[str, str] = {}
    await asyncio.to_thread(folder.mkdir, parents=True, exist_ok=True)
    try:
        async with aclosing(_each(dataset_ids)) as ids:
            async for dataset_id in ids:
                try:
                    what = await _export(bank, folder, dataset_id, report, sums)
                except LinkLost:
                    raise
                except LabmeshError as exc:
                    report.failed[dataset_id] = exc
                    what = f"failed: {exc}"
                if step is not None:
                    step(dataset_id, what)
    finally:
        await asyncio.shield(asyncio.to_thread(_finish, folder, sums, bank.bank_id))
    return report


async def _each(ids: Iterable[str] | AsyncIterable[str]) -> AsyncGenerator[str]:
    if isinstance(ids, AsyncIterable):
        async for each in ids:
            yield each
        return
    for each in ids:
        yield each


async def _export(
    bank: ExportBank, folder: Path, dataset_id: str, report: FolderReport, sums: dict[str, str]
) -> str:
    record = await bank.show(check_id(dataset_id, "dataset id"), full=True)
    history = await bank.history(dataset_id)
    place = folder / folder_name(dataset_id)
    path = place / file_name(record.name, record.kind, dataset_id)
    await asyncio.to_thread(place.mkdir, exist_ok=True)
    if await asyncio.to_thread(_is_there, path, record):
        report.already += 1
        what = "already there"
    else:
        _check_room(folder, record)
        await bank.download(dataset_id, path)
        report.done += 1
        report.bytes += record.size
        what = "exported"
    sums[f"{place.name}/{path.name}"] = record.sha256
    text = _record_json(record, path.name, history)
    await asyncio.to_thread(_write, place / RECORD, text)
    sums[f"{place.name}/{RECORD}"] = hashlib.sha256(text).hexdigest()
    return what


def _record_json(record: DatasetRecord, name: str, history: list[Annotation]) -> bytes:
    known = {
        "format": FORMAT,
        "file": name,
        **msgspec.structs.asdict(record),
        "history": [msgspec.structs.asdict(each) for each in history],
    }
    line = encode_value(known, json=True, limits=_NO_LIMITS)
    return msgspec.json.format(line, indent=2) + b"\n"


def _is_there(path: Path, record: DatasetRecord) -> bool:
    try:
        return path.stat().st_size == record.size and sha256_of(path) == record.sha256
    except (FileNotFoundError, IsADirectoryError):
        return False


def _check_room(folder: Path, record: DatasetRecord) -> None:
    free = shutil.disk_usage(folder).free
    if record.size > free:
        raise NoSpace(
            f"dataset {record.dataset_id} has {record.size} bytes, and {folder} has room for "
            f"{free}; make room, or export to another disk"
        )


def sha256_of(path: Path) -> str:
    """The digest of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(_PIECE_BYTES):
            digest.update(piece)
    return digest.hexdigest()


def _finish(folder: Path, sums: Mapping[str, str], bank_id: str) -> None:
    """The two files about all datasets; what earlier exports wrote stays in them."""
    known = {**_known_sums(folder / SUMS), **sums}
    lines = "".join(f"{digest}  {name}\n" for name, digest in sorted(known.items()))
    _write(folder / SUMS, lines.encode())
    _write(folder / README, _README_TEXT.format(bank=bank_id).encode())


def _known_sums(path: Path) -> dict[str, str]:
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return {}
    found = (_SUM.fullmatch(line) for line in text.splitlines())
    return {each[2]: each[1] for each in found if each}


def _write(path: Path, content: bytes) -> None:
    """All of it, or the file that was there."""
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        with part.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)
