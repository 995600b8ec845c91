"""Gaps: what was lost is fetched again where the broker remembers it, and told where not."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from labmesh.errors import LabmeshError, ProtocolError
from labmesh.protocol.arrivals import Lost, Received
from labmesh.protocol.codec import decode_event
from labmesh.protocol.inbox import MAX_BYTES
from labmesh.protocol.messages import LastEvents, Replay
from labmesh.protocol.topics import split
from labmesh.transport.broker_link import BrokerLink

__all__ = ["Gap", "Healer"]

log = logging.getLogger(__name__)

_REQUEST_S = 1.0
#: Pages of a replay; the broker remembers no more than so many.
_MAX_PAGES = 100


@dataclass(frozen=True, slots=True)
class Gap:
    """Events of one node that did not come.

    Their sequences lie between ``first`` and ``last``. ``recovered`` of them were fetched from the
    broker's memory and delivered late, in order; ``lost`` of them are gone.
    """

    #: ``state``, ``event``, ``log``, ``dataset``
    family: str
    node_id: str
    epoch: str
    first: int
    last: int
    lost: int
    recovered: int = 0

    @classmethod
    def of(cls, lost: Lost, recovered: int = 0) -> Gap:
        """What is to be told of a loss."""
        family, node_id = split(lost.topic)
        missed = lost.missed - recovered
        return cls(family, node_id, lost.epoch, lost.first, lost.last, missed, recovered)


class Healer:
    """Keeps the events of each topic in order while the missing ones are fetched.

    :param deliver: called with each event, in order.
    :param tell: called with each gap once it is known what could be recovered.
    :param max_bytes: events that wait meanwhile, of all topics. What comes beyond it is lost, too,
        and fetched when its turn comes.
    """

    def __init__(
        self,
        broker: BrokerLink,
        spawn: Callable[[Coroutine[Any, Any, Any], str], object],
        deliver: Callable[[Received], None],
        tell: Callable[[Gap], None],
        *,
        max_bytes: int = MAX_BYTES,
    ) -> None:
        self._broker = broker
        self._spawn = spawn
        self._deliver = deliver
        self._tell = tell
        #: by topic, while something of it is being fetched
        self._held: dict[str, deque[Received | Lost]] = {}
        self._room = max_bytes

    def take(self, item: Received | Lost) -> None:
        """The next event of a topic, or a loss before it."""
        held = self._held.get(item.topic)
        if held is not None:
            self._hold(held, item)
        elif isinstance(item, Received):
            self._deliver(item)
        else:
            self._held[item.topic] = deque([item])
            self._spawn(self._heal(item.topic), f"replay of {item.topic}")

    def _hold(self, held: deque[Received | Lost], item: Received | Lost) -> None:
        if isinstance(item, Received):
            if item.size <= self._room:
                self._room -= item.size
                held.append(item)
                return
            item = Lost.of(item)
        before = held[-1] if held else None
        if isinstance(before, Lost) and before.epoch == item.epoch:
            held[-1] = before.and_then(item)
        else:
            held.append(item)

    async def _heal(self, topic: str) -> None:
        held = self._held[topic]
        try:
            while held:
                item = held.popleft()
                if isinstance(item, Received):
                    self._room += item.size
                    self._deliver(item)
                else:
                    self._tell(Gap.of(item, await self._recover(item)))
        finally:
            left = self._held.pop(topic)
            self._room += sum(each.size for each in left if isinstance(each, Received))

    async def _recover(self, lost: Lost) -> int:
        """Fetch and deliver what the broker still has; how many those were."""
        recovered, first = 0, lost.first
        try:
            for _ in range(_MAX_PAGES):
                request = Replay(
                    id="-", topic=lost.topic, node_epoch=lost.epoch, first=first, last=lost.last
                )
                page = await self._broker.request(request, LastEvents, timeout=_REQUEST_S)
                for received in _believed(page, lost, first):
                    self._deliver(received)
                    recovered += 1
                    first = received.event.sequence + 1
                if not page.more or not page.events or first > lost.last:
                    break
        except LabmeshError as exc:
            log.info("what was lost of %s cannot be fetched again: %s", lost.topic, exc)
        return min(recovered, lost.missed)


def _believed(page: LastEvents, lost: Lost, first: int) -> list[Received]:
    """The events of a page that were asked for, once each and in order."""
    believed: list[Received] = []
    for last in page.events:
        event = decode_event(last.header)
        if last.topic != lost.topic or event.epoch != lost.epoch:
            raise ProtocolError("the broker sent other events than were asked for")
        if first <= event.sequence <= lost.last:
            believed.append(Received(last.topic, event, last.payload, 0, time.monotonic()))
            first = event.sequence + 1
    return believed
