"""The client: finds relays and banks through the broker, calls, listens, downloads."""

from __future__ import annotations

import time
from collections.abc import Callable
from os import PathLike
from typing import Any, TypeVar, overload

from labmesh.asking.bank_client import BankClient
from labmesh.asking.client_node import ClientNode
from labmesh.asking.links import REQUEST_S
from labmesh.asking.remote import LinkHealth, RelayClient
from labmesh.datasets.query import Moment, posix_of
from labmesh.errors import NotFound
from labmesh.events.brokers_followed import BrokersFollowed
from labmesh.events.feed import Ids
from labmesh.events.healing import Gap
from labmesh.events.listening import Subscription
from labmesh.events.log_lines import remembered
from labmesh.events.log_stream import LogLine
from labmesh.events.reading import Reading
from labmesh.events.watching import Readings
from labmesh.node import seconds
from labmesh.protocol.addresses import parse_connect
from labmesh.protocol.ids import did_you_mean
from labmesh.protocol.messages import GetStatus, NodeRecord, Status
from labmesh.protocol.roster import about, nobody
from labmesh.protocol.spare import spare_rpc
from labmesh.transport.broker_link import BrokerLink
from labmesh.transport.keys import Security

__all__ = ["BankClient", "DirectorClientAgent", "RelayClient"]

C = TypeVar("C", bound="RelayClient")

_POLL_S = 0.25


class DirectorClientAgent(ClientNode):
    """A client of the mesh.

    Every coroutine may be awaited from any loop and thread; callbacks run on the loop that called
    :meth:`connect`.

    :param broker_address: the host that ``BROKER`` stands for in the other two addresses.
    :param broker_rpc: the broker's request address.
    :param broker_xpub: the broker's event address; None: the broker tells its port.
    :param spare_broker: the spare broker's address: ``host``, or ``host:port`` of its requests.
    :param local_address: accepted for symmetry with the other nodes; a client binds nothing.
    :param call_limit: seconds that a call without a timeout may last at most.
    :param security: by default what the environment says (``LMH_NETWORK_PASSWORD``).
    """

    def __init__(
        self,
        broker_address: str = "127.0.0.1",
        broker_rpc: str = "tcp://BROKER:5750",
        broker_xpub: str | None = None,
        local_address: str | None = None,
        *,
        call_limit: float = 600.0,
        security: Security | None = None,
        spare_broker: str | None = None,
    ) -> None:
        rpc = str(parse_connect(broker_rpc, broker_address))
        super().__init__(
            rpc,
            broker_xpub and str(parse_connect(broker_xpub, broker_address)),
            spare_rpc=spare_rpc(spare_broker or "", rpc),
            call_limit_s=seconds(call_limit, "call_limit"),
            security=security,
        )
        self.local_address = local_address

    # ── directory ───────────────────────────────────────────────────────────────────────────────

    async def list_nodes(self) -> list[NodeRecord]:
        """Everybody who is registered, sorted by kind and id."""
        return await self.at_home(self._list_nodes())

    async def list_relay_ids(self) -> list[dict[str, Any]]:
        """The relays: ``relay_id``, ``rpc_endpoint``, ``state``, ``title``, ``host``, ``pid``."""
        return [
            {"relay_id": each.node_id, "rpc_endpoint": each.endpoints["rpc"], **about(each)}
            for each in await self.list_nodes()
            if each.kind == "relay"
        ]

    async def list_banks(self) -> list[dict[str, Any]]:
        """The banks: ``bank_id``, ``ingest``, ``retrieve``, and as for relays."""
        return [
            {
                "bank_id": each.node_id,
                "ingest": each.endpoints["ingest"],
                "retrieve": each.endpoints["retrieve"],
                **about(each),
            }
            for each in await self.list_nodes()
            if each.kind == "bank"
        ]

    @overload
    async def get_relay_agent(
        self, relay_id: str, cls: None = None, *, wait: float = ...
    ) -> RelayClient: ...
    @overload
    async def get_relay_agent(self, relay_id: str, cls: type[C], *, wait: float = ...) -> C: ...
    async def get_relay_agent(
        self, relay_id: str, cls: type[RelayClient] | None = None, *, wait: float = 8.0
    ) -> RelayClient:
        """A proxy of a relay: ``cls``, or :class:`RelayClient`.

        :param wait: seconds to wait, from the directory's first answer, for a relay that is not
            there yet.
        :raises LookupError: no such relay; the text names the closest ids.
        """
        record = await self.at_home(self._find("relay", relay_id, wait))
        return (cls or RelayClient)(self, record.node_id)

    async def get_databank_agent(
        self, bank_id: str | None = None, *, wait: float = 8.0
    ) -> BankClient:
        """A proxy of a bank; None: the first one.

        :raises LookupError: no such bank; the text names the closest ids.
        """
        record = await self.at_home(self._find("bank", bank_id, wait))
        return BankClient(self, record.node_id)

    @property
    def known_nodes(self) -> list[NodeRecord]:
        """The directory as this client last heard it, sorted by kind and id; asks nobody.

        Announcements keep it current while there is a link to the broker. In any thread.
        """
        return self._roster.nodes()

    def known(self, node_id: str) -> NodeRecord | None:
        """The line of one node in :attr:`known_nodes`."""
        return self._roster.get(node_id)

    def health(self, node_id: str | None = None) -> LinkHealth:
        """How the link to a node (None: to the broker) is; asks nobody. In any thread."""
        link: BrokerLink | None = self._directory
        if node_id is not None:
            link = None if self._links is None else self._links.get(node_id)
        if link is None:
            return LinkHealth("", up=False, heard_at=None, trouble=None)
        return LinkHealth(link.endpoint, link.up, link.heard_at, link.trouble)

    @property
    def brokers(self) -> list[LinkHealth]:
        """How the links to the broker and, where there is one, to its spare are; asks nobody. In
        any thread. The one that is followed is :meth:`health`.
        """
        broker = self._directory
        links = broker.links if isinstance(broker, BrokersFollowed) else filter(None, (broker,))
        return [LinkHealth(each.endpoint, each.up, each.heard_at, each.trouble) for each in links]

    async def wait_for_broker(self, endpoint: str, timeout: float) -> None:
        """Wait until one of :attr:`brokers` answers.

        :raises LinkLost: it does not within ``timeout`` seconds.
        :raises AuthenticationError: it does not accept this client.
        """
        broker = self._broker
        if isinstance(broker, BrokersFollowed):
            await self.at_home(broker.link_to(endpoint).wait_up(timeout))
        else:
            await self.at_home(broker.wait_up(timeout))

    async def broker_status(self) -> Status:
        """What the broker is doing."""
        return await self.at_home(
            self._broker.request(GetStatus(id="-"), Status, timeout=REQUEST_S)
        )

    async def _find(self, kind: str, node_id: str | None, wait: float) -> NodeRecord:
        nodes = await self._list_nodes()
        deadline = time.monotonic() + wait
        while True:
            for each in nodes:
                if each.kind == kind and node_id in (None, each.node_id):
                    return each
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                raise nobody(kind, node_id, nodes, wait)
            await self._events.presence_or(min(left_s, _POLL_S))
            nodes = await self._list_nodes()

    # ── events ──────────────────────────────────────────────────────────────────────────────────

    def on_state(
        self, callback: Callable[[str, Any], object], relay_id: Ids = None
    ) -> Subscription:
        """Call ``callback(relay_id, state)`` for each state, at first with the last known ones.

        Plain and async functions; each has a queue of its own. Cancel what is returned to end it:
        states that nobody listens to any more are not sent to this client any more.

        :param relay_id: an id (``psu-1``, never ``psu-10``), a pattern (``psu-*``), or several of
            them; None: all relays.
        """
        return self._events.on_state(callback, relay_id)

    def on_reading(
        self, callback: Callable[[Reading], object], relay_id: Ids = None
    ) -> Subscription:
        """Like :meth:`on_state`, with the time, sequence and gaps: ``callback(reading)``."""
        return self._events.on_reading(callback, relay_id)

    def watch(
        self, relay_id: Ids = None, *, timeout: float | None = None, queue: int = 1000
    ) -> Readings:
        """States as an asynchronous iterator, the last known ones first; see :class:`Readings`. ::

            async for reading in client.watch("Inst-*"):
                ...

        :param relay_id: as of :meth:`on_state`.
        :param timeout: seconds to wait for each; without it, as long as it takes.
        :param queue: readings that wait while you are busy; when there are more, the newest of each
            relay.
        :raises TimeoutError: (while iterating) no state came in time.
        """
        limit_s = None if timeout is None else seconds(timeout, "timeout")
        if queue < 1:
            raise ValueError(f"queue is a number of readings, 1 or more, not {queue!r}")
        return self._events.watch(relay_id, queue, limit_s)

    async def follow_states(self, relay_id: str | None = None) -> None:
        """Begin to receive states, and wait until the last one of each relay is here.

        :param relay_id: an id or a pattern; None: all relays, which is never refused.
        :raises ConnectionError: the broker does not answer.
        :raises Busy: it keeps no more topics, and refused this one.
        """
        await self.at_home(self._follow_states(relay_id))

    async def _follow_states(self, relay_id: str | None) -> None:
        await self._events.follow_states(relay_id)

    def last_reading(self, relay_id: str) -> Reading | None:
        """The last state of a relay, when states are followed; asks nobody. In any thread."""
        return None if self._feed is None else self._feed.last_reading(relay_id)

    def on_dataset(
        self,
        callback: Callable[[dict[str, Any]], object],
        *,
        cursor: str | PathLike[str] | None = None,
        since: Moment | None = None,
    ) -> Subscription:
        """Call ``callback(record)`` once for each dataset that a bank stores from now on, in the
        order in which each bank stored them.

        The record has ``dataset_id``, ``bank_id``, ``relay_id``, ``size`` (bytes), ``sha256``,
        ``name``, ``kind``, ``created`` (POSIX seconds), ``meta``, ``repeated``. What could not be
        announced, for whatever reason, is fetched from the bank's list, as soon as that answers.
        What was deleted there meanwhile is not told.

        :param cursor: a file that keeps how far this has come: then each dataset is handed over
            once also across the ends and crashes of this program. One whose callback was running
            when the program died is handed over again, with ``record["repeated"]`` true; with a
            callback that raises, it counts as handed over. Only one subscription at a time may have
            the file.
        :param since: also those that were stored since then, as of ``bank.search()``: ``"2h"``
            ago, a date or time, POSIX seconds; 0: all. A cursor that exists already goes on where
            it was.
        :raises ConfigError: (a ValueError) the cursor is broken, or cannot be read or written.
        :raises Conflict: the cursor is in use.
        """
        return self._events.on_dataset(callback, cursor, None if since is None else posix_of(since))

    def on_presence(self, callback: Callable[[dict[str, Any]], object]) -> Subscription:
        """Call ``callback(change)`` when a node joins, falls silent, comes back or leaves.

        The change has ``node_id``, ``kind``, ``change`` (``joined``, ``suspect``, ``back``,
        ``left``), ``reason`` and the node's ``endpoints``, ``title``, ``host``, ``pid``.
        """
        return self._events.on_presence(callback)

    def on_event(
        self, callback: Callable[[str, str, Any], object], relay_id: Ids = None
    ) -> Subscription:
        """Call ``callback(relay_id, kind, value)`` for a relay's other events.

        ``state_error``: its driver's ``poll()`` failed. ``alive``: a driver without ``poll()``.
        ``alarm``, ``message``, ``progress`` and others: what drivers publish themselves.
        Relays as of :meth:`on_state`.
        """
        return self._events.on_event(callback, relay_id)

    def on_log(
        self,
        callback: Callable[[LogLine], object],
        node_id: Ids = None,
        *,
        level: str | int = "INFO",
    ) -> Subscription:
        """Call ``callback(line)`` for what relays and banks log.

        :param node_id: relays and banks, as of :meth:`on_state`.
        :param level: lines below it are left out. A node publishes none below its own
            ``log_level``.
        """
        return self._events.on_log(callback, node_id, level)

    async def subscribed(self) -> None:
        """Wait until everything that was asked for so far is subscribed to: what is published from
        then on is heard, or told as a gap.

        :raises ConnectionError: the broker does not answer.
        :raises Busy: it keeps no more topics, and refused a subscription; the log says so as well.
        """
        await self.at_home(self._subscribed())

    async def _subscribed(self) -> None:
        await self._events.settled()

    async def recent_log(self, node_id: str) -> list[LogLine]:
        """The lines of a node's log that the broker remembers, the oldest first.

        :raises NotFound: no such relay or bank.
        :raises ConnectionError: the broker does not answer.
        """
        return await self.at_home(self._recent_log(node_id))

    async def _recent_log(self, node_id: str) -> list[LogLine]:
        nodes = await self._list_nodes()
        for each in nodes:
            if each.node_id == node_id:
                return await remembered(self._broker, each)
        near = did_you_mean(node_id, [each.node_id for each in nodes])
        raise NotFound(f"no relay or bank is called {node_id!r}{near and f' ({near})'}")

    def on_gap(self, callback: Callable[[Gap], object]) -> Subscription:
        """Call ``callback(gap)`` for each loss of events: exactly how many, of which node.

        States are not fetched again: the newest is the one that counts. Of other events, those that
        the broker remembers are delivered late, and counted as ``gap.recovered``.
        """
        return self._events.on_gap(callback)
