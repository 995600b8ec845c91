"""The databank: takes datasets, keeps them, serves them, announces them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from os import PathLike, fspath
from pathlib import Path
from typing import Any, ClassVar

from labmesh.errors import NotSent
from labmesh.keeping.announcing import Announcer
from labmesh.keeping.bank_states import LastStates
from labmesh.keeping.bank_threads import BankThreads
from labmesh.keeping.bank_upkeep import BankUpkeep, UpkeepTimes
from labmesh.keeping.retrieval import Retrieval
from labmesh.keeping.uploads_desk import UploadsDesk
from labmesh.membership import Member
from labmesh.protocol.addresses import Address, parse_bind
from labmesh.protocol.messages import (
    INGEST_REQUESTS,
    RETRIEVE_REQUESTS,
    DatasetRecord,
    GetStatus,
    LastEvents,
    ListLast,
    Request,
    Status,
)
from labmesh.protocol.retention import Rule
from labmesh.protocol.upload import UploadLimits
from labmesh.storage.base import BlobStore, Catalog
from labmesh.storage.filesystem import open_folder
from labmesh.transport.keys import Security
from labmesh.transport.permits import Permits
from labmesh.transport.service import Answer, Origin, Service

__all__ = ["DataBank"]

log = logging.getLogger(__name__)

_INGEST_PENDING = 64
_RETRIEVE_PENDING = 16
#: A broker that does not answer within this time is done without.
_STATES_S = 0.25
_FINISH_S = 3.0
_TRASH_COUNTED = 1000
_DAY_S, _HOUR_S = 86_400.0, 3600.0


class DataBank(Member):
    """Keeps datasets in a folder.

    An upload is acknowledged when its size and SHA-256 were checked and it is on disk. What was not
    finished can be continued, also after a restart of the bank.

    :param ingest_bind: where uploads arrive; port ``*`` or ``0`` takes a free one.
    :param retrieve_bind: where downloads are served.
    :param data_dir: the folder; it is made when it is missing. One bank a folder.
    :param broker_rpc: the broker's request address.
    :param broker_xsub: the broker's address for publishers.
    :param bank_id: the id on the network.
    :param heartbeat_sec: seconds between heartbeats to the broker.
    :param spare_broker: the spare broker's address: ``host``, or ``host:port`` of its requests.
    :param broker_address: the host that ``BROKER`` stands for in the addresses.
    :param local_address: the host to advertise when bound on every interface.
    :param store: where the bytes go, and :param catalog: where the records go, instead of
        ``data_dir``; the bank closes both.
    :param limits: what the bank takes.
    :param quota_bytes: for all datasets together; 0: as much as the disk has.
    :param trash_days: days for which a deleted dataset can be restored.
    :param scrub_days: days in which every dataset is read and verified once; 0: never.
    :param retention: which datasets go into the trash by themselves; the first rule that matches a
        dataset counts.
    :param upload_idle_hours: hours for which an upload that broke off can be continued.
    :param log_level: what this program logs from this level on is published, as far as its loggers
        let it through; None: nothing.
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
        quota_bytes: int = 0,
        trash_days: float = 30.0,
        scrub_days: float = 30.0,
        upload_idle_hours: float = 24.0,
        retention: Sequence[Rule] = (),
        log_level: str | int | None = "INFO",
        security: Security | None = None,
        spare_broker: str | None = None,
    ) -> None:
        super().__init__(
            bank_id,
            broker_rpc=broker_rpc,
            broker_events=broker_xsub,
            broker_address=broker_address,
            local_address=local_address,
            heartbeat_s=heartbeat_sec,
            log_level=log_level,
            security=security,
            spare_broker=spare_broker,
        )
        if (store is None) != (catalog is None):
            raise ValueError("a store and a catalog go together: give both, or neither")
        for name, number in (
            ("quota_bytes", quota_bytes),
            ("trash_days", trash_days),
            ("scrub_days", scrub_days),
        ):
            if not number >= 0:
                raise ValueError(f"{name} is a number from 0 on, not {number!r}")
        if not upload_idle_hours > 0:
            raise ValueError(f"upload_idle_hours is a number above 0, not {upload_idle_hours!r}")
        self._ingest_bind = parse_bind(ingest_bind)
        self._retrieve_bind = parse_bind(retrieve_bind)
        self._data_dir = Path(fspath(data_dir))
        self._given = (store, catalog)
        self._quota_bytes = quota_bytes
        self._rules = tuple(retention)
        self._limits = limits or UploadLimits(idle_s=upload_idle_hours * _HOUR_S)
        self._times = UpkeepTimes(trash_s=trash_days * _DAY_S, scrub_s=scrub_days * _DAY_S)

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
        self._threads = BankThreads(self.node_id)
        self._opening = self._threads.submit("upkeep", self._open_storage)
        self._store, self._catalog = await asyncio.wrap_future(self._opening)
        self._make_desks()
        await self._uploads.adopt()
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
        self._spawn(self._uploads.expire(), "upload expiry")
        self._spawn(self._announcer.run(), "announcements")
        self._spawn(self._upkeep.probe(), "probe of the store")
        self._spawn(self._upkeep.scrub(), "scrub")
        self._spawn(self._upkeep.tidy(), "tidying up")
        await self._join()
        log.info("bank %s: %s in %s", self.node_id, self._endpoints(), self._title())

    def _make_desks(self) -> None:
        store, catalog, threads = self._store, self._catalog, self._threads
        self._states = LastStates(self._ask_states)
        self._announcer = Announcer(
            catalog, threads, lambda record: self._publish("dataset", "dataset", record)
        )
        self._upkeep = BankUpkeep(
            self.node_id,
            store,
            catalog,
            threads,
            times=self._times,
            rules=self._rules,
            audit=self.audit,
        )
        self._uploads = UploadsDesk(
            self.node_id,
            store,
            catalog,
            threads,
            limits=self._limits,
            states=self._states,
            on_stored=self._stored,
        )
        self._retrieval = Retrieval(
            self.node_id,
            store,
            catalog,
            threads,
            trash_s=self._times.trash_s,
            on_damage=self._upkeep.found_damage,
            purge=self._upkeep.purge,
        )

    def _open_storage(self) -> tuple[BlobStore, Catalog]:
        store, catalog = self._given
        if store is not None and catalog is not None:
            return store, catalog
        return open_folder(self._data_dir, quota_bytes=self._quota_bytes or None)

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
            permits=Permits.of(self._sockets.security, self.node_id),
        )

    async def _leave(self) -> None:
        if hasattr(self, "_uploads"):
            try:
                async with asyncio.timeout(_FINISH_S):
                    await self._uploads.finish()
            except TimeoutError:
                log.warning("bank %s: the disk is slow; uploads are left as they are", self.node_id)
        await super()._leave()

    async def _close(self) -> None:
        for service in ("_ingest", "_retrieve"):
            if hasattr(self, service):
                await getattr(self, service).close()
        if hasattr(self, "_states"):
            await self._states.close()
            await self._uploads.close()
        if hasattr(self, "_opening"):
            await self._threads.finish(self._close_storage)
        await super()._close()

    def _close_storage(self) -> None:
        """When the threads have ended; also what a start that was cancelled was still opening."""
        if not self._opening.cancelled() and self._opening.exception() is None:
            store, catalog = self._opening.result()
            try:
                catalog.close()
            finally:
                store.close()

    def _endpoints(self) -> dict[str, str]:
        return {
            "ingest": self._advertise(self._ingest.address),
            "retrieve": self._advertise(self._retrieve.address),
        }

    def _title(self) -> str:
        return "memory" if self._given[0] is not None else str(self._data_dir.absolute())

    # ── what happens ────────────────────────────────────────────────────────────────────────────

    def _stored(self, record: DatasetRecord) -> None:
        self._upkeep.stored(record)
        self._announcer.stored(record)

    def _events_up(self) -> None:
        self._announcer.events_up()

    async def _ask_states(self, request: ListLast) -> LastEvents:
        broker = self._broker
        if broker is None or not broker.up:
            raise NotSent("the broker was away")
        return await broker.request(request, LastEvents, timeout=_STATES_S)

    def _handle_ingest(self, request: Request, body: memoryview | None, origin: Origin) -> Any:
        if isinstance(request, GetStatus):
            return self._status(request)
        return self._uploads.handle(request, body, origin)

    def _handle_retrieve(self, request: Request, _body: memoryview | None, _origin: Origin) -> Any:
        if isinstance(request, GetStatus):
            return self._status(request)
        return self._retrieval.handle(request)

    async def _status(self, request: Request) -> Answer:
        facts = {
            **self._member_facts(),
            **await self._threads.run("catalog", self._measure),
            "quota_bytes": self._quota_bytes,
            "uploads_open": len(self._uploads),
            "unannounced": self._announcer.waiting,
            "folder": self._title(),
            **self._upkeep.facts(),
        }
        return Status(
            id=request.id,
            node_id=self.node_id,
            kind="bank",
            epoch=self.epoch,
            uptime_s=self.uptime_s,
            facts=facts,
        )

    def _measure(self) -> dict[str, int]:
        catalog = self._catalog
        return {
            "datasets": catalog.count(),
            "bytes": catalog.total_bytes(),
            "free_bytes": self._store.free_bytes(),
            "trash": len(catalog.trashed("", _TRASH_COUNTED)),
        }
