"""The mesh for scripts and notebooks: every call waits for its answer.

::

    import labmesh

    mesh = labmesh.connect()
    psu = mesh["Inst-0"]
    psu.set_voltage(2.5)

A call is made in the thread that waits for it; one thread in the background does all else. So this
works in a plain script, in a REPL, and in a notebook, where the main thread runs an event loop of
its own; several threads may share one mesh.
"""

from __future__ import annotations

import html
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, Self, TypeVar

from msgspec.structs import asdict

from labmesh.blocking.background import BackgroundLoop
from labmesh.blocking.bank import Bank, Record
from labmesh.blocking.cards import (
    NODE_HEADINGS,
    ago,
    count,
    duration,
    html_table,
    node_rows,
    plain,
    table,
)
from labmesh.blocking.instrument import Instrument, InstrumentStatus
from labmesh.blocking.news import News
from labmesh.blocking.readings import Readings
from labmesh.blocking.session import DriverChangedWarning, Session
from labmesh.client import DirectorClientAgent
from labmesh.config import CONFIG_NAME, Config, find_config, load_config, read_toml
from labmesh.discovery import BROKER_VARIABLE, BrokerCandidate, broker_candidate
from labmesh.errors import LinkLost, NotSent
from labmesh.events.reading import Reading
from labmesh.protocol.messages import NodeRecord
from labmesh.transfer import Progress
from labmesh.transport.keys import Security

__all__ = [
    "Bank",
    "DriverChangedWarning",
    "Instrument",
    "InstrumentStatus",
    "Mesh",
    "MeshStatus",
    "Reading",
    "Readings",
    "Record",
    "connect",
]

_BANK_S = 2.0

Device = TypeVar("Device", bound=Instrument)


def connect(
    address: str | None = None,
    *,
    timeout: float = 10.0,
    config: str | PathLike[str] | None = None,
    security: Security | None = None,
) -> Mesh:
    """Connect to a mesh.

    Which broker: ``address``; else the ``[client]`` table of the file ``config``; else the variable
    ``LMH_BROKER``; else a ``labmesh.toml`` in the current folder; else the network that this
    computer has joined (``labmesh keys join``); else ``localhost:5750``. The
    first that is given is the one that is tried, and no other. Its spare, if it has one, is what
    ``[broker] spare`` of that file says, or the variable ``LMH_SPARE``.

    :param address: ``host``, ``host:port``, ``[v6]:port`` or ``tcp://host:port``.
    :param timeout: seconds to wait for the broker.
    :param config: a configuration file; its ``call_limit`` and ``[security]`` hold as well.
    :param security: by default what the environment and the file say (``LMH_NETWORK_PASSWORD``).
    :raises ConnectionError: no broker answered; the text names what was tried, and why that.
    :raises AuthenticationError: the broker does not accept this client (within 2 s).
    :raises ConfigError: an address or the file cannot be used.
    """
    if not timeout > 0:
        raise ValueError(f"timeout must be more than 0 seconds, not {timeout}")
    candidate = broker_candidate(address, os.environ, config)
    settings = load_config(find_config() if config is None else config)
    client = DirectorClientAgent(
        broker_rpc=candidate.rpc,
        broker_xpub=candidate.xpub if _gives_event_port(settings) else None,
        spare_broker=candidate.spare,
        call_limit=settings.client.call_limit,
        security=security or _security(settings),
    )
    return _opened(client, timeout, _tried(candidate))


def connect_within(
    context: AbstractAsyncContextManager[Any], address: Callable[[], str], **options: Any
) -> Mesh:
    """A mesh whose nodes run on the mesh's own background thread, and end with it."""
    background = BackgroundLoop("labmesh")
    try:
        background.enter(context)
        client = DirectorClientAgent(broker_rpc=address(), **options)
        return _opened(client, 10.0, "", background)
    except BaseException:
        background.close()
        raise


def _opened(
    client: DirectorClientAgent,
    timeout: float,
    tried: str,
    background: BackgroundLoop | None = None,
) -> Mesh:
    background = background or BackgroundLoop("labmesh")
    try:
        background.enter(_Connected(client, timeout))
    except LinkLost as exc:
        background.close()
        raise type(exc)(f"{exc} {tried}".strip(), **exc.detail) from None
    except BaseException:
        background.close()
        raise
    return Mesh(Session(background, client))


class _Connected(AbstractAsyncContextManager["_Connected"]):
    """A client that is connected with a timeout of its own."""

    def __init__(self, client: DirectorClientAgent, timeout: float) -> None:
        self._client = client
        self._timeout = timeout

    async def __aenter__(self) -> Self:
        await self._client.connect(self._timeout)
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self._client.close()


def _gives_event_port(settings: Config) -> bool:
    """The broker tells its event port; only where a file says otherwise, the file is right."""
    return settings.path is not None and "broker_xpub" in read_toml(settings.path).get("client", {})


def _security(settings: Config) -> Security:
    table = settings.security
    return Security.resolve(**asdict(table))


def _tried(candidate: BrokerCandidate) -> str:
    """Where the address came from, and what stood before it in the order of sources."""
    if candidate.source != "the default":
        return f"(Tried {candidate.rpc}, from {candidate.source}.)"
    return (
        f"(Tried {candidate.rpc}, the default: no address was given, {BROKER_VARIABLE} is not set, "
        f"there is no {CONFIG_NAME} in {Path.cwd()}, and this computer has joined no network with "
        "'labmesh keys join'.)"
    )


@dataclass(frozen=True)
class MeshStatus:
    """How a mesh was when it was asked for. Ages are in seconds."""

    broker: str
    #: since the last message of the broker
    link_age_s: float
    uptime_s: float
    relays: int
    banks: int
    #: ``password`` or ``open``
    security: str
    facts: Mapping[str, Any]
    #: the other one of two brokers, and whether it answers; empty: there is no other
    other_broker: str = ""
    other_broker_up: bool = False

    def __repr__(self) -> str:
        return (
            f"broker at {self.broker}: up for {duration(self.uptime_s)}, last message "
            f"{ago(self.link_age_s)}, security {plain(self.security, 40)}, "
            f"{count(self.relays, 'relay')}, {count(self.banks, 'bank')}{self._other()}"
        )

    def _other(self) -> str:
        if not self.other_broker:
            return ""
        does = "answers" if self.other_broker_up else "does NOT answer"
        return f"; the other broker at {self.other_broker} {does}"


class Mesh(News):
    """A connection to a mesh, as :func:`connect` makes it.

    ``mesh["Inst-0"]`` is an instrument, ``mesh.bank()`` a bank, and ``mesh`` itself, in a notebook
    or a terminal, a table of who is there. Iteration goes over the ids of the relays.

    Close it with :meth:`close` or a ``with`` statement; one that is forgotten is closed with the
    last object that uses it, or at the end of the program, which it never keeps from ending.
    """

    def __init__(self, session: Session) -> None:
        self._session = session

    # ── instruments ─────────────────────────────────────────────────────────────────────────────

    def __getitem__(self, relay_id: str) -> Instrument:
        """The instrument behind a relay; one that is just joining is waited for, up to 2 s.

        :raises NotFound: (a KeyError) no such relay; the text names the closest ids.
        :raises ConnectionError: it is listed, but cannot be reached.
        """
        return self.instrument(relay_id, Instrument)

    def instrument(self, relay_id: str, cls: type[Device]) -> Device:
        """``mesh[relay_id]`` as an object of your own class, or of one by ``labmesh stubs``.

        :param cls: a subclass of :class:`Instrument`.
        :raises NotFound, ConnectionError: as for ``mesh[relay_id]``.
        """
        if not isinstance(relay_id, str):
            raise TypeError(f"a relay's id is text, not {type(relay_id).__name__}")
        if self.closed:
            raise NotSent("this mesh is closed; connect again")
        record = self._session.find_relay(relay_id)
        return cls(self._session, record.node_id)

    @property
    def relays(self) -> list[str]:
        """The ids of the relays."""
        return [each.node_id for each in self._nodes("relay")]

    def __contains__(self, relay_id: object) -> bool:
        return relay_id in self.relays

    def __iter__(self) -> Iterator[str]:
        return iter(self.relays)

    def __len__(self) -> int:
        return len(self.relays)

    def __bool__(self) -> bool:
        """A mesh is one, also without relays."""
        return True

    def _ipython_key_completions_(self) -> list[str]:
        return self.relays

    def watch(self, pattern: str = "*", timeout: float | None = None) -> Readings:
        """An iterator of the states of all relays whose ids match, the last known ones first.

        It ends when the mesh is closed. Leave the loop whenever you like.

        :param pattern: shell style, such as ``Inst-*``.
        :param timeout: seconds to wait for each; without it, as long as it takes.
        :raises TimeoutError: (while iterating) no state came in time.
        """
        return self._session.watch(pattern, timeout)

    # ── banks ───────────────────────────────────────────────────────────────────────────────────

    @property
    def banks(self) -> list[str]:
        """The ids of the banks."""
        return [each.node_id for each in self._nodes("bank")]

    def bank(self, name: str | None = None) -> Bank:
        """A bank; None: the first one. One that is just joining is waited for, up to 2 s.

        :raises NotFound: (a KeyError) no such bank; the text names the closest ids.
        """
        session = self._session
        find = session.client.get_databank_agent(name, wait=_BANK_S)
        return Bank(session, session.run(find))

    def put(
        self,
        value: Any,
        name: str | None = None,
        *,
        meta: Mapping[str, Any] | None = None,
        kind: str | None = None,
        tags: str | Iterable[str] = (),
        parents: Any = (),
        dataset_id: str | None = None,
        progress: Progress | None = None,
    ) -> Record:
        """Store a dataset in the first bank: see :meth:`Bank.put`."""
        return self.bank().put(
            value,
            name,
            meta=meta,
            kind=kind,
            tags=tags,
            parents=parents,
            dataset_id=dataset_id,
            progress=progress,
        )

    # ── life ────────────────────────────────────────────────────────────────────────────────────

    def status(self) -> MeshStatus:
        """How the broker is, asked now.

        :raises ConnectionError: it does not answer.
        """
        client = self._session.client
        status = self._session.run(client.broker_status())
        health, facts = client.health(), status.facts
        others = [each for each in client.brokers if each.endpoint != health.endpoint]
        return MeshStatus(
            broker=health.endpoint,
            link_age_s=_age_s(health.heard_at) or 0.0,
            uptime_s=status.uptime_s,
            relays=len(self.relays),
            banks=len(self.banks),
            security=str(facts.get("security", "?")),
            facts=facts,
            other_broker=others[0].endpoint if others else "",
            other_broker_up=bool(others) and others[0].up,
        )

    @property
    def closed(self) -> bool:
        """It was closed."""
        return self._session.closed

    def close(self) -> None:
        """End every subscription and connection; twice is fine.

        Calls that other threads wait for end with :class:`~labmesh.errors.LinkLost`. In the handler
        of a signal that came in the middle of a call, that call, and then all else, ends as soon as
        the handler has returned.
        """
        self._session.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __repr__(self) -> str:
        if self.closed:
            return self._headline()
        return f"{self._headline()}\n{table(NODE_HEADINGS, node_rows(self._all_nodes()))}"

    def _repr_html_(self) -> str:
        headline = f"<div>{html.escape(self._headline())}</div>"
        if self.closed:
            return headline
        return headline + html_table(NODE_HEADINGS, node_rows(self._all_nodes()))

    def _headline(self) -> str:
        health = self._session.client.health()
        place = f"mesh at {health.endpoint}"
        if self.closed:
            return f"{place}: closed"
        if health.up:
            return f"{place}: {count(len(self.relays), 'relay')}, {count(len(self.banks), 'bank')}"
        return (
            f"{place}: NO LINK to the broker (last message {ago(_age_s(health.heard_at))}); "
            "this was there:"
        )

    def _all_nodes(self) -> list[NodeRecord]:
        return self._session.client.known_nodes

    def _nodes(self, kind: str) -> list[NodeRecord]:
        return [each for each in self._all_nodes() if each.kind == kind]


def _age_s(heard_at: float | None) -> float | None:
    return None if heard_at is None else max(0.0, time.monotonic() - heard_at)
