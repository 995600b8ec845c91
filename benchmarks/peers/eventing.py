"""What the programs that carry events have in common: the interface, and the ladder of rates.

A candidate is three processes: its broker; ``publish``, which publishes as it is told; and ``ask``,
in which all subscribers live, each with a connection of its own. ``ask`` leads: it tells the
publisher how many events a second to publish, and counts what its subscribers hear.

Only the standard library is used here.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import math
import struct
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from time import perf_counter
from typing import Any

from measuring import (
    announce,
    answer_orders_async,
    connect_deadline,
    percentiles,
    stdin_closed,
)

__all__ = ["HEAD_BYTES", "NODE", "Ear", "answer_events", "serve_publisher"]

#: Under whose name events are published.
NODE = "psu-1"
#: Which trial it belongs to, when it was made, and what fills it up to 200 bytes.
_EVENT = struct.Struct("<8sd184x")
#: What an :class:`Ear` looks at.
HEAD_BYTES = 16

#: Events a second: ten rungs for each factor of ten.
_STEPS = (1.0, 1.25, 1.6, 2.0, 2.5, 3.15, 4.0, 5.0, 6.3, 8.0)
_RATES = [round(step * 10**power) for power in range(1, 6) for step in _STEPS]
#: Where the first round begins, and by how much it goes up; the others go rung by rung.
_FIRST = _RATES.index(4000)
_FIRST_STEP = 3
#: The share that may be lost.
_LOSS = 0.001
#: The publisher keeps the rate: it has so long for all. A factor of the trial, and seconds.
_PACE = (1.02, 0.02)
#: What comes later than this after the beginning is lost: else a queue that fills up during a short
#: trial would pass for a rate.
_CLOSES = (1.07, 0.07)
#: It sends what is due, and then leaves the processor to others.
_PAUSE_S = 0.001
_BURST = 500
_QUIET_S = 0.05
_QUIET_MOST_S = 3.0

Publish = Callable[[bytes], Awaitable[object]]


class Ear:
    """What one subscriber hears of the trial that is on."""

    __slots__ = ("_closes", "_trial", "count", "delays_s")

    def __init__(self) -> None:
        self._trial = b""
        self._closes = 0.0
        self.count = 0
        self.delays_s: list[float] | None = None

    def begin(self, trial: bytes, closes: float, *, timed: bool) -> None:
        """From now on, events of this trial count, until it closes."""
        self._trial, self._closes, self.count = trial, closes, 0
        self.delays_s = [] if timed else None

    def drain(self) -> None:
        """Count what comes late, too."""
        self._closes = math.inf

    def hear(self, event: bytes | memoryview) -> None:
        """An event came, or at least its first bytes."""
        if event[:8] == self._trial and perf_counter() < self._closes:
            self.count += 1
            if self.delays_s is not None:
                # The clock of both processes is the same one.
                self.delays_s.append(perf_counter() - struct.unpack_from("<8xd", event)[0])


Audience = Callable[[str, Sequence[Ear]], AbstractAsyncContextManager[None]]

# ── the publisher ───────────────────────────────────────────────────────────────────────────────


async def serve_publisher(
    opened: Callable[[str], AbstractAsyncContextManager[Publish]],
) -> None:
    """Publish as the subscribers' process says, until stdin is closed."""
    address = sys.argv[2]
    async with opened(address) as publish:

        async def lead(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            while line := await reader.readline():
                answer = await _publish(publish, json.loads(line))
                writer.write(json.dumps(answer).encode() + b"\n")
            writer.close()

        server = await asyncio.start_server(lead, "127.0.0.1", 0)
        announce(f"{address} {server.sockets[0].getsockname()[1]}")
        await stdin_closed()


async def _publish(publish: Publish, order: dict[str, Any]) -> dict[str, float]:
    trial, rate, seconds = order["trial"].encode(), order["rate"], order["seconds"]
    total = max(1, int(rate * seconds))
    sent = 0
    began = perf_counter()
    last = began + _PACE[0] * seconds + _PACE[1]
    while sent < total and perf_counter() < last:
        due = min(total, int((perf_counter() - began) * rate) + 1)
        for _ in range(min(due - sent, _BURST)):
            await publish(_EVENT.pack(trial, perf_counter()))
            sent += 1
        ahead_s = began + sent / rate - perf_counter()
        await asyncio.sleep(max(ahead_s, _PAUSE_S) if ahead_s > 0 else 0)
    return {"sent": sent, "wanted": total}


# ── the subscribers ─────────────────────────────────────────────────────────────────────────────


def answer_events(opened: Audience, *distributions: str) -> None:
    """Measure as stdin says.

    :param opened: ``opened(address, ears)``: one subscriber for each ear, with a connection of its
        own; while the context is open, each has its ear hear the events.
    :param distributions: named with their versions.
    """

    @asynccontextmanager
    async def ladder(address: str) -> AsyncIterator[_Ladder]:
        broker, _, port = address.rpartition(" ")
        reader, writer = await asyncio.open_connection("127.0.0.1", int(port))
        async with AsyncExitStack() as running:
            running.callback(writer.close)
            hall = _Hall(opened, broker)
            running.push_async_callback(hall.close)
            yield _Ladder(hall, reader, writer)

    answer_orders_async(ladder, _Ladder.measure, *distributions)


class _Hall:
    """The subscribers of the moment."""

    def __init__(self, opened: Audience, address: str) -> None:
        self._opened = opened
        self._address = address
        self._running = AsyncExitStack()
        self.ears: list[Ear] = []

    async def seat(self, count: int) -> bool:
        """Have so many; False: they were there."""
        if len(self.ears) == count:
            return False
        await self.close()
        self.ears = [Ear() for _ in range(count)]
        await self._running.enter_async_context(self._opened(self._address, self.ears))
        return True

    async def close(self) -> None:
        self.ears = []
        await self._running.aclose()

    @property
    def heard(self) -> int:
        """Of this trial, all subscribers together."""
        return sum(each.count for each in self.ears)


class _Ladder:
    """Goes up the rates while no more than 0.1 % is lost, and stands there until the next round."""

    def __init__(
        self, hall: _Hall, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._hall = hall
        self._reader, self._writer = reader, writer
        self._trials = itertools.count(1)
        #: number of subscribers → the rung of the round before
        self._stands: dict[int, int] = {}

    async def measure(self, order: dict[str, Any]) -> dict[str, float]:
        count, seconds = order["subscribers"], order["seconds"]
        if await self._hall.seat(count):
            await self._all_hear()
        match order["measure"]:
            case "rate":
                return {"per_s": await self._highest_rate(count, seconds)}
            case "latency":
                await self._trial(order["rate"], seconds, timed=True)
                delays_s = [
                    each for ear in self._hall.ears if ear.delays_s for each in ear.delays_s
                ]
                return percentiles(delays_s, unit_s=1e-6)
            case other:
                raise ValueError(f"unknown measurement {other!r}")

    async def _highest_rate(self, count: int, seconds: float) -> float:
        at = self._stands.get(count)
        step = 1 if at is not None else _FIRST_STEP
        at = await self._climb(_FIRST if at is None else at, step, seconds)
        self._stands[count] = at
        return _RATES[at]

    async def _climb(self, at: int, step: int, seconds: float) -> int:
        """The last rung that is good, going up from a good one, or the first going down."""
        if await self._carries(at, seconds):
            while at + step < len(_RATES) and await self._carries(at + step, seconds):
                at += step
            return at
        while at > 0:
            at = max(0, at - step)
            if await self._carries(at, seconds):
                return at
        raise ValueError(f"more than 0.1 % is lost of {_RATES[0]} events a second")

    async def _carries(self, rung: int, seconds: float) -> bool:
        sent, wanted, heard = await self._trial(_RATES[rung], seconds)
        return sent == wanted and heard >= (1 - _LOSS) * sent * len(self._hall.ears)

    async def _all_hear(self) -> None:
        """Wait until the subscriptions are in force."""
        deadline = connect_deadline()
        while True:
            await self._trial(100, 0.02)
            if all(each.count for each in self._hall.ears):
                return
            if perf_counter() > deadline:
                deaf = sum(not each.count for each in self._hall.ears)
                raise TimeoutError(f"{deaf} of {len(self._hall.ears)} subscribers hear nothing")

    async def _trial(
        self, rate: float, seconds: float, *, timed: bool = False
    ) -> tuple[int, int, int]:
        """How many events were published, how many should have been, how many were heard."""
        trial = f"{next(self._trials):08d}"
        closes = perf_counter() + _CLOSES[0] * seconds + _CLOSES[1]
        for each in self._hall.ears:
            each.begin(trial.encode(), closes, timed=timed)
        order = {"trial": trial, "rate": rate, "seconds": seconds}
        self._writer.write(json.dumps(order).encode() + b"\n")
        if not (line := await self._reader.readline()):
            raise ConnectionError("the publisher has ended")
        published = json.loads(line)
        everything = published["sent"] * len(self._hall.ears)
        # For what threads count, and libraries of others: nobody announces it here.
        while self._hall.heard < everything and perf_counter() < closes:  # noqa: ASYNC110
            await asyncio.sleep(_PAUSE_S)
        heard = self._hall.heard
        if heard < everything:
            await self._quiet()
        return published["sent"], published["wanted"], heard

    async def _quiet(self) -> None:
        """Let what is late pass by, so that the next trial does not suffer from it."""
        for each in self._hall.ears:
            each.drain()
        deadline = perf_counter() + _QUIET_MOST_S
        before = -1
        while before != self._hall.heard and perf_counter() < deadline:
            before = self._hall.heard
            await asyncio.sleep(_QUIET_S)
