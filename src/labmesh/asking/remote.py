"""Relays as a client sees them."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any, NamedTuple, Protocol

from labmesh.asking.batching import AsyncBatch
from labmesh.asking.call_status import CallStatus
from labmesh.asking.held_lease import HeldLease
from labmesh.asking.holding import Client, Fences
from labmesh.asking.streaming import AsyncStream
from labmesh.errors import LabmeshError, OutcomeUnknown
from labmesh.instruments.exposure import call_arguments
from labmesh.protocol.caller import limit_of
from labmesh.protocol.messages import (
    Access,
    Batch,
    BatchResult,
    CallState,
    Describe,
    Description,
    GetCall,
    GetStatus,
    Status,
)
from labmesh.transport.call_session import CallSession
from labmesh.transport.inflow import ItemStream

__all__ = ["LinkHealth", "RelayClient"]

#: Longer than any relay remembers a call.
_LONG_AGO_S = 1e9
_MAX_CREDIT = 1024


class Home(Client, Protocol):
    """What a relay's proxy needs of its client."""

    call_limit: float
    fences: Fences
    session: CallSession

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
        """Begin to call a method that yields."""


class LinkHealth(NamedTuple):
    """A link of a client, as it is without asking."""

    endpoint: str
    up: bool
    #: monotonic time of the last message that came back
    heard_at: float | None
    #: why it is not up, where that is known
    trouble: LabmeshError | None


class RelayClient:
    """A relay's driver, seen from here. ``await relay.set_voltage(2.5)`` calls its method.

    Subclass it to give methods types: ``await client.get_relay_agent("Inst-0", PSUClient)``.
    """

    def __init__(self, client: Home, relay_id: str) -> None:
        self._client = client
        self.relay_id = relay_id

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.relay_id}>"

    async def call(self, method: str, params: Any = None, timeout: float | None = None) -> Any:
        """Call a driver's method.

        :param params: a dict is keywords, a list or tuple is positional arguments, anything else
            (also ``False``, ``0``, ``""``) is one argument; None: no arguments.
        :param timeout: a hard deadline, seconds. Without it the call lasts as long as the relay
            shows that it runs (up to the client's ``call_limit``) and ends 4 s after its last sign.
        :raises Locked: it changes something, and somebody else holds the lease.
        :raises DriverError: the method raised; the error also inherits the builtin that it raised.
        :raises TimeoutError: no result by the deadline: ``Expired`` (it did not run and will not)
            or ``OutcomeUnknown``.
        :raises ConnectionError: the relay cannot be reached (``NotSent``), or the link broke.
        """
        args, kwargs = call_arguments(params)
        return await self.invoke(method, args, kwargs, timeout=timeout)

    def invoke(
        self,
        method: str,
        args: list[Any],
        kwargs: dict[str, Any],
        *,
        timeout: float | None = None,
    ) -> Coroutine[Any, Any, Any]:
        """:meth:`call` with positional and keyword arguments as they are; await what it returns."""
        return self._client.invoke(self.relay_id, method, args, kwargs, timeout=timeout)

    def stream(
        self,
        method: str,
        params: Any = None,
        timeout: float | None = None,
        credit: int = 16,
    ) -> AsyncStream:
        """Call a method that yields: ``async for point in relay.stream("scan"):``

        A link that breaks ends it (``LinkLost``), and so does a silence of 4 s. Behind its end
        ``result`` is what the method returned.

        :param params: as in :meth:`call`.
        :param timeout: a hard deadline for all of it, seconds; None: as long as it takes.
        :param credit: how many items may be on their way or wait here, 1 to 1024; the method waits
            with the next one.
        :raises ValueError: a ``credit`` out of that range.
        """
        args, kwargs = call_arguments(params)
        if not 1 <= credit <= _MAX_CREDIT:
            raise ValueError(f"credit must be 1 to {_MAX_CREDIT} items, not {credit}")
        limit_s = limit_of(timeout, math.inf)

        def begin() -> Coroutine[Any, Any, ItemStream]:
            return self._client.open_stream(
                self.relay_id, method, args, kwargs, timeout=limit_s, credit=credit
            )

        return AsyncStream(begin, self._client.at_home, f"{self.relay_id}.{method}")

    def batch(self, *, keep_going: bool = False, timeout: float | None = None) -> AsyncBatch:
        """Several calls in one trip, back to back, with nothing of anybody else between them.

        ::

            async with relay.batch() as b:
                b.set_voltage(2.5)
                m = b.measure()
            print(m.value)

        They are sent at the end of the block, unless it raised. It raises the first error, and
        what is behind that was not run.

        :param keep_going: also behind a call that failed; errors stay with their calls.
        :param timeout: a hard deadline for all of it, seconds; None: the client's ``call_limit``.
        """

        async def send(calls: list[Any], keep_going: bool) -> BatchResult:
            fence = self._client.fences.of(self.relay_id)
            batch = Batch(id="-", calls=calls, keep_going=keep_going, fence=fence)
            limit_s = limit_of(timeout, self._client.call_limit)
            result, _ = await self._client.at_home(
                self._client.request(self.relay_id, batch, BatchResult, timeout=limit_s)
            )
            return result

        return AsyncBatch(self.relay_id, send, keep_going=keep_going)

    async def get(self, name: str, *, timeout: float | None = None) -> Any:
        """Read one of the driver's values: a property, or a parameter.

        :param timeout: as in :meth:`call`, which also says what is raised.
        :raises AttributeError: the driver has no such value.
        """
        return await self._client.invoke(self.relay_id, name, [], {}, timeout=timeout, access="get")

    async def set(self, name: str, value: Any, *, timeout: float | None = None) -> None:
        """Write one of the driver's values.

        :param timeout: as in :meth:`call`, which also says what is raised.
        :raises AttributeError: the driver has no such value, or it cannot be written.
        :raises Locked: somebody else holds the lease.
        """
        args = [value]
        await self._client.invoke(self.relay_id, name, args, {}, timeout=timeout, access="set")

    async def call_status(
        self, call: str | LabmeshError, *, session: str | None = None
    ) -> CallStatus:
        """What became of a call whose outcome is unknown.

        One that has not arrived until now will not run any more.

        :param call: its id, or the error that it ended with.
        :param session: of the client that made it, where that was another one; the error's
            ``detail`` has it.
        :raises ValueError: the error is that of no call, or of one whose end is known.
        :raises ConnectionError: the relay cannot be reached.
        """
        if isinstance(call, OutcomeUnknown):
            session = session or call.detail.get("session")
            call = str(call.detail.get("call", ""))
        elif isinstance(call, LabmeshError):
            raise ValueError(f"how this call ended is known ({type(call).__name__}): {call}")
        if not call:
            raise ValueError("this error belongs to no call of a session: nobody can tell more")
        own = self._client.session
        is_own = session is None or session == own.token
        # How old another client's call is, only that client knows.
        age_s = own.age_s(call) if is_own else _LONG_AGO_S
        request = GetCall(id="-", call=call, session=session or own.token, age_s=age_s)
        told, _ = await self._client.at_home(
            self._client.request(self.relay_id, request, CallState)
        )
        return CallStatus.of(call, told)

    async def describe(self) -> Description:
        """The driver's class, docstring and methods."""
        description, _ = await self._client.at_home(
            self._client.request(self.relay_id, Describe(id="-"), Description)
        )
        return description

    async def status(self) -> Status:
        """What the relay and its driver are doing; answered also while the driver blocks."""
        status, _ = await self._client.at_home(
            self._client.request(self.relay_id, GetStatus(id="-"), Status)
        )
        return status

    # ── leases ──────────────────────────────────────────────────────────────────────────────────

    async def acquire(self, ttl: float = 10.0, note: str = "") -> HeldLease:
        """Have this client be the only one that may write, until ``release()`` or its end.

        Reading stays free for all. It is renewed in the background, however long it is held.

        When this returns nobody else writes any more. A call of another client that is running is
        waited for, up to 5 s; those that still wait for their turn are refused.

        :param ttl: seconds after which a client that vanished no longer holds it; the driver's
            ``safe_state()``, if it has one, is called then.
        :param note: why, for who finds it locked.
        :raises Locked: somebody holds it; the detail says who, since when, and why.
        :raises Busy: a call of another client runs on, and may write; the text says which, since
            when, and whose it is. Nothing was granted.
        """
        fences = self._client.fences
        return await self._client.at_home(fences.acquire(self.relay_id, ttl_s=ttl, note=note))

    @asynccontextmanager
    async def lease(self, *, note: str = "", ttl: float = 10.0) -> AsyncIterator[HeldLease]:
        """``async with relay.lease(note="T sweep") as lease:`` see :meth:`acquire`."""
        async with await self.acquire(ttl, note) as held:
            yield held

    async def break_lease(self, reason: str = "", *, fence: int = 0) -> None:
        """End the lease of whoever holds it, who is told who broke it and why.

        :param fence: of the lease that is meant; 0: any.
        :raises NotFound: nobody holds it.
        :raises Conflict: another lease than the one that is meant is held.
        """
        fences = self._client.fences
        work = fences.break_lease(self.relay_id, fence=fence, reason=reason)
        await self._client.at_home(work)

    def __getattr__(self, name: str) -> Callable[..., Coroutine[Any, Any, Any]]:
        if name.startswith("_"):
            raise AttributeError(name)

        def method(*args: Any, **kwargs: Any) -> Coroutine[Any, Any, Any]:
            return self.invoke(name, list(args), kwargs)

        method.__name__ = method.__qualname__ = name
        # Next time it is found without being made.
        self.__dict__[name] = method
        return method
