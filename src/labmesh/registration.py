"""One node's registration with one broker, kept alive by heartbeats."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable

from labmesh.errors import LabmeshError, NotFound
from labmesh.protocol.messages import Done, Goodbye, Heartbeat, Hello, NodeRecord, Welcome
from labmesh.transport.broker_link import event_address
from labmesh.transport.link import Link
from labmesh.transport.sockets import Sockets

__all__ = ["Registration"]

log = logging.getLogger(__name__)

_RETRY_S, _RETRY_MAX_S = 0.1, 2.0
_REQUEST_S = 2.0
_GOODBYE_S = 1.0
#: After so long the log says why there is no broker.
_PATIENCE_S = 1.5


class Registration:
    """Registers a node with a broker again and again, as often as it takes; on the running loop.

    :param broker: the broker's request address.
    :param where: the broker, as people know it.
    :param events: its address for publishers; empty: it is asked for its port.
    :param record: makes the node's line of the directory.
    :param prepare: awaited before each registration.
    :param on_welcome: called each time the broker has registered the node.
    :param on_beat: called before each heartbeat.
    :param is_final: whether an answer of the broker ends :meth:`run`.
    """

    def __init__(
        self,
        sockets: Sockets,
        broker: str,
        *,
        where: str,
        events: str,
        record: Callable[[], NodeRecord],
        prepare: Callable[[], Awaitable[None]],
        on_welcome: Callable[[Registration], None],
        on_beat: Callable[[Registration], None],
        is_final: Callable[[LabmeshError], bool],
        heartbeat_s: float,
    ) -> None:
        self._given_events = events
        self._record = record
        self._prepare = prepare
        self._on_welcome = on_welcome
        self._on_beat = on_beat
        self._is_final = is_final
        self._heartbeat_s = heartbeat_s
        self._registered_with = ""
        self._changed = asyncio.Event()
        #: the broker's address for publishers, and the one that it had before
        self.events, self.former_events = events, ""
        #: monotonic time of the last heartbeat that was answered
        self.heartbeat_at: float | None = None
        endpoint = sockets.expect_broker(broker)
        self.link = Link(sockets, endpoint, where=where, on_change=self._changed.set)

    @property
    def registered(self) -> bool:
        """The broker lists the node, as far as is known here."""
        return self.link.up and bool(self._registered_with)

    async def run(self) -> None:
        """Go on until cancelled.

        :raises LabmeshError: an answer that is final.
        """
        retry_s = _RETRY_S
        said: set[str] = set()
        while True:
            try:
                await self._register()
                retry_s = _RETRY_S
                said.clear()
                await self._beat()
            except LabmeshError as exc:
                if self._is_final(exc):
                    raise
                self._complain(exc, said)
            self._changed.clear()
            await self._wait_changed(retry_s * random.uniform(0.5, 1.0))
            retry_s = min(2 * retry_s, _RETRY_MAX_S)

    async def say_goodbye(self) -> None:
        """Tell the broker that the node leaves, where it listens; :meth:`run` has ended."""
        if not self.link.up:
            return
        record = self._record()
        goodbye = Goodbye(id="-", node_id=record.node_id, node_epoch=record.epoch)
        try:
            await self.link.request(goodbye, Done, timeout=_GOODBYE_S)
        except LabmeshError as exc:
            log.info("%s could not say goodbye: %s", record.node_id, exc)

    def close(self) -> None:
        """End the link; twice is fine."""
        self.link.close()

    async def _register(self) -> None:
        await self.link.wait_up(_PATIENCE_S)
        await self._prepare()
        record = self._record()
        hello = Hello(id="-", node=record)
        welcome = await self.link.request(hello, Welcome, timeout=_REQUEST_S)
        if not self._given_events:
            events = await event_address(self.link, "xsub_port", _REQUEST_S)
            self.former_events, self.events = self.events, events
        if self._registered_with != welcome.broker_epoch:
            log.info("%s is registered with %s", record.node_id, self.link.where)
        self._registered_with = welcome.broker_epoch
        self.heartbeat_at = time.monotonic()
        self._on_welcome(self)

    async def _beat(self) -> None:
        """Heartbeats until the broker no longer knows the node, or the link broke."""
        record = self._record()
        beat = Heartbeat(id="-", node_id=record.node_id, node_epoch=record.epoch)
        while self._is_known():
            self._changed.clear()
            await self._wait_changed(self._heartbeat_s)
            if not self._is_known():
                return
            self._on_beat(self)
            try:
                await self.link.request(beat, Welcome, timeout=min(_REQUEST_S, self._heartbeat_s))
            except NotFound:
                return
            self.heartbeat_at = time.monotonic()

    async def _wait_changed(self, seconds: float) -> None:
        """Sleep, but not beyond a change of the link."""
        try:
            async with asyncio.timeout(seconds):
                await self._changed.wait()
        except TimeoutError:
            return

    def _is_known(self) -> bool:
        return self.link.up and self.link.epoch == self._registered_with

    def _complain(self, exc: LabmeshError, said: set[str]) -> None:
        """Say it once, not with every retry; two reasons may take turns."""
        if str(exc) not in said:
            said.add(str(exc))
            node_id = self._record().node_id
            log.warning("%s is not registered: %s; trying on", node_id, exc)
