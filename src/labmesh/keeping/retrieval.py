"""What a bank's retrieve socket answers: bytes, records, searches, notes, the trash."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from labmesh.errors import Damaged, NotFound, ProtocolError, StorageError
from labmesh.keeping.bank_threads import BankThreads
from labmesh.protocol.codec import encode_value
from labmesh.protocol.ids import check_id, shown
from labmesh.protocol.messages import (
    Annotate,
    Annotation,
    Committed,
    DatasetPage,
    DatasetRecord,
    DeleteDataset,
    Done,
    Fetch,
    Fetched,
    GetDataset,
    GetHistory,
    History,
    ListDatasets,
    ListTrash,
    PurgeDataset,
    Request,
    RestoreDataset,
    SearchDatasets,
    TrashEntry,
    TrashPage,
    Verified,
    VerifyDataset,
)
from labmesh.storage.base import BlobStore, Catalog
from labmesh.transport.service import Answer

__all__ = ["Retrieval"]

log = logging.getLogger(__name__)

T = TypeVar("T")

#: A page of records ends where it would grow beyond this; the next page goes on there.
_PAGE_BYTES = 2**19
_RECORD_BYTES = 512


class Retrieval:
    """Answers the requests about what is stored; on the running loop, the work in threads.

    :param trash_s: seconds after which what was deleted is gone for ever.
    :param on_damage: told of each dataset that turns out to be damaged, by its SHA-256.
    """

    def __init__(
        self,
        bank_id: str,
        store: BlobStore,
        catalog: Catalog,
        threads: BankThreads,
        *,
        trash_s: float,
        on_damage: Callable[[str], None],
        purge: Callable[[str], None],
    ) -> None:
        self._bank_id = bank_id
        self._store = store
        self._catalog = catalog
        self._threads = threads
        self._trash_s = trash_s
        self._on_damage = on_damage
        self._purge_now = purge

    def handle(self, request: Request) -> Coroutine[Any, Any, Answer]:
        """Answer one request of the retrieve socket."""
        match request:
            case Fetch():
                return self._fetch(request)
            case GetDataset():
                return self._get(request)
            case ListDatasets():
                return self._list(request)
            case SearchDatasets():
                return self._search(request)
            case GetHistory():
                return self._history(request)
            case Annotate():
                return self._annotate(request)
            case DeleteDataset():
                return self._delete(request)
            case RestoreDataset():
                return self._restore(request)
            case PurgeDataset():
                return self._purge(request)
            case ListTrash():
                return self._list_trash(request)
            case VerifyDataset():
                return self._verify(request)
            case _:
                raise AssertionError(f"{type(request).__name__} is not for retrieve")

    # ── bytes ───────────────────────────────────────────────────────────────────────────────────

    async def _fetch(self, request: Fetch) -> Answer:
        check_id(request.dataset_id, "dataset id")
        try:
            piece = await self._threads.run("read", self._read, request)
        except Damaged as exc:
            self._on_damage(str(exc.detail.get("sha256", "")))
            raise
        return Fetched(id=request.id, offset=request.offset), piece

    def _read(self, request: Fetch) -> bytes:
        record = self._found(self._catalog.get(request.dataset_id), request.dataset_id)
        size = min(request.size, record.size - request.offset)
        if size <= 0:
            raise ProtocolError(
                f"offset {request.offset} is not inside the {record.size} bytes of "
                f"{record.dataset_id}"
            )
        return self._store.read(record.sha256, request.offset, size)

    async def _verify(self, request: VerifyDataset) -> Answer:
        record = await self._record(request.dataset_id)
        try:
            await self._threads.run("upkeep", self._store.verify, record.sha256, record.size)
        except Damaged as exc:
            self._on_damage(record.sha256)
            return Verified(id=request.id, damage=str(exc))
        return Verified(id=request.id)

    # ── records ─────────────────────────────────────────────────────────────────────────────────

    async def _record(self, dataset_id: str) -> DatasetRecord:
        check_id(dataset_id, "dataset id")
        return self._found(await self._in_catalog(self._catalog.get, dataset_id), dataset_id)

    async def _in_catalog(self, function: Callable[..., T], *arguments: object) -> T:
        return await self._threads.run("catalog", function, *arguments)

    def _found(self, record: DatasetRecord | None, dataset_id: str) -> DatasetRecord:
        if record is None:
            raise NotFound(
                f"bank {self._bank_id} has no dataset {dataset_id}; see 'labmesh data ls'"
            )
        return record

    async def _get(self, request: GetDataset) -> Answer:
        if not request.full:
            return Committed(id=request.id, record=await self._record(request.dataset_id))
        check_id(request.dataset_id, "dataset id")
        record = await self._in_catalog(self._catalog.full, request.dataset_id)
        return Committed(id=request.id, record=self._found(record, request.dataset_id))

    async def _list(self, request: ListDatasets) -> Answer:
        page = await self._in_catalog(
            self._catalog.page, request.after, request.limit, request.newest_first
        )
        records = page.records[: _that_fit([_size_of(each) for each in page.records])]
        more = page.more or len(records) < len(page.records)
        return DatasetPage(
            id=request.id,
            records=records,
            more=more,
            highest=self._catalog.highest_given(),
            time=time.time(),
        )

    async def _search(self, request: SearchDatasets) -> Answer:
        found = await self._in_catalog(self._catalog.search, request)
        count = _that_fit([_size_of(each) for each in found.records])
        if count < len(found.records):
            # Where the page goes on is known to the catalogue alone: ask it for so many.
            shorter = SearchDatasets(**{**_fields(request), "limit": count})
            found = await self._in_catalog(self._catalog.search, shorter)
        return DatasetPage(
            id=request.id, records=found.records, more=bool(found.next), next=found.next
        )

    # ── notes and tags ──────────────────────────────────────────────────────────────────────────

    async def _history(self, request: GetHistory) -> Answer:
        check_id(request.dataset_id, "dataset id")
        annotations = await self._in_catalog(self._catalog.history, request.dataset_id)
        newest = annotations[::-1]
        count = _that_fit([len(each.note.encode()) + _RECORD_BYTES for each in newest])
        return History(id=request.id, annotations=newest[:count][::-1])

    async def _annotate(self, request: Annotate) -> Answer:
        self._check_writable()
        check_id(request.dataset_id, "dataset id")
        for tag in [*request.add_tags, *request.remove_tags]:
            if tag != tag.strip() or not tag.isprintable():
                raise ProtocolError(
                    f"a tag is printable text without spaces around it, not {shown(tag)}"
                )
        annotation = Annotation(
            time=time.time(),
            who=request.who,
            add_tags=request.add_tags,
            remove_tags=request.remove_tags,
            note=request.note,
        )
        record = await self._threads.run(
            "commit", self._catalog.annotate, request.dataset_id, annotation
        )
        return Committed(id=request.id, record=record)

    # ── the trash ───────────────────────────────────────────────────────────────────────────────

    async def _delete(self, request: DeleteDataset) -> Answer:
        self._check_writable()
        record = await self._record(request.dataset_id)
        now = time.time()
        entry = TrashEntry(
            record=record,
            deleted=now,
            purge=now + self._trash_s,
            who=request.who,
            why=request.why,
        )
        await self._threads.run("commit", self._catalog.trash, entry)
        log.info("deleted %s (%s)", request.dataset_id, request.who or "nobody says who")
        return Done(id=request.id)

    async def _restore(self, request: RestoreDataset) -> Answer:
        self._check_writable()
        check_id(request.dataset_id, "dataset id")
        record = await self._threads.run("commit", self._catalog.restore, request.dataset_id)
        return Committed(id=request.id, record=record)

    async def _purge(self, request: PurgeDataset) -> Answer:
        self._check_writable()
        check_id(request.dataset_id, "dataset id")
        await self._threads.run("commit", self._purge_now, request.dataset_id)
        return Done(id=request.id)

    async def _list_trash(self, request: ListTrash) -> Answer:
        entries = await self._in_catalog(self._catalog.trashed, request.after, request.limit + 1)
        count = min(request.limit, _that_fit([_size_of(each.record) for each in entries]))
        return TrashPage(id=request.id, entries=entries[:count], more=count < len(entries))

    def _check_writable(self) -> None:
        refusal = self._store.refusal()
        if refusal:
            raise StorageError(
                f"bank {self._bank_id} changes nothing for now: {refusal}; what it has can be read"
            )


def _fields(request: SearchDatasets) -> dict[str, Any]:
    return {name: getattr(request, name) for name in request.__struct_fields__}


def _size_of(record: DatasetRecord) -> int:
    """About what a record takes in a message."""
    return len(encode_value(record.meta)) + _RECORD_BYTES + 160 * len(record.parents)


def _that_fit(sizes: list[int]) -> int:
    """How many of the first the limit of a page admits; at least one, where there is one."""
    total = 0
    for count, size in enumerate(sizes):
        total += size
        if total > _PAGE_BYTES and count:
            return count
    return len(sizes)
