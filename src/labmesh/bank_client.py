"""Banks as a client sees them."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from os import PathLike, fspath
from pathlib import Path
from typing import Any, Protocol, TypeVar

import msgspec

from labmesh.content import Content, FileSink, MemorySink, Sink
from labmesh.errors import ProtocolError
from labmesh.holding import Client
from labmesh.protocol.ids import check_id
from labmesh.protocol.messages import (
    Committed,
    DatasetId,
    DatasetPage,
    DatasetRecord,
    GetDataset,
    GetStatus,
    ListDatasets,
    Reply,
    Request,
    Status,
)
from labmesh.transfer import Progress, UploadSettings

__all__ = ["BankClient"]

R = TypeVar("R", bound=Reply)

_UPLOAD = UploadSettings()


class Home(Client, Protocol):
    """What a bank's proxy needs of its client."""

    async def upload_to(
        self, bank_id: str, content: Content, *, settings: UploadSettings, **details: Any
    ) -> DatasetRecord:
        """Upload to a bank."""

    async def download_to(
        self, bank_id: str, record: DatasetRecord, sink: Sink, *, progress: Progress | None
    ) -> None:
        """Download from a bank."""


class BankClient:
    """A bank, seen from here."""

    def __init__(self, client: Home, bank_id: str) -> None:
        self._client = client
        self.bank_id = bank_id

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.bank_id}>"

    async def list(
        self, *, after: int = 0, limit: int = 100, newest_first: bool = False
    ) -> list[DatasetRecord]:
        """At most ``limit`` (1 to 1000) records, in the order of their commits.

        :param after: the ``sequence`` of the record to go on from.
        """
        records: list[DatasetRecord] = []
        while True:
            request = ListDatasets(
                id="-", after=after, limit=limit - len(records), newest_first=newest_first
            )
            page, _ = await self._ask(request, DatasetPage)
            records += page.records
            # A page of large records is cut short.
            if not page.more or not page.records or len(records) >= limit:
                return records
            after = records[-1].sequence

    async def show(self, dataset_id: str) -> DatasetRecord:
        """The record of one dataset.

        :raises LookupError: this bank does not have it.
        """
        dataset = DatasetId(check_id(dataset_id, "dataset id"))
        answer, _ = await self._ask(GetDataset(id="-", dataset_id=dataset), Committed)
        if answer.record.dataset_id != dataset_id:
            raise ProtocolError(
                f"bank {self.bank_id} answered with dataset {answer.record.dataset_id}, not with "
                f"{dataset_id}; try another bank or version"
            )
        return answer.record

    async def download(
        self,
        dataset_id: str,
        dest: str | PathLike[str],
        *,
        progress: Progress | None = None,
    ) -> dict[str, Any]:
        """Download into the file ``dest`` (a folder: into it, under the dataset's id).

        The file appears whole and verified, or not at all.

        :returns: the record, with ``path``: ``size`` (bytes), ``sha256``, ``name``, ``meta``, ...
        :raises LookupError: this bank does not have it.
        :raises ChecksumMismatch: other bytes came than were stored.
        """
        record = await self.show(dataset_id)
        sink = await _opened(Path(fspath(dest)), record)
        await self._fetch(record, sink, progress)
        return {**msgspec.structs.asdict(record), "path": str(sink.path)}

    async def read(self, dataset_id: str, *, progress: Progress | None = None) -> bytes:
        """The bytes of a dataset, verified.

        :raises LookupError: this bank does not have it.
        :raises ChecksumMismatch: other bytes came than were stored.
        """
        record = await self.show(dataset_id)
        sink = MemorySink()
        await self._fetch(record, sink, progress)
        return sink.content

    async def upload(
        self,
        content: Content,
        *,
        name: str = "",
        kind: str = "bytes",
        meta: Mapping[str, Any] | None = None,
        dataset_id: str | None = None,
        settings: UploadSettings = _UPLOAD,
        progress: Progress | None = None,
    ) -> DatasetRecord:
        """Store a dataset; returns its record once it is verified and on disk.

        :param content: bytes, a path, a binary file, or an (async) iterator of bytes.
        :raises Conflict: the id is taken by other content, which is kept.
        """
        return await self._client.at_home(
            self._client.upload_to(
                self.bank_id,
                content,
                settings=settings,
                name=name,
                kind=kind,
                meta=meta,
                dataset_id=dataset_id,
                progress=progress,
            )
        )

    async def status(self) -> Status:
        """How many datasets, how much room, what is open."""
        status, _ = await self._ask(GetStatus(id="-"), Status)
        return status

    async def _ask(self, request: Request, reply: type[R]) -> tuple[R, memoryview | None]:
        return await self._client.at_home(
            self._client.request(self.bank_id, request, reply, endpoint="retrieve")
        )

    async def _fetch(self, record: DatasetRecord, sink: Sink, progress: Progress | None) -> None:
        work = self._client.download_to(self.bank_id, record, sink, progress=progress)
        try:
            await self._client.at_home(work)
        finally:
            sink.discard()


async def _opened(path: Path, record: DatasetRecord) -> FileSink:
    """The sink of a download into a file, or into a folder; opened off the loop."""
    opening = asyncio.ensure_future(asyncio.to_thread(_file_sink, path, record))
    try:
        return await asyncio.shield(opening)
    except asyncio.CancelledError:
        opening.add_done_callback(_discard_unused)
        raise


def _discard_unused(opening: asyncio.Future[FileSink]) -> None:
    if not opening.cancelled() and opening.exception() is None:
        opening.result().discard()


def _file_sink(path: Path, record: DatasetRecord) -> FileSink:
    return FileSink(path / record.dataset_id if path.is_dir() else path)
