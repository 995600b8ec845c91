"""The relay: a driver's methods for clients, its state for everybody, its results for a bank."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Mapping
from typing import Any, ClassVar

from labmesh.content import Content
from labmesh.errors import (
    Cancelled,
    Conflict,
    Expired,
    LabmeshError,
    NotFound,
    OutcomeUnknown,
    Stopping,
)
from labmesh.instruments.exposure import MethodTable
from labmesh.instruments.worker import DriverWorker, Job, Outcome
from labmesh.membership import Member
from labmesh.node import seconds
from labmesh.protocol.addresses import Address, parse_bind
from labmesh.protocol.callee import Callee, OpenCall
from labmesh.protocol.codec import Buffer, Codec
from labmesh.protocol.ids import did_you_mean
from labmesh.protocol.messages import (
    RELAY_REQUESTS,
    Call,
    Cancel,
    Describe,
    Description,
    Done,
    GetStatus,
    ListNodes,
    NodeList,
    NodeRecord,
    Request,
    Result,
    Status,
)
from labmesh.states import StateStream
from labmesh.transfer import Progress, UploadSettings, upload, upload_dataset
from labmesh.transport.keys import Security
from labmesh.transport.service import Answer, Origin, Service

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
    :param security: by default what the environment says (``LMH_NETWORK_PASSWORD``).
    """

    kind: ClassVar[Any] = "relay"

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
        self._table = MethodTable.of(driver)
        self._uploads = UploadSettings(upload_timeout, upload_retries, upload_chunk)
        self._threads, self._max_queue = threads, max_queue

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
        self._callee = Callee()
        self._jobs: dict[OpenCall, tuple[Job, Origin]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0
        self._refusing = False
        self._encoders = _Encoders()
        self._known_banks: list[NodeRecord] = []
        self._worker = DriverWorker(self.node_id, threads=self._threads, max_queue=self._max_queue)
        self._states = StateStream(
            self.node_id,
            self._table,
            self._worker,
            self._state_interval_s,
            self._publish_encoded,
        )
        self._service = Service(
            self._sockets,
            self._rpc_bind,
            role="relay",
            requests=RELAY_REQUESTS,
            node_id=self.node_id,
            kind=self.kind,
            epoch=self.epoch,
            handle=self._handle,
        )
        self._worker.start(asyncio.get_running_loop())
        await self._join()
        self._spawn(self._states.run(), "states")
        log.info("relay %s: calls at %s", self.node_id, self._endpoints()["rpc"])

    async def _leave(self) -> None:
        self._refusing = True
        if hasattr(self, "_worker"):
            await self._end_calls()
        await super()._leave()

    async def _end_calls(self) -> None:
        replies = bool(self._jobs)
        if not await self._worker.close(_FINISH_S):
            self._leave_running()
        if replies:
            # When a connection ends, its connecting socket drops what was not read yet.
            await asyncio.sleep(_READ_S)

    async def _close(self) -> None:
        if hasattr(self, "_worker"):
            await self._worker.close(0)
            self._leave_running()
        if self._timer is not None:
            self._timer.cancel()
        if hasattr(self, "_service"):
            await self._service.close()
        await super()._close()

    def _events_up(self) -> None:
        self._states.poll_at_once()

    def _endpoints(self) -> dict[str, str]:
        return {"rpc": self._advertise(self._service.address)}

    def _title(self) -> str:
        return self._table.driver_name

    # ── calls ───────────────────────────────────────────────────────────────────────────────────

    def _handle(self, request: Request, _body: memoryview | None, origin: Origin) -> Answer:
        match request:
            case Call():
                self._accept(request, origin)
                return None
            case Cancel():
                return self._cancel(request, origin)
            case Describe():
                return self._description(request.id)
            case GetStatus():
                return self._status(request.id)
            case _:
                raise AssertionError(f"{type(request).__name__} is not for a relay")

    def _accept(self, call: Call, origin: Origin) -> None:
        if self._refusing:
            raise Stopping(f"{self.node_id} is shutting down; {call.method} was not run")
        bound = self._table.bind(call.method, call.args, call.kwargs)
        open_call = self._callee.accept(origin.peer, call, time.monotonic())

        def prepare(value: Any) -> list[Buffer]:
            # In the driver's thread, and a copy: a driver may use its buffers again at once.
            frames = self._encoders.own.encode(Result(id=call.id, value=value), json=origin.json)
            return [bytes(frame) for frame in frames]

        def done(outcome: Outcome) -> None:
            self._finish(open_call, origin, outcome)

        job = Job(call=bound, done=done, begin=open_call.begin, prepare=prepare)
        self._jobs[open_call] = (job, origin)
        try:
            self._worker.submit(job)
        except LabmeshError:
            del self._jobs[open_call]
            self._callee.finish(open_call)
            raise
        self._arm()

    def _finish(self, open_call: OpenCall, origin: Origin, outcome: Outcome) -> None:
        del self._jobs[open_call]
        self._callee.finish(open_call)
        if outcome.error is not None:
            self._service.refuse(origin, outcome.error)
        else:
            self._service.send(origin, outcome.value)

    def _take_back(self, open_call: OpenCall, error: LabmeshError) -> bool:
        """End a call that still waits; False: it has begun."""
        job, origin = self._jobs[open_call]
        if not self._worker.cancel(job):
            return False
        del self._jobs[open_call]
        self._callee.finish(open_call)
        self._service.refuse(origin, error)
        return True

    def _leave_running(self) -> None:
        """Tell the callers of what the driver does not end that nobody will hear of its end."""
        for open_call, (_, origin) in self._jobs.items():
            self._callee.finish(open_call)
            self._service.refuse(origin, _abandoned(self.node_id, open_call.call.method))
        self._jobs.clear()

    def _cancel(self, request: Cancel, origin: Origin) -> Done:
        open_call = self._callee.find(origin.peer, request.call)
        method = open_call.call.method
        if not self._take_back(open_call, _cancelled(method)):
            raise Conflict(f"{method} has begun; it cannot be taken back")
        return Done(id=request.id)

    def _arm(self) -> None:
        when = self._callee.next_deadline()
        if when is None or (self._timer is not None and self._timer_at <= when):
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = when
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(when - time.monotonic(), self._tick)

    def _tick(self) -> None:
        """Signs of life for calls that last, and the end of those that waited too long."""
        self._timer = None
        now = time.monotonic()
        for open_call in self._callee.overdue(now):
            self._take_back(open_call, _overdue(open_call.call.method))
        for open_call, alive in self._callee.signs(now):
            self._service.reply(self._jobs[open_call][1], alive)
        self._arm()

    def _description(self, request_id: str) -> Description:
        return Description(
            id=request_id,
            node_id=self.node_id,
            epoch=self.epoch,
            driver=self._table.driver_name,
            doc=self._table.doc,
            methods=self._table.describe(),
            state_interval_s=self._state_interval_s if self._table.has_poll else 0.0,
        )

    def _status(self, request_id: str) -> Status:
        now = time.monotonic()
        running = self._worker.running
        polled_at = self._states.polled_at
        facts = {
            **self._member_facts(),
            "driver": self._table.driver_name,
            "busy_with": None if running is None else running.method,
            "busy_s": None if running is None else now - running.since,
            "queued": self._worker.queued,
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


class _Encoders(threading.local):
    """One for each of the driver's threads."""

    def __init__(self) -> None:
        self.own = Codec(())


def _abandoned(relay_id: str, method: str) -> LabmeshError:
    return OutcomeUnknown(
        f"{relay_id} was stopped while {method} was running: its outcome is unknown; look at the "
        "instrument before you send it again"
    )


def _cancelled(method: str) -> LabmeshError:
    return Cancelled(f"{method} was taken back by its caller before it began; it did not run")


def _overdue(method: str) -> LabmeshError:
    return Expired(f"{method} waited in the queue until its deadline; it did not run")
