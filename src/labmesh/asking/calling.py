"""A client's calls of relays' methods: over which link, and what is sent again."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from labmesh.asking.links import NodeLinks
from labmesh.errors import LabmeshError, LinkLost, NotSent, OutcomeUnknown, StaleEpoch
from labmesh.protocol.caller import CallProgress, limit_of
from labmesh.protocol.messages import (
    Access,
    Batch,
    BatchResult,
    Call,
    Describe,
    Description,
    Invocation,
    Reply,
    Result,
)
from labmesh.transport.inflow import ItemStream
from labmesh.transport.link import Link

__all__ = ["Calls"]

T = TypeVar("T")
R = TypeVar("R", bound=Reply)

#: After these a method that says that it is idempotent is called again.
_AGAIN = (LinkLost, OutcomeUnknown, StaleEpoch)
#: A call without a timeout is tried again for so long.
_AGAIN_S = 10.0
_PAUSE_S, _MAX_PAUSE_S = 0.05, 0.5
#: A relay that is asked, after a failure, which of its methods are idempotent gets so long, while
#: there is a link to it.
_DESCRIBE_S = 0.5
#: While there is none, it is waited for until so long after the last that was heard of it: that it
#: is gone must be told within 4 s.
_DESCRIBE_UNTIL_S = 3.9


class Calls:
    """Calls over a client's links, on the running loop.

    :param at_home: runs a coroutine on that loop, from another one.
    """

    def __init__(
        self,
        links: NodeLinks,
        at_home: Callable[[Coroutine[Any, Any, Any]], Awaitable[Any]],
    ) -> None:
        self._links = links
        self._at_home = at_home
        self._loop = asyncio.get_running_loop()
        #: relay id → its epoch, and the methods that may be called again
        self._idempotent: dict[str, tuple[str, frozenset[str]]] = {}

    async def call(
        self,
        relay_id: str,
        method: str,
        args: list[Any],
        kwargs: dict[str, Any],
        *,
        timeout: float | None,
        limit_s: float,
        access: Access = "call",
        fence: int = 0,
    ) -> Any:
        """Call a method, from any loop; if it is idempotent, again and again until the deadline.

        :param timeout: a deadline, seconds; None: ``limit_s``.
        """
        if asyncio.get_running_loop() is not self._loop:
            elsewhere = self.call(
                relay_id,
                method,
                args,
                kwargs,
                timeout=timeout,
                limit_s=limit_s,
                access=access,
                fence=fence,
            )
            return await self._at_home(elsewhere)
        link = self._links.to_relays.get(relay_id)
        began = time.monotonic()
        deadline = began + (limit_s if timeout is None else limit_of(timeout, limit_s))
        try:
            if link is not None and link.up:
                # One coroutine a call: each further one costs.
                try:
                    pending = link.begin_call(
                        method,
                        args,
                        kwargs,
                        now=began,
                        deadline=deadline,
                        access=access,
                        fence=fence,
                    )
                    try:
                        answered = await pending.future
                    except asyncio.CancelledError:
                        link.take_back(pending)
                        raise
                    if isinstance(answered, Result):
                        return answered.value
                    return link.value_of(pending, answered)
                except NotSent:
                    if link.up:
                        raise
            ask = _asking(method, args, kwargs, access, fence)
            return await self._links.reached(relay_id, ask, deadline)
        except _AGAIN as exc:
            until = time.monotonic() + _AGAIN_S if timeout is None else deadline
            again = _repeatable(method, access)
            ask = _asking(method, args, kwargs, access, fence)
            return await self._again(relay_id, again, ask, min(deadline, until), began, exc)

    async def settle(
        self,
        relay_id: str,
        request: Call | Batch,
        *,
        deadline: float,
        sent_at: float | None = None,
        heard_at: float | None = None,
        state: CallProgress = "",
    ) -> Result | BatchResult:
        """See :meth:`labmesh.client.DirectorClientAgent.settle_call`."""
        reply: type[Result] | type[BatchResult] = (
            Result if isinstance(request, Call) else BatchResult
        )
        link = self._links.get(relay_id)
        if link is None:
            raise _closed(relay_id, request)
        try:
            return await link.settle(
                request, reply, deadline=deadline, sent_at=sent_at, heard_at=heard_at, state=state
            )
        except _AGAIN as exc:
            again = ""
            if isinstance(request, Call):
                again = _repeatable(request.method, request.access)

            def ask(link: Link, left_s: float) -> Awaitable[Result | BatchResult]:
                return link.request(request, reply, timeout=left_s)

            until = min(deadline, time.monotonic() + _AGAIN_S)
            began = 0.0 if sent_at is None else sent_at
            return await self._again(relay_id, again, ask, until, began, exc)

    async def stream(
        self,
        relay_id: str,
        method: str,
        args: list[Any],
        kwargs: dict[str, Any],
        *,
        timeout: float,
        credit: int,
        fence: int = 0,
    ) -> ItemStream:
        """Begin to call a method that yields."""

        async def ask(link: Link, left_s: float) -> ItemStream:
            return link.stream(method, args, kwargs, timeout=left_s, credit=credit, fence=fence)

        return await self._links.reached(relay_id, ask, time.monotonic() + timeout)

    def learn(self, description: Description) -> None:
        """Which methods of a relay may be called again."""
        again = [each.name for each in description.methods if each.idempotent]
        again += [_repeatable(each.name, "set") for each in description.values if each.idempotent]
        self._idempotent[description.node_id] = (description.epoch, frozenset(again))

    # ── again ───────────────────────────────────────────────────────────────────────────────────

    async def _again(
        self,
        relay_id: str,
        method: str,
        ask: Callable[[Link, float], Awaitable[T]],
        until: float,
        began: float,
        error: LabmeshError,
    ) -> T:
        """What an idempotent method returns after all; else the error."""
        pause_s = _PAUSE_S
        # One that could not be reached was waited for already.
        patient = not isinstance(error, NotSent)
        while method and await self._is_idempotent(relay_id, method, until, began, patient):
            await asyncio.sleep(min(pause_s, max(0.0, until - time.monotonic())))
            pause_s = min(2 * pause_s, _MAX_PAUSE_S)
            if time.monotonic() >= until or self._links.closed:
                break
            try:
                return await self._links.reached(relay_id, ask, until)
            except _AGAIN as exc:
                # One that may have run remains one, however the next one ends.
                if isinstance(exc, OutcomeUnknown) or not isinstance(error, OutcomeUnknown):
                    error = exc
        raise error

    async def _is_idempotent(
        self, relay_id: str, method: str, until: float, began: float, patient: bool
    ) -> bool:
        """As its relay describes it; as it described it last, while it cannot be asked."""
        link = self._links.get(relay_id)
        known = self._idempotent.get(relay_id)
        now = time.monotonic()
        ask_until = now
        if link is not None and link.up:
            if known is None or link.epoch != known[0]:
                ask_until = now + _DESCRIBE_S
        elif known is None and link is not None and patient:
            ask_until = max(began, link.heard_at or 0.0) + _DESCRIBE_UNTIL_S
        if min(until, ask_until) > now:
            await self._describe(relay_id, min(until, ask_until) - now)
            known = self._idempotent.get(relay_id)
        return known is not None and method in known[1]

    async def _describe(self, relay_id: str, timeout: float) -> None:
        def ask(link: Link, left_s: float) -> Awaitable[Description]:
            return link.request(Describe(id="-"), Description, timeout=left_s)

        try:
            self.learn(await self._links.reached(relay_id, ask, time.monotonic() + timeout))
        except LabmeshError:
            # Not to be told which methods may be called again is to call none again.
            return


def _asking(
    method: str, args: list[Any], kwargs: dict[str, Any], access: Access, fence: int
) -> Callable[[Link, float], Awaitable[Any]]:
    """Made where it is needed: a function within that of every call would cost each of them."""

    def ask(link: Link, left_s: float) -> Awaitable[Any]:
        return link.call(method, args, kwargs, timeout=left_s, access=access, fence=fence)

    return ask


def _repeatable(name: str, access: Access) -> str:
    """By which name it is known whether this may be done again; empty: it never is."""
    if access == "set":
        return f"{name} ="
    return name if access == "call" else ""


def _closed(relay_id: str, request: Invocation) -> OutcomeUnknown:
    return OutcomeUnknown(
        f"this client was closed while a call of {relay_id} was open: it may have run; look at the "
        "instrument before you send it again",
        call=request.id,
        session=request.session,
        relay=relay_id,
    )
