"""Banks as a client sees them."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Callable, Iterable, Mapping
from os import PathLike, fspath
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from labmesh.content import (
    FILE_KINDS,
    Content,
    FileSink,
    MemorySink,
    Packed,
    Sink,
    packed,
    unpacked,
    unpacked_file,
)
from labmesh.datasets.arrays import StoredArray, open_array
from labmesh.datasets.catalog import BankCatalog
from labmesh.datasets.export import FolderReport, Step, export_datasets
from labmesh.datasets.fetching import fetch_range
from labmesh.datasets.importing import import_folder
from labmesh.datasets.query import ids_of, tags_of
from labmesh.protocol.ids import check_id
from labmesh.protocol.messages import DatasetRecord
from labmesh.provenance import sender_facts
from labmesh.transfer import Progress, UploadSettings

__all__ = ["BankClient"]

T = TypeVar("T")

_UPLOAD = UploadSettings()
#: A table or grid over so many bytes is read by way of a temporary file.
_LARGE_BYTES = 64 * 2**20


class BankClient(BankCatalog):
    """A bank, seen from here: its datasets, and what :class:`BankCatalog` knows of them."""

    # ── store ───────────────────────────────────────────────────────────────────────────────────

    async def put(
        self,
        value: Any,
        name: str | None = None,
        *,
        meta: Mapping[str, Any] | None = None,
        kind: str | None = None,
        tags: str | Iterable[str] = (),
        parents: Any = (),
        dataset_id: str | None = None,
        progress: Progress | None = None,
    ) -> DatasetRecord:
        """Store a value; returns its record once it is verified (size, SHA-256) and on disk.

        :param value: a numpy array, an xarray Dataset or DataArray, a pandas DataFrame or Series,
            text, a number, a dict or list (JSON), bytes, a file (a :class:`pathlib.Path`, or open
            in binary mode), an (async) iterator of bytes. Text is text, not the name of a file.
        :param name: for people; it need not be unique. A file's is its own by default.
        :param kind: of bytes, a file or an iterator: how :meth:`read` turns it back. By default
            that of a file's suffix, else ``bytes``.
        :param parents: the datasets that it was made from: ids or records.
        :param dataset_id: its id; by default a new one, which begins with date and time (UTC).
        :raises Conflict: the id is taken by other content, which is kept.
        :raises NoSpace: the bank is full.
        """
        content = await _off_loop(packed, value, kind)
        try:
            return await self.upload(
                content.content,
                name=_title(value) if name is None else name,
                kind=content.kind,
                meta=meta,
                tags=tags,
                parents=parents,
                dataset_id=dataset_id,
                progress=progress,
            )
        finally:
            content.close()

    async def upload(
        self,
        content: Content,
        *,
        name: str = "",
        kind: str = "bytes",
        meta: Mapping[str, Any] | None = None,
        tags: str | Iterable[str] = (),
        parents: Any = (),
        dataset_id: str | None = None,
        settings: UploadSettings = _UPLOAD,
        progress: Progress | None = None,
        relay_id: str = "",
        provenance: Mapping[str, Any] | None = None,
    ) -> DatasetRecord:
        """Store bytes as they are; returns their record once they are verified and on disk.

        :param content: bytes, a path, a binary file, or an (async) iterator of bytes.
        :param relay_id: the relay that it comes from.
        :param provenance: what is to be known of its origin, beside what this client tells by
            itself (user, host, program, versions) and the bank adds (times, states of the relays).
        :raises Conflict: the id is taken by other content, which is kept.
        """
        if not isinstance(meta, Mapping | None):
            raise TypeError(
                f"meta is a dict of what is worth knowing, such as {{'sample': 'A1'}}, not a "
                f"{type(meta).__name__}"
            )
        return await self._client.at_home(
            self._client.upload_to(
                self.bank_id,
                content,
                settings=settings,
                name=name,
                kind=kind,
                meta=meta,
                tags=tags_of(tags),
                parents=[check_id(each, "dataset id") for each in ids_of(parents)],
                dataset_id=dataset_id,
                relay_id=relay_id,
                provenance={**sender_facts(), **(provenance or {})},
                progress=progress,
            )
        )

    # ── read ────────────────────────────────────────────────────────────────────────────────────

    async def read(self, dataset_id: str, *, progress: Progress | None = None) -> Any:
        """The value that was put, verified; bytes, when its kind is unknown here.

        :raises LookupError: this bank does not have it.
        :raises ChecksumMismatch: other bytes came than were stored.
        :raises ImportError: the library for its kind is not installed; the text names it.
        """
        record = await self.show(dataset_id)
        if record.kind in FILE_KINDS and record.size > _LARGE_BYTES:
            return await self._read_by_file(record, progress)
        sink = MemorySink()
        await self._fetch(record, sink, progress)
        return await _off_loop(unpacked, sink.buffer, record.kind)

    async def fetch(self, dataset_id: str, *, progress: Progress | None = None) -> bytes:
        """The bytes as they are stored, verified.

        :raises LookupError: this bank does not have it.
        :raises ChecksumMismatch: other bytes came than were stored.
        """
        sink = MemorySink()
        await self._fetch(await self.show(dataset_id), sink, progress)
        return sink.content

    async def array(self, dataset_id: str) -> StoredArray:
        """A stored numpy array, of which only those parts are fetched that are asked for.

        ``array.shape``, ``array.dtype``, ``await array.read((slice(0, 10), 3))``, ``await
        array[0:10]``. The bank checks what it sends against the digests of its pieces.

        :raises LookupError: this bank does not have it.
        :raises ValueError: it is not a numpy array.
        """
        record = await self.show(dataset_id)

        async def fetch(offset: int, size: int) -> memoryview:
            work = fetch_range(self._client, self.bank_id, record.dataset_id, offset, size)
            return await self._client.at_home(work)

        return await open_array(record, fetch)

    async def download(
        self,
        dataset_id: str,
        dest: str | PathLike[str],
        *,
        progress: Progress | None = None,
    ) -> dict[str, Any]:
        """Download into the file ``dest`` (a folder: into it, under the dataset's id).

        The file appears whole and verified, or not at all. What an interrupted download of the same
        content to the same place left is continued.

        :returns: the record, with ``path``: ``size`` (bytes), ``sha256``, ``name``, ``meta``, ...
        :raises LookupError: this bank does not have it.
        :raises ChecksumMismatch: other bytes came than were stored.
        """
        record = await self.show(dataset_id)
        sink = await _off_loop(_file_sink, Path(fspath(dest)), record)
        if progress is not None:
            progress(sink.offset, record.size)
        await self._fetch(record, sink, progress)
        return {**msgspec.structs.asdict(record), "path": str(sink.path)}

    # ── folders ─────────────────────────────────────────────────────────────────────────────────

    async def export(
        self,
        folder: str | PathLike[str],
        datasets: Any = None,
        *,
        step: Step | None = None,
        **conditions: Any,
    ) -> FolderReport:
        """Write datasets with their records into a plain folder, readable without labmesh.

        Each is in a folder of its id: its file, and ``record.json``. ``sha256sum -c SHA256SUMS``
        checks all. An export that broke off goes on where it was.

        :param datasets: ids or records; None: all that meet the conditions of :meth:`search`.
        :param step: called with each id, and what became of it.
        :returns: how many were exported, were there already, or ``failed`` (with the error).
        """
        if datasets is not None and conditions:
            raise TypeError("give datasets, or conditions of a search; not both")
        ids: Any = (
            (each.dataset_id async for each in self.each(**conditions))
            if datasets is None
            else ids_of(datasets)
        )
        return await export_datasets(self, Path(fspath(folder)), ids, step=step)

    async def import_folder(
        self, folder: str | PathLike[str], *, dry_run: bool = False, step: Step | None = None
    ) -> FolderReport:
        """Store what :meth:`export` wrote, or any folder of files.

        Exported datasets keep id, name, kind, metadata, tags and parents. Other files have their
        path as their name, the kind of their suffix, and an id of their content: what is there
        already is not stored again.

        :param dry_run: only tell what would be done.
        """
        return await import_folder(self, Path(fspath(folder)), dry_run=dry_run, step=step)

    # ── inside ──────────────────────────────────────────────────────────────────────────────────

    async def _read_by_file(self, record: DatasetRecord, progress: Progress | None) -> Any:
        """So that its bytes are not in memory beside its value."""
        with tempfile.TemporaryDirectory(prefix="labmesh-") as folder:
            path = Path(folder) / "dataset"
            await self._fetch(record, await _off_loop(FileSink, path), progress)
            return await asyncio.to_thread(unpacked_file, path, record.kind)

    async def _fetch(self, record: DatasetRecord, sink: Sink, progress: Progress | None) -> None:
        work = self._client.download_to(self.bank_id, record, sink, progress=progress)
        try:
            await self._client.at_home(work)
        finally:
            sink.discard()


def _title(value: Any) -> str:
    """The name of a value that has one: that of a file."""
    name = fspath(value) if isinstance(value, PathLike) else getattr(value, "name", "")
    if isinstance(value, PathLike) or (hasattr(value, "read") and isinstance(name, str)):
        return Path(name).name
    return ""


async def _off_loop(function: Callable[..., T], *arguments: Any) -> T:
    """In a thread; when the caller is cancelled meanwhile, what it gives is closed."""
    work = asyncio.ensure_future(asyncio.to_thread(function, *arguments))
    try:
        return await asyncio.shield(work)
    except asyncio.CancelledError:
        work.add_done_callback(_drop_unused)
        raise


def _drop_unused(work: asyncio.Future[Any]) -> None:
    if work.cancelled() or work.exception() is not None:
        return
    match work.result():
        case Packed() as content:
            content.close()
        case FileSink() as sink:
            sink.discard()


def _file_sink(path: Path, record: DatasetRecord) -> FileSink:
    target = path / record.dataset_id if path.is_dir() else path
    return FileSink(target, sha256=record.sha256, size=record.size)
