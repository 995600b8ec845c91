"""The broker: the directory of a network, and the proxy for its events.

Calls and data never pass it. What it knows is soft: the nodes register again with a broker that was
restarted.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Coroutine
from typing import Any, ClassVar, assert_never

from labmesh.access.desk import AccessDesk
from labmesh.node import Node, seconds
from labmesh.protocol.addresses import Address, parse_bind
from labmesh.protocol.codec import encode_event, encode_value
from labmesh.protocol.directory import Changed, Directory, Effect, Probe, Refused, Registered
from labmesh.protocol.events import Sequencer
from labmesh.protocol.messages import (
    DIRECTORY_REQUESTS,
    Done,
    GetStatus,
    Goodbye,
    Heartbeat,
    Hello,
    LastEvents,
    ListLast,
    ListNodes,
    Mark,
    NodeList,
    PresenceChange,
    Replay,
    Request,
    Status,
    WatchAccess,
    Welcome,
)
from labmesh.protocol.topics import topic
from labmesh.transport.keys import Security
from labmesh.transport.permits import Permits
from labmesh.transport.probing import is_alive
from labmesh.transport.proxy import Proxy
from labmesh.transport.service import Answer, Origin, Service

__all__ = ["DirectoryBroker"]

log = logging.getLogger(__name__)

_PROBE_S = 1.0
#: The broker looks at the time at least so often, so that it sees when it stood still itself.
_TICK_S = 1.0


class DirectoryBroker(Node):
    """The broker of a network. Each network has one.

    :param rpc_bind: where nodes and clients send their requests.
    :param xsub_bind: where relays and banks publish.
    :param xpub_bind: where clients subscribe.
    :param ttl_seconds: a node that was not heard for so long leaves the directory.
    :param security: by default what the environment says (``LMH_NETWORK_PASSWORD``).
    """

    kind: ClassVar[str] = "broker"

    def __init__(
        self,
        rpc_bind: str = "tcp://*:5750",
        xsub_bind: str = "tcp://*:5751",
        xpub_bind: str = "tcp://*:5752",
        *,
        ttl_seconds: float = 30.0,
        security: Security | None = None,
    ) -> None:
        super().__init__("broker", security=security)
        self._binds = tuple(parse_bind(each) for each in (rpc_bind, xsub_bind, xpub_bind))
        self._ttl_s = seconds(ttl_seconds, "ttl_seconds")

    @property
    def rpc(self) -> Address:
        """The address that the request socket got."""
        return self._service.address

    @property
    def xsub(self) -> Address:
        """The address that the publishers' socket got."""
        return self._proxy.xsub

    @property
    def xpub(self) -> Address:
        """The address that the subscribers' socket got."""
        return self._proxy.xpub

    async def _open(self) -> None:
        rpc, xsub, xpub = self._binds
        self._sequencer = Sequencer(self.node_id, self.epoch)
        self._directory_moved = asyncio.Event()
        self._proxy = Proxy(self._sockets, xsub, xpub, epoch=self.epoch)
        self._access = AccessDesk(self._sockets.security, self._drop_revoked)
        self._service = Service(
            self._sockets,
            rpc,
            role="directory",
            requests=DIRECTORY_REQUESTS,
            node_id=self.node_id,
            kind=self.kind,
            epoch=self.epoch,
            handle=self._handle,
            permits=Permits.of(self._sockets.security, self.node_id),
        )
        self._directory = Directory(
            ttl_s=self._ttl_s, probe_s=_PROBE_S, own_endpoints=self._own_endpoints()
        )
        self._awake_at = time.monotonic()
        self._spawn(self._expire(), "expiry")
        self._set_ready()
        log.info("broker: requests at %s, events at %s and %s", self.rpc, self.xsub, self.xpub)

    def _own_endpoints(self) -> list[str]:
        addresses = (self.rpc, self.xsub, self.xpub)
        return [
            str(Address("127.0.0.1" if each.is_wildcard else each.host, each.port))
            for each in addresses
        ]

    async def _close(self) -> None:
        if hasattr(self, "_service"):
            await self._service.close()
        if hasattr(self, "_proxy"):
            self._proxy.close()

    def _handle(
        self, request: Request, _body: memoryview | None, origin: Origin
    ) -> Answer | Coroutine[Any, Any, Answer]:
        now = self._wake()
        match request:
            case Hello():
                node = self._access.checked(request.node, origin)
                self._perform(self._directory.hello(node, origin, now))
                return None
            case Heartbeat():
                self._perform(self._directory.heartbeat(request.node_id, request.node_epoch, now))
                return self._welcome(request.id)
            case Goodbye():
                self._perform(self._directory.goodbye(request.node_id, request.node_epoch, now))
                return Done(id=request.id)
            case ListNodes():
                return NodeList(
                    id=request.id, broker_epoch=self.epoch, nodes=self._directory.nodes()
                )
            case Mark():
                self._publish(topic("mark", request.token), "mark", None)
                return Done(id=request.id)
            case ListLast():
                events, more = self._proxy.events.last(request.prefix, request.after)
                return LastEvents(id=request.id, events=events, more=more)
            case Replay():
                events, more = self._proxy.events.replay(
                    request.topic, request.node_epoch, request.first, request.last
                )
                return LastEvents(id=request.id, events=events, more=more)
            case WatchAccess():
                return self._access.watch(request, origin)
            case GetStatus():
                return self._status(request.id)
            case _:
                raise AssertionError(f"{type(request).__name__} is not for the directory")

    def _welcome(self, request_id: str) -> Welcome:
        return Welcome(id=request_id, broker_epoch=self.epoch, ttl_s=self._ttl_s)

    def _perform(self, effects: list[Effect]) -> None:
        for effect in effects:
            match effect:
                case Registered(token=Origin() as origin):
                    self._service.reply(origin, self._welcome(origin.request_id))
                case Refused(token=Origin() as origin, error=error):
                    self._service.refuse(origin, error)
                case Probe():
                    self._spawn(self._probe(effect), f"probe of {effect.record.node_id}")
                case Changed(change=change):
                    self._announce(change)
                case Registered() | Refused():
                    raise AssertionError(f"an answer for nobody: {effect}")
                case _:
                    assert_never(effect)
        self._directory_moved.set()

    def _announce(self, change: PresenceChange) -> None:
        node = change.node
        log.info("%s %s: %s %s", node.kind, node.node_id, change.change, change.reason)
        if change.change == "left":
            self._proxy.events.forget(node.node_id)
        self._publish(topic("presence", node.node_id), "presence", change)

    def _publish(self, name: str, kind: str, value: object) -> None:
        event = self._sequencer.next(name, time=time.time(), kind=kind)
        self._proxy.publish(name, encode_event(event), encode_value(value))

    def _drop_revoked(self) -> None:
        """Nobody is sent to a node whose key was revoked."""
        now = time.monotonic()
        for node in self._directory.nodes():
            if self._access.is_revoked(node):
                text = "%s %s is not listed any more: its key was revoked"
                log.warning(text, node.kind, node.node_id)
                self._perform(self._directory.goodbye(node.node_id, node.epoch, now, "revoked"))

    async def _probe(self, probe: Probe) -> None:
        alive = await is_alive(self._sockets, probe.record, _PROBE_S)
        now = time.monotonic()
        self._perform(self._directory.probe_answered(probe.probe_id, alive, now))

    async def _expire(self) -> None:
        while True:
            self._directory_moved.clear()
            deadline = self._directory.next_deadline()
            now = time.monotonic()
            wait_s = _TICK_S if deadline is None else min(_TICK_S, max(0.0, deadline - now))
            try:
                async with asyncio.timeout(wait_s):
                    await self._directory_moved.wait()
            except TimeoutError:
                self._perform(self._directory.expire(self._wake()))

    def _wake(self) -> float:
        """The time now. A broker that stood still (stopped, suspended) excuses its nodes."""
        now = time.monotonic()
        paused_s = now - self._awake_at - _TICK_S
        if paused_s > _TICK_S:
            log.warning("the broker stood still for %.1f s; its nodes are excused", paused_s)
            self._directory.excuse(paused_s)
        self._awake_at = now
        return now

    def _status(self, request_id: str) -> Status:
        nodes = self._directory.nodes()
        facts: dict[str, Any] = {
            "relays": sum(each.kind == "relay" for each in nodes),
            "banks": sum(each.kind == "bank" for each in nodes),
            "events_forwarded": self._proxy.events.forwarded,
            "events_dropped": self._proxy.events.dropped + self._proxy.dropped,
            "subscriptions": self._proxy.subscriptions,
            "subscriptions_refused": self._proxy.subscriptions_refused,
            "connections_refused": self._sockets.refused,
            "connections_ended": self._sockets.cut + self._proxy.connections_ended,
            "security": self._sockets.security.mode,
            "insecure": self._sockets.security.insecure,
            "admits": self._sockets.admits,
            "events_refused": self._proxy.refused,
            "audit_lost": None if self.audit is None else self.audit.lost,
            "xsub_port": self.xsub.port,
            "xpub_port": self.xpub.port,
        }
        return Status(
            id=request_id,
            node_id=self.node_id,
            kind="broker",
            epoch=self.epoch,
            uptime_s=self.uptime_s,
            facts=facts,
        )
