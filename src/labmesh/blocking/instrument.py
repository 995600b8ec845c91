"""A relay's driver as an object with the driver's own methods."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from labmesh.blocking.cards import (
    InstrumentCard,
    ago,
    duration,
    instrument_html,
    instrument_text,
    plain,
)
from labmesh.blocking.methods import remote_method
from labmesh.blocking.readings import Readings
from labmesh.blocking.session import Session
from labmesh.errors import LabmeshError, UnknownMethod
from labmesh.feed import Reading
from labmesh.protocol.ids import did_you_mean
from labmesh.protocol.messages import Description, NodeRecord, Status
from labmesh.remote import LinkHealth, RelayClient

__all__ = ["Instrument", "InstrumentStatus"]

#: A state is stale when so many intervals have passed without a newer one.
_STALE_INTERVALS = 3


class Instrument:
    """A relay's driver, seen from here: ``psu.set_voltage(2.5)`` calls its method and waits.

    The methods, with their signatures and docstrings, are the driver's own: TAB lists them, and
    ``psu.set_voltage?`` or ``help(psu.set_voltage)`` explains one. A name that the driver does not
    have is an :class:`AttributeError`, and nobody is asked. Several threads may share an object.

    This object has names of its own: ``call``, ``describe``, ``relay_id``, ``state``, ``status``
    and ``watch``. A driver's method of such a name is reached by ``psu.call("status")``.

    A call without a timeout lasts as long as the relay shows that it runs. Ctrl-C takes back a call
    that still waits for its turn; one that has begun runs on at the instrument. When the relay was
    restarted this object goes on by itself; when the methods have changed meanwhile, it warns.
    """

    __slots__ = ("__weakref__", "_relay", "_session", "relay_id")

    def __init__(self, session: Session, relay_id: str) -> None:
        session.learn(relay_id)
        self._session = session
        self._relay = RelayClient(session.client, relay_id)
        self.relay_id = relay_id

    def call(self, method: str, params: Any = None, timeout: float | None = None) -> Any:
        """Call a driver's method and return what it returns.

        :param params: a dict is keywords, a list or tuple is positional arguments, anything else
            (also ``False``, ``0``, ``""``) is one argument; None: no arguments.
        :param timeout: a hard deadline, seconds.
        :raises DriverError: the method raised; the error also inherits the builtin that it raised.
        :raises AttributeError: the driver has no such method.
        :raises TypeError: the arguments do not fit.
        :raises TimeoutError: no result by the deadline: ``Expired`` (it did not run and will not)
            or ``OutcomeUnknown``.
        :raises ConnectionError: the relay cannot be reached (``NotSent``), or the link broke.
        """
        return self._session.run(self._relay.call(method, params, timeout))

    def status(self) -> InstrumentStatus:
        """How link, relay, driver and instrument are; also while the driver is busy.

        A relay that cannot be reached is no error: the status says so.
        """
        status, trouble = self._session.run(self._ask_status())
        health = self._session.client.health(self.relay_id)
        return _status(self.relay_id, health, status, trouble)

    async def _ask_status(self) -> tuple[Status | None, LabmeshError | None]:
        try:
            return await self._relay.status(), None
        except LabmeshError as exc:
            return None, exc

    def describe(self) -> Description:
        """The driver's class, docstring and methods, fetched now."""
        return self._session.run(self._relay.describe())

    @property
    def state(self) -> Reading | None:
        """The last state that was received: ``psu.state["voltage"]``, ``psu.state.age_s``.

        None: none was. Nobody is asked.
        """
        return self._session.client.last_reading(self.relay_id)

    def watch(self, timeout: float | None = None) -> Readings:
        """An iterator of the states as they come, the last known one first.

        It ends when the mesh is closed. Leave the loop whenever you like.

        :param timeout: seconds to wait for each; without it, as long as it takes.
        :raises TimeoutError: (while iterating) no state came in time.
        """
        return self._session.watch(self.relay_id, timeout)

    # ── the driver's methods ────────────────────────────────────────────────────────────────────

    def __getattr__(self, name: str) -> Any:
        # Python and its tools ask for many private names; no driver shows one.
        if name.startswith("_"):
            raise AttributeError(name, name=name, obj=self)
        driver = self._session.driver(self.relay_id)
        if name in driver.methods:
            return remote_method(driver, name, self._invoke)
        near = did_you_mean(name, driver.methods)
        raise UnknownMethod(
            f"{driver.name} ({self.relay_id}) has no method {name!r}"
            f"{f'; {near}' if near else '.'} Its methods: {', '.join(driver.methods) or 'none'}"
        )

    def __dir__(self) -> list[str]:
        own = [name for name in object.__dir__(self) if name != "_relay"]
        return sorted({*own, *self._session.held_driver(self.relay_id).methods})

    def _invoke(self, name: str, args: list[Any], kwargs: dict[str, Any]) -> Any:
        return self._session.run(self._relay.invoke(name, args, kwargs))

    # ── looks ───────────────────────────────────────────────────────────────────────────────────

    def __repr__(self) -> str:
        return instrument_text(self._card())

    def _repr_html_(self) -> str:
        return instrument_html(self._card())

    def _card(self) -> InstrumentCard:
        client = self._session.client
        driver = self._session.held_driver(self.relay_id)
        record: NodeRecord | None = client.known(self.relay_id)
        reading = client.last_reading(self.relay_id)
        return InstrumentCard(
            relay_id=self.relay_id,
            driver=driver.name,
            doc=driver.doc,
            light="mesh closed" if self._session.closed else record.state if record else "gone",
            host=record.host if record else "",
            state=None if reading is None else (reading.value, reading.age_s),
            methods=[(name, each.signature) for name, each in driver.methods.items()],
            hidden=[name for name in driver.methods if hasattr(type(self), name)],
        )


@dataclass(frozen=True)
class InstrumentStatus:
    """How an instrument was when it was asked for. Ages are in seconds; None: not known."""

    relay_id: str
    #: the relay can be reached
    up: bool
    #: since the last message that came back
    link_age_s: float | None
    #: why it cannot be reached
    trouble: str
    #: the broker lists the relay, as far as the relay knows
    registered: bool | None = None
    heartbeat_age_s: float | None = None
    uptime_s: float | None = None
    driver: str = ""
    #: the method that runs now, and for how long; None: the driver is idle
    busy_with: str | None = None
    busy_s: float | None = None
    queued: int = 0
    #: since the last good ``poll()`` of the driver
    state_age_s: float | None = None
    #: seconds between two states; None: the driver has no ``poll()``
    state_interval_s: float | None = None
    #: why the last ``poll()`` failed; empty: it did not
    state_error: str = ""
    #: everything that the relay said
    facts: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)

    @property
    def stale(self) -> bool:
        """A state is due each interval, and none came for three."""
        if self.state_interval_s is None:
            return False
        limit_s = _STALE_INTERVALS * self.state_interval_s
        age_s = self.uptime_s if self.state_age_s is None else self.state_age_s
        return age_s is not None and age_s > limit_s

    def __repr__(self) -> str:
        lines = [
            f"{self.relay_id}: {self.driver or 'not reached'}",
            f"  link        {self._link()}",
        ]
        if self.up:
            lines += [
                f"  relay       {self._relay()}",
                f"  driver      {self._driver()}",
                f"  instrument  {self._instrument()}",
            ]
        return "\n".join(lines)

    def _link(self) -> str:
        heard = f"last message {ago(self.link_age_s)}"
        return f"up, {heard}" if self.up else f"DOWN, {heard}: {plain(self.trouble)}"

    def _relay(self) -> str:
        listed = "registered" if self.registered else "NOT REGISTERED with the broker"
        uptime = "?" if self.uptime_s is None else duration(self.uptime_s)
        return f"{listed}, heartbeat {ago(self.heartbeat_age_s)}, up for {uptime}"

    def _driver(self) -> str:
        queued = f"{self.queued} queued"
        if self.busy_with is None:
            return f"idle, {queued}"
        return f"busy with {plain(self.busy_with, 64)} for {duration(self.busy_s or 0)}, {queued}"

    def _instrument(self) -> str:
        if self.state_interval_s is None:
            return "no poll(): its state is not watched"
        words = [f"last good state {ago(self.state_age_s)}"]
        if self.stale:
            words.insert(0, f"STALE (one is due each {duration(self.state_interval_s)})")
        if self.state_error:
            words.append(f"poll() FAILED: {plain(self.state_error)}")
        return ", ".join(words)


def _status(
    relay_id: str, health: LinkHealth, status: Status | None, trouble: LabmeshError | None
) -> InstrumentStatus:
    heard_at = health.heard_at
    age_s = None if heard_at is None else max(0.0, time.monotonic() - heard_at)
    if status is None:
        return InstrumentStatus(relay_id, up=False, link_age_s=age_s, trouble=str(trouble))
    facts = status.facts
    return InstrumentStatus(
        relay_id,
        up=True,
        link_age_s=age_s,
        trouble="",
        registered=bool(facts.get("registered")),
        heartbeat_age_s=_number(facts, "heartbeat_age_s"),
        uptime_s=status.uptime_s,
        driver=str(facts.get("driver", "")),
        busy_with=None if facts.get("busy_with") is None else str(facts["busy_with"]),
        busy_s=_number(facts, "busy_s"),
        queued=int(_number(facts, "queued") or 0),
        state_age_s=_number(facts, "state_age_s"),
        state_interval_s=_number(facts, "state_interval_s"),
        state_error=str(facts.get("state_error", "")),
        facts=facts,
    )


def _number(facts: Mapping[str, Any], name: str) -> float | None:
    """A fact from another machine, perhaps of another version: only a number will do."""
    value = facts.get(name)
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number else None  # type: ignore[arg-type]
