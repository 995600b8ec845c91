"""Being in step with the broker: subscriptions in force, and what was said before them fetched."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Awaitable, Callable, Iterable

from labmesh.errors import AuthenticationError, Busy, LabmeshError, LinkLost, ProtocolError
from labmesh.protocol.messages import Done, LastEvents, ListLast, Mark
from labmesh.transport.broker_link import BrokerLink
from labmesh.transport.subscriber import Subscriber

__all__ = ["InStep"]

log = logging.getLogger(__name__)

#: A mark that overtook the subscription is lost; the next one follows after this, then later.
_MARK_S, _MARK_MAX_S = 0.01, 0.25
_REQUEST_S = 2.0
_BEGIN_S = 10.0
_RETRY_S = 0.25


class InStep:
    """Keeps a client in step with the broker, also when the link comes back.

    :param refresh: fetches what announcements keep current; awaited whenever some may have been
        missed.
    """

    def __init__(
        self,
        broker: BrokerLink,
        client_id: str,
        refresh: Callable[[], Awaitable[object]],
    ) -> None:
        self._broker = broker
        self._client_id = client_id
        self._refresh = refresh
        self._tokens = itertools.count(1)
        self._token = ""
        self._marked = asyncio.Event()
        self._work = asyncio.Event()
        self._is_stale = False
        #: prefixes of states that are subscribed to; and of which of them the last ones are here
        self._prefixes: set[str] = set()
        self._fetched: set[str] = set()
        self._progress = asyncio.Event()
        #: how often somebody asked whether subscriptions are in force, and got the answer
        self._asked = self._answered = 0
        self._synced = asyncio.Event()
        #: subscriptions that the broker did not take, as its last mark tells
        self._refused: list[str] = []
        self._trouble: LabmeshError | None = None

    def stale(self) -> None:
        """Something may have been missed: fetch everything again."""
        self._is_stale = True
        self._work.set()

    def follow(self, prefixes: Iterable[str]) -> None:
        """These subscriptions to states were made: fetch the last ones once they are in force."""
        self._prefixes.update(prefixes)
        self._work.set()

    def unfollow(self, prefixes: Iterable[str]) -> None:
        """These subscriptions to states have ended."""
        for each in prefixes:
            self._prefixes.discard(each)
            self._fetched.discard(each)

    def prove(self) -> None:
        """Subscriptions were made: find out whether the broker takes them."""
        self._asked += 1
        self._work.set()

    def marked(self, token: str, refused: object) -> None:
        """A mark came back: what was subscribed to before it is in force, but for what it names.

        :raises ProtocolError: it names no subscriptions.
        """
        if token != self._token:
            return
        if not isinstance(refused, list | None) or not all(
            isinstance(e, str) for e in refused or ()
        ):
            raise ProtocolError("a mark names subscriptions that were refused, or nothing")
        told, self._refused = self._refused, sorted(refused or ())
        if self._refused and self._refused != told:
            log.warning("%s does not hear everything: %s", self._client_id, self._refusal().text)
        self._marked.set()

    def _refusal(self) -> Busy:
        first, count = self._refused[0], len(self._refused)
        more = f" and {count - 1} more" if count > 1 else ""
        return Busy(
            f"the broker refused a subscription to {first}{more}: it keeps so many topics and no "
            "more; listen to all nodes at once (name none), or end other subscriptions"
        )

    async def first(self, timeout: float, subscriber: Subscriber) -> None:
        """Wait until this is in step for the first time.

        :raises AuthenticationError: the event port does not accept this client.
        :raises LinkLost: it cannot be reached.
        """
        try:
            async with asyncio.timeout(min(timeout, _BEGIN_S)):
                await self._synced.wait()
        except TimeoutError:
            trouble = subscriber.trouble or self._trouble
            if isinstance(trouble, AuthenticationError):
                raise type(trouble)(trouble.text) from None
            raise LinkLost(
                f"the broker answers, but no events come: {trouble or 'is its event port open?'}"
            ) from None

    async def fetched(self, prefix: str) -> None:
        """Wait until the last states under a prefix, which was subscribed to, are here.

        :raises LinkLost: the broker does not answer.
        :raises Busy: it refused the subscription.
        """
        try:
            async with asyncio.timeout(_BEGIN_S):
                while not any(prefix.startswith(each) for each in self._fetched):
                    self._progress.clear()
                    await self._progress.wait()
        except TimeoutError:
            raise LinkLost(
                f"no states within {_BEGIN_S:g} s: the broker does not answer; is it running?"
            ) from None
        if prefix in self._refused:
            raise self._refusal()

    async def settled(self) -> None:
        """Wait until every subscription that was made so far is in force.

        :raises LinkLost: the broker does not answer.
        :raises Busy: it refused one of them.
        """
        self._asked = asked = self._asked + 1
        self._work.set()
        try:
            async with asyncio.timeout(_BEGIN_S):
                while self._answered < asked:
                    self._progress.clear()
                    await self._progress.wait()
        except TimeoutError:
            raise LinkLost(
                f"not subscribed within {_BEGIN_S:g} s: the broker does not answer; is it running?"
            ) from None
        if self._refused:
            raise self._refusal()

    async def run(self, subscriber: Subscriber) -> None:
        """Go on until cancelled."""
        while True:
            await self._work.wait()
            self._work.clear()
            everything, self._is_stale = self._is_stale, False
            try:
                await self._sync(subscriber, everything)
            except LabmeshError as exc:
                self._trouble = exc
                log.debug("%s is not in step with the broker yet: %s", self._client_id, exc)
                self._is_stale |= everything
                self._work.set()
                await asyncio.sleep(_RETRY_S)
            else:
                self._synced.set()

    async def _sync(self, subscriber: Subscriber, everything: bool) -> None:
        """Make sure that subscriptions are in force, then fetch what was said before them."""
        prefixes = sorted(self._prefixes if everything else self._prefixes - self._fetched)
        asked = self._asked
        if not everything and not prefixes and self._answered == asked:
            return
        token = f"{self._client_id}.{next(self._tokens)}"
        self._token = token
        self._marked.clear()
        subscriber.subscribe(f"mark.{token}")
        try:
            wait_s = _MARK_S
            while not self._marked.is_set():
                await self._broker.request(Mark(id="-", token=token), Done, timeout=_REQUEST_S)
                await self._wait_marked(wait_s)
                wait_s = min(2 * wait_s, _MARK_MAX_S)
        finally:
            subscriber.unsubscribe(f"mark.{token}")
        self._answered = asked
        self._progress.set()
        if everything:
            await self._refresh()
        for each in prefixes:
            await self._fetch_last(subscriber, each)
            if each in self._prefixes:
                self._fetched.add(each)
                self._progress.set()

    async def _wait_marked(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._marked.wait()
        except TimeoutError:
            return

    async def _fetch_last(self, subscriber: Subscriber, prefix: str) -> None:
        after, more = "", True
        while more:
            page = await self._broker.request(
                ListLast(id="-", prefix=prefix, after=after), LastEvents, timeout=_REQUEST_S
            )
            subscriber.offer(page.events)
            more = page.more and bool(page.events)
            after = page.events[-1].topic if page.events else ""
