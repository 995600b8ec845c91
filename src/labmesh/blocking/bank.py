"""A bank and its datasets, for scripts and notebooks."""

from __future__ import annotations

import builtins
from collections.abc import Mapping
from datetime import UTC, datetime
from os import PathLike
from pathlib import Path
from typing import Any

from labmesh.bank_client import BankClient
from labmesh.blocking.cards import byte_size, html_table, plain
from labmesh.blocking.session import Session
from labmesh.content import packed, unpacked
from labmesh.protocol.messages import DatasetRecord, Status
from labmesh.transfer import Progress

__all__ = ["Bank", "Record"]

_PAGE = 1000


class Bank:
    """A bank: ``bank.put(array, "scan-42")`` stores, ``bank["20260101T120000-ab12cd34"]`` finds.

    Make one with ``mesh.bank()``. Several threads may share it.
    """

    def __init__(self, session: Session, client: BankClient) -> None:
        self._session = session
        self._client = client

    @property
    def bank_id(self) -> str:
        """Its id on the mesh."""
        return self._client.bank_id

    def put(
        self,
        value: Any,
        name: str = "",
        *,
        meta: Mapping[str, Any] | None = None,
        dataset_id: str | None = None,
        progress: Progress | None = None,
    ) -> Record:
        """Store a dataset; returns when it is verified (size and SHA-256) and on the bank's disk.

        :param value: a numpy array, text, a dict or list (stored as JSON), bytes, a file: as a
            :class:`pathlib.Path` or open in binary mode, or an iterator of bytes. Text is stored as
            text; it is not taken as the name of a file.
        :param name: a name for people; it need not be unique.
        :param meta: what is worth knowing about it; plain values.
        :param dataset_id: its id; by default a new one, which begins with date and time (UTC).
        :param progress: called with the bytes that are safe so far and the size (None: not known
            yet), in the mesh's own thread; return soon.
        :raises Conflict: the id is taken by other content, which is kept.
        :raises NoSpace: the bank is full.
        :raises ConnectionError: the bank was lost, and several tries did not help.
        """
        content, kind = packed(value)
        stored = self._session.run(
            self._client.upload(
                content,
                name=name,
                kind=kind,
                meta=meta,
                dataset_id=dataset_id,
                progress=progress,
            )
        )
        return Record(self, stored)

    def list(self, *, limit: int = 100, newest_first: bool = True) -> builtins.list[Record]:
        """The newest ``limit`` datasets, the newest first; or the oldest, the oldest first."""
        if limit < 1:
            raise ValueError(f"limit must be at least 1, not {limit}")
        records = self._session.run(self._list(limit, newest_first))
        return [Record(self, each) for each in records]

    async def _list(self, limit: int, newest_first: bool) -> builtins.list[DatasetRecord]:
        records: list[DatasetRecord] = []
        while len(records) < limit:
            page_size = min(limit - len(records), _PAGE)
            after = records[-1].sequence if records else 0
            page = await self._client.list(after=after, limit=page_size, newest_first=newest_first)
            records += page
            if len(page) < page_size:
                break
        return records

    def get(self, dataset_id: str) -> Record:
        """The record of one dataset.

        :raises LookupError: this bank does not have it.
        """
        return Record(self, self._session.run(self._client.show(dataset_id)))

    def __getitem__(self, dataset_id: str) -> Record:
        return self.get(dataset_id)

    # Without this, ``x in bank`` and ``for x in bank`` would ask it for the datasets 0, 1, 2, ...
    __iter__ = None
    __contains__ = None

    def read(self, dataset_id: str, *, progress: Progress | None = None) -> Any:
        """The value that was put, verified: an array, text, a dict or list, or bytes.

        :raises LookupError: this bank does not have it.
        :raises ChecksumMismatch: other bytes came than were stored.
        """
        return self.get(dataset_id).read(progress=progress)

    def download(
        self, dataset_id: str, dest: str | PathLike[str], *, progress: Progress | None = None
    ) -> Path:
        """Download into the file ``dest`` (a folder: into it, under the dataset's id); its path.

        The file appears whole and verified, or not at all.

        :raises LookupError: this bank does not have it.
        :raises ChecksumMismatch: other bytes came than were stored.
        """
        saved = self._session.run(self._client.download(dataset_id, dest, progress=progress))
        return Path(saved["path"])

    def fetch(self, dataset_id: str, *, progress: Progress | None = None) -> bytes:
        """The bytes as they are stored, verified."""
        return self._session.run(self._client.read(dataset_id, progress=progress))

    def status(self) -> Status:
        """How many datasets, how much room, what is open: in ``status().facts``."""
        return self._session.run(self._client.status())

    def __repr__(self) -> str:
        record = self._session.client.known(self.bank_id)
        if record is None:
            return f"bank {self.bank_id} (gone)"
        return (
            f"bank {self.bank_id} ({record.state}): {plain(record.title)} on {plain(record.host)}"
        )


class Record:
    """A stored dataset: ``record.read()`` is the value, ``record.save("scan.npy")`` a file."""

    def __init__(self, bank: Bank, record: DatasetRecord) -> None:
        self._bank = bank
        self._record = record

    @property
    def dataset_id(self) -> str:
        """Its id, unique in its bank."""
        return self._record.dataset_id

    @property
    def bank_id(self) -> str:
        """The bank that has it."""
        return self._record.bank_id

    @property
    def relay_id(self) -> str:
        """The relay that uploaded it; empty: no relay did."""
        return self._record.relay_id

    @property
    def name(self) -> str:
        """Its name for people."""
        return self._record.name

    @property
    def kind(self) -> str:
        """What :meth:`read` makes of it: ``npy``, ``text``, ``json`` or ``bytes``."""
        return self._record.kind

    @property
    def size(self) -> int:
        """Bytes."""
        return self._record.size

    @property
    def sha256(self) -> str:
        """The digest of its bytes, hexadecimal."""
        return self._record.sha256

    @property
    def created(self) -> datetime:
        """When it was stored, UTC (``.timestamp()`` gives POSIX seconds)."""
        return datetime.fromtimestamp(self._record.created, UTC)

    @property
    def sequence(self) -> int:
        """Its place in the bank's order, from 1."""
        return self._record.sequence

    @property
    def meta(self) -> dict[str, Any]:
        """What its uploader found worth knowing."""
        return dict(self._record.meta)

    def read(self, *, progress: Progress | None = None) -> Any:
        """The value that was put, verified: an array, text, a dict or list, or bytes."""
        return unpacked(self._bank.fetch(self.dataset_id, progress=progress), self.kind)

    def save(self, path: str | PathLike[str], *, progress: Progress | None = None) -> Path:
        """Download into a file (a folder: into it, under the dataset's id); its path.

        The file appears whole and verified, or not at all.
        """
        return self._bank.download(self.dataset_id, path, progress=progress)

    def __repr__(self) -> str:
        return f"<Record {'  '.join(each for each in self._row() if each)}>"

    def _repr_html_(self) -> str:
        return html_table(("id", "name", "kind", "size", "created (UTC)", "meta"), [self._row()])

    def _row(self) -> tuple[str, ...]:
        meta = ", ".join(
            f"{plain(key, 40)}={plain(repr(each), 40)}" for key, each in self.meta.items()
        )
        return (
            self.dataset_id,
            plain(repr(self.name), 60) if self.name else "",
            self.kind,
            byte_size(self.size),
            f"{self.created:%Y-%m-%d %H:%M:%S}",
            plain(meta),
        )

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Record) and other._record == self._record

    def __hash__(self) -> int:
        return hash((self.bank_id, self.dataset_id))
