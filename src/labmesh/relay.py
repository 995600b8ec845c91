"""The relay: a driver's methods for clients, its state for everybody, its results for a bank."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from labmesh.calls import CallDesk
from labmesh.content import Content
from labmesh.errors import NotFound, Stopping
from labmesh.instruments.exposure import MethodTable
from labmesh.membership import Member
from labmesh.node import seconds
from labmesh.protocol.addresses import Address, parse_bind
from labmesh.protocol.ids import did_you_mean
from labmesh.protocol.leases import Leases
from labmesh.protocol.messages import (
    RELAY_REQUESTS,
    Describe,
    Description,
    GetStatus,
    ListNodes,
    NodeList,
    NodeRecord,
    Request,
    Status,
)
from labmesh.states import StateStream
from labmesh.transfer import Progress, UploadSettings, upload, upload_dataset
from labmesh.transport.answering import Answer, Origin
from labmesh.transport.keys import Security
from labmesh.transport.shared import SharedService

__all__ = ["RelayAgent", "upload_dataset"]

log = logging.getLogger(__name__)

_FINISH_S = 3.5
_READ_S = 0.05
_DIRECTORY_S = 5.0


class RelayAgent(Member):
    """Serves one driver.

    Every public method of the driver's class can be called by clients, one call at a time, in a
    thread of the driver's own: a driver that blocks does not silence its relay. ``poll()``, where
    the driver has it, gives the state that is published.

    :param relay_id: the id on the network.
    :param driver: any Python object.
    :param broker_rpc: the broker's request address.
    :param rpc_bind: where clients reach this relay; port ``*`` or ``0`` takes a free one.
    :param state_pub: the broker's address for publishers.
    :param local_address: the host to advertise when ``rpc_bind`` is on every interface.
    :param broker_address: the host that ``BROKER`` stands for in the addresses.
    :param state_interval: seconds between two states.
    :param heartbeat_seconds: seconds between heartbeats to the broker.
    :param upload_timeout: seconds that one step of an upload may take.
    :param upload_retries: how often a broken upload is resumed.
    :param upload_chunk: bytes that an upload sends at a time (the bank may ask for fewer).
    :param threads: more than one only for a driver that is safe to call concurrently.
    :param max_queue: calls that may wait for the driver; further ones are refused as busy.
    :param read_only: methods that change nothing, by name or pattern (``get_*``): they can be
        called while somebody else holds the lease.
    :param require_lease: nobody may write without a lease.
    :param security: by default what the environment says (``LMH_NETWORK_PASSWORD``).
    """

    kind: ClassVar[Any] = "relay"
    #: of the present incarnation, once its socket is bound
    _service: SharedService

    def __init__(
        self,
        relay_id: str,
        driver: object,
        broker_rpc: str = "tcp://BROKER:5750",
        rpc_bind: str = "tcp://*:*",
        state_pub: str = "tcp://BROKER:5751",
        local_address: str = "127.0.0.1",
        broker_address: str = "127.0.0.1",
        state_interval: float = 1.0,
        *,
        heartbeat_seconds: float = 5.0,
        upload_timeout: float = 10.0,
        upload_retries: int = 5,
        upload_chunk: int = 1_000_000,
        threads: int = 1,
        max_queue: int = 4096,
        read_only: Sequence[str] = (),
        require_lease: bool = False,
        security: Security | None = None,
    ) -> None:
        super().__init__(
            relay_id,
            broker_rpc=broker_rpc,
            broker_events=state_pub,
            broker_address=broker_address,
            local_address=local_address,
            heartbeat_s=heartbeat_seconds,
            security=security,
        )
        self._state_interval_s = seconds(state_interval, "state_interval")
        self.driver = driver
        self._rpc_bind = parse_bind(rpc_bind)
        self._table = MethodTable.of(driver, read_only=read_only)
        self._uploads = UploadSettings(upload_timeout, upload_retries, upload_chunk)
        self._threads, self._max_queue = threads, max_queue
        self._require_lease = require_lease

    @property
    def rpc(self) -> Address:
        """The address that the request socket got."""
        return self._service.address

    async def upload(
        self,
        content: Content,
        *,
        name: str = "",
        meta: Mapping[str, Any] | None = None,
        bank: str | None = None,
        dataset_id: str | None = None,
        progress: Progress | None = None,
    ) -> str:
        """Store a dataset in a bank; returns its id once it is verified and on disk.

        :param content: bytes, a path, a binary file, or an (async) iterator of bytes.
        :param bank: the bank's id; None: the first one of the directory.
        :raises LookupError: no such bank.
        :raises ConnectionError: the bank could not be reached in ``upload_retries`` tries.
        """
        endpoint = await self._ingest_of(bank)
        record = await self._lend(
            upload(
                self._sockets,
                endpoint,
                content,
                settings=self._uploads,
                relay_id=self.node_id,
                name=name,
                meta=meta,
                dataset_id=dataset_id,
                progress=progress,
            ),
            "upload",
        )
        return record.dataset_id

    # ── life ────────────────────────────────────────────────────────────────────────────────────

    async def _open(self) -> None:
        if hasattr(self, "_service"):
            del self._service  # of the start before
        self._known_banks: list[NodeRecord] = []
        self._desk = CallDesk(
            self.node_id,
            self._table,
            Leases(self.node_id, require=self._require_lease),
            self._publish_news,
            threads=self._threads,
            max_queue=self._max_queue,
        )
        self._states = StateStream(
            self.node_id,
            self._table,
            self._desk.worker,
            self._state_interval_s,
            self._publish_encoded,
        )
        self._service = SharedService(
            self._sockets,
            self._rpc_bind,
            role="relay",
            requests=RELAY_REQUESTS,
            node_id=self.node_id,
            kind=self.kind,
            epoch=self.epoch,
            handle=self._handle,
            lock=self._desk.lock,
        )
        self._desk.open(self._service)
        await self._join()
        self._spawn(self._states.run(), "states")
        log.info("relay %s: calls at %s", self.node_id, self._endpoints()["rpc"])

    async def _leave(self) -> None:
        if hasattr(self, "_service"):
            replies = self._desk.busy
            await self._desk.end_calls(_FINISH_S)
            if replies:
                # When a connection ends, its connecting socket drops what was not read yet.
                await asyncio.sleep(_READ_S)
        await super()._leave()

    async def _close(self) -> None:
        if hasattr(self, "_service"):
            await self._desk.end_calls(0)
            self._desk.close()
            self._service.close()
            self._desk.worker.when_ended(self._service.dispose)
        await super()._close()

    def _events_up(self) -> None:
        self._states.poll_at_once()

    def _endpoints(self) -> dict[str, str]:
        return {"rpc": self._advertise(self._service.address)}

    def _title(self) -> str:
        return self._table.driver_name

    # ── calls ───────────────────────────────────────────────────────────────────────────────────

    def _handle(self, request: Request, _body: memoryview | None, origin: Origin) -> Answer:
        """In the driver's thread, or on the loop while that one is busy; under the desk's lock."""
        if isinstance(request, Describe):
            return self._description(request.id)
        if isinstance(request, GetStatus):
            return self._status(request.id)
        return self._desk.handle(request, origin)

    def _publish_news(self, kind: str, value: Any) -> None:
        self._publish("event", kind, value)

    def _description(self, request_id: str) -> Description:
        return Description(
            id=request_id,
            node_id=self.node_id,
            epoch=self.epoch,
            driver=self._table.driver_name,
            doc=self._table.doc,
            methods=self._table.describe(),
            values=self._table.values(),
            state_interval_s=self._state_interval_s if self._table.has_poll else 0.0,
        )

    def _status(self, request_id: str) -> Status:
        now = time.monotonic()
        worker = self._desk.worker
        running = worker.running
        polled_at = self._states.polled_at
        facts = {
            **self._member_facts(),
            "driver": self._table.driver_name,
            "busy_with": None if running is None else running.method,
            "busy_s": None if running is None else now - running.since,
            "stuck": self._desk.stuck(now),
            "queued": worker.queued,
            "lease": self._desk.leases.facts(),
            "state_age_s": None if polled_at is None else now - polled_at,
            "state_error": self._states.error,
            "state_interval_s": self._state_interval_s if self._table.has_poll else None,
        }
        return Status(
            id=request_id,
            node_id=self.node_id,
            kind="relay",
            epoch=self.epoch,
            uptime_s=self.uptime_s,
            facts=facts,
        )

    # ── banks ───────────────────────────────────────────────────────────────────────────────────

    async def _banks(self) -> list[NodeRecord]:
        """The banks of the directory; while the broker is away, those that it listed last."""
        broker = self._broker
        if broker is None:
            raise Stopping(f"{self.node_id} is not running: it cannot upload")
        if broker.up or not self._known_banks:
            answer = await broker.request(ListNodes(id="-"), NodeList, timeout=_DIRECTORY_S)
            self._known_banks = [each for each in answer.nodes if each.kind == "bank"]
        return self._known_banks

    async def _ingest_of(self, bank_id: str | None) -> str:
        banks = await self._banks()
        for each in banks:
            if bank_id in (None, each.node_id):
                return each.endpoints["ingest"]
        if bank_id is None:
            raise NotFound("no bank is on the mesh: start one with 'labmesh bank'")
        known = [each.node_id for each in banks]
        near = did_you_mean(bank_id, known)
        raise NotFound(
            f"no bank {bank_id!r} is on the mesh{near and f' ({near})'}; the broker lists "
            f"{', '.join(known) or 'none'}"
        )
