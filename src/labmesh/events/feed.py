"""What a client hears: subscriptions, the last states for a late joiner, callbacks."""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from os import PathLike
from typing import Any

import msgspec

from labmesh.errors import ProtocolError
from labmesh.events.brokers_followed import BrokersFollowed
from labmesh.events.dataset_feed import AskBank, DatasetFeed
from labmesh.events.healing import Gap, Healer
from labmesh.events.in_step import InStep
from labmesh.events.listeners import Listeners, Sink, hears, patterns_of
from labmesh.events.listening import Subscription
from labmesh.events.log_lines import line_of
from labmesh.events.log_stream import LogLine, log_level
from labmesh.events.presence_once import PresenceOnce
from labmesh.events.reading import Gaps, Reading
from labmesh.events.wanted import Wanted
from labmesh.events.watching import ReadingQueue, Readings
from labmesh.protocol.codec import decode_value
from labmesh.protocol.messages import NodeRecord, PresenceChange
from labmesh.protocol.records import checked
from labmesh.protocol.topics import split, subscription
from labmesh.transport.broker_link import BrokerLink
from labmesh.transport.sockets import Sockets
from labmesh.transport.subscriber import Lost, Received, Subscriber

__all__ = ["EventFeed", "Ids"]

log = logging.getLogger(__name__)

#: Families whose lost events are fetched again, in order.
_HEALED = ("event", "log")
#: Families of which only what somebody asked for is subscribed to.
_SELECTED = ("state", "event", "log")

Ids = str | Iterable[str] | None


class EventFeed:
    """The events of one client, on the running loop.

    :param spawn: makes a task that the client owns.
    :param refresh: fetches the directory, which announcements keep current; awaited whenever some
        may have been missed.
    :param ask_bank: asks a bank for the datasets of which no announcement came.
    """

    def __init__(
        self,
        sockets: Sockets,
        endpoint: str,
        broker: BrokerLink,
        client_id: str,
        spawn: Callable[[Coroutine[Any, Any, Any], str], asyncio.Task[Any]],
        refresh: Callable[[], Awaitable[list[NodeRecord]]],
        ask_bank: AskBank,
    ) -> None:
        self._spawn = spawn
        self._refresh = refresh
        self._states: dict[str, Received] = {}
        self._datasets = DatasetFeed(ask_bank, spawn, self._tell_gap)
        self._readers = Listeners()
        self._state_listeners = Listeners()
        self._presence_listeners = Listeners()
        self._event_listeners = Listeners()
        self._log_listeners = Listeners()
        self._gap_listeners = Listeners()
        self._healer = Healer(
            broker, spawn, functools.partial(self._guard, self._take_healed), self._tell_gap
        )
        self._presence_watch: Callable[[PresenceChange], None] | None = None
        self._presence = asyncio.Event()
        self._in_step = InStep(broker, client_id, self._refreshed)
        #: events that could not be understood
        self.dropped = 0
        self._subscriber = Subscriber(
            sockets, endpoint, deliver=self._deliver, on_link=self._link_changed
        )
        self._wanted = Wanted(self._subscriber, self._in_step, self._forget_states)
        self._brokers = broker if isinstance(broker, BrokersFollowed) else None
        self._presence_once: PresenceOnce | None = None
        if self._brokers is not None:
            self._presence_once = PresenceOnce(spawn, self._in_step.stale, self._tell_presence)
            self._brokers.on_turn(self._subscriber.turn_to)
            if self._brokers.events and self._brokers.events != endpoint:
                self._subscriber.turn_to(self._brokers.events)

    async def begin(self, timeout: float) -> None:
        """Subscribe to presence and datasets, and wait until subscriptions are in force.

        :raises AuthenticationError: the event port does not accept this client.
        :raises LinkLost: it cannot be reached.
        """
        self._subscriber.subscribe("presence.")
        # From the beginning: whoever adds a callback misses nothing of what is stored from then on.
        self._subscriber.subscribe("dataset.")
        self._in_step.stale()
        self._spawn(self._in_step.run(self._subscriber), "events")
        await self._in_step.first(timeout, self._subscriber)

    async def close(self) -> None:
        """End the thread, every callback and every iterator."""
        self._subscriber.close()
        for listeners in (
            self._readers,
            self._state_listeners,
            self._presence_listeners,
            self._event_listeners,
            self._log_listeners,
            self._gap_listeners,
        ):
            await listeners.close()
        await self._datasets.close()

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

    def on_reading(self, callback: Callable[[Reading], object], ids: Ids = None) -> Subscription:
        """Call ``callback(reading)`` for each state."""
        gaps = Gaps()

        @functools.wraps(callback)
        def tell(reading: Reading) -> object:
            return callback(gaps.told(reading))

        patterns = _checked("state", ids)
        subscription = Subscription(tell, "reading")
        self._wanted.listen(self._readers, subscription, "state", patterns)
        self._put_known(subscription, patterns, _put_reading)
        return subscription

    def on_state(self, callback: Callable[[str, Any], object], ids: Ids = None) -> Subscription:
        """Call ``callback(relay_id, state)`` for each state."""
        patterns = _checked("state", ids)
        subscription = Subscription(callback, "state")
        self._wanted.listen(self._state_listeners, subscription, "state", patterns)
        self._put_known(subscription, patterns, _put_state)
        return subscription

    def watch(self, ids: Ids, limit: int, timeout: float | None) -> Readings:
        """An iterator over readings."""
        patterns = _checked("state", ids)
        queue = ReadingQueue(limit)
        self._wanted.listen(self._readers, queue, "state", patterns)
        self._put_known(queue, patterns, _put_reading)
        what = "all relays" if patterns is None else ", ".join(patterns)
        return Readings(queue, what=what, timeout=timeout)

    def on_dataset(
        self,
        callback: Callable[[dict[str, Any]], object],
        cursor: str | PathLike[str] | None = None,
        since: float | None = None,
    ) -> Subscription:
        """Call ``callback(record)`` for each new dataset; see :meth:`DatasetFeed.subscribe`."""
        return self._datasets.subscribe(callback, cursor=cursor, since=since)

    def on_presence(self, callback: Callable[[dict[str, Any]], object]) -> Subscription:
        """Call ``callback(change)`` for each change in the directory."""
        subscription = Subscription(callback, "presence")
        self._wanted.listen(self._presence_listeners, subscription)
        return subscription

    def on_event(
        self, callback: Callable[[str, str, Any], object], ids: Ids = None
    ) -> Subscription:
        """Call ``callback(node_id, kind, value)`` for other events of relays."""
        patterns = _checked("event", ids)
        subscription = Subscription(callback, "event")
        self._wanted.listen(self._event_listeners, subscription, "event", patterns)
        return subscription

    def on_log(
        self, callback: Callable[[LogLine], object], ids: Ids = None, level: str | int = "INFO"
    ) -> Subscription:
        """Call ``callback(line)`` for each line of a log."""
        patterns, least = _checked("log", ids), log_level(level)

        @functools.wraps(callback)
        def tell(line: LogLine) -> object:
            return callback(line) if line.level_number >= least else None

        subscription = Subscription(tell, "log")
        self._wanted.listen(self._log_listeners, subscription, "log", patterns)
        return subscription

    def on_gap(self, callback: Callable[[Gap], object]) -> Subscription:
        """Call ``callback(gap)`` for each loss."""
        subscription = Subscription(callback, "gap")
        self._wanted.listen(self._gap_listeners, subscription)
        return subscription

    async def follow_states(self, relay_id: str | None = None) -> None:
        """Subscribe to states, for good, and wait until the last ones are here.

        :raises LinkLost: the broker does not answer.
        """
        await self._in_step.fetched(self._wanted.follow_states(relay_id))

    async def settled(self) -> None:
        """Wait until everything that is listened to so far is subscribed to.

        :raises LinkLost: the broker does not answer.
        """
        await self._in_step.settled()

    def last_reading(self, relay_id: str) -> Reading | None:
        """The last state of a relay, if it is known. In any thread."""
        received = self._states.get(relay_id)
        return None if received is None else Reading.of(relay_id, received)

    # ── the link, and what was missed while it was down ─────────────────────────────────────────

    async def _refreshed(self) -> None:
        nodes = await self._refresh()
        banks = {str(each.node_id) for each in nodes if each.kind == "bank"}
        self._wanted.follow_banks(banks)
        self._datasets.directory(banks)
        if self._presence_once is not None:
            self._presence_once.listed(nodes)

    def _link_changed(self, up: bool) -> None:
        if self._brokers is not None:
            self._brokers.events_came(up)
        if up and self._presence_once is not None:
            self._presence_once.relinked()
        if up:
            self._in_step.stale()

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
            self._in_step.marked(node_id, decode_value(received.payload))
        elif family == "state":
            self._take_state(node_id, received)
        elif family == "dataset":
            self._datasets.take(node_id, received)
        elif family == "presence":
            self._take_presence(received)
        elif family in _HEALED:
            self._healer.take(received)

    def _take_loss(self, lost: Lost) -> None:
        """Something never came. The directory and the last states are fetched again in any case;
        of other events, what the broker remembers.
        """
        family, node_id = split(lost.topic)
        if family in _SELECTED and not self._wanted.wants(family, node_id):
            return
        if family in _HEALED:
            self._healer.take(lost)
        elif family == "dataset":
            self._datasets.lost(lost)
        elif family != "mark":
            if family == "presence":
                self._in_step.stale()
            self._tell_gap(Gap.of(lost))

    def _tell_gap(self, gap: Gap) -> None:
        for each in self._gap_listeners.all():
            each.put(gap)

    def _take_healed(self, received: Received) -> None:
        family, node_id = split(received.topic)
        if family == "log":
            line = line_of(received)
            for each in self._log_listeners.of(node_id):
                each.put(line, size=received.size)
            return
        for each in self._event_listeners.of(node_id):
            value = decode_value(received.payload)
            each.put(node_id, received.event.kind, value, size=received.size)

    def _take_state(self, relay_id: str, received: Received) -> None:
        state: Any = decode_value(received.payload)
        if not isinstance(state, dict):
            raise ProtocolError("a state is a table of names and values")
        self._states[relay_id] = received
        for each in self._readers.of(relay_id):
            _put_reading(each, relay_id, received)
        # Each callback gets a value of its own; for most there is no second one.
        for each in self._state_listeners.of(relay_id):
            value, state = state or decode_value(received.payload), None
            each.put(relay_id, value, key=relay_id, size=received.size)

    def _put_known(
        self,
        sink: Sink,
        patterns: tuple[str, ...] | None,
        put: Callable[[Sink, str, Received], None],
    ) -> None:
        """The last states, as far as they are here already."""
        for relay_id, received in list(self._states.items()):
            if hears(patterns, relay_id):
                put(sink, relay_id, received)

    def _forget_states(self, in_force: tuple[str, ...]) -> None:
        """Nothing keeps the others current any more."""
        for topic in [each.topic for each in self._states.values()]:
            if not topic.startswith(in_force):
                del self._states[split(topic)[1]]

    def _take_presence(self, received: Received) -> None:
        change = msgspec.convert(decode_value(received.payload), PresenceChange)
        checked(change.node)
        if change.node.kind == "bank":
            # Also what is no news: a bank that registers with the other broker can be asked again.
            self._datasets.changed(change.node.node_id, change.change)
        if self._presence_once is None or self._presence_once.is_news(change):
            self._tell_presence(change)

    def _tell_presence(self, change: PresenceChange) -> None:
        is_gone = change.change == "left"
        if is_gone:
            self._states.pop(change.node.node_id, None)
        if change.node.kind == "bank":
            self._wanted.follow_bank(change.node.node_id, end=is_gone)
        if self._presence_watch is not None:
            self._presence_watch(change)
        self._presence.set()
        told = {
            **msgspec.structs.asdict(change.node),
            "change": change.change,
            "reason": change.reason,
        }
        for each in self._presence_listeners.all():
            each.put(dict(told))


def _checked(family: str, ids: Ids) -> tuple[str, ...] | None:
    """The patterns that somebody gave, none of which is nonsense.

    :raises ProtocolError: one of them names no id.
    """
    patterns = patterns_of(ids)
    for each in patterns or ():
        subscription(family, each)
    return patterns


def _put_state(sink: Sink, relay_id: str, received: Received) -> None:
    # Each callback gets a value of its own: what one does to it is no matter of the others.
    sink.put(relay_id, decode_value(received.payload), key=relay_id, size=received.size)


def _put_reading(sink: Sink, relay_id: str, received: Received) -> None:
    sink.put(Reading.of(relay_id, received), key=relay_id, size=received.size)
