"""A client's life and links: what its proxies of relays and banks stand on."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Coroutine
from typing import Any, ClassVar, Self, TypeVar

from labmesh.asking.calling import Calls
from labmesh.asking.holding import Fences, holder_name
from labmesh.asking.links import REQUEST_S, NodeLinks
from labmesh.content import Content, Sink
from labmesh.errors import AuthenticationError, LinkLost, NotSent, Stopping
from labmesh.events.brokers_followed import BrokersFollowed
from labmesh.events.feed import EventFeed
from labmesh.node import Node
from labmesh.protocol.caller import CallProgress
from labmesh.protocol.messages import (
    Access,
    Batch,
    BatchResult,
    Call,
    DatasetRecord,
    Description,
    Fetch,
    Fetched,
    NodeRecord,
    PresenceChange,
    Reply,
    Request,
    Result,
)
from labmesh.protocol.roster import Roster
from labmesh.provenance import sender_facts
from labmesh.transfer import Progress, UploadSettings, download, upload
from labmesh.transport.blocking import CallSockets
from labmesh.transport.broker_link import BrokerLink, event_address
from labmesh.transport.inflow import ItemStream
from labmesh.transport.keys import Security
from labmesh.transport.link import CallSession, Link

__all__ = ["ClientNode"]

log = logging.getLogger(__name__)

T = TypeVar("T")
R = TypeVar("R", bound=Reply)

_FETCH_S = 10.0
#: Why there is no broker is said first after so long, and then again.
_FIRST_LOG_S, _WAITING_LOG_S = 1.5, 5.0


class ClientNode(Node):
    """A client that is connected: its links, its session, its leases, its events.

    :param broker_rpc: the broker's request address.
    :param broker_xpub: the broker's event address; None: the broker tells its port.
    :param spare_rpc: the spare broker's request address; empty: there is none.
    :param call_limit_s: seconds that a call without a timeout may last at most.
    """

    kind: ClassVar[str] = "client"

    def __init__(
        self,
        broker_rpc: str,
        broker_xpub: str | None,
        *,
        spare_rpc: str = "",
        call_limit_s: float,
        security: Security | None,
    ) -> None:
        super().__init__(f"client-{os.getpid()}-{os.urandom(4).hex()}", security=security)
        self.broker_rpc = broker_rpc
        self.broker_xpub = broker_xpub
        self.spare_rpc = spare_rpc
        self.call_limit = call_limit_s
        self.fences = Fences(self)
        #: who this client is to relays, over whatever connection
        self.session = CallSession(holder_name())
        self._loop: asyncio.AbstractEventLoop | None = None
        self._directory: BrokerLink | None = None
        self._feed: EventFeed | None = None
        self._links: NodeLinks | None = None
        self._calls: Calls | None = None
        self._roster = Roster()

    # ── life ────────────────────────────────────────────────────────────────────────────────────

    async def connect(self, timeout: float = 30.0) -> Self:
        """Connect to the broker, waiting up to ``timeout`` seconds for it.

        :raises AuthenticationError: the broker does not accept this client (within 2 s).
        :raises ConnectionError: nobody answered; the text says where, and what to try.
        """
        deadline = time.monotonic() + timeout
        await self.start()
        try:
            await self._wait_for_broker(deadline, timeout)
            await self._begin_feed(deadline)
        except BaseException:
            # Whatever ends it, also a cancellation: nothing that was opened stays open.
            await self.stop()
            raise
        self._set_ready()
        return self

    async def close(self) -> None:
        """End every subscription and connection; twice is fine."""
        if self._loop is not None:
            await self.at_home(self.stop())

    async def __aenter__(self) -> Self:
        return await self.connect()

    async def serve(self) -> None:
        """Stay connected until cancelled or closed; callbacks go on meanwhile.

        A client that was not connected before is connected first, and closed at the end.
        """
        if self._started_at is not None and self._stopping is None:
            await self.wait_ended()
            return
        async with self:
            await self.wait_ended()

    async def _open(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._directory = self._broker_link()
        self._links = NodeLinks(
            self._sockets, self._directory, self._roster, self._spawn, self.session
        )
        self._calls = Calls(self._links, self.at_home)
        #: for calls of threads that wait
        self.direct = CallSockets(self._sockets, self.session)
        self._spawn(self.direct.tend(), "tend")

    def _broker_link(self) -> BrokerLink:
        if not self.spare_rpc:
            endpoint = self._sockets.expect_broker(self.broker_rpc)
            return Link(self._sockets, endpoint, where="the broker", session=self.session)
        return BrokersFollowed(
            self._sockets,
            self.broker_rpc,
            self.spare_rpc,
            first_events=self.broker_xpub,
            session=self.session,
            spawn=self._spawn,
        )

    async def _leave(self) -> None:
        await self.fences.close()

    async def _close(self) -> None:
        if self._feed is not None:
            await self._feed.close()
        if self._links is not None:
            await self.direct.close()
            self._links.close()
        if self._directory is not None:
            self._directory.close()

    @property
    def _broker(self) -> BrokerLink:
        if self._directory is None:
            raise _not_connected()
        return self._directory

    @property
    def _nodes(self) -> NodeLinks:
        if self._links is None:
            raise _not_connected()
        return self._links

    @property
    def _calling(self) -> Calls:
        if self._calls is None:
            raise _not_connected()
        return self._calls

    async def _wait_for_broker(self, deadline: float, timeout: float) -> None:
        patience_s = _FIRST_LOG_S
        while True:
            left_s = deadline - time.monotonic()
            try:
                await self._broker.wait_up(max(0.0, min(left_s, patience_s)))
                return
            except AuthenticationError:
                raise
            except LinkLost as exc:
                if self._stopping is not None:
                    raise Stopping("this client was closed while it was connecting") from exc
                if left_s <= patience_s:
                    raise LinkLost(
                        f"no broker after {timeout:g} s: {exc} Start one with 'labmesh broker', or "
                        "give another address (LMH_BROKER, labmesh.toml)",
                        **exc.detail,
                        tried=", ".join(filter(None, (self.broker_rpc, self.spare_rpc))),
                    ) from exc
                log.warning("still waiting for the broker: %s", exc)
                patience_s = _WAITING_LOG_S

    async def _begin_feed(self, deadline: float) -> None:
        endpoint = await self._event_address(deadline)
        self._feed = EventFeed(
            self._sockets,
            endpoint,
            self._broker,
            self.node_id,
            self._spawn,
            self._list_nodes,
            self._ask_bank,
        )
        self._feed.watch_presence(self._announced)
        await self._feed.begin(deadline - time.monotonic())

    def _announced(self, change: PresenceChange) -> None:
        self._roster.announced(change)
        if change.reason == "revoked" and self._links is not None:
            self._links.cut_off(change.node.node_id)

    async def _ask_bank(self, bank_id: str, request: Request, reply: type[R]) -> R:
        answer, _ = await self._nodes.request(
            bank_id, request, reply, endpoint="retrieve", timeout=REQUEST_S
        )
        return answer

    async def _event_address(self, deadline: float) -> str:
        if isinstance(self._broker, BrokersFollowed):
            return self._broker.events
        timeout = min(REQUEST_S, max(0.0, deadline - time.monotonic()))
        return self.broker_xpub or await event_address(self._broker, "xpub_port", timeout)

    async def at_home(self, work: Coroutine[Any, Any, T]) -> T:
        """Run on the loop that connected, wherever the caller is.

        :raises NotSent: the client was not connected, or that loop no longer runs.
        """
        home = self._loop
        if home is asyncio.get_running_loop():
            return await work
        if home is None or not home.is_running():
            work.close()
            raise _not_connected() if home is None else NotSent("the loop of this client has ended")
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, home))

    @property
    def _events(self) -> EventFeed:
        if self._feed is None or self._stopping is not None:
            raise _not_connected()
        if asyncio.get_running_loop() is not self._loop:
            raise RuntimeError(
                "callbacks run on the loop that connected: subscribe there, for example by "
                "loop.call_soon_threadsafe(client.on_state, callback)"
            )
        return self._feed

    async def _list_nodes(self) -> list[NodeRecord]:
        return await self._nodes.list_nodes()

    # ── for proxies, on the loop that connected ─────────────────────────────────────────────────

    async def request(
        self,
        node_id: str,
        request: Request,
        reply: type[R],
        *,
        timeout: float | None = None,
        endpoint: str = "rpc",
    ) -> tuple[R, memoryview | None]:
        """One request to a relay or bank; on the loop that connected."""
        timeout = REQUEST_S if timeout is None else timeout
        answer = await self._nodes.request(
            node_id, request, reply, timeout=timeout, endpoint=endpoint
        )
        if self._calls is not None and isinstance(answer[0], Description):
            self._calls.learn(answer[0])
        return answer

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
        calls = self._calls
        if calls is None:
            raise _not_connected()
        return calls.call(
            relay_id,
            method,
            args,
            kwargs,
            timeout=timeout,
            limit_s=self.call_limit,
            access=access,
            fence=self.fences.of(relay_id),
        )

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
        """Begin to call a method that yields; on the loop that connected."""
        fence = self.fences.of(relay_id)
        return await self._calling.stream(
            relay_id, method, args, kwargs, timeout=timeout, credit=credit, fence=fence
        )

    async def settle_call(
        self,
        relay_id: str,
        request: Call | Batch,
        *,
        deadline: float,
        sent_at: float | None = None,
        heard_at: float | None = None,
        state: CallProgress = "",
    ) -> Result | BatchResult:
        """Find out how a call ends that another socket of this client sent; on the loop that
        connected.

        It is sent again under its id over this client's link: the relay runs it once, and answers
        again what it has answered already. It ends with its reply, the error that the relay
        answered, or :class:`OutcomeUnknown`, which comes at its deadline, 4 s after the last sign
        of life, after 2 s without a link, or at once when the relay was restarted. An idempotent
        method is then called again until its deadline.

        :param request: as it was sent: with an id of :attr:`session` and its token, with target,
            epoch and fence, and with its deadline in the relay's clock (see :meth:`link_to`).
        :param deadline: the same deadline in our monotonic clock; ``math.inf``: none.
        :param sent_at: when it was sent, in our monotonic clock; :meth:`RelayClient.call_status`
            needs it to tell a call that never arrived from one that was forgotten.
        :param heard_at: its last sign of life over that socket, in our monotonic clock, and
        :param state: what that said.
        """
        return await self._calling.settle(
            relay_id, request, deadline=deadline, sent_at=sent_at, heard_at=heard_at, state=state
        )

    def link_to(self, relay_id: str) -> Link | None:
        """The link over which calls to a relay go, if there is one.

        In any thread: its ``endpoint``, ``where``, and ``standing`` (whether it is up, node id,
        epoch, clock), which is one immutable tuple. All else belongs to the loop that connected.
        """
        return None if self._links is None else self._links.to_relays.get(relay_id)

    async def upload_to(
        self, bank_id: str, content: Content, *, settings: UploadSettings, **details: Any
    ) -> DatasetRecord:
        """Upload to a bank of the directory; on the loop that connected."""
        record = await self._nodes.record_of(bank_id)
        if self._stopping is not None:
            raise Stopping("this client was closed; nothing was uploaded")
        if record is None:
            raise NotSent(f"{bank_id} is not on the mesh (any more); nothing was uploaded")
        await self._nodes.learn(record)
        endpoint = record.endpoints["ingest"]
        if details.get("provenance") is None:
            details["provenance"] = sender_facts()
        work = upload(self._sockets, endpoint, content, settings=settings, **details)
        return await self._lend(work, "upload")

    async def download_to(
        self, bank_id: str, record: DatasetRecord, sink: Sink, *, progress: Progress | None
    ) -> None:
        """Download from a bank of the directory; on the loop that connected."""

        async def ask(fetch: Fetch) -> tuple[Fetched, memoryview | None]:
            return await self.request(
                bank_id, fetch, Fetched, endpoint="retrieve", timeout=_FETCH_S
            )

        await self._lend(download(ask, record, sink, progress=progress), "download")


def _not_connected() -> NotSent:
    return NotSent("this client is not connected: await client.connect() first")
