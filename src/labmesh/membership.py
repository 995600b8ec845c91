"""Nodes that register with the broker: relays and banks."""

from __future__ import annotations

import asyncio
import logging
import os
import random
import socket
import time
from typing import Any, ClassVar, Literal

from labmesh.errors import (
    AuthenticationError,
    Conflict,
    Forbidden,
    LabmeshError,
    NotFound,
    ProtocolError,
)
from labmesh.events.log_stream import LogStream
from labmesh.events.log_stream import log_level as level_number
from labmesh.node import Node, seconds
from labmesh.protocol.addresses import Address, advertised, check_host, is_loopback, parse_connect
from labmesh.protocol.messages import (
    Done,
    Epoch,
    Goodbye,
    Heartbeat,
    Hello,
    NodeId,
    NodeRecord,
    Welcome,
)
from labmesh.transport.keys import Security
from labmesh.transport.link import Link
from labmesh.transport.publisher import Publisher
from labmesh.version import __version__

__all__ = ["Member"]

log = logging.getLogger(__name__)

_RETRY_S, _RETRY_MAX_S = 0.1, 2.0
_REQUEST_S = 2.0
_GOODBYE_S = 1.0
#: The log says once in so long why there is no broker.
_PATIENCE_S = 5.0


class Member(Node):
    """A node that is listed by the broker while it lives.

    It binds first, then registers, then keeps the registration alive by heartbeats. While the
    broker is away it serves whoever knows it, and tries again for ever.

    :param broker_rpc: the broker's request address; its host may be ``BROKER``.
    :param broker_events: the address of the broker's XSUB socket; its host may be ``BROKER``.
    :param broker_address: the host that ``BROKER`` stands for.
    :param local_address: the host to advertise when the node is bound to every interface.
    :param heartbeat_s: seconds between heartbeats.
    :param log_level: what is logged from this level on is published; None: nothing.
    """

    kind: ClassVar[Literal["relay", "bank"]]

    def __init__(
        self,
        node_id: str,
        *,
        broker_rpc: str,
        broker_events: str,
        broker_address: str,
        local_address: str,
        heartbeat_s: float,
        log_level: str | int | None,
        security: Security | None,
    ) -> None:
        super().__init__(node_id, security=security)
        self._broker_rpc = str(parse_connect(broker_rpc, broker_address))
        self._broker_events = str(parse_connect(broker_events, broker_address))
        self._broker_host = parse_connect(broker_rpc, broker_address).host
        self._local_address = check_host(local_address, "local_address")
        self._own_host: str | None = None
        self._host_told = ""
        self._heartbeat_s = seconds(heartbeat_s, "the heartbeat")
        self._log_level = None if log_level is None else level_number(log_level)
        self._log_stream: LogStream | None = None
        self._broker: Link | None = None
        self._publisher: Publisher | None = None
        self._registered_with = ""
        self._heartbeat_at: float | None = None
        self._link_changed = asyncio.Event()

    @property
    def registered(self) -> bool:
        """The broker lists this node, as far as is known here."""
        return self._broker is not None and self._broker.up and bool(self._registered_with)

    @property
    def endpoints(self) -> dict[str, str]:
        """Where others reach this node while it is up, as it tells the broker."""
        return self._endpoints()

    def _endpoints(self) -> dict[str, str]:
        """What to advertise."""
        raise NotImplementedError

    def _title(self) -> str:
        """One word or two about what is behind this node."""
        raise NotImplementedError

    async def _join(self) -> None:
        """Begin to register; called when everything is bound."""
        if self._log_level is not None:
            self._log_stream = LogStream(self.node_id, self._publish_line, self._log_level)
            self._log_stream.open()
        await self._find_own_host()
        self._registered_with, self._heartbeat_at = "", None
        self._link_changed = asyncio.Event()
        self._broker = Link(
            self._sockets,
            self._broker_rpc,
            where="the broker",
            on_change=self._link_changed.set,
        )
        self._registration = self._spawn(self._keep_registered(self._broker), "registration")

    def _events_up(self) -> None:
        """The broker takes events (again)."""

    def _heard_again(self) -> None:
        self._events_up()
        if self._log_stream is not None:
            self._log_stream.flush_soon()

    def _publish_line(self, line: bytes) -> bool:
        publisher = self._publisher
        return (
            publisher is not None
            and publisher.up
            and publisher.publish_encoded("log", "line", line)
        )

    def _publish(self, family: str, kind: str, value: object) -> bool:
        """Publish an event under this node's id; False: the broker is away."""
        return self._publisher is not None and self._publisher.publish(family, kind, value)

    def _publish_encoded(
        self, family: str, kind: str, payload: bytes, interval_s: float = 0.0
    ) -> bool:
        publisher = self._publisher
        return publisher is not None and publisher.publish_encoded(
            family, kind, payload, interval_s
        )

    def _advertise(self, bound: Address) -> str:
        """The endpoint under which others reach a socket of this node."""
        host = self._own_host or self._local_address
        if bound.is_wildcard and host not in (self._local_address, self._host_told):
            self._host_told = host
            log.info(
                "%s advertises %s, the interface that reaches the broker at %s (local_address is "
                "%s, where others would not find it)",
                self.node_id,
                host,
                self._broker_host,
                self._local_address,
            )
        return advertised(bound, host)

    async def _find_own_host(self) -> None:
        """Where ``local_address`` leads nowhere from the broker: what to advertise in its place."""
        if is_loopback(self._local_address) and not is_loopback(self._broker_host):
            # Off the loop: a name server that does not answer takes seconds.
            host = await asyncio.to_thread(_host_towards, self._broker_host)
            self._own_host = host if host is not None and not is_loopback(host) else self._own_host

    async def _leave(self) -> None:
        if self._broker is None:
            return
        # A hello that is on its way would bring the node back; the goodbye ends that one as well.
        self._registration.cancel()
        await asyncio.gather(self._registration, return_exceptions=True)
        if not self._broker.up:
            return
        goodbye = Goodbye(id="-", node_id=self._record().node_id, node_epoch=self._record().epoch)
        try:
            await self._broker.request(goodbye, Done, timeout=_GOODBYE_S)
        except LabmeshError as exc:
            log.info("%s could not say goodbye: %s", self.node_id, exc)

    async def _close(self) -> None:
        if self._log_stream is not None:
            self._log_stream.close()
            self._log_stream = None
        if self._publisher is not None:
            self._publisher.close()
        if self._broker is not None:
            self._broker.close()
        self._publisher = self._broker = None

    def _record(self) -> NodeRecord:
        return NodeRecord(
            node_id=NodeId(self.node_id),
            kind=self.kind,
            epoch=Epoch(self.epoch),
            endpoints=self._endpoints(),
            title=self._title()[:256],
            host=socket.gethostname()[:256],
            pid=os.getpid(),
            software=f"labmesh {__version__}",
            heartbeat_s=self._heartbeat_s,
        )

    async def _keep_registered(self, broker: Link) -> None:
        retry_s = _RETRY_S
        said: set[str] = set()
        while True:
            try:
                await self._register(broker)
                retry_s = _RETRY_S
                said.clear()
                await self._beat(broker)
            except LabmeshError as exc:
                # Once it serves, no answer of a broker ends it.
                if _is_final(exc) and not self._is_ready.is_set():
                    raise
                self._complain(exc, said)
            self._link_changed.clear()
            await self._wait(retry_s * random.uniform(0.5, 1.0))
            retry_s = min(2 * retry_s, _RETRY_MAX_S)

    async def _register(self, broker: Link) -> None:
        await broker.wait_up(_PATIENCE_S)
        await self._find_own_host()
        hello = Hello(id="-", node=self._record())
        welcome = await broker.request(hello, Welcome, timeout=_REQUEST_S)
        if self._registered_with != welcome.broker_epoch:
            log.info("%s is registered with the broker at %s", self.node_id, self._broker_rpc)
        self._registered_with = welcome.broker_epoch
        self._heartbeat_at = time.monotonic()
        if self._publisher is None:
            # Not before: until the broker has said so, the id may be another node's.
            self._publisher = Publisher(
                self._sockets,
                self._broker_events,
                node_id=self.node_id,
                epoch=self.epoch,
                on_up=self._heard_again,
            )
        self._set_ready()

    async def _beat(self, broker: Link) -> None:
        """Heartbeats until the broker no longer knows this node, or the link broke."""
        record = self._record()
        beat = Heartbeat(id="-", node_id=record.node_id, node_epoch=record.epoch)
        while broker.up and broker.epoch == self._registered_with:
            self._link_changed.clear()
            await self._wait(self._heartbeat_s)
            if not broker.up or broker.epoch != self._registered_with:
                return
            if self._publisher is not None:
                self._publisher.publish_tail()
            try:
                await broker.request(beat, Welcome, timeout=min(_REQUEST_S, self._heartbeat_s))
            except NotFound:
                return
            self._heartbeat_at = time.monotonic()

    async def _wait(self, seconds: float) -> None:
        """Sleep, but not beyond a change of the link."""
        try:
            async with asyncio.timeout(seconds):
                await self._link_changed.wait()
        except TimeoutError:
            return

    def _complain(self, exc: LabmeshError, said: set[str]) -> None:
        """Say it once, not with every retry; two reasons may take turns."""
        if str(exc) not in said:
            said.add(str(exc))
            log.warning("%s is not registered: %s; trying on", self.node_id, exc)

    def _member_facts(self) -> dict[str, Any]:
        """What every member tells about its registration (ages in seconds)."""
        now = time.monotonic()
        return {
            "registered": self.registered,
            "heartbeat_age_s": None if self._heartbeat_at is None else now - self._heartbeat_at,
            "events_up": self._publisher is not None and self._publisher.up,
        }


def _is_final(exc: LabmeshError) -> bool:
    """The broker's answer to a newcomer will be the same next time."""
    no = isinstance(exc, Conflict | AuthenticationError | Forbidden | ProtocolError)
    return no and not exc.retryable


def _host_towards(host: str) -> str | None:
    """The address of the interface that reaches ``host`` (nothing is sent); None: no route."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, 9, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect(address)
            return str(probe.getsockname()[0])
    except OSError:
        return None
