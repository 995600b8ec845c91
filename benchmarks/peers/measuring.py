"""What every program of this folder has in common: how it is told what to do, and the stopwatch.

A program has roles. ``serve [ADDRESS]`` prints one line of JSON with the address that clients (or
the next role) need, and ends when its stdin is closed. ``ask ADDRESS`` prints one line when it is
connected; then each line of its stdin names a measurement, and a line of its stdout gives the
figures. It ends when its stdin is closed. So none of them outlives the benchmark that started it.

Only the standard library is used here: this runs in the environment of each peer.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import socket
import sys
import threading
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from importlib.metadata import version
from time import perf_counter
from typing import Any, Protocol, TypeVar

#: Some peers print to stdout. The lines of JSON have it for themselves.
_ANSWERS = sys.stdout
sys.stdout = sys.stderr

#: The argument and the result of the trivial call.
VOLTAGE = 2.5
ARRAY_BYTES = (1_000_000, 8_000_000)
_FEWEST = 5
_CONNECT_S = 20.0

Client = TypeVar("Client")
#: Makes an event loop.
NewLoop = Callable[[], asyncio.AbstractEventLoop]


class BlockingCalls(Protocol):
    """A connected client whose calls wait for their result."""

    def call(self) -> float:
        """One trivial call; returns :data:`VOLTAGE`, as the server sent it back."""
        ...

    def array(self, size: int) -> Any:
        """A float64 numpy array of so many bytes, 0.0, 1.0, 2.0, …"""
        ...

    def in_flight(self, width: int, deadline: float) -> int:
        """Keep ``width`` calls in flight until ``deadline`` (``perf_counter``), await the rest.

        :returns: how many were answered.
        """
        ...


class AsyncCalls(Protocol):
    """A connected client whose calls are awaited."""

    async def call(self) -> float:
        """As in :class:`BlockingCalls`."""
        ...

    async def array(self, size: int) -> Any:
        """As in :class:`BlockingCalls`."""
        ...

    def lanes(self, width: int) -> Sequence[Callable[[], Awaitable[float]]]:
        """``width`` trivial calls that may be in flight at the same time."""
        ...


# ── servers ─────────────────────────────────────────────────────────────────────────────────────


def end_with_stdin(tidy: Callable[[], object] = lambda: None) -> None:
    """End this process as soon as its stdin is closed, whatever it is doing then, and ``tidy``."""

    def end() -> None:
        try:
            tidy()
        finally:
            os._exit(0)

    _when_stdin_closes(end)


async def stdin_closed() -> None:
    """Wait until stdin is closed."""
    closed = asyncio.Event()
    loop = asyncio.get_running_loop()
    _when_stdin_closes(lambda: loop.call_soon_threadsafe(closed.set))
    await closed.wait()


def _when_stdin_closes(act: Callable[[], object]) -> None:
    def wait() -> None:
        # Not sys.stdin: a thread that waits in there keeps a program that fails from ending.
        while os.read(0, 4096):
            continue
        act()

    threading.Thread(target=wait, name="stdin", daemon=True).start()


def announce(address: str) -> None:
    """Tell the benchmark that this server is ready, and where."""
    _answer({"address": address})


def free_port() -> int:
    """A port for servers that cannot choose one themselves.

    Between this and their bind another program could take it; then the benchmark reports that the
    peer did not start.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


# ── clients ─────────────────────────────────────────────────────────────────────────────────────


def answer_blocking(
    opened: Callable[[str], AbstractContextManager[BlockingCalls]], *distributions: str
) -> None:
    """Measure with a blocking client as stdin says; ``distributions`` are named with versions."""
    answer_orders(opened, _measure_blocking, *distributions)


def answer_orders(
    opened: Callable[[str], AbstractContextManager[Client]],
    measure: Callable[[Client, dict[str, Any]], dict[str, float]],
    *distributions: str,
) -> None:
    """The same with a measurement of one's own."""
    with opened(sys.argv[2] if len(sys.argv) > 2 else "") as client:
        _answer(_introduction(distributions))
        for line in sys.stdin:
            _answer(measure(client, json.loads(line)))


def answer_async(
    opened: Callable[[str], AbstractAsyncContextManager[AsyncCalls]],
    *distributions: str,
    new_loop: NewLoop | None = None,
) -> None:
    """The same with a client for asyncio."""
    answer_orders_async(opened, _measure_async, *distributions, new_loop=new_loop)


def answer_orders_async(
    opened: Callable[[str], AbstractAsyncContextManager[Client]],
    measure: Callable[[Client, dict[str, Any]], Awaitable[dict[str, float]]],
    *distributions: str,
    new_loop: NewLoop | None = None,
) -> None:
    """The same with a measurement of one's own, on asyncio's own loop or another one."""

    async def answer() -> None:
        async with opened(sys.argv[2]) as client:
            _answer(_introduction(distributions))
            while line := await asyncio.to_thread(sys.stdin.readline):
                _answer(await measure(client, json.loads(line)))

    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(answer())


def by_threads(calls: Iterable[Callable[[], object]], deadline: float) -> int:
    """Call each again and again in a thread of its own until the deadline; how often in all."""
    counts: list[int] = []
    failures: list[BaseException] = []

    def repeat(call: Callable[[], object]) -> None:
        count = 0
        try:
            while perf_counter() < deadline:
                call()
                count += 1
        except Exception as exc:  # raised again below, in the thread that measures
            failures.append(exc)
        counts.append(count)

    threads = [threading.Thread(target=repeat, args=(each,), daemon=True) for each in calls]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    if failures:
        raise failures[0]
    return sum(counts)


def connect_deadline() -> float:
    """When (``perf_counter``) a client should give up looking for its server."""
    return perf_counter() + _CONNECT_S


def check_voltage(answered: float) -> float:
    """What a call returned, after a look at it."""
    if answered != VOLTAGE:
        raise ValueError(f"the call returned {answered!r} instead of {VOLTAGE}")
    return answered


def _check_array(array: Any, size: int) -> None:
    last = size // 8 - 1
    if (array.dtype.str, array.nbytes, float(array[-1])) != ("<f8", size, float(last)):
        raise ValueError(f"not the array that was asked for: {array.dtype}, {array.nbytes} bytes")


# ── the stopwatch ───────────────────────────────────────────────────────────────────────────────


def _measure_blocking(client: BlockingCalls, order: dict[str, Any]) -> dict[str, float]:
    seconds = order["seconds"]
    match order["measure"]:
        case "latency":
            check_voltage(client.call())
            return percentiles(_timed(client.call, seconds), unit_s=1e-6)
        case "array":
            size = order["bytes"]
            _check_array(client.array(size), size)
            return percentiles(_timed(lambda: client.array(size), seconds), unit_s=1e-3)
        case "in_flight":
            started = perf_counter()
            count = client.in_flight(order["width"], started + seconds)
            return _rate(count, perf_counter() - started)
        case other:
            raise ValueError(f"unknown measurement {other!r}")


async def _measure_async(client: AsyncCalls, order: dict[str, Any]) -> dict[str, float]:
    seconds = order["seconds"]
    match order["measure"]:
        case "latency":
            check_voltage(await client.call())
            return percentiles(await _timed_async(client.call, seconds), unit_s=1e-6)
        case "array":
            size = order["bytes"]
            _check_array(await client.array(size), size)
            return percentiles(await _timed_async(lambda: client.array(size), seconds), unit_s=1e-3)
        case "in_flight":
            lanes = client.lanes(order["width"])
            started = perf_counter()
            deadline = started + seconds
            counts = await asyncio.gather(*(repeat(each, deadline) for each in lanes))
            return _rate(sum(counts), perf_counter() - started)
        case other:
            raise ValueError(f"unknown measurement {other!r}")


def _timed(call: Callable[[], object], seconds: float) -> list[float]:
    times: list[float] = []
    before = perf_counter()
    deadline = before + seconds
    while before < deadline or len(times) < _FEWEST:
        call()
        after = perf_counter()
        times.append(after - before)
        before = after
    return times


async def _timed_async(call: Callable[[], Awaitable[object]], seconds: float) -> list[float]:
    times: list[float] = []
    before = perf_counter()
    deadline = before + seconds
    while before < deadline or len(times) < _FEWEST:
        await call()
        after = perf_counter()
        times.append(after - before)
        before = after
    return times


async def repeat(call: Callable[[], Awaitable[object]], deadline: float) -> int:
    """Call again and again until the deadline; how often."""
    count = 0
    while perf_counter() < deadline:
        await call()
        count += 1
    return count


def percentiles(times_s: list[float], *, unit_s: float) -> dict[str, float]:
    """p50 and p99 of the times, in units of ``unit_s`` seconds."""
    ordered = sorted(times_s)

    def at(share: float) -> float:
        return ordered[max(0, math.ceil(share * len(ordered)) - 1)] / unit_s

    return {"p50": at(0.5), "p99": at(0.99), "count": len(ordered)}


def _rate(count: int, elapsed_s: float) -> dict[str, float]:
    return {"per_s": count / elapsed_s, "count": count}


def _introduction(distributions: Sequence[str]) -> dict[str, Any]:
    return {"versions": {each: version(each) for each in distributions}}


def _answer(line: dict[str, Any]) -> None:
    _ANSWERS.write(json.dumps(line) + "\n")
    _ANSWERS.flush()
