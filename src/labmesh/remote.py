"""Relays and banks as a client sees them."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager
from os import PathLike, fspath
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

import msgspec

from labmesh.batching import AsyncBatch
from labmesh.call_status import CallStatus
from labmesh.content import Content, FileSink, MemorySink, Sink
from labmesh.errors import LabmeshError, OutcomeUnknown, ProtocolError
from labmesh.holding import Fences, HeldLease
from labmesh.instruments.exposure import call_arguments
from labmesh.protocol.ids import check_id
from labmesh.protocol.messages import (
    Access,
    Batch,
    BatchResult,
    CallState,
    Committed,
    DatasetId,
    DatasetPage,
    DatasetRecord,
    Describe,
    Description,
    GetCall,
    GetDataset,
    GetStatus,
    ListDatasets,
    Reply,
    Request,
    Status,
)
from labmesh.streaming import AsyncStream
from labmesh.transfer import Progress, UploadSettings
from labmesh.transport.call_session import CallSession
from labmesh.transport.inflow import ItemStream

__all__ = ["BankClient", "LinkHealth", "RelayClient"]

T = TypeVar("T")
R = TypeVar("R", bound=Reply)

_UPLOAD = UploadSettings()
#: Longer than any relay remembers a call.
_LONG_AGO_S = 1e9
_MAX_CREDIT = 1024


class Home(Protocol):
    """What a proxy needs of its client."""

    call_limit: float
    fences: Fences
    session: CallSession

    async def at_home(self, work: Coroutine[Any, Any, T]) -> T:
        """Run on the client's loop."""

    async def request(
        self,
        node_id: str,
        request: Request,
        reply: type[R],
        *,
        timeout: float | None = None,
        endpoint: str = "rpc",
    ) -> tuple[R, memoryview | None]:
        """One request to a node; a timeout of None: as long as a question may take."""

    def invoke(
        self,
        relay_id: str,
        method: str,
        args: list[Any],
        kwargs: dict[str, Any],
        *,
        timeout: float | None = None,
        access: Access = "call",
    ) -> Coroutine[Any, Any, Any]:
        """Call a method of a relay's driver; on any loop."""

    async def open_stream(
        self,
        relay_id: str,
        method: str,
        args: list[Any],
        kwargs: dict[str, Any],
        *,
        timeout: float,
        credit: int,
    ) -> ItemStream:
        """Begin to call a method that yields."""

    async def upload_to(
        self, bank_id: str, content: Content, *, settings: UploadSettings, **details: Any
    ) -> DatasetRecord:
        """Upload to a bank."""

    async def download_to(
        self, bank_id: str, record: DatasetRecord, sink: Sink, *, progress: Progress | None
    ) -> None:
        """Download from a bank."""


class LinkHealth(NamedTuple):
    """A link of a client, as it is without asking."""

    endpoint: str
    up: bool
    #: monotonic time of the last message that came back
    heard_at: float | None
    #: why it is not up, where that is known
    trouble: LabmeshError | None


class RelayClient:
    """A relay's driver, seen from here. ``await relay.set_voltage(2.5)`` calls its method.

    Subclass it to give methods types: ``await client.get_relay_agent("Inst-0", PSUClient)``.
    """

    def __init__(self, client: Home, relay_id: str) -> None:
        self._client = client
        self.relay_id = relay_id

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.relay_id}>"

    async def call(self, method: str, params: Any = None, timeout: float | None = None) -> Any:
        """Call a driver's method.

        :param params: a dict is keywords, a list or tuple is positional arguments, anything else
            (also ``False``, ``0``, ``""``) is one argument; None: no arguments.
        :param timeout: a hard deadline, seconds. Without it the call lasts as long as the relay
            shows that it runs (up to the client's ``call_limit``) and ends 4 s after its last sign.
        :raises DriverError: the method raised; the error also inherits the builtin that it raised.
        :raises TimeoutError: no result by the deadline: ``Expired`` (it did not run and will not)
            or ``OutcomeUnknown``.
        :raises ConnectionError: the relay cannot be reached (``NotSent``), or the link broke.
        """
        args, kwargs = call_arguments(params)
        return await self.invoke(method, args, kwargs, timeout=timeout)

    async def invoke(
        self,
        method: str,
        args: list[Any],
        kwargs: dict[str, Any],
        *,
        timeout: float | None = None,
    ) -> Any:
        """:meth:`call` with positional and keyword arguments as they are."""
        return await self._client.invoke(self.relay_id, method, args, kwargs, timeout=timeout)

    def stream(
        self,
        method: str,
        params: Any = None,
        timeout: float | None = None,
        credit: int = 16,
    ) -> AsyncStream:
        """Call a method that yields: ``async for point in relay.stream("scan"):``

        A link that breaks ends it (``LinkLost``), and so does a silence of 4 s. Behind its end
        ``result`` is what the method returned.

        :param params: as in :meth:`call`.
        :param timeout: a hard deadline for all of it, seconds; None: as long as it takes.
        :param credit: how many items may be on their way or wait here, 1 to 1024; the method waits
            with the next one.
        """
        args, kwargs = call_arguments(params)
        if not 1 <= credit <= _MAX_CREDIT:
            raise ValueError(f"credit must be 1 to {_MAX_CREDIT} items, not {credit}")
        limit_s = math.inf if timeout is None else timeout

        def begin() -> Coroutine[Any, Any, ItemStream]:
            return self._client.open_stream(
                self.relay_id, method, args, kwargs, timeout=limit_s, credit=credit
            )

        return AsyncStream(begin, self._client.at_home, f"{self.relay_id}.{method}")

    def batch(self, *, keep_going: bool = False, timeout: float | None = None) -> AsyncBatch:
        """Several calls in one trip, back to back, with nothing of anybody else between them.

        ::

            async with relay.batch() as b:
                b.set_voltage(2.5)
                m = b.measure()
            print(m.value)

        They are sent at the end of the block, unless it raised. It raises the first error, and
        what is behind that was not run.

        :param keep_going: also behind a call that failed; errors stay with their calls.
        :param timeout: a hard deadline for all of it, seconds.
        """

        async def send(calls: list[Any], keep_going: bool) -> BatchResult:
            fence = self._client.fences.of(self.relay_id)
            batch = Batch(id="-", calls=calls, keep_going=keep_going, fence=fence)
            limit_s = self._client.call_limit if timeout is None else timeout
            result, _ = await self._client.at_home(
                self._client.request(self.relay_id, batch, BatchResult, timeout=limit_s)
            )
            return result

        return AsyncBatch(self.relay_id, send, keep_going=keep_going)

    async def get(self, name: str, *, timeout: float | None = None) -> Any:
        """Read one of the driver's values: a property, or a parameter."""
        return await self._client.invoke(self.relay_id, name, [], {}, timeout=timeout, access="get")

    async def set(self, name: str, value: Any, *, timeout: float | None = None) -> None:
        """Write one of the driver's values."""
        args = [value]
        await self._client.invoke(self.relay_id, name, args, {}, timeout=timeout, access="set")

    async def call_status(
        self, call: str | OutcomeUnknown, *, session: str | None = None
    ) -> CallStatus:
        """What became of a call whose outcome is unknown.

        One that has not arrived until now will not run any more.

        :param call: its id, or the error that it ended with.
        :param session: of the client that made it, where that was another one; the error's
            ``detail`` has it.
        """
        if isinstance(call, OutcomeUnknown):
            session = session or call.detail.get("session")
            call = str(call.detail.get("call", ""))
        if not call:
            raise ValueError("this error belongs to no call of a session: nobody can tell more")
        own = self._client.session
        is_own = session is None or session == own.token
        # How old another client's call is, only that client knows.
        age_s = own.age_s(call) if is_own else _LONG_AGO_S
        request = GetCall(id="-", call=call, session=session or own.token, age_s=age_s)
        told, _ = await self._client.at_home(
            self._client.request(self.relay_id, request, CallState)
        )
        return CallStatus.of(call, told)

    async def describe(self) -> Description:
        """The driver's class, docstring and methods."""
        description, _ = await self._client.at_home(
            self._client.request(self.relay_id, Describe(id="-"), Description)
        )
        return description

    async def status(self) -> Status:
        """What the relay and its driver are doing; answered also while the driver blocks."""
        status, _ = await self._client.at_home(
            self._client.request(self.relay_id, GetStatus(id="-"), Status)
        )
        return status

    # ── leases ──────────────────────────────────────────────────────────────────────────────────

    async def acquire(self, ttl: float = 10.0, note: str = "") -> HeldLease:
        """Have this client be the only one that may write, until ``release()`` or its end.

        Reading stays free for all. It is renewed in the background, however long it is held.

        :param ttl: seconds after which a client that vanished no longer holds it; the driver's
            ``safe_state()``, if it has one, is called then.
        :param note: why, for who finds it locked.
        :raises Locked: somebody holds it; the detail says who, since when, and why.
        """
        fences = self._client.fences
        return await self._client.at_home(fences.acquire(self.relay_id, ttl_s=ttl, note=note))

    @asynccontextmanager
    async def lease(self, *, note: str = "", ttl: float = 10.0) -> AsyncIterator[HeldLease]:
        """``async with relay.lease(note="T sweep") as lease:`` see :meth:`acquire`."""
        async with await self.acquire(ttl, note) as held:
            yield held

    async def break_lease(self, reason: str = "", *, fence: int = 0) -> None:
        """End the lease of whoever holds it, who is told who broke it and why.

        :param fence: of the lease that is meant; 0: any.
        :raises NotFound: nobody holds it.
        :raises Conflict: another lease than the one that is meant is held.
        """
        fences = self._client.fences
        work = fences.break_lease(self.relay_id, fence=fence, reason=reason)
        await self._client.at_home(work)

    def __getattr__(self, name: str) -> Callable[..., Coroutine[Any, Any, Any]]:
        if name.startswith("_"):
            raise AttributeError(name)

        def method(*args: Any, **kwargs: Any) -> Coroutine[Any, Any, Any]:
            return self.invoke(name, list(args), kwargs)

        method.__name__ = method.__qualname__ = name
        return method


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
