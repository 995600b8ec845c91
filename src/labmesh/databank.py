"""The databank: takes datasets, keeps them, serves them, announces them."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from os import PathLike, fspath
from pathlib import Path
from typing import Any, ClassVar, TypeVar, assert_never

import msgspec

from labmesh.errors import LabmeshError, NotFound, ProtocolError
from labmesh.membership import Member
from labmesh.protocol.addresses import Address, parse_bind
from labmesh.protocol.codec import encode_value
from labmesh.protocol.ids import check_id
from labmesh.protocol.messages import (
    INGEST_REQUESTS,
    RETRIEVE_REQUESTS,
    Committed,
    DatasetPage,
    DatasetRecord,
    Fetch,
    Fetched,
    GetDataset,
    GetStatus,
    ListDatasets,
    Request,
    Status,
    UploadAbort,
    UploadChunk,
    UploadCommit,
    UploadStart,
)
from labmesh.protocol.upload import UploadLimits, UploadReceiver
from labmesh.protocol.upload_steps import Discard, Effect, Finish, Open, Step, UploadKey, Write
from labmesh.storage.base import BlobStore, Catalog, Part
from labmesh.storage.filesystem import FileBlobStore, FileCatalog
from labmesh.transport.keys import Security
from labmesh.transport.service import Answer, Origin, Service

__all__ = ["DataBank"]

log = logging.getLogger(__name__)

T = TypeVar("T")

_THREADS = 4
_INGEST_PENDING = 64
_RETRIEVE_PENDING = 16
_UNANNOUNCED = 10_000
#: Whoever lost the broker has it back so long after the first who did: retries are 2 s apart.
_EVERYBODY_BACK_S = 3.0
#: A page of records ends where it would grow beyond this; the next page goes on there.
_PAGE_BYTES = 2**19


class DataBank(Member):
    """Keeps datasets in a folder.

    An upload is acknowledged when its size and SHA-256 were checked and it is on disk.

    :param ingest_bind: where uploads arrive; port ``*`` or ``0`` takes a free one.
    :param retrieve_bind: where downloads are served.
    :param data_dir: the folder; it is made when it is missing. One bank a folder.
    :param broker_rpc: the broker's request address.
    :param broker_xsub: the broker's address for publishers.
    :param bank_id: the id on the network.
    :param heartbeat_sec: seconds between heartbeats to the broker.
    :param broker_address: the host that ``BROKER`` stands for in the addresses.
    :param local_address: the host to advertise when bound on every interface.
    :param store: where the bytes go, and :param catalog: where the records go, instead of
        ``data_dir``; the bank closes both.
    :param limits: what the bank takes.
    :param security: by default what the environment says (``LMH_NETWORK_PASSWORD``).
    """

    kind: ClassVar[Any] = "bank"

    def __init__(
        self,
        *,
        ingest_bind: str = "tcp://*:5761",
        retrieve_bind: str = "tcp://*:5762",
        data_dir: str | PathLike[str] = "./bank_data",
        broker_rpc: str = "tcp://BROKER:5750",
        broker_xsub: str = "tcp://BROKER:5751",
        bank_id: str = "bank-0",
        heartbeat_sec: float = 5.0,
        broker_address: str = "127.0.0.1",
        local_address: str = "127.0.0.1",
        store: BlobStore | None = None,
        catalog: Catalog | None = None,
        limits: UploadLimits | None = None,
        security: Security | None = None,
    ) -> None:
        super().__init__(
            bank_id,
            broker_rpc=broker_rpc,
            broker_events=broker_xsub,
            broker_address=broker_address,
            local_address=local_address,
            heartbeat_s=heartbeat_sec,
            security=security,
        )
        if (store is None) != (catalog is None):
            raise ValueError("a store and a catalog go together: give both, or neither")
        self._ingest_bind = parse_bind(ingest_bind)
        self._retrieve_bind = parse_bind(retrieve_bind)
        self._data_dir = Path(fspath(data_dir))
        self._given = (store, catalog)
        self._limits = limits

    @property
    def ingest(self) -> Address:
        """The address that the upload socket got."""
        return self._ingest.address

    @property
    def retrieve(self) -> Address:
        """The address that the download socket got."""
        return self._retrieve.address

    # ── life ────────────────────────────────────────────────────────────────────────────────────

    async def _open(self) -> None:
        self._executor = ThreadPoolExecutor(_THREADS, thread_name_prefix=f"{self.node_id}-disk")
        self._receiver = UploadReceiver(self.node_id, self._limits)
        self._parts: dict[UploadKey, Part] = {}
        self._turns: dict[UploadKey, asyncio.Lock] = {}
        self._unannounced: deque[DatasetRecord] = deque(maxlen=_UNANNOUNCED)
        self._uploads_moved = asyncio.Event()
        self._opening = self._executor.submit(self._open_storage)
        self._store, self._catalog = await asyncio.wrap_future(self._opening)
        self._ingest = self._serve_on(
            self._ingest_bind, "ingest", INGEST_REQUESTS, self._handle_ingest, _INGEST_PENDING
        )
        self._retrieve = self._serve_on(
            self._retrieve_bind,
            "retrieve",
            RETRIEVE_REQUESTS,
            self._handle_retrieve,
            _RETRIEVE_PENDING,
        )
        self._spawn(self._expire_uploads(), "upload expiry")
        await self._join()
        log.info("bank %s: %s in %s", self.node_id, self._endpoints(), self._title())

    def _open_storage(self) -> tuple[BlobStore, Catalog]:
        store, catalog = self._given
        if store is not None and catalog is not None:
            return store, catalog
        files = FileBlobStore(self._data_dir)
        try:
            return files, FileCatalog(self._data_dir)
        except BaseException:
            files.close()
            raise

    def _close_storage(self) -> None:
        """Also what a start that was cancelled is still opening."""
        wait([self._opening])
        if not self._opening.cancelled() and self._opening.exception() is None:
            store, catalog = self._opening.result()
            catalog.close()
            store.close()

    def _serve_on(
        self, bind: Address, role: str, requests: Any, handle: Any, max_pending: int
    ) -> Service:
        return Service(
            self._sockets,
            bind,
            role=role,
            requests=requests,
            node_id=self.node_id,
            kind=self.kind,
            epoch=self.epoch,
            handle=handle,
            max_pending=max_pending,
        )

    async def _close(self) -> None:
        for service in ("_ingest", "_retrieve"):
            if hasattr(self, service):
                await getattr(self, service).close()
        if hasattr(self, "_opening"):
            try:
                await self._off_loop(self._close_storage)
            except LabmeshError:
                raise
            except RuntimeError:
                # At the interpreter's exit no executor takes work any more.
                self._close_storage()
            self._executor.shutdown()
        await super()._close()

    def _endpoints(self) -> dict[str, str]:
        return {
            "ingest": self._advertise(self._ingest.address),
            "retrieve": self._advertise(self._retrieve.address),
        }

    def _title(self) -> str:
        return "memory" if self._given[0] is not None else str(self._data_dir.absolute())

    async def _off_loop(self, function: Callable[..., T], *arguments: Any) -> T:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._executor, function, *arguments)

    # ── uploads ─────────────────────────────────────────────────────────────────────────────────

    def _handle_ingest(self, request: Request, body: memoryview | None, _origin: Origin) -> Any:
        now = time.monotonic()
        match request:
            case UploadStart():
                return self._start(request)
            case UploadChunk():
                size = 0 if body is None else len(body)
                return self._perform(self._receiver.chunk(request, size, now), request, body)
            case UploadCommit():
                return self._commit(request)
            case UploadAbort():
                step = self._receiver.abort(request)
                return self._perform(step, request) if isinstance(step, Step) else step
            case GetStatus():
                return self._status(request)
            case _:
                raise AssertionError(f"{type(request).__name__} is not for ingest")

    async def _start(self, request: UploadStart) -> Answer:
        check_id(request.dataset_id, "dataset id")
        stored = await self._off_loop(self._catalog.get, request.dataset_id)
        step = self._receiver.start(request, stored, time.monotonic())
        return await self._perform(step, request) if isinstance(step, Step) else step

    async def _commit(self, request: UploadCommit) -> Answer:
        stored = await self._off_loop(self._catalog.get, request.dataset_id)
        step = self._receiver.commit(request, stored, time.monotonic(), time.time())
        return await self._perform(step, request) if isinstance(step, Step) else step

    async def _perform(
        self, step: Step, request: Request, body: memoryview | None = None
    ) -> Answer:
        """Do a step in its turn: the steps of one upload are done in the order of arrival."""
        try:
            async with self._turns.setdefault(step.key, asyncio.Lock()):
                self._receiver.check(step)
                record = await self._off_loop(self._do, step.key, step.effect, body)
                self._receiver.performed(step, time.monotonic())
        except BaseException:
            await self._end_failed(step)
            raise
        finally:
            self._uploads_moved.set()
        if isinstance(step.effect, Finish | Discard):
            self._turns.pop(step.key, None)
        if record is None:
            return step.reply
        log.info("stored %s (%d bytes)", record.dataset_id, record.size)
        self._announce(record)
        return Committed(id=request.id, record=record)

    async def _end_failed(self, step: Step) -> None:
        left = self._receiver.failed(step)
        if left is not None:
            async with self._turns.setdefault(left.key, asyncio.Lock()):
                await self._off_loop(self._do, left.key, left.effect, None)
            self._turns.pop(left.key, None)

    def _do(
        self, key: UploadKey, effect: Effect | None, body: memoryview | None
    ) -> DatasetRecord | None:
        """In a disk thread; one at a time for each upload."""
        match effect:
            case None:
                return None
            case Open(size=size):
                self._parts[key] = self._store.begin(size)
            case Write(offset=offset):
                assert body is not None
                self._parts[key].write(offset, body)
            case Finish(record=record):
                self._parts.pop(key).finish(record.size, record.sha256)
                return self._catalog.add(record)
            case Discard():
                part = self._parts.pop(key, None)
                if part is not None:
                    part.discard()
            case _:
                assert_never(effect)
        return None

    async def _expire_uploads(self) -> None:
        while True:
            self._uploads_moved.clear()
            deadline = self._receiver.next_deadline()
            try:
                async with asyncio.timeout(
                    None if deadline is None else max(0.0, deadline - time.monotonic())
                ):
                    await self._uploads_moved.wait()
            except TimeoutError:
                for step in self._receiver.expire(time.monotonic()):
                    log.warning("upload of %s was given up by its sender", step.key.dataset_id)
                    await self._off_loop(self._do, step.key, step.effect, None)
                    self._turns.pop(step.key, None)

    def _announce(self, record: DatasetRecord) -> None:
        try:
            announced = self._publish("dataset", "dataset", msgspec.to_builtins(record))
        except ProtocolError:
            # Its meta is too large or too deep for an event. It is stored, so it is announced;
            # whoever wants its meta asks for the record.
            short = msgspec.structs.replace(record, meta={})
            announced = self._publish("dataset", "dataset", msgspec.to_builtins(short))
        if not announced:
            self._unannounced.append(record)

    def _events_up(self) -> None:
        waiting = list(self._unannounced)
        self._unannounced.clear()
        if waiting:
            self._spawn(self._announce_late(waiting), "late announcements")

    async def _announce_late(self, waiting: list[DatasetRecord]) -> None:
        """What was stored while the broker was away is announced now, and once more.

        Subscribers may find the broker again later than this bank does. They hear of a dataset
        once, however often it is announced.
        """
        for record in waiting:
            self._announce(record)
        await asyncio.sleep(_EVERYBODY_BACK_S)
        for record in waiting:
            self._announce(record)

    # ── downloads ───────────────────────────────────────────────────────────────────────────────

    def _handle_retrieve(self, request: Request, _body: memoryview | None, _origin: Origin) -> Any:
        match request:
            case Fetch():
                return self._fetch(request)
            case GetDataset():
                return self._get(request)
            case ListDatasets():
                return self._list(request)
            case GetStatus():
                return self._status(request)
            case _:
                raise AssertionError(f"{type(request).__name__} is not for retrieve")

    async def _find(self, dataset_id: str) -> DatasetRecord:
        check_id(dataset_id, "dataset id")
        record = await self._off_loop(self._catalog.get, dataset_id)
        if record is None:
            raise NotFound(
                f"bank {self.node_id} has no dataset {dataset_id}; see 'labmesh data ls'"
            )
        return record

    async def _get(self, request: GetDataset) -> Answer:
        return Committed(id=request.id, record=await self._find(request.dataset_id))

    async def _fetch(self, request: Fetch) -> Answer:
        record = await self._find(request.dataset_id)
        size = min(request.size, record.size - request.offset)
        if size <= 0:
            raise ProtocolError(
                f"offset {request.offset} is not inside the {record.size} bytes of "
                f"{record.dataset_id}"
            )
        piece = await self._off_loop(self._store.read, record.sha256, request.offset, size)
        return Fetched(id=request.id, offset=request.offset), piece

    async def _list(self, request: ListDatasets) -> Answer:
        page = await self._off_loop(
            self._catalog.page, request.after, request.limit, request.newest_first
        )
        records = _within(page.records, _PAGE_BYTES)
        more = page.more or len(records) < len(page.records)
        return DatasetPage(id=request.id, records=records, more=more)

    async def _status(self, request: Request) -> Answer:
        facts = {
            **self._member_facts(),
            "datasets": await self._off_loop(self._catalog.count),
            "free_bytes": await self._off_loop(self._store.free_bytes),
            "uploads_open": len(self._receiver),
            "unannounced": len(self._unannounced),
            "folder": self._title(),
        }
        return Status(
            id=request.id,
            node_id=self.node_id,
            kind="bank",
            epoch=self.epoch,
            uptime_s=self.uptime_s,
            facts=facts,
        )


def _within(records: list[DatasetRecord], limit_bytes: int) -> list[DatasetRecord]:
    """As many of the first records as the limit admits, at least one."""
    size = 0
    for count, record in enumerate(records):
        size += len(encode_value(record.meta)) + 512
        if size > limit_bytes and count:
            return records[:count]
    return records
