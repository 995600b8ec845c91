"""A relay's driver as an object with the driver's own methods and values."""

from __future__ import annotations

import math
from collections.abc import Coroutine
from typing import Any

from labmesh.asking.call_status import CallStatus
from labmesh.asking.remote import RelayClient
from labmesh.blocking.batches import Batch
from labmesh.blocking.cards import InstrumentCard, instrument_html, instrument_text
from labmesh.blocking.leases import Lease, hold
from labmesh.blocking.methods import remote_method
from labmesh.blocking.names import check_gettable, check_settable
from labmesh.blocking.readings import Readings
from labmesh.blocking.session import Session
from labmesh.blocking.status import InstrumentStatus
from labmesh.blocking.streams import Stream
from labmesh.errors import LabmeshError, OutcomeUnknown
from labmesh.events.reading import Reading
from labmesh.instruments.exposure import call_arguments
from labmesh.protocol.messages import Access, Description, NodeRecord, Status
from labmesh.transport.inflow import ItemStream

__all__ = ["Instrument", "InstrumentStatus"]

#: Items of a stream that are made ahead of whoever takes them.
_CREDIT = 16


class Instrument:
    """A relay's driver, seen from here: ``psu.set_voltage(2.5)`` calls its method and waits.

    The methods, with their signatures and docstrings, are the driver's own: TAB lists them, and
    ``psu.set_voltage?`` or ``help(psu.set_voltage)`` explains one. Its values (properties and
    parameters) are attributes: ``psu.voltage`` reads one at the instrument, ``psu.voltage = 2.5``
    writes it. A name that the driver does not have is an :class:`AttributeError`, and nobody is
    asked. Several threads may share an object.

    This object has names of its own: ``batch``, ``break_lease``, ``call``, ``call_status``,
    ``describe``, ``get``, ``lease``, ``relay_id``, ``set``, ``state``, ``status`` and ``watch``.
    A driver's method of such a name is reached by ``psu.call("status")``, a value by
    ``psu.get("state")``.

    Whatever looks at an attribute reads the value at the instrument: ``psu.voltage``, but also
    ``hasattr(psu, "voltage")``, ``psu.voltage?``, a debugger that unfolds the object, and the
    completer jedi, where IPython uses it, once a value's name is typed. ``psu.`` TAB, ``dir(psu)``,
    ``repr(psu)`` and the card in a notebook ask nobody: the readings that they show are of the last
    state. ``"voltage" in dir(psu)`` tells whether there is such a value.

    A call without a timeout lasts as long as the relay shows that it runs. Ctrl-C takes back a call
    that still waits for its turn; one that has begun runs on at the instrument. When the relay was
    restarted this object goes on by itself; when the methods have changed meanwhile, it warns.
    """

    __slots__ = ("__weakref__", "_relay", "_session")

    _relay: RelayClient
    _session: Session

    def __init__(self, session: Session, relay_id: str) -> None:
        session.learn(relay_id)
        object.__setattr__(self, "_session", session)
        object.__setattr__(self, "_relay", RelayClient(session.client, relay_id))

    @property
    def relay_id(self) -> str:
        """Its id on the mesh."""
        return self._relay.relay_id

    # ── calls and values ────────────────────────────────────────────────────────────────────────

    def call(self, method: str, params: Any = None, timeout: float | None = None) -> Any:
        """Call a driver's method and return what it returns; of one that yields, its items.

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
        args, kwargs = call_arguments(params)
        told = self._session.held_driver(self.relay_id).methods.get(method)
        if told is not None and told.yields:
            return self._stream(method, args, kwargs, timeout=timeout)
        return self._run(method, args, kwargs, timeout=timeout)

    def get(self, name: str, *, timeout: float | None = None) -> Any:
        """Read a value of the driver, now: ``psu.get("voltage")`` is ``psu.voltage``.

        :param timeout: a hard deadline, seconds.
        :raises AttributeError: the driver has no such value, or it can only be written.
        """
        return self._run(name, [], {}, access="get", timeout=timeout)

    def set(self, name: str, value: Any, *, timeout: float | None = None) -> None:
        """Write a value of the driver: ``psu.set("voltage", 2.5)`` is ``psu.voltage = 2.5``.

        :param timeout: a hard deadline, seconds.
        :raises AttributeError: the driver has no such value, or it can only be read.
        """
        self._run(name, [value], {}, access="set", timeout=timeout)

    def _run(
        self,
        name: str,
        args: list[Any],
        kwargs: dict[str, Any],
        *,
        access: Access = "call",
        timeout: float | None = None,
    ) -> Any:
        try:
            return self._session.call(
                self.relay_id, name, args, kwargs, access=access, timeout=timeout
            )
        except KeyboardInterrupt as exc:
            exc.add_note(
                f"{self.relay_id}.{name} was taken back if it had not begun; else it runs on at "
                "the instrument: status() tells"
            )
            raise

    def _stream(
        self,
        name: str,
        args: list[Any],
        kwargs: dict[str, Any],
        *,
        timeout: float | None = None,
    ) -> Stream[Any]:
        session, relay_id = self._session, self.relay_id
        limit_s = math.inf if timeout is None else timeout

        def begin() -> Coroutine[Any, Any, ItemStream]:
            return session.client.open_stream(
                relay_id, name, args, kwargs, timeout=limit_s, credit=_CREDIT
            )

        return Stream(session.run, begin, f"{relay_id}.{name}")

    # ── several calls, and who may write ────────────────────────────────────────────────────────

    def batch(self, *, keep_going: bool = False, timeout: float | None = None) -> Batch:
        """Several calls in one trip, back to back, with nothing of anybody else between them.

        ::

            with psu.batch() as b:
                b.voltage = 2.5
                m = b.measure()
            print(m.value)

        They are sent at the end of the block, unless it raised. It raises the first error, and
        what is behind that was not run.

        :param keep_going: also behind a call that failed; errors stay with their calls
            (``m.error``).
        :param timeout: a hard deadline for all of it, seconds.
        """
        return Batch(self._session, self.relay_id, keep_going=keep_going, timeout=timeout)

    def lease(self, *, note: str = "", ttl: float = 10.0) -> Lease:
        """Be the only one that may write, until the ``with`` block or this program ends.

        ::

            with psu.lease(note="T sweep"):
                psu.voltage = 2.5

        Others still read. A call of somebody else that is running is waited for, up to 5 s. It is
        renewed in the background; without ``with``, keep it in a variable, and end it by
        ``lease.release()``. When this program vanishes without that, the driver's
        ``safe_state()``, if it has one, is called.

        :param note: why, for those who find the instrument locked.
        :param ttl: seconds after which a program that vanished no longer holds it.
        :raises Locked: somebody holds it; the text says who, since when, and why.
        :raises Busy: somebody else's call runs on, and may write; the text says which, and whose.
        """
        return hold(self._session, self._relay, ttl, note)

    def break_lease(self, reason: str = "", *, fence: int = 0) -> None:
        """End the lease of whoever holds it, who is told who broke it and why.

        :param fence: of the lease that is meant; 0: any.
        :raises LookupError: nobody holds one.
        :raises Conflict: another lease than the one that is meant is held.
        """
        self._session.run(self._relay.break_lease(reason, fence=fence))

    def call_status(self, call: str | OutcomeUnknown, *, session: str | None = None) -> CallStatus:
        """What became of a call that ended with :class:`OutcomeUnknown`.

        One that has not arrived until now will not run any more.

        :param call: the error, or its ``detail["call"]``.
        :param session: the error's ``detail["session"]``, where another program made the call.
        :raises ConnectionError: the relay cannot be reached.
        """
        return self._session.run(self._relay.call_status(call, session=session))

    # ── what is known ───────────────────────────────────────────────────────────────────────────

    def status(self) -> InstrumentStatus:
        """How link, relay, driver, lease and instrument are; also while the driver is busy.

        A relay that cannot be reached is no error: the status says so.
        """
        status, trouble = self._session.run(self._ask_status())
        health = self._session.client.health(self.relay_id)
        return InstrumentStatus.of(self.relay_id, health, status, trouble)

    async def _ask_status(self) -> tuple[Status | None, LabmeshError | None]:
        try:
            return await self._relay.status(), None
        except LabmeshError as exc:
            return None, exc

    def describe(self) -> Description:
        """The driver's class, docstring, methods and values, fetched now."""
        return self._session.run(self._relay.describe())

    @property
    def state(self) -> Reading | None:
        """The last state that was received: ``psu.state["voltage"]``, ``psu.state.age_s``.

        ``psu.state.stale``: it is older than three intervals. None: none was received. Nobody is
        asked.
        """
        return self._session.client.last_reading(self.relay_id)

    def watch(self, timeout: float | None = None) -> Readings:
        """An iterator of the states as they come, the last known one first.

        It ends when the mesh is closed. Leave the loop whenever you like.

        :param timeout: seconds to wait for each; without it, as long as it takes.
        :raises TimeoutError: (while iterating) no state came in time.
        """
        return self._session.watch(self.relay_id, timeout)

    # ── the driver's names ──────────────────────────────────────────────────────────────────────

    def __getattr__(self, name: str) -> Any:
        # Python and its tools ask for many private names; no driver shows one.
        if name.startswith("_"):
            raise AttributeError(name, name=name, obj=self)
        driver = self._session.driver(self.relay_id)
        if name in driver.methods:
            invoke = self._stream if driver.methods[name].yields else self._run
            return remote_method(driver, name, invoke)
        check_gettable(driver, self.relay_id, name)
        return self.get(name)

    def __setattr__(self, name: str, value: Any) -> None:
        # A subclass may keep what it likes under private names.
        if name.startswith("_"):
            object.__setattr__(self, name, value)
            return
        driver = self._session.driver(self.relay_id)
        if hasattr(type(self), name):
            own = f"{name!r} is a name of this object itself"
            if name in driver.values:
                raise AttributeError(f"{own}; write the driver's value with set({name!r}, ...)")
            raise AttributeError(f"{own} and cannot be set")
        check_settable(driver, self.relay_id, name)
        self.set(name, value)

    def __dir__(self) -> list[str]:
        own = [name for name in object.__dir__(self) if name not in Instrument.__slots__]
        return sorted({*own, *self._session.held_driver(self.relay_id).names})

    # ── looks ───────────────────────────────────────────────────────────────────────────────────

    def __eq__(self, other: object) -> bool:
        """The same relay of the same mesh."""
        if not isinstance(other, Instrument):
            return NotImplemented
        return other._session is self._session and other.relay_id == self.relay_id

    def __hash__(self) -> int:
        return hash((id(self._session), self.relay_id))

    def __repr__(self) -> str:
        return instrument_text(self._card())

    def _repr_html_(self) -> str:
        return instrument_html(self._card())

    def _card(self) -> InstrumentCard:
        client = self._session.client
        driver = self._session.held_driver(self.relay_id)
        record: NodeRecord | None = client.known(self.relay_id)
        return InstrumentCard(
            relay_id=self.relay_id,
            driver=driver.name,
            doc=driver.doc,
            light="mesh closed" if self._session.closed else record.state if record else "gone",
            host=record.host if record else "",
            reading=client.last_reading(self.relay_id),
            methods=list(driver.methods.values()),
            values=list(driver.values.values()),
            hidden=[name for name in driver.names if hasattr(type(self), name)],
        )
