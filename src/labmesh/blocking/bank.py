"""A bank and its datasets, for scripts and notebooks."""

from __future__ import annotations

import builtins
from collections.abc import Iterable, Iterator, Mapping
from os import PathLike
from pathlib import Path
from typing import Any

from labmesh.asking.bank_client import BankClient
from labmesh.blocking.cards import plain
from labmesh.blocking.records import History, Provenance, Record, Records, SlicedArray, Trash
from labmesh.blocking.session import Session
from labmesh.datasets.export import FolderReport, Step
from labmesh.datasets.query import search_of
from labmesh.errors import LabmeshError, NotFound
from labmesh.protocol.messages import DatasetRecord, SearchDatasets, Status
from labmesh.transfer import Progress

__all__ = ["Bank", "Record"]

_PAGE = 1000
#: So many ids are offered for completion with TAB.
_OFFERED = 100


class Bank:
    """A bank: ``bank.put(array, "scan-42")`` stores, ``bank.search(sample="A1")`` finds,
    ``bank["20260101T120000-ab12cd34"]`` is a record, and ``for record in bank`` goes through all.

    Make one with ``mesh.bank()``. Several threads may share it.
    """

    def __init__(self, session: Session, client: BankClient) -> None:
        self._session = session
        self._client = client

    @property
    def bank_id(self) -> str:
        """Its id on the mesh."""
        return self._client.bank_id

    # ── store ───────────────────────────────────────────────────────────────────────────────────

    def put(
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
    ) -> Record:
        """Store a dataset; returns when it is verified (size and SHA-256) and on the bank's disk.

        :param value: a numpy array; an xarray Dataset or DataArray; a pandas DataFrame or Series;
            text; a number, dict or list (stored as JSON); bytes; a file: as a
            :class:`pathlib.Path` or open in binary mode; or an iterator of bytes. Text is stored as
            text; it is not taken as the name of a file.
        :param name: a name for people; it need not be unique. A file's is its own by default.
        :param meta: what is worth knowing about it; plain values. It can be searched for.
        :param kind: of bytes, a file or an iterator: what :meth:`read` makes of it. By default that
            of a file's suffix, else ``bytes``.
        :param tags: one or several.
        :param parents: the datasets that it was made from: records or ids.
        :param dataset_id: its id; by default a new one, which begins with date and time (UTC).
        :param progress: called with the bytes that are safe so far and the size (None: not known
            yet), in the mesh's own thread; return soon.
        :raises Conflict: the id is taken by other content, which is kept.
        :raises NoSpace: the bank is full.
        :raises ConnectionError: the bank was lost, and several tries did not help.
        """
        stored = self._session.run(
            self._client.put(
                value,
                name,
                meta=meta,
                kind=kind,
                tags=tags,
                parents=parents,
                dataset_id=dataset_id,
                progress=progress,
            )
        )
        return Record(self, stored)

    # ── find ────────────────────────────────────────────────────────────────────────────────────

    def list(self, *, limit: int = 100, newest_first: bool = True) -> Records:
        """The newest ``limit`` datasets, the newest first; or the oldest, the oldest first."""
        if limit < 1:
            raise ValueError(f"limit must be at least 1, not {limit}")
        listing = self._client.list(limit=limit, newest_first=newest_first)
        return Records(self._records(self._session.run(listing)))

    def search(self, text: str = "", *, limit: int = 100, **conditions: Any) -> Records:
        """At most ``limit`` datasets that meet every condition, the newest first.

        ``bank.search(sample="A1", since="2h")``: ``sample`` is a value of the metadata.
        ``temperature__lt=4`` compares its size (``__ne``, ``__lt``, ``__le``, ``__gt``, ``__ge``;
        ``__in``: text inside), ``sample__id="A1"`` looks into a nested one. These have names of
        their own:

        :param text: words, each of which is in the id, name, tags or metadata, in any case.
        :param name: and :param kind: and :param relay: patterns with ``*`` and ``?``.
        :param tags: one tag or several, all of which it has.
        :param parent: the dataset that it was made from.
        :param since: and :param until: how long ago (``"2h"``, ``"3d"``), a date or time (text or
            :class:`~datetime.datetime`), POSIX seconds.
        :param where: further conditions as text: ``["a.b>3", "size<1GB"]``.
        :param sort: ``size``, ``name``, ``created`` or ``sequence``; ``-size``: the largest first.
        :param newest_first: False: the oldest first. It counts without ``sort``.
        :raises ValueError: a condition makes no sense; the text says what does.
        """
        found = self._client.search(text, limit=limit, **conditions)
        return Records(self._records(self._session.run(found)))

    def each(self, text: str = "", **conditions: Any) -> Iterator[Record]:
        """Every dataset that meets the conditions of :meth:`search`, fetched a page at a time."""
        return self._each(search_of(text, **conditions))

    def _each(self, query: SearchDatasets) -> Iterator[Record]:
        after = ""
        while True:
            found, after = self._session.run(self._client.page(query, after, _PAGE))
            yield from self._records(found)
            if not after:
                return

    def children(self, dataset: Any) -> Records:
        """The datasets that were made from this one (a record or id), the newest first."""
        return Records(self._records(self._session.run(self._client.children(dataset))))

    def get(self, dataset_id: str) -> Record:
        """The record of one dataset.

        :raises LookupError: this bank does not have it.
        """
        return Record(self, self._session.run(self._client.show(dataset_id)))

    def __getitem__(self, dataset_id: str) -> Record:
        return self.get(dataset_id)

    def __iter__(self) -> Iterator[Record]:
        return self.each()

    def __contains__(self, dataset_id: object) -> bool:
        wanted = getattr(dataset_id, "dataset_id", dataset_id)
        if not isinstance(wanted, str):
            return False
        try:
            self.get(wanted)
        except (NotFound, ValueError):
            return False
        return True

    def _ipython_key_completions_(self) -> builtins.list[str]:
        try:
            return [each.dataset_id for each in self.list(limit=_OFFERED)]
        except LabmeshError:  # a completion is no place for an error
            return []

    # ── read ────────────────────────────────────────────────────────────────────────────────────

    def read(self, dataset_id: str, *, progress: Progress | None = None) -> Any:
        """The value that was put, verified; bytes, when its kind is unknown here.

        :raises LookupError: this bank does not have it.
        :raises ChecksumMismatch: other bytes came than were stored.
        :raises ImportError: the library for its kind is not installed; the text names it.
        """
        return self._session.run(self._client.read(dataset_id, progress=progress))

    def array(self, dataset_id: str) -> SlicedArray:
        """A stored numpy array, of which only those parts are fetched that are asked for.

        ``bank.array(id)[0:10, 3]``; ``numpy.asarray(...)`` fetches all.

        :raises LookupError: this bank does not have it.
        :raises ValueError: it is not a numpy array.
        """
        return SlicedArray(self._session, self._session.run(self._client.array(dataset_id)))

    def download(
        self, dataset_id: str, dest: str | PathLike[str], *, progress: Progress | None = None
    ) -> Path:
        """Download into the file ``dest`` (a folder: into it, under the dataset's id); its path.

        The file appears whole and verified, or not at all. What an interrupted download of the same
        content to the same place left is continued.

        :raises LookupError: this bank does not have it.
        :raises ChecksumMismatch: other bytes came than were stored.
        """
        saved = self._session.run(self._client.download(dataset_id, dest, progress=progress))
        return Path(saved["path"])

    def fetch(self, dataset_id: str, *, progress: Progress | None = None) -> bytes:
        """The bytes as they are stored, verified."""
        return self._session.run(self._client.fetch(dataset_id, progress=progress))

    def provenance(self, dataset_id: str) -> Provenance:
        """Where it comes from: who stored it, from which program and relay, with which settings:
        the states of all relays at its start and when it was stored.
        """
        return Provenance(self._session.run(self._client.show(dataset_id, full=True)))

    # ── change ──────────────────────────────────────────────────────────────────────────────────

    def tag(self, dataset_id: str, *tags: str) -> Record:
        """Add tags; its record as it is now. ``keep`` protects it from retention rules."""
        return Record(self, self._session.run(self._client.tag(dataset_id, *tags)))

    def untag(self, dataset_id: str, *tags: str) -> Record:
        """Remove tags; its record as it is now."""
        return Record(self, self._session.run(self._client.untag(dataset_id, *tags)))

    def note(self, dataset_id: str, note: str) -> Record:
        """Add a note to its history."""
        return Record(self, self._session.run(self._client.note(dataset_id, note)))

    def history(self, dataset_id: str) -> History:
        """Its notes and changes of tags, with time and who, oldest first."""
        return History(self._session.run(self._client.history(dataset_id)))

    def delete(self, dataset_id: str, *, why: str = "") -> None:
        """Into the trash, from which :meth:`restore` brings it back until its grace period ends.

        :raises LookupError: this bank does not have it.
        """
        self._session.run(self._client.delete(dataset_id, why=why))

    def trash(self) -> Trash:
        """What is in the trash, by whom and why, and until when it can be restored."""
        return Trash(self._session.run(self._client.trash()))

    def empty_trash(self, ids: Iterable[str] | None = None) -> builtins.list[str]:
        """Forget datasets of the trash for ever: these ids, or all; their ids.

        :raises LookupError: one of them is not in the trash; those before it are gone.
        """
        chosen = None if ids is None else [ids] if isinstance(ids, str) else [*ids]
        return self._session.run(self._client.empty_trash(chosen))

    def restore(self, dataset_id: str) -> Record:
        """Out of the trash.

        :raises LookupError: it is not there.
        """
        return Record(self, self._session.run(self._client.restore(dataset_id)))

    def verify(self, dataset_id: str) -> Record:
        """Have the bank read all of a dataset and compare it with its SHA-256; its record.

        :raises Damaged: it is not what was stored. The bank has set it aside.
        """
        return Record(self, self._session.run(self._client.verify(dataset_id)))

    # ── folders ─────────────────────────────────────────────────────────────────────────────────

    def export(
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

        :param datasets: records or ids; None: all that meet the conditions of :meth:`search`.
        :param step: called with each id, and what became of it, in the mesh's own thread.
        :returns: how many were exported, were there already, or ``failed`` (with the error).
        """
        work = self._client.export(folder, datasets, step=step, **conditions)
        return self._session.run(work)

    def import_folder(
        self, folder: str | PathLike[str], *, dry_run: bool = False, step: Step | None = None
    ) -> FolderReport:
        """Store what :meth:`export` wrote, or any folder of files.

        Exported datasets keep id, name, kind, metadata, tags and parents. Other files have their
        path as their name, the kind of their suffix, and an id of their content: what is there
        already is not stored again.

        :param dry_run: only tell what would be done.
        """
        work = self._client.import_folder(folder, dry_run=dry_run, step=step)
        return self._session.run(work)

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

    def _records(self, records: Iterable[DatasetRecord]) -> Iterator[Record]:
        return (Record(self, each) for each in records)
