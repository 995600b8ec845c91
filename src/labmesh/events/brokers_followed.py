"""The two brokers of a client: one is followed, the other one is ready to be."""

from __future__ import annotations

import asyncio
import functools
import logging
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, TypeVar

from labmesh.errors import AuthenticationError, LabmeshError, LinkLost, NotSent
from labmesh.protocol.following import FIRST, SPARE, Following
from labmesh.protocol.messages import Reply, Request
from labmesh.transport.broker_link import event_address
from labmesh.transport.link import CallSession, Link
from labmesh.transport.sockets import Sockets

__all__ = ["BrokersFollowed"]

log = logging.getLogger(__name__)

R = TypeVar("R", bound=Reply)

_REQUEST_S = 2.0
_RETRY_S = 0.5
_LONG_S = 3600.0


@dataclass(eq=False, slots=True)
class _Side:
    """One of the two brokers."""

    link: Link
    #: as it was given; None: it is asked for its port
    given_events: str | None
    events: str = ""
    #: the incarnation of which :attr:`events` are known
    epoch: str = ""
    is_usable: bool = False

    def look(self) -> bool:
        """Whether it answers, and its event address is known; True: that has changed."""
        was_usable = self.is_usable
        self.is_usable = self.link.up and self.epoch == self.link.epoch
        return self.is_usable != was_usable


class BrokersFollowed:
    """Asks the broker that is followed, on the running loop; when it is lost, the spare.

    It stands where a client without a spare has the :class:`Link` to its broker. Questions to a
    broker change nothing, so that one that breaks off is asked again, at the other one.

    :param first: the request addresses of the first broker, :param spare: of the spare.
    :param first_events: the first one's event address; None: it tells its port.
    :param spawn: makes a task that the client owns.
    """

    def __init__(
        self,
        sockets: Sockets,
        first: str,
        spare: str,
        *,
        first_events: str | None,
        session: CallSession,
        spawn: Callable[[Coroutine[Any, Any, Any], str], object],
    ) -> None:
        self._following = Following(time.monotonic())
        self._stirred = asyncio.Event()
        self._moved = asyncio.Event()
        self._on_turn: Callable[[str], object] | None = None
        self._closed = False
        links = [
            Link(
                sockets,
                sockets.expect_broker(endpoint),
                where=where,
                session=session,
                on_change=self._changed,
            )
            for endpoint, where in ((first, "the broker"), (spare, "the spare broker"))
        ]
        self._sides = (_Side(links[FIRST], first_events), _Side(links[SPARE], None))
        #: how often another broker was turned to
        self.turns = 0
        spawn(self._follow(), "choice of the broker")
        for each in self._sides:
            spawn(self._learn(each), f"event address of {each.link.where}")

    # ── as a link ───────────────────────────────────────────────────────────────────────────────

    @property
    def endpoint(self) -> str:
        """Where the broker that is followed is asked."""
        return self._followed.link.endpoint

    @property
    def up(self) -> bool:
        """The broker that is followed answers."""
        return self._followed.is_usable

    @property
    def heard_at(self) -> float | None:
        """Monotonic time of the last message of the broker that is followed."""
        return self._followed.link.heard_at

    @property
    def trouble(self) -> LabmeshError | None:
        """Why it does not answer; None: it does, or nothing is known yet."""
        return self._followed.link.trouble

    async def request(
        self, request: Request, reply: type[R] | tuple[type[R], ...], *, timeout: float
    ) -> R:
        """Ask the broker that is followed, and once more after each break, until the timeout.

        :raises LabmeshError: what it answered, or why there is no answer.
        """
        deadline = time.monotonic() + timeout
        while True:
            await self.wait_up(deadline - time.monotonic())
            link = self._followed.link
            left_s = deadline - time.monotonic()
            try:
                answer, _ = await link.request_body(request, reply, timeout=left_s, patient=False)
            except LinkLost as exc:
                is_full = link.up and isinstance(exc, NotSent)
                if self._closed or is_full or time.monotonic() >= deadline:
                    raise
            else:
                return answer

    async def wait_up(self, timeout: float) -> None:
        """Wait until the broker that is followed answers.

        :raises AuthenticationError: it does not accept us, and there is no other one.
        :raises NotSent: neither did within ``timeout`` seconds; the text says why.
        """
        deadline = time.monotonic() + timeout
        while not self.up:
            trouble, other = self.trouble, self._sides[self._following.other]
            if self._closed:
                raise NotSent("the links to the brokers are closed")
            if isinstance(trouble, AuthenticationError) and not other.link.up:
                raise type(trouble)(trouble.text)
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                raise self._neither()
            self._moved.clear()
            try:
                async with asyncio.timeout(left_s):
                    await self._moved.wait()
            except TimeoutError:
                continue

    def close(self) -> None:
        """End both links; twice is fine."""
        self._closed = True
        for each in self._sides:
            each.link.close()
            each.look()
        self._moved.set()

    # ── for the client ──────────────────────────────────────────────────────────────────────────

    @property
    def links(self) -> tuple[Link, Link]:
        """The link to the first broker, and the one to the spare."""
        return self._sides[FIRST].link, self._sides[SPARE].link

    def link_to(self, endpoint: str) -> Link:
        """The one of :attr:`links` with this request address."""
        return next(each for each in self.links if each.endpoint == endpoint)

    @property
    def events(self) -> str:
        """The event address of the broker that is followed; known while that is :attr:`up`."""
        return self._followed.events

    def on_turn(self, callback: Callable[[str], object]) -> None:
        """Call ``callback(event address)`` each time that another broker is followed."""
        self._on_turn = callback

    def events_came(self, up: bool) -> None:
        """The link to the event port of the broker that is followed is up, or broke."""
        self._following.events(up, time.monotonic())
        self._stirred.set()

    # ── inside ──────────────────────────────────────────────────────────────────────────────────

    @property
    def _followed(self) -> _Side:
        return self._sides[self._following.followed]

    def _neither(self) -> NotSent:
        reasons = [
            each.link.trouble.text if each.link.trouble else f"{each.link.where} does not answer"
            for each in self._sides
        ]
        return NotSent("; ".join(dict.fromkeys(reasons)))

    def _changed(self) -> None:
        """Something about one of the links."""
        for broker, each in enumerate(self._sides):
            if each.look():
                self._following.usable(broker, each.is_usable, time.monotonic())
        self._stirred.set()
        self._moved.set()

    async def _follow(self) -> None:
        while True:
            self._stirred.clear()
            now = time.monotonic()
            if self._following.turn(now):
                self._turned()
            deadline = self._following.next_deadline()
            try:
                async with asyncio.timeout(None if deadline is None else deadline - now):
                    await self._stirred.wait()
            except TimeoutError:
                continue

    def _turned(self) -> None:
        self.turns += 1
        left = self._sides[self._following.other].link
        log.warning("%s is lost; going on with %s", left.where, self._followed.link.where)
        self._moved.set()
        if self._on_turn is not None:
            self._on_turn(self.events)

    async def _learn(self, side: _Side) -> None:
        """Know the event address of each incarnation of a broker."""
        link = side.link
        while True:
            try:
                await link.wait_up(_LONG_S)
                epoch = link.epoch
                if epoch != side.epoch:
                    given = side.given_events
                    side.events = given or await event_address(link, "xpub_port", _REQUEST_S)
                    side.epoch = epoch
                    self._changed()
            except LabmeshError as exc:
                log.debug("the event port of %s is not known: %s", link.where, exc)
                await asyncio.sleep(_RETRY_S)
            else:
                await self._until(functools.partial(_is_another, link, side))

    async def _until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            self._moved.clear()
            await self._moved.wait()


def _is_another(link: Link, side: _Side) -> bool:
    """The link is up, to an incarnation of which nothing is known yet."""
    return link.up and link.epoch != side.epoch
