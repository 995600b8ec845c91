"""The relay: a driver's methods for clients, its state for everybody, its results for a bank."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Iterable, Mapping, Sequence
from os import PathLike, fspath
from pathlib import Path
from typing import Any, ClassVar, Literal

from labmesh.access.watching import watch_ended_keys
from labmesh.errors import Stopping
from labmesh.instruments.exposure import MethodTable
from labmesh.membership import Member
from labmesh.node import seconds
from labmesh.protocol.addresses import Address, parse_bind
from labmesh.protocol.codec import encode_value
from labmesh.protocol.driver_events import check_event
from labmesh.protocol.leases import Leases
from labmesh.protocol.messages import (
    RELAY_REQUESTS,
    Describe,
    GetStatus,
    Request,
)
from labmesh.protocol.sizes import parse_size
from labmesh.provenance import driver_facts
from labmesh.serving.banks import ListedBanks
from labmesh.serving.calls import CallDesk
from labmesh.serving.relay_facts import RelayFacts
from labmesh.serving.states import ON_CHANGE, WHEN_POLLED, StateStream
from labmesh.serving.uploading import RelayUploads
from labmesh.storage.spool import Spool
from labmesh.transfer import Progress, UploadSettings, upload_dataset
from labmesh.transport.answering import Answer, Origin
from labmesh.transport.keys import Security
from labmesh.transport.permits import Permits
from labmesh.transport.shared import SharedService

__all__ = ["RelayAgent", "upload_dataset"]

log = logging.getLogger(__name__)

_FINISH_S = 3.5
_READ_S = 0.05


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
    :param spare_broker: the spare broker's address: ``host``, or ``host:port`` of its requests.
    :param upload_timeout: seconds that one step of an upload may take.
    :param upload_retries: how often a broken upload is resumed.
    :param upload_chunk: bytes that an upload sends at a time (the bank may ask for fewer).
    :param spool_dir: a folder of this relay's own, where its datasets wait until a bank has them;
        None: :meth:`upload` waits for the bank itself.
    :param spool_limit: what it may hold: bytes, or a text such as ``"10 GB"``.
    :param threads: more than one only for a driver that is safe to call concurrently.
    :param max_queue: calls that may wait for the driver; further ones are refused as busy.
    :param read_only: methods that change nothing, by name or pattern (``get_*``): they can be
        called while somebody else holds the lease.
    :param require_lease: nobody may write without a lease.
    :param publish: ``"poll"``: the state is published each time it was polled; ``"change"``: only
        when it differs from the one before, and every ``keep_alive`` seconds in any case.
    :param keep_alive: seconds; subscribers take a state for stale after three of them.
    :param log_level: what this program logs from this level on is published, as far as its loggers
        let it through; None: nothing.
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
        spool_dir: str | PathLike[str] | None = None,
        spool_limit: str | int = "10 GB",
        threads: int = 1,
        max_queue: int = 4096,
        read_only: Sequence[str] = (),
        require_lease: bool = False,
        publish: Literal["poll", "change"] = WHEN_POLLED,
        keep_alive: float = 10.0,
        log_level: str | int | None = "INFO",
        security: Security | None = None,
        spare_broker: str | None = None,
    ) -> None:
        super().__init__(
            relay_id,
            broker_rpc=broker_rpc,
            broker_events=state_pub,
            broker_address=broker_address,
            local_address=local_address,
            heartbeat_s=heartbeat_seconds,
            log_level=log_level,
            security=security,
            spare_broker=spare_broker,
        )
        self._state_interval_s = seconds(state_interval, "state_interval")
        if publish not in (WHEN_POLLED, ON_CHANGE):
            raise ValueError(f'publish is "{WHEN_POLLED}" or "{ON_CHANGE}", not {publish!r}')
        keep_alive_s = seconds(keep_alive, "keep_alive")
        self._keep_alive_s = keep_alive_s if publish == ON_CHANGE else None
        self.driver = driver
        self._rpc_bind = parse_bind(rpc_bind)
        self._table = MethodTable.of(driver, read_only=read_only)
        self._upload_settings = UploadSettings(upload_timeout, upload_retries, upload_chunk)
        self._spool_dir = None if spool_dir is None else Path(fspath(spool_dir)).absolute()
        self._spool_bytes = parse_size(str(spool_limit))
        self._spool: Spool | None = None
        self._threads, self._max_queue = threads, max_queue
        self._require_lease = require_lease

    @property
    def rpc(self) -> Address:
        """The address that the request socket got."""
        return self._service.address

    async def upload(
        self,
        content: Any,
        *,
        name: str = "",
        meta: Mapping[str, Any] | None = None,
        kind: str | None = None,
        bank: str | None = None,
        dataset_id: str | None = None,
        parents: Iterable[str] = (),
        tags: Iterable[str] = (),
        wait: bool = False,
        progress: Progress | None = None,
    ) -> str:
        """Store a dataset; returns its id.

        With a spool it returns once the dataset is on this relay's disk; it is sent from there,
        however long no bank is there, and however often this relay is killed. Without one it
        returns once the bank has it, verified and on disk.

        An iterator that fails or is cancelled in the middle is not uploaded; what was stored of it
        stays in the spool's folder ``incomplete``, and the exception names the place.

        :param content: bytes, a path, a binary file, an array or table, a dict, or an (async)
            iterator of bytes.
        :param kind: how ``read()`` turns the bytes back; by default as the content says.
        :param bank: the bank's id; None: the one with most room (when it is sent).
        :param parents: the datasets that it was made from.
        :param wait: with a spool, too, wait until a bank has it.
        :param progress: called with the bytes that are safe so far, and the size.
        :raises NoSpace: the spool is full; or the bank, without one.
        :raises LookupError: no such bank (without a spool, which waits for it).
        :raises ConnectionError: the bank could not be reached in ``upload_retries`` tries (as
            above).
        """
        uploads = self._running_uploads()
        work = uploads.upload(
            content,
            name=name,
            meta=meta,
            kind=kind,
            bank=bank,
            dataset_id=dataset_id,
            parents=parents,
            tags=tags,
            wait=wait,
            progress=progress,
        )
        return await self._lend(work, "upload")

    async def publish(self, event: str, value: Any = None) -> bool:
        """Tell everybody who listens that something happened: ``client.on_event`` gets it.

        :param event: ``alarm`` and ``message`` (a text), ``progress`` (0 to 1), or a name of your
            own.
        :returns: False: the broker is away, and nobody hears it (they see a gap).
        :raises ValueError: no name for an event.
        :raises ProtocolError, TooLarge: a value that cannot be sent, or one over 256 KiB.
        """
        check_event(event)
        self._running_uploads()
        return self._publish("event", event, value)

    def publish_from_thread(self, event: str, value: Any = None) -> bool:
        """:meth:`publish` for another thread than the loop's, which waits until it is on its way.

        A driver need not know its relay: it uses :func:`labmesh.publish`.
        """
        if threading.get_ident() == self._thread:
            raise RuntimeError("this is the thread of the relay's loop: await relay.publish(...)")
        check_event(event)
        payload = encode_value(value)
        self._running_uploads()
        work = self._lend(self._publish_event(event, payload), "publish")
        return asyncio.run_coroutine_threadsafe(work, self._home).result()

    async def _publish_event(self, event: str, payload: bytes) -> bool:
        return self._publish_encoded("event", event, payload)

    async def drain(self) -> None:
        """Wait until nothing waits in the spool any more: banks have it, or it was put aside."""
        sender = self._running_uploads().sender
        if sender is not None:
            await self._lend(sender.drain(), "drain")

    def upload_from_thread(self, content: Any, **details: Any) -> str:
        """:meth:`upload` for another thread than the loop's, which waits for it.

        A driver need not know its relay: it uses :func:`labmesh.upload`.
        """
        return self._running_uploads().upload_from_thread(content, **details)

    # ── life ────────────────────────────────────────────────────────────────────────────────────

    async def _open(self) -> None:
        if hasattr(self, "_service"):
            del self._service  # of the start before
        if self._spool_dir is not None:
            self._spool = await asyncio.to_thread(Spool, self._spool_dir, self._spool_bytes)
        self._desk = CallDesk(
            self.node_id,
            self._table,
            Leases(self.node_id, require=self._require_lease),
            self._publish_news,
            threads=self._threads,
            max_queue=self._max_queue,
            audit=self.audit,
        )
        if self.audit is not None:
            self.audit.describe(self._table)
        self._states = StateStream(
            self.node_id,
            self._table,
            self._desk.worker,
            self._state_interval_s,
            self._publish_encoded,
            self._keep_alive_s,
        )
        self._facts = RelayFacts(
            self.node_id, self.epoch, type(self.driver), self._table, self._desk, self._states
        )
        self._uploads = RelayUploads(
            self.node_id,
            self._sockets,
            ListedBanks(self.node_id, lambda: self._broker),
            settings=self._upload_settings,
            provenance=self._facts.provenance,
            lend=self._lend,
            spool=self._spool,
        )
        self._service = self._bound_service()
        self._desk.worker.uploader = self._uploads.upload_from_thread
        self._desk.worker.publisher = self.publish_from_thread
        self._thread = threading.get_ident()
        self._home = asyncio.get_running_loop()
        self._desk.open(self._service)
        await self._join()
        if self._uploads.sender is not None:
            self._spawn(self._uploads.sender.run(), "spool")
            # It takes a while once, for which no acquisition should have to wait.
            self._spawn(asyncio.to_thread(driver_facts, type(self.driver)), "facts of the driver")
        self._spawn(self._states.run(), "states")
        guard = self._sockets.security.guard
        self._spawn(watch_ended_keys(guard, self._desk.end_of_keys), "keys that end")
        log.info("relay %s: calls at %s", self.node_id, self._endpoints()["rpc"])

    def _bound_service(self) -> SharedService:
        return SharedService(
            self._sockets,
            self._rpc_bind,
            role="relay",
            requests=RELAY_REQUESTS,
            node_id=self.node_id,
            kind=self.kind,
            epoch=self.epoch,
            handle=self._handle,
            handle_calls=self._desk.take_all,
            greet=self._desk.callers.greet,
            lock=self._desk.lock,
            permits=Permits.of(
                self._sockets.security,
                self.node_id,
                relay=self.node_id,
                only_reads=self._table.only_reads,
                has_come=self._desk.has_come,
            ),
        )

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
        if self._spool is not None:
            self._spool.close()
            self._spool = None
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
            return self._facts.description(request.id)
        if isinstance(request, GetStatus):
            sender = self._uploads.sender
            spool = None if sender is None else sender.facts()
            return self._facts.status(request.id, self.uptime_s, self._member_facts(), spool)
        return self._desk.handle(request, origin)

    def _publish_news(self, kind: str, value: Any) -> None:
        self._publish("event", kind, value)

    # ── datasets ────────────────────────────────────────────────────────────────────────────────

    def _running_uploads(self) -> RelayUploads:
        if self._broker is None:
            raise Stopping(f"{self.node_id} is not running: it cannot upload")
        return self._uploads
