"""The nodes of ``benchmarks/scale.py``: the broker, many relays' publishers, and clients.

``relays`` and ``watch-…`` get the broker's address and what they are to be, and take orders. A
state says its number, and when it was published: whoever watches knows exactly what did not come.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from time import perf_counter
from typing import Any

from measuring import announce, answer_orders_async, percentiles, stdin_closed
from plain_events import audience

import labmesh
from labmesh.protocol.codec import decode_value
from labmesh.protocol.event_frame import parted, unsealed
from labmesh.transport.keys import Security
from labmesh.transport.publisher import Publisher
from labmesh.transport.sockets import Sockets

_ANYWHERE = "tcp://127.0.0.1:*"
_CONNECT_S = 30.0
_LATE_S = 5.0
_PAUSE_S = 0.001
#: A relay tells with each heartbeat how far its topics have come.
_TAIL_S = 1.0
#: The time of every so many-th state is looked at.
_TIMED = 16
#: What fills a state up to 200 bytes, as those of a power supply have them.
_TEXT = "x" * 140


def _name(number: int) -> str:
    return f"sim-{number:05d}"


async def _broker() -> None:
    async with labmesh.DirectoryBroker(_ANYWHERE, _ANYWHERE, _ANYWHERE) as broker:
        await broker.ready
        announce(f"{broker.rpc} {broker.xsub} {broker.xpub}")
        await stdin_closed()


# ── relays ──────────────────────────────────────────────────────────────────────────────────────


class _Relays:
    def __init__(self, names: Sequence[str], publishers: Sequence[Publisher]) -> None:
        self._names = names
        self._publishers = publishers

    async def obey(self, order: dict[str, Any]) -> dict[str, float]:
        match order["do"]:
            case "mark":
                for name, each in zip(self._names, self._publishers, strict=True):
                    each.publish("state", "state", {"relay": name, "mark": order["mark"]})
                return {}
            case "publish":
                return await self._publish(order["rate"], order["seconds"])
            case other:
                raise ValueError(f"unknown order {other!r}")

    async def _publish(self, rate: float, seconds: float) -> dict[str, float]:
        """Each relay's states on its own schedule, those of all evenly spread over time."""
        count = len(self._publishers)
        total = int(rate * seconds) * count
        began = perf_counter()
        tails_at, tails = began + _TAIL_S, 0
        done = refused = 0
        while done < total:
            now = perf_counter()
            due = min(total, int((now - began) * rate * count) + 1)
            for number in range(done, due):
                state = {
                    "relay": self._names[number % count],
                    "n": number // count + 1,
                    "at": perf_counter(),
                    "text": _TEXT,
                }
                publisher = self._publishers[number % count]
                refused += not publisher.publish("state", "state", state)
            done = due
            while now >= tails_at + _TAIL_S * tails / count:
                self._publishers[tails % count].publish_tail()
                tails += 1
            await asyncio.sleep(_PAUSE_S)
        elapsed = perf_counter() - began
        return {"each": total // count, "refused": refused, "elapsed": elapsed}


@asynccontextmanager
async def _relays(argument: str) -> AsyncIterator[_Relays]:
    _, events, _, first, count = argument.split()
    sockets = Sockets(Security.resolve(), "relays")
    names = [_name(number) for number in range(int(first), int(first) + int(count))]
    publishers = [
        Publisher(sockets, events, node_id=each, epoch="0123456789abcdef") for each in names
    ]
    try:
        async with asyncio.timeout(_CONNECT_S):
            # Each tells only itself.
            while not all(each.up for each in publishers):  # noqa: ASYNC110
                await asyncio.sleep(_PAUSE_S)
        yield _Relays(names, publishers)
    finally:
        for each in publishers:
            each.close()
        sockets.close_all()


# ── watchers ────────────────────────────────────────────────────────────────────────────────────


class _Watcher:
    """What one client heard of the relays that it watches."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.marks: dict[str, int] = {}
        #: by relay: the last number, and how many came
        self.last: dict[str, int] = {}
        self.heard = 0
        self.disorder = 0
        self.told = 0
        self.delays_s: list[float] = []
        #: states that had come and were not handed over
        self.skipped: Callable[[], int] = int

    def hear(self, event: bytes) -> None:
        """An event came, as the broker sends it."""
        self.take("", decode_value(parted(unsealed([event])[0])[2]))

    def take(self, _relay_id: str, state: Any) -> None:
        name = state["relay"]
        if "n" not in state:
            self.marks[name] = state["mark"]
            return
        number = state["n"]
        if number <= self.last.get(name, 0):
            self.disorder += 1
            return
        self.last[name] = number
        self.heard += 1
        if self.heard % _TIMED == 0:
            self.delays_s.append(perf_counter() - state["at"])

    def tell(self, gap: Any) -> None:
        self.told += gap.missed


class _Watchers:
    def __init__(self, watchers: Sequence[_Watcher]) -> None:
        self._watchers = watchers

    async def obey(self, order: dict[str, Any]) -> dict[str, float]:
        match order["do"]:
            case "look":
                mark = order["mark"]
                seen = sum(
                    list(each.marks.values()).count(mark) == each.count for each in self._watchers
                )
                return {"ready": seen == len(self._watchers)}
            case "report":
                return await self._report(order["each"])
            case other:
                raise ValueError(f"unknown order {other!r}")

    async def _report(self, each_relay: int) -> dict[str, float]:
        expected = sum(each.count for each in self._watchers) * each_relay
        deadline = perf_counter() + _LATE_S
        while self._heard < expected and perf_counter() < deadline:  # noqa: ASYNC110 -- as above
            await asyncio.sleep(_PAUSE_S)
        delays_s = [delay for each in self._watchers for delay in each.delays_s]
        return {
            **percentiles(delays_s, unit_s=1e-3),
            "expected": expected,
            "lost": expected - self._heard,
            "told": sum(each.told for each in self._watchers),
            "skipped": sum(each.skipped() for each in self._watchers),
            "disorder": sum(each.disorder for each in self._watchers),
        }

    @property
    def _heard(self) -> int:
        return sum(each.heard for each in self._watchers)


@asynccontextmanager
async def _watch_all(argument: str) -> AsyncIterator[_Watchers]:
    """A client that watches so many relays."""
    requests, _, xpub, relays = argument.split()
    watcher = _Watcher(int(relays))
    async with labmesh.DirectorClientAgent(broker_rpc=requests, broker_xpub=xpub) as client:
        subscription = client.on_state(watcher.take)
        watcher.skipped = lambda: subscription.conflated
        client.on_gap(watcher.tell)
        yield _Watchers([watcher])


@asynccontextmanager
async def _watch_some(argument: str) -> AsyncIterator[_Watchers]:
    """Of R relays, C subscribers watch N each: plain sockets, all in this process."""
    _, xsub, xpub, *numbers = argument.split()
    relays, clients, each_watches = map(int, numbers)

    def topics(number: int) -> list[bytes]:
        first = number * each_watches
        names = {_name((first + each) % relays) for each in range(each_watches)}
        return [f"state.{each}".encode() for each in names]

    watchers = [_Watcher(len(topics(number))) for number in range(clients)]
    async with audience(0, topics)(f"{xsub} {xpub}", watchers):
        yield _Watchers(watchers)


if __name__ == "__main__":
    match sys.argv[1]:
        case "broker":
            asyncio.run(_broker())
        case "relays":
            answer_orders_async(_relays, _Relays.obey)
        case "watch-all":
            answer_orders_async(_watch_all, _Watchers.obey)
        case _:
            answer_orders_async(_watch_some, _Watchers.obey)
