"""What a bank knows of its datasets, asked and changed: records, searches, notes, the trash."""

from __future__ import annotations

import builtins
from collections.abc import AsyncIterator, Sequence
from typing import Any, Protocol, TypeVar

import msgspec

from labmesh.asking.holding import Client
from labmesh.content import Content, Sink
from labmesh.datasets.origin import whoever
from labmesh.datasets.query import search_of, tags_of
from labmesh.errors import Damaged, NotFound, ProtocolError, TooLarge
from labmesh.protocol.ids import check_id
from labmesh.protocol.messages import (
    Annotate,
    Annotation,
    Committed,
    DatasetId,
    DatasetPage,
    DatasetRecord,
    DeleteDataset,
    Done,
    GetDataset,
    GetHistory,
    GetStatus,
    History,
    ListDatasets,
    ListTrash,
    PurgeDataset,
    Reply,
    Request,
    RestoreDataset,
    SearchDatasets,
    Status,
    TrashEntry,
    TrashPage,
    Verified,
    VerifyDataset,
)
from labmesh.transfer import Progress, UploadSettings

__all__ = ["BankCatalog", "Home", "dataset_id_of"]

R = TypeVar("R", bound=Reply)

_PAGE = 1000
#: A bank cuts off who sends more, and nobody would know why.
_NOTE_BYTES = 10_000
#: What reads a whole dataset at the bank's disk may take so long, and longer for a large one.
_READ_S, _READ_BYTES_PER_S = 60.0, 20e6


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


class BankCatalog:
    """The catalogue of a bank, seen from here; a part of :class:`labmesh.BankClient`."""

    def __init__(self, client: Home, bank_id: str) -> None:
        self._client = client
        self.bank_id = bank_id

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.bank_id}>"

    # ── find ────────────────────────────────────────────────────────────────────────────────────

    async def list(
        self, *, after: int = 0, limit: int = 100, newest_first: bool = False
    ) -> builtins.list[DatasetRecord]:
        """At most ``limit`` records, in the order of their commits.

        :param after: the ``sequence`` of the record to go on from.
        """
        records: list[DatasetRecord] = []
        while True:
            page_size = min(limit - len(records), _PAGE)
            request = ListDatasets(id="-", after=after, limit=page_size, newest_first=newest_first)
            page, _ = await self._ask(request, DatasetPage)
            records += page.records
            # A page of large records is cut short.
            if not page.more or not page.records or len(records) >= limit:
                return records
            after = records[-1].sequence

    async def search(
        self, text: str = "", *, limit: int = 100, **conditions: Any
    ) -> builtins.list[DatasetRecord]:
        """At most ``limit`` datasets that meet every condition, the newest first.

        ``sample="A1"`` compares a value of the metadata, ``temperature__lt=4`` its size (``__ne``,
        ``__lt``, ``__le``, ``__gt``, ``__ge``; ``__in``: text inside), ``sample__id="A1"`` a nested
        one. Other arguments have names of their own:

        :param text: words, each of which is in the id, name, tags or metadata, in any case.
        :param name: and :param kind: and :param relay: patterns with ``*`` and ``?``.
        :param tags: one tag or several, all of which it has.
        :param parent: the dataset that it was made from.
        :param since: and :param until: how long ago (``"2h"``, ``"3d"``), a date or time (text or
            :class:`~datetime.datetime`), POSIX seconds.
        :param where: further conditions as text: ``["a.b>3", "size<1GB"]``; also for names of
            metadata that are arguments here.
        :param sort: ``size``, ``name``, ``created`` or ``sequence``; ``-size``: the largest first.
        :param newest_first: False: the oldest first. It counts without ``sort``.
        :raises ProtocolError: (a ValueError) a condition makes no sense; the text says what does.
        """
        if limit < 1:
            raise ValueError(f"limit must be at least 1, not {limit}")
        return [each async for each in self._pages(search_of(text, **conditions), limit)]

    async def each(self, text: str = "", **conditions: Any) -> AsyncIterator[DatasetRecord]:
        """Every dataset that meets the conditions of :meth:`search`, fetched a page at a time."""
        async for record in self._pages(search_of(text, **conditions), None):
            yield record

    async def page(
        self, query: SearchDatasets, after: str = "", limit: int = _PAGE
    ) -> tuple[builtins.list[DatasetRecord], str]:
        """One page of a search, and what to give as ``after`` for the next one; empty: the end."""
        request = msgspec.structs.replace(query, after=after, limit=limit)
        page, _ = await self._ask(request, DatasetPage)
        return page.records[:limit], page.next if page.records else ""

    async def children(self, dataset: Any) -> builtins.list[DatasetRecord]:
        """The datasets that were made from this one (an id, or a record), the newest first."""
        return [each async for each in self.each(parent=dataset)]

    async def show(self, dataset_id: str, *, full: bool = False) -> DatasetRecord:
        """The record of one dataset.

        :param full: with its ``provenance``: who stored it, from which program and relay, and the
            states of all relays at that time.
        :raises LookupError: this bank does not have it.
        """
        request = GetDataset(id="-", dataset_id=dataset_id_of(dataset_id), full=full)
        return await self._record(request, dataset_id)

    async def has(self, dataset_id: str) -> bool:
        """Whether this bank has a dataset."""
        try:
            await self.show(dataset_id)
        except NotFound:
            return False
        return True

    # ── change ──────────────────────────────────────────────────────────────────────────────────

    async def tag(self, dataset_id: str, *tags: str) -> DatasetRecord:
        """Add tags; returns the record as it is now. ``keep`` protects from retention rules."""
        return await self._annotate(dataset_id, add_tags=tags_of(tags))

    async def untag(self, dataset_id: str, *tags: str) -> DatasetRecord:
        """Remove tags; returns the record as it is now."""
        return await self._annotate(dataset_id, remove_tags=tags_of(tags))

    async def note(self, dataset_id: str, note: str) -> DatasetRecord:
        """Add a note to its history.

        :raises TooLarge: it has more than 10,000 bytes in UTF-8.
        """
        size = len(note.encode(errors="replace")) if isinstance(note, str) else 0
        if size > _NOTE_BYTES:
            raise TooLarge(
                f"a note takes at most {_NOTE_BYTES} bytes, not {size}; put a longer one as a "
                "dataset of its own, with this one as its parent",
                limit=_NOTE_BYTES,
            )
        return await self._annotate(dataset_id, note=note)

    async def history(self, dataset_id: str) -> builtins.list[Annotation]:
        """Its notes and changes of tags, with time and who, oldest first.

        :raises LookupError: this bank does not have it.
        """
        answer, _ = await self._ask(
            GetHistory(id="-", dataset_id=dataset_id_of(dataset_id)), History
        )
        return answer.annotations

    async def delete(self, dataset_id: str, *, why: str = "") -> None:
        """Into the trash, from which :meth:`restore` brings it back until its grace period ends.

        :raises LookupError: this bank does not have it.
        """
        request = DeleteDataset(
            id="-", dataset_id=dataset_id_of(dataset_id), who=whoever(), why=why
        )
        await self._ask(request, Done)

    async def trash(self) -> builtins.list[TrashEntry]:
        """What is in the trash: record, when it was deleted, by whom and why, and until when it
        can be restored.
        """
        entries: list[TrashEntry] = []
        while True:
            after = entries[-1].record.dataset_id if entries else ""
            page, _ = await self._ask(ListTrash(id="-", after=after, limit=_PAGE), TrashPage)
            entries += page.entries
            if not page.more or not page.entries:
                return entries

    async def empty_trash(self, ids: Sequence[str] | None = None) -> builtins.list[str]:
        """Forget datasets of the trash for ever: these, or all that are in it now; their ids.

        :raises LookupError: one of ``ids`` is not in the trash; those before it are gone.
        """
        if ids is None:
            ids = [each.record.dataset_id for each in await self.trash()]
        for each in ids:
            await self._ask(PurgeDataset(id="-", dataset_id=dataset_id_of(each)), Done)
        return [*ids]

    async def restore(self, dataset_id: str) -> DatasetRecord:
        """Out of the trash.

        :raises LookupError: it is not there.
        """
        request = RestoreDataset(id="-", dataset_id=dataset_id_of(dataset_id))
        return await self._record(request, dataset_id)

    async def verify(self, dataset_id: str) -> DatasetRecord:
        """Have the bank read all of a dataset and compare it with its SHA-256; its record.

        :raises Damaged: it is not what was stored. The bank has set it aside.
        :raises LookupError: this bank does not have it.
        """
        record = await self.show(dataset_id)
        request = VerifyDataset(id="-", dataset_id=record.dataset_id)
        timeout_s = _READ_S + record.size / _READ_BYTES_PER_S
        answer, _ = await self._ask(request, Verified, timeout_s)
        if answer.damage:
            raise Damaged(f"dataset {dataset_id}: {answer.damage}", dataset_id=dataset_id)
        return record

    async def status(self) -> Status:
        """How many datasets, how much room, what is open."""
        status, _ = await self._ask(GetStatus(id="-"), Status)
        return status

    # ── inside ──────────────────────────────────────────────────────────────────────────────────

    async def _pages(
        self, query: SearchDatasets, limit: int | None
    ) -> AsyncIterator[DatasetRecord]:
        left, after = limit, ""
        while left is None or left > 0:
            page_size = _PAGE if left is None else min(left, _PAGE)
            records, after = await self.page(query, after, page_size)
            for record in records:
                yield record
            left = None if left is None else left - len(records)
            if not after:
                return

    async def _annotate(self, dataset_id: str, **changes: Any) -> DatasetRecord:
        request = Annotate(id="-", dataset_id=dataset_id_of(dataset_id), who=whoever(), **changes)
        return await self._record(request, dataset_id)

    async def _record(self, request: Request, dataset_id: str) -> DatasetRecord:
        answer, _ = await self._ask(request, Committed)
        if answer.record.dataset_id != dataset_id:
            raise ProtocolError(
                f"bank {self.bank_id} answered with dataset {answer.record.dataset_id}, not with "
                f"{dataset_id}; try another bank or version"
            )
        return answer.record

    async def _ask(
        self, request: Request, reply: type[R], timeout_s: float | None = None
    ) -> tuple[R, memoryview | None]:
        return await self._client.at_home(
            self._client.request(
                self.bank_id, request, reply, endpoint="retrieve", timeout=timeout_s
            )
        )


def dataset_id_of(dataset_id: str) -> DatasetId:
    """:raises ProtocolError: it breaks the rule for ids."""
    return DatasetId(check_id(dataset_id, "dataset id"))
