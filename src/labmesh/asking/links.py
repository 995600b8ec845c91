"""A client's links to relays and banks: where they are, also after they moved."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from labmesh.asking.turns import Turns
from labmesh.errors import AuthenticationError, Busy, LabmeshError, NotFound, NotSent, Stopping
from labmesh.protocol.messages import Fetch, ListNodes, NodeList, NodeRecord, Reply, Request
from labmesh.protocol.roster import Roster
from labmesh.transport.broker_link import BrokerLink
from labmesh.transport.link import CallSession, Link
from labmesh.transport.sockets import Sockets

__all__ = ["REQUEST_S", "NodeLinks"]

log = logging.getLogger(__name__)

T = TypeVar("T")
R = TypeVar("R", bound=Reply)

REQUEST_S = 5.0
#: A node that cannot be reached for so long is given up by a request.
_REACH_S = 4.0
#: A node that is not reached where it was is looked up again so often.
_LOOK_AGAIN_S = 0.5
_MOVES_S = 0.2
#: How many pieces of datasets and how many questions a client has under way at one bank: together
#: half of what the bank holds for a connection, because libzmq counts what was read in halves.
_FETCHES, _QUESTIONS = 6, 2
_BUSY_S = 0.05


class NodeLinks:
    """One link to each socket of each node that was asked for, on the running loop.

    Links that exist work on while the broker is away.

    :param broker: the link to the directory.
    :param roster: the client's copy of the directory.
    :param spawn: makes a task that the client owns.
    :param session: who the client is, on all its links.
    """

    def __init__(
        self,
        sockets: Sockets,
        broker: BrokerLink,
        roster: Roster,
        spawn: Callable[[Coroutine[Any, Any, Any], str], asyncio.Task[Any]],
        session: CallSession,
    ) -> None:
        self._sockets = sockets
        self._broker = broker
        self._roster = roster
        self._spawn = spawn
        self._session = session
        self._links: dict[str, Link] = {}
        #: those of them over which calls go at once, by node id: no call waits to be sent
        self.to_relays: dict[str, Link] = {}
        self._turns = Turns(self._none_waits)
        self._seen: dict[str, NodeRecord] = {}
        self._gates: dict[tuple[str, bool], asyncio.Semaphore] = {}
        self._looking_up: asyncio.Task[None] | None = None
        self._closed = False

    def __len__(self) -> int:
        return len(self._links)

    @property
    def closed(self) -> bool:
        """Nothing can be sent any more."""
        return self._closed

    def close(self) -> None:
        """End what is open; nothing can be sent any more."""
        self._closed = True
        for link in self._links.values():
            link.close()
        self._links.clear()
        self.to_relays.clear()

    def cut_off(self, node_id: str) -> None:
        """End the links to a node that is not to be trusted any more."""
        for key in [each for each in self._links if each.partition(" ")[0] == node_id]:
            self._links.pop(key).close()
        self.to_relays.pop(node_id, None)
        self._seen.pop(node_id, None)

    def get(self, node_id: str, endpoint: str = "rpc") -> Link | None:
        """The link to a socket of a node, if one was asked for."""
        return self._links.get(f"{node_id} {endpoint}")

    async def list_nodes(self) -> list[NodeRecord]:
        """Ask the directory; the roster has what it answers."""
        ticket = self._roster.ask()
        try:
            answer = await self._broker.request(ListNodes(id="-"), NodeList, timeout=REQUEST_S)
        except BaseException:
            # Also a cancellation: others wait for what this question would have answered.
            self._roster.failed(ticket)
            raise
        self._roster.listed(ticket, answer.nodes)
        return self._roster.nodes()

    async def record_of(self, node_id: str, *, timeout: float = REQUEST_S) -> NodeRecord | None:
        """The directory's line, asked for when it is not known; None: there is none.

        A broker that was just restarted may not know a node again yet to which a link is up: then
        it is the line that was last seen.
        """
        record = self._roster.get(node_id) or await self._look_up(node_id, timeout)
        if record is not None:
            self._seen[node_id] = record
            return record
        return self._seen.get(node_id) if self._is_linked(node_id) else None

    def _is_linked(self, node_id: str) -> bool:
        return any(link.up for key, link in self._links.items() if key.partition(" ")[0] == node_id)

    async def request(
        self,
        node_id: str,
        request: Request,
        reply: type[R],
        *,
        timeout: float,
        endpoint: str,
    ) -> tuple[R, memoryview | None]:
        """One request to one socket of a node.

        :raises NotSent: the node could not be reached, within 4 s at most; nothing was sent.
        """
        if endpoint == "retrieve":
            return await self._retrieve(node_id, request, reply, timeout)
        return await self._request(node_id, request, reply, timeout, endpoint)

    async def _retrieve(
        self, node_id: str, request: Request, reply: type[R], timeout: float
    ) -> tuple[R, memoryview | None]:
        """A bank refuses what comes while too much of this client is open: that waits here."""
        is_fetch = isinstance(request, Fetch)
        gate = self._gates.get((node_id, is_fetch))
        if gate is None:
            gate = asyncio.Semaphore(_FETCHES if is_fetch else _QUESTIONS)
            self._gates[node_id, is_fetch] = gate
        try:
            # Pieces of many downloads wait for each other as long as it takes.
            async with asyncio.timeout(None if is_fetch else timeout):
                await gate.acquire()
        except TimeoutError:
            raise NotSent(
                f"this client's other requests to {node_id} took too long; this was not sent"
            ) from None
        try:
            return await self._while_busy(node_id, request, reply, timeout)
        finally:
            gate.release()

    async def _while_busy(
        self, node_id: str, request: Request, reply: type[R], timeout: float
    ) -> tuple[R, memoryview | None]:
        """The requests of callers that were cancelled count until the bank has answered them."""
        deadline = time.monotonic() + timeout
        while True:
            left_s = deadline - time.monotonic()
            try:
                return await self._request(node_id, request, reply, left_s, "retrieve")
            except Busy:
                if left_s < 2 * _BUSY_S:
                    raise
            await asyncio.sleep(_BUSY_S)

    async def _request(
        self, node_id: str, request: Request, reply: type[R], timeout: float, endpoint: str
    ) -> tuple[R, memoryview | None]:
        def ask(link: Link, left_s: float) -> Awaitable[tuple[R, memoryview | None]]:
            return link.request_body(request, reply, timeout=left_s, patient=False)

        return await self.reached(node_id, ask, time.monotonic() + timeout, endpoint)

    async def reached(
        self,
        node_id: str,
        ask: Callable[[Link, float], Awaitable[T]],
        deadline: float,
        endpoint: str = "rpc",
    ) -> T:
        """Ask over a link that is up, with the seconds that are left.

        :param ask: raises NotSent, at once, when the link is not up any more.
        :raises NotSent: the node could not be reached, within 4 s at most; nothing was sent.
        """
        reach_until = min(deadline, time.monotonic() + _REACH_S)
        while True:
            link = await self._linked_in_turn(node_id, endpoint, reach_until)
            left_s = max(0.0, deadline - time.monotonic())
            try:
                return await ask(link, left_s)
            except NotSent:
                # The link broke unnoticed, or was replaced: there is time for another one.
                if link.up or time.monotonic() >= reach_until:
                    raise

    async def _linked_in_turn(self, node_id: str, endpoint: str, deadline: float) -> Link:
        """A link that is up. Those that wait for one to a relay get it in the order of coming."""
        link = self.get(node_id, endpoint)
        is_up = link is not None and link.up
        if endpoint != "rpc" or (is_up and not self._turns.wait_for(node_id)):
            return await self._linked(node_id, endpoint, deadline)
        # Until they have gone nobody finds another way.
        self.to_relays.pop(node_id, None)
        before, own = self._turns.come(node_id)
        try:
            link = await self._linked(node_id, endpoint, deadline)
            if before is not None and not before.done():
                # One that waits for a directory that does not answer holds up nobody for long.
                await asyncio.wait([before], timeout=_LOOK_AGAIN_S)
            return link
        finally:
            self._turns.go(node_id, before, own)

    def _none_waits(self, node_id: str) -> None:
        link = self.get(node_id)
        if link is not None:
            self.to_relays[node_id] = link

    async def _linked(self, node_id: str, endpoint: str, deadline: float) -> Link:
        """A link that is up. A node that comes back elsewhere meanwhile is found there."""
        while True:
            left_s = max(0.0, deadline - time.monotonic())
            link = await self._link_to(node_id, endpoint, left_s)
            if link.up:
                return link
            left_s = max(0.0, deadline - time.monotonic())
            try:
                await link.wait_up(min(left_s, _LOOK_AGAIN_S))
            except NotSent:
                if left_s <= _LOOK_AGAIN_S:
                    raise

    async def _link_to(self, node_id: str, endpoint: str, timeout: float) -> Link:
        """The link to a node that the directory knows, up or about to be."""
        key = f"{node_id} {endpoint}"
        link = self._links.get(key)
        if link is not None and link.up:
            return link
        record = self._roster.get(node_id)
        if record is None or link is not None:
            record = await self._look_up(node_id, timeout)
        if record is None and link is not None and self._broker.up and timeout > _MOVES_S:
            # It may be on its way to another address: then it is listed again in a moment.
            await asyncio.sleep(_MOVES_S)
            record = await self._look_up(node_id, timeout - _MOVES_S)
        await self.learn(record)
        if self._closed:
            raise Stopping("this client was closed; nothing was sent")
        link = self._links.get(key)  # another task may have made it meanwhile
        if record is None:
            if link is not None and not self._broker.up:
                return link
            raise NotSent(
                f"{node_id} is not on the mesh (any more): it was not called; "
                "see 'labmesh ls' for who is"
            )
        address = record.endpoints[endpoint]
        if link is not None and (link.endpoint != address or self._is_of_no_use(link)):
            link.close()
            link = None
        if link is None:
            link = Link(
                self._sockets,
                address,
                where=f"{record.kind} {node_id}",
                target=record.node_id,
                session=self._session,
                caller=self._session.caller if endpoint == "rpc" else "",
                has_lane=endpoint == "rpc",
            )
            self._links[key] = link
        return link

    async def learn(self, record: NodeRecord | None) -> None:
        """What the directory says of a node's key is expected of it from now on.

        :raises AuthenticationError: another key is pinned for this node.
        """
        if record is not None and self._sockets.security.guard is not None:
            await asyncio.to_thread(self._sockets.learn, record)

    def _is_of_no_use(self, link: Link) -> bool:
        trouble = link.trouble
        if isinstance(trouble, NotFound):
            return True
        # With keys, who was refused may be admitted by now, and the node may have a new key.
        has_keys = self._sockets.security.guard is not None
        return has_keys and isinstance(trouble, AuthenticationError)

    async def _look_up(self, node_id: str, timeout: float) -> NodeRecord | None:
        """Ask the directory, where it answers; whoever asks meanwhile waits for the same answer."""
        if self._broker.up:
            if self._looking_up is None or self._looking_up.done():
                self._looking_up = self._spawn(self._refresh(), "look-up")
            await asyncio.wait([self._looking_up], timeout=timeout)
        return self._roster.get(node_id)

    async def _refresh(self) -> None:
        try:
            await self.list_nodes()
        except LabmeshError as exc:
            log.debug("the directory does not answer: %s", exc)
