"""Nodes that register with the broker, and with the spare: relays and banks."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import time
from typing import Any, ClassVar, Literal

from labmesh.access.watching import fetch_allow_list, watch_allow_list
from labmesh.errors import AuthenticationError, Conflict, Forbidden, LabmeshError, ProtocolError
from labmesh.events.log_stream import LogStream
from labmesh.events.log_stream import log_level as level_number
from labmesh.node import Node, seconds
from labmesh.protocol.addresses import Address, advertised, check_host, is_loopback, parse_connect
from labmesh.protocol.messages import Epoch, NodeId, NodeRecord
from labmesh.protocol.spare import spare_rpc
from labmesh.registration import Registration
from labmesh.transport.keys import Security
from labmesh.transport.link import Link
from labmesh.transport.publisher import Publisher
from labmesh.version import __version__

__all__ = ["Member"]

log = logging.getLogger(__name__)

#: A first broker that is not reached for so long is not waited for, where the spare answers.
_FIRST_S = 1.0


class Member(Node):
    """A node that is listed by the broker while it lives.

    It binds first, then registers, then keeps the registration alive by heartbeats. While the
    broker is away it serves whoever knows it, and tries again for ever. Where there is a spare
    broker it does the same there, and publishes to both.

    :param broker_rpc: the broker's request address; its host may be ``BROKER``.
    :param broker_events: the address of the broker's XSUB socket; its host may be ``BROKER``.
    :param broker_address: the host that ``BROKER`` stands for.
    :param local_address: the host to advertise when the node is bound to every interface.
    :param heartbeat_s: seconds between heartbeats.
    :param spare_broker: where the spare is; None: there is none.
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
        spare_broker: str | None = None,
    ) -> None:
        super().__init__(node_id, security=security)
        self._broker_rpc = str(parse_connect(broker_rpc, broker_address))
        self._broker_events = str(parse_connect(broker_events, broker_address))
        self._spare_rpc = spare_rpc(spare_broker or "", self._broker_rpc)
        self._broker_host = parse_connect(self._broker_rpc).host
        if self._spare_rpc and is_loopback(self._broker_host):
            self._broker_host = parse_connect(self._spare_rpc).host
        self._local_address = check_host(local_address, "local_address")
        self._own_host: str | None = None
        self._host_told = ""
        self._heartbeat_s = seconds(heartbeat_s, "the heartbeat")
        self._log_level = None if log_level is None else level_number(log_level)
        self._log_stream: LogStream | None = None
        self._publisher: Publisher | None = None
        #: with the first broker, then with the spare, while the node is up
        self._registrations: list[Registration] = []
        self._registering: list[asyncio.Task[None]] = []

    @property
    def registered(self) -> bool:
        """A broker lists this node, as far as is known here."""
        return any(each.registered for each in self._registrations)

    @property
    def _broker(self) -> Link | None:
        """The link to a broker that answers, or that is waited for; None: the node is not up."""
        links = [each.link for each in self._registrations]
        return next((each for each in links if each.up), links[0] if links else None)

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
        first = self._registration(self._broker_rpc, "the broker", self._broker_events)
        self._registrations = [first]
        if self._spare_rpc:
            spare = self._registration(self._spare_rpc, "the spare broker", "")
            self._registrations.append(spare)
        self._registering = [
            self._spawn(each.run(), f"registration with {each.link.where}")
            for each in self._registrations
        ]
        guard = self._sockets.security.guard
        self._spawn(watch_allow_list(guard, lambda: self._broker), "allow-list")

    async def _prepare(self) -> None:
        await fetch_allow_list(self._sockets.security.guard, self._broker)
        await self._find_own_host()

    def _registration(self, broker: str, where: str, events: str) -> Registration:
        return Registration(
            self._sockets,
            broker,
            where=where,
            events=events,
            record=self._record,
            prepare=self._prepare,
            on_welcome=self._welcomed,
            on_beat=self._beats,
            # The word of the first one counts; and once the node serves, no answer ends it.
            is_final=lambda exc: events != "" and _is_final(exc) and not self._is_ready.is_set(),
            heartbeat_s=self._heartbeat_s,
        )

    def _welcomed(self, registration: Registration) -> None:
        """A broker lists this node now. Before, the id may be another node's."""
        if self._publisher is None:
            self._publisher = Publisher(
                self._sockets,
                registration.events,
                node_id=self.node_id,
                epoch=self.epoch,
                on_up=self._heard_again,
            )
        else:
            self._publisher.publish_to(registration.events, registration.former_events)
        if registration is self._registrations[0]:
            self._set_ready()
        elif not self._is_ready.is_set():
            self._spawn(self._ready_without_first(), "readiness")

    async def _ready_without_first(self) -> None:
        """The spare lists this node. What the first one says counts, as long as it is there."""
        first = self._registrations[0]
        while not self._is_ready.is_set():
            try:
                await first.link.wait_up(_FIRST_S)
            except AuthenticationError:
                return
            except LabmeshError:
                self._set_ready()
            else:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_FIRST_S):
                        await self._is_ready.wait()

    def _beats(self, registration: Registration) -> None:
        leading = next((each for each in self._registrations if each.registered), None)
        if self._publisher is not None and registration is leading:
            self._publisher.publish_tail()

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
        # A hello that is on its way would bring the node back; the goodbye ends that one as well.
        for each in self._registering:
            each.cancel()
        await asyncio.gather(*self._registering, return_exceptions=True)
        await asyncio.gather(*(each.say_goodbye() for each in self._registrations))

    async def _close(self) -> None:
        if self._log_stream is not None:
            self._log_stream.close()
            self._log_stream = None
        if self._publisher is not None:
            self._publisher.close()
        for each in self._registrations:
            each.close()
        self._publisher = None
        self._registrations, self._registering = [], []

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

    def _member_facts(self) -> dict[str, Any]:
        """What every member tells about its registration (ages in seconds)."""
        beats = [each.heartbeat_at for each in self._registrations if each.heartbeat_at is not None]
        facts: dict[str, Any] = {
            "registered": self.registered,
            "heartbeat_age_s": time.monotonic() - max(beats) if beats else None,
            "events_up": self._publisher is not None and self._publisher.up,
            "admits": self._sockets.admits,
            "audit_lost": None if self.audit is None else self.audit.lost,
        }
        if self._spare_rpc:
            facts |= {
                "brokers": [self._facts_at(each) for each in self._registrations],
            }
        return facts

    def _facts_at(self, broker: Registration) -> dict[str, Any]:
        publisher = self._publisher
        is_up = publisher is not None and publisher.is_up_at(broker.events)
        return {
            "address": broker.link.endpoint,
            "registered": broker.registered,
            "events_up": is_up,
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
