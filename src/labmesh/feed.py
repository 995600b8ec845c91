"""What a client hears: subscriptions, the last states for a late joiner, callbacks."""

from __future__ import annotations

import asyncio
import functools
import itertools
import logging
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import msgspec

from labmesh.errors import AuthenticationError, LabmeshError, LinkLost, ProtocolError
from labmesh.healing import Gap, Healer
from labmesh.listening import Subscription
from labmesh.protocol.codec import decode_value
from labmesh.protocol.messages import (
    DatasetRecord,
    Done,
    LastEvents,
    ListLast,
    Mark,
    PresenceChange,
)
from labmesh.protocol.records import checked
from labmesh.protocol.topics import split
from labmesh.reading import Gaps, Reading
from labmesh.transport.link import Link
from labmesh.transport.sockets import Sockets
from labmesh.transport.subscriber import Lost, Received, Subscriber

__all__ = ["EventFeed"]

log = logging.getLogger(__name__)

#: A mark that overtook the subscription is lost; the next one follows after this, then later.
_MARK_S, _MARK_MAX_S = 0.01, 0.25
_REQUEST_S = 2.0
_BEGIN_S = 10.0
_RETRY_S = 0.25
_REMEMBERED_DATASETS = 10_000


class EventFeed:
    """The events of one client, on the running loop.

    :param spawn: makes a task that the client owns.
    :param refresh: fetches what announcements keep current; awaited whenever some may have been
        missed.
    """

    def __init__(
        self,
        sockets: Sockets,
        endpoint: str,
        broker: Link,
        client_id: str,
        spawn: Callable[[Coroutine[Any, Any, Any], str], asyncio.Task[Any]],
        refresh: Callable[[], Awaitable[object]],
    ) -> None:
        self._broker = broker
        self._client_id = client_id
        self._spawn = spawn
        self._refresh = refresh
        self._tokens = itertools.count(1)
        self._states: dict[str, Received] = {}
        self._datasets: dict[tuple[str, str], None] = {}
        self._readers: dict[Subscription, None] = {}
        self._state_listeners: dict[Subscription, None] = {}
        self._dataset_listeners: dict[Subscription, None] = {}
        self._presence_listeners: dict[Subscription, None] = {}
        self._event_listeners: dict[Subscription, None] = {}
        self._gap_listeners: dict[Subscription, None] = {}
        self._healer = Healer(
            broker, spawn, functools.partial(self._guard, self._take_event), self._tell_gap
        )
        self._presence_watch: Callable[[PresenceChange], None] | None = None
        self._presence = asyncio.Event()
        self._stale = asyncio.Event()
        self._synced = asyncio.Event()
        self._trouble: LabmeshError | None = None
        self._marked = asyncio.Event()
        self._token = ""
        self._wants_states = False
        self._has_states = asyncio.Event()
        #: events that could not be understood
        self.dropped = 0
        self._subscriber = Subscriber(
            sockets, endpoint, deliver=self._deliver, on_link=self._link_changed
        )

    async def begin(self, timeout: float) -> None:
        """Subscribe to presence and datasets, and wait until subscriptions are in force.

        :raises AuthenticationError: the event port does not accept this client.
        :raises LinkLost: it cannot be reached.
        """
        self._subscriber.subscribe("presence.")
        # From the beginning: whoever adds a callback misses nothing of what is stored from then on.
        self._subscriber.subscribe("dataset.")
        self._subscriber.subscribe("tail.")
        self._stale.set()
        self._spawn(self._keep_synced(), "events")
        try:
            async with asyncio.timeout(min(timeout, _BEGIN_S)):
                await self._synced.wait()
        except TimeoutError:
            trouble = self._subscriber.trouble or self._trouble
            if isinstance(trouble, AuthenticationError):
                raise type(trouble)(trouble.text) from None
            raise LinkLost(
                f"the broker answers, but no events come: {trouble or 'is its event port open?'}"
            ) from None

    async def close(self) -> None:
        """End the thread and every callback."""
        self._subscriber.close()
        groups = (
            self._readers,
            self._state_listeners,
            self._dataset_listeners,
            self._presence_listeners,
            self._event_listeners,
            self._gap_listeners,
        )
        for group in groups:
            for each in group:
                each.cancel()
            await asyncio.gather(*(each.closed() for each in group))
            group.clear()

    def watch_presence(self, callback: Callable[[PresenceChange], None]) -> None:
        """Have the client's own directory follow."""
        self._presence_watch = callback

    async def presence_or(self, seconds: float) -> None:
        """Wait for the next change of presence, at most so long."""
        self._presence.clear()
        try:
            async with asyncio.timeout(seconds):
                await self._presence.wait()
        except TimeoutError:
            return

    # ── callbacks ───────────────────────────────────────────────────────────────────────────────

    def on_reading(self, callback: Callable[[Reading], object]) -> Subscription:
        """Call ``callback(reading)`` for each state."""
        gaps = Gaps()

        @functools.wraps(callback)
        def tell(reading: Reading) -> object:
            return callback(gaps.told(reading))

        subscription = Subscription(tell, "reading")
        self._readers[subscription] = None
        self._want_states()
        for received in self._states.values():
            self._put_reading(subscription, received)
        return subscription

    def on_state(self, callback: Callable[[str, Any], object]) -> Subscription:
        """Call ``callback(relay_id, state)`` for each state."""
        subscription = Subscription(callback, "state")
        self._state_listeners[subscription] = None
        self._want_states()
        for received in self._states.values():
            self._put_state(subscription, received)
        return subscription

    def on_dataset(self, callback: Callable[[dict[str, Any]], object]) -> Subscription:
        """Call ``callback(record)`` for each new dataset."""
        return self._listen(self._dataset_listeners, callback, "dataset")

    def on_presence(self, callback: Callable[[dict[str, Any]], object]) -> Subscription:
        """Call ``callback(change)`` for each change in the directory."""
        return self._listen(self._presence_listeners, callback, "presence")

    def on_event(self, callback: Callable[[str, str, Any], object]) -> Subscription:
        """Call ``callback(node_id, kind, value)`` for other events of relays."""
        self._subscriber.subscribe("event.")
        return self._listen(self._event_listeners, callback, "event")

    def on_gap(self, callback: Callable[[Gap], object]) -> Subscription:
        """Call ``callback(gap)`` for each loss."""
        return self._listen(self._gap_listeners, callback, "gap")

    def _listen(
        self,
        listeners: dict[Subscription, None],
        callback: Callable[..., object],
        what: str,
    ) -> Subscription:
        subscription = Subscription(callback, what)
        listeners[subscription] = None
        return subscription

    async def follow_states(self) -> None:
        """Subscribe to states, and wait until the last one of each relay is here.

        :raises LinkLost: the broker does not answer.
        """
        self._want_states()
        try:
            async with asyncio.timeout(_BEGIN_S):
                await self._has_states.wait()
        except TimeoutError:
            raise LinkLost(
                f"no states within {_BEGIN_S:g} s: the broker does not answer; is it running?"
            ) from None

    def last_reading(self, relay_id: str) -> Reading | None:
        """The last state of a relay, if it is known. In any thread."""
        received = self._states.get(relay_id)
        return None if received is None else Reading.of(relay_id, received)

    def _want_states(self) -> None:
        if not self._wants_states:
            self._wants_states = True
            self._subscriber.subscribe("state.")
            self._stale.set()

    # ── being current ───────────────────────────────────────────────────────────────────────────

    def _link_changed(self, up: bool) -> None:
        if up:
            self._stale.set()

    async def _keep_synced(self) -> None:
        while True:
            await self._stale.wait()
            self._stale.clear()
            try:
                await self._sync()
            except LabmeshError as exc:
                self._trouble = exc
                log.debug("%s is not in step with the broker yet: %s", self._client_id, exc)
                self._stale.set()
                await asyncio.sleep(_RETRY_S)
            else:
                self._synced.set()

    async def _sync(self) -> None:
        """Make sure that subscriptions are in force, then fetch what was said before them."""
        token = f"{self._client_id}.{next(self._tokens)}"
        self._token = token
        self._marked.clear()
        self._subscriber.subscribe(f"mark.{token}")
        try:
            wait_s = _MARK_S
            while not self._marked.is_set():
                await self._broker.request(Mark(id="-", token=token), Done, timeout=_REQUEST_S)
                await self._wait_marked(wait_s)
                wait_s = min(2 * wait_s, _MARK_MAX_S)
        finally:
            self._subscriber.unsubscribe(f"mark.{token}")
        await self._refresh()
        if self._wants_states:
            await self._fetch_last("state.")
            self._has_states.set()

    async def _wait_marked(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._marked.wait()
        except TimeoutError:
            return

    async def _fetch_last(self, prefix: str) -> None:
        after, more = "", True
        while more:
            page = await self._broker.request(
                ListLast(id="-", prefix=prefix, after=after), LastEvents, timeout=_REQUEST_S
            )
            self._subscriber.offer(page.events)
            more = page.more and bool(page.events)
            after = page.events[-1].topic if page.events else ""

    # ── what comes in ───────────────────────────────────────────────────────────────────────────

    def _deliver(self, batch: list[Received | Lost]) -> None:
        for item in batch:
            self._guard(self._take_loss if isinstance(item, Lost) else self._take, item)

    def _guard(self, take: Callable[[Any], None], item: Received | Lost) -> None:
        """Have an item taken; what makes no sense is counted, and harms no other."""
        try:
            take(item)
        except (ProtocolError, msgspec.ValidationError) as exc:
            self.dropped += 1
            log.warning("dropped an event under %s: %s", item.topic[:200], exc)

    def _take(self, received: Received) -> None:
        family, node_id = split(received.topic)
        if family == "mark":
            if node_id == self._token:
                self._marked.set()
        elif family == "state":
            self._take_state(node_id, received)
        elif family == "dataset":
            self._take_dataset(node_id, received)
        elif family == "presence":
            self._take_presence(received)
        elif family == "event":
            self._healer.take(received)

    def _take_loss(self, lost: Lost) -> None:
        """Something never came. The directory and the last states are fetched again in any case;
        of other events, what the broker remembers.
        """
        family, _ = split(lost.topic)
        if family == "event":
            self._healer.take(lost)
        else:
            if family == "presence":
                self._stale.set()
            self._tell_gap(Gap.of(lost))

    def _tell_gap(self, gap: Gap) -> None:
        for each in self._active(self._gap_listeners):
            each.put(gap)

    def _take_event(self, received: Received) -> None:
        _, node_id = split(received.topic)
        for each in self._active(self._event_listeners):
            each.put(node_id, received.event.kind, decode_value(received.payload))

    def _take_state(self, relay_id: str, received: Received) -> None:
        if not isinstance(decode_value(received.payload), dict):
            raise ProtocolError("a state is a table of names and values")
        self._states[relay_id] = received
        for each in self._active(self._readers):
            self._put_reading(each, received)
        for each in self._active(self._state_listeners):
            self._put_state(each, received)

    def _put_state(self, subscription: Subscription, received: Received) -> None:
        # Each callback gets a value of its own: what one does to it is no matter of the others.
        _, relay_id = split(received.topic)
        subscription.put(relay_id, decode_value(received.payload), key=relay_id)

    def _put_reading(self, subscription: Subscription, received: Received) -> None:
        _, relay_id = split(received.topic)
        subscription.put(Reading.of(relay_id, received), key=relay_id)

    def _take_dataset(self, bank_id: str, received: Received) -> None:
        record = msgspec.convert(decode_value(received.payload), DatasetRecord)
        if record.bank_id != bank_id:
            raise ProtocolError(f"bank {bank_id} announced a dataset of bank {record.bank_id}")
        key = (bank_id, record.dataset_id)
        if key in self._datasets:
            return
        self._datasets[key] = None
        if len(self._datasets) > _REMEMBERED_DATASETS:
            del self._datasets[next(iter(self._datasets))]
        for each in self._active(self._dataset_listeners):
            each.put(msgspec.structs.asdict(record))

    def _take_presence(self, received: Received) -> None:
        change = msgspec.convert(decode_value(received.payload), PresenceChange)
        checked(change.node)
        if change.change == "left":
            self._states.pop(change.node.node_id, None)
        if self._presence_watch is not None:
            self._presence_watch(change)
        self._presence.set()
        told = {
            **msgspec.structs.asdict(change.node),
            "change": change.change,
            "reason": change.reason,
        }
        for each in self._active(self._presence_listeners):
            each.put(dict(told))

    def _active(self, listeners: dict[Subscription, None]) -> list[Subscription]:
        for each in [each for each in listeners if each.ended]:
            del listeners[each]
        return list(listeners)
