"""Drivers that block, raise, return junk, or never return: their relay serves on.

    pytest tests/faults/test_calls_drivers.py -s

prints a line of figures for each fault.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import math
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import pytest
from tests.support.hearing import Heard
from tests.support.history import History, Lag, conclude
from tests.support.peers import open_sockets
from tests.support.places import Places
from tests.support.processes import Process, program
from tests.support.promptness import SLACK_S, hear_last_words

from labmesh import DirectorClientAgent, RelayClient, expose
from labmesh.errors import Busy, DriverError, Expired, LabmeshError, OutcomeUnknown, UnknownMethod
from labmesh.protocol.messages import Ping, Pong
from labmesh.testing import LocalMesh
from labmesh.transport.link import Link

LIMIT_S = 20.0
TIMEOUT_S = 10.0
HEARTBEAT_S = 0.25
STATE_S = 0.1
P99_S = 0.05
STUCK_S = 0.5
#: The questions to a blocked relay end so long before its drivers go on.
BEFORE_S = 1.5


def node(places: Places, relay_id: str, **options: Any) -> dict[str, Any]:
    """A relay in another process."""
    return {
        "relay_id": relay_id,
        "broker_rpc": places.rpc,
        "state_pub": places.xsub,
        "rpc_bind": "tcp://127.0.0.1:*",
        "heartbeat_seconds": HEARTBEAT_S,
        "state_interval": STATE_S,
        **options,
    }


def p99(times_s: list[float]) -> float:
    return sorted(times_s)[int(0.99 * len(times_s))]


# ── it blocks ───────────────────────────────────────────────────────────────────────────────────


class _Asked:
    """How a relay answered while its driver was blocked."""

    def __init__(self, until: float) -> None:
        self._until = until
        self.times_s: dict[str, list[float]] = {}
        self.heartbeat_ages_s: list[float] = []

    async def everything(self, client: DirectorClientAgent, relay: RelayClient) -> None:
        """Each kind of question, until the time is over."""
        endpoint = client.health(relay.relay_id).endpoint
        with open_sockets(name="pinger") as sockets:
            link = Link(sockets, endpoint, where="the relay", target=relay.relay_id)
            try:
                await link.wait_up(LIMIT_S)
                await asyncio.gather(
                    self._again("ping", lambda: link.request(Ping(id="-"), Pong, timeout=LIMIT_S)),
                    self._again("refused busy", lambda: expect(Busy, relay.call("square", 1))),
                    self._again("other refusal", lambda: expect(UnknownMethod, relay.call("no"))),
                    self._again("status", lambda: self._status(relay)),
                )
            finally:
                link.close()

    async def _again(self, what: str, ask: Callable[[], Coroutine[Any, Any, Any]]) -> None:
        times_s = self.times_s.setdefault(what, [])
        while time.monotonic() < self._until:
            began = time.monotonic()
            await ask()
            times_s.append(time.monotonic() - began)
            await asyncio.sleep(0.01)  # a witness, not a load

    async def _status(self, relay: RelayClient) -> None:
        self.heartbeat_ages_s.append((await relay.status()).facts["heartbeat_age_s"])

    def slower_than(self, limit_s: float) -> list[str]:
        """The kinds of questions whose p99 is more."""
        return [what for what, each in self.times_s.items() if p99(each) > limit_s]

    def __str__(self) -> str:
        return ", ".join(
            f"{what} p99 {1000 * p99(each):.1f} ms ({len(each)})"
            for what, each in self.times_s.items()
        )


async def expect(error: type[Exception], work: Coroutine[Any, Any, Any]) -> None:
    with pytest.raises(error):
        await work


@asynccontextmanager
async def _two_relays(
    places: Places, client: DirectorClientAgent
) -> AsyncIterator[tuple[RelayClient, RelayClient]]:
    """One whose queue is short, and one whose driver can be polled while it is called."""
    nodes = [
        {"kind": "relay", **node(places, "full", max_queue=2)},
        {"kind": "relay", **node(places, "polled", threads=2)},
    ]
    with Process([program("nodes.py"), json.dumps(nodes)], cwd=places.folder) as process:
        for relay_id in ("full", "polled"):
            await asyncio.to_thread(process.wait_for, f"^ready {relay_id}", LIMIT_S)
        yield (
            await client.get_relay_agent("full", wait=LIMIT_S),
            await client.get_relay_agent("polled", wait=LIMIT_S),
        )


@asynccontextmanager
async def _blocked(full: RelayClient, polled: RelayClient, block_s: float) -> AsyncIterator[float]:
    """Both drivers run a call that lasts, and one has a full queue; until when, at least."""
    until = time.monotonic() + block_s
    blocking = [asyncio.create_task(each.call("block", block_s)) for each in (full, polled)]
    for each in (full, polled):
        await _until_fact(each, lambda facts: facts["busy_with"] == "block")
    waiting = [asyncio.create_task(full.call("square", number)) for number in range(2)]
    await _until_fact(full, lambda facts: facts["queued"] == 2)
    yield until
    assert not any(each.done() for each in (*blocking, *waiting))
    assert [await each for each in blocking] == [block_s, block_s]
    assert [await each for each in waiting] == [0, 1]


@pytest.mark.parametrize(
    ("block_s", "is_alone"),
    [
        (2.0 + BEFORE_S, False),
        pytest.param(30.0, True, marks=[pytest.mark.soak, pytest.mark.timeout(120)]),
    ],
)
async def test_a_driver_that_blocks_silences_nothing_else(
    block_s: float, is_alone: bool, places: Places
) -> None:
    """FR7: pings, refusals, heartbeats and the states of whoever can tell them go on."""
    presence = Heard()
    times: dict[str, list[float]] = {"full": [], "polled": []}
    async with places.broker(), places.client() as client:
        client.on_presence(presence)
        client.on_state(lambda relay_id, _: times[relay_id].append(time.monotonic()))
        async with _two_relays(places, client) as (full, polled):
            await client.follow_states()
            async with _blocked(full, polled, block_s) as until:
                before = len(times["polled"])
                # What is asked in its last moments may be answered after it.
                asked = _Asked(until - BEFORE_S)
                began = time.monotonic()
                with Lag() as lag:
                    await asked.everything(client, full)
                states = times["polled"][before:]
                expected_states = (time.monotonic() - began) / STATE_S
    jitter_s = [abs(after - before - STATE_S) for before, after in itertools.pairwise(states)]
    slack_s = lag.worst_s if is_alone else SLACK_S
    ages_s = asked.heartbeat_ages_s
    beats = sum(after < before for before, after in itertools.pairwise(ages_s))
    silent = ["suspect", "left"] if is_alone else ["left"]
    conclude(
        "FR7",
        f"2 drivers blocked for {block_s:g} s",
        sum(map(len, asked.times_s.values())),
        {
            "heartbeats missed": [
                *(each for each in presence.items if each["change"] in silent),
                *(each for each in ages_s if each > 2 * HEARTBEAT_S + slack_s),
            ],
            "slow answers": asked.slower_than(P99_S + slack_s),
            "states missed": [each for each in jitter_s if each > STATE_S + slack_s],
        },
        f"{asked}; state interval {1000 * STATE_S:.0f} ms: jitter p99 "
        f"{1000 * p99(jitter_s):.1f} ms of {len(states)}; heartbeat age at most "
        f"{max(ages_s):.2f} s of {HEARTBEAT_S:g} s, {beats} of them (the machine's lag: "
        f"{1000 * lag.worst_s:.0f} ms)",
    )
    assert beats >= 2
    assert len(states) >= (0.8 if is_alone else 0.2) * expected_states


async def _until_fact(relay: RelayClient, true: Callable[[dict[str, Any]], bool]) -> None:
    async with asyncio.timeout(LIMIT_S):
        while not true((await relay.status()).facts):  # noqa: ASYNC110  (nobody announces it)
            await asyncio.sleep(0.001)


# ── it raises, exits, returns junk ──────────────────────────────────────────────────────────────


def _is_nan(value: Any) -> bool:
    return math.isnan(value[0]) and value[1:] == [math.inf, -math.inf]


#: method and arguments → the error, or what is true of the value
_ROGUE: dict[tuple[str, ...], type[LabmeshError] | Callable[[Any], bool]] = {
    **{
        ("raises", name): DriverError
        for name in (
            "ValueError",
            "KeyError",
            "BaseException",
            "SystemExit",
            "KeyboardInterrupt",
            "GeneratorExit",
            "StopIteration",
            "StopAsyncIteration",
            "RecursionError",
            "MemoryError",
            "CancelledError",
            "TimeoutError",
            "ConnectionError",
            "OSError",
            "Warning",
        )
    },
    **{
        (name,): DriverError
        for name in (
            "custom",
            "steering",
            "unprintable",
            "group",
            "leave",
            "recurse",
            "exhaust",
            "coroutine_exits",
            "stops_the_loop",
            "itself",
            "a_class",
            "a_function",
            "hostile",
            "endless",
            "a_set",
            "a_cycle",
            "deep",
            "too_big",
            "a_surrogate",
            "keys",
            "returned_generator",
        )
    },
    ("generator",): LabmeshError,
    ("async_generator",): LabmeshError,
    ("in_a_thread",): lambda value: value == "ended",
    ("coroutine",): lambda value: value == "awaited",
    ("returned_coroutine",): lambda value: value == "awaited",
    ("nan",): _is_nan,
    ("some_bytes",): lambda value: value == b"\x00\xff" * 1000,
    ("large",): lambda value: value == bytes(100_000_000),
    ("nothing",): lambda value: value is None,
}


@asynccontextmanager
async def rogue(places: Places) -> AsyncIterator[tuple[RelayClient, Process]]:
    options = json.dumps(node(places, "rogue", state_interval=60.0))
    async with places.broker(), places.client() as client:
        with Process([program("rogue_relay.py"), options], cwd=places.folder) as process:
            await asyncio.to_thread(process.wait_for, "^ready", LIMIT_S)
            yield await client.get_relay_agent("rogue", wait=LIMIT_S), process


async def test_whatever_a_driver_does_its_relay_lives(places: Places) -> None:
    """FR8: each fault twice, and between them a call that works."""
    history = History()
    deaths: list[Any] = []
    otherwise: list[str] = []
    async with rogue(places) as (relay, process):
        epoch = (await relay.describe()).epoch
        for number, ((method, *args), expected) in enumerate(2 * list(_ROGUE.items())):
            call = relay.call(method, args, timeout=TIMEOUT_S)
            told = await history.watch(f"{method} {args} {number}", call, TIMEOUT_S)
            if not _is_as_expected(told, expected):
                otherwise.append(f"{told.tag}: {told.told} {told.error} {told.text[:80]}")
            told.value = None
            if await relay.call("fine", timeout=TIMEOUT_S) != "fine":
                otherwise.append(f"after {told.tag}")
        if process.exit_code is not None or (await relay.describe()).epoch != epoch:
            deaths.append(process.exit_code)
    conclude(
        "FR8",
        f"{len(_ROGUE)} kinds of drivers' faults",
        len(history.operations),
        {
            "relay deaths": deaths,
            "answered otherwise": otherwise,
            "not told how it ended": history.not_told(),
        },
        f"relay deaths {len(deaths)}; told: {history.told()}",
    )


def _is_as_expected(told: Any, expected: Any) -> bool:
    if isinstance(expected, type):
        wanted = "driver error" if expected is DriverError else "not run"
        return bool(told.told == wanted and told.text)
    return bool(told.told == "result" and expected(told.value))


# ── it never returns ────────────────────────────────────────────────────────────────────────────


class Sticky:
    """A method that lasts until the test ends, and others."""

    def __init__(self) -> None:
        self.begun = threading.Event()
        self.released = threading.Event()
        self.moved: list[int] = []

    @expose(timeout=STUCK_S)
    def stick(self) -> None:
        self.begun.set()
        self.released.wait()

    def move(self, number: int) -> int:
        self.moved.append(number)
        return number


async def test_a_driver_that_never_returns_is_reported_as_stuck(
    places: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    """FR9: at its timeout: in the relay's status, as an event, and to its caller."""
    hear_last_words(monkeypatch)
    driver, news, history = Sticky(), Heard(), History()
    heard_at: list[float] = []

    def hear(relay_id: str, kind: str, value: Any) -> None:
        if kind == "stuck":
            heard_at.append(time.monotonic())
            news((relay_id, value["method"]))

    async with LocalMesh({"sticky": driver}, banks=0, heartbeat_seconds=HEARTBEAT_S) as mesh:
        client = await mesh.client()
        client.on_event(hear)
        await client.follow_states()
        relay = await client.get_relay_agent("sticky")
        assert await relay.move(0) == 0
        try:
            figures_s = await _stuck(relay, driver, history, news, heard_at)
        finally:
            driver.released.set()
        await _until_fact(relay, lambda facts: not facts["stuck"] and not facts["busy_with"])
        assert await relay.move(2) == 2
    stuck, queued = history.operations

    conclude(
        "FR9",
        f"1 call that never returns, of at most {STUCK_S:g} s",
        2,
        {
            "not told at its timeout": [
                what for what, each in figures_s.items() if not STUCK_S <= each <= STUCK_S + SLACK_S
            ],
            "caller not told": [each for each in [stuck] if each.error != OutcomeUnknown.__name__],
            "queued call not told": [each for each in [queued] if each.error != Expired.__name__],
            "queued call executed": [each for each in driver.moved if each == 1],
            "told twice": news.items[1:],
        },
        ", ".join(f"{what} after {1000 * each:.0f} ms" for what, each in figures_s.items()),
    )


async def _stuck(
    relay: RelayClient, driver: Sticky, history: History, news: Heard, heard_at: list[float]
) -> dict[str, float]:
    """When, in seconds from the beginning of the call, the relay told of it, and how."""
    calling = asyncio.create_task(history.watch("stick", relay.stick(), TIMEOUT_S))
    await asyncio.to_thread(driver.begun.wait)
    began = history.operations[0].began_at
    facts = (await relay.status()).facts
    assert not facts["stuck"] or time.monotonic() > began + STUCK_S
    await _until_fact(relay, lambda facts: bool(facts["stuck"]))
    status_s = time.monotonic() - began
    await calling
    await news.one(lambda item: item == ("sticky", "stick"))
    facts = (await relay.status()).facts
    assert (facts["busy_with"], facts["stuck"]) == ("stick", True)
    # All that does not need the driver works.
    assert (await relay.describe()).driver == "Sticky"
    await expect(UnknownMethod, relay.call("no"))
    async with relay.lease(ttl=TIMEOUT_S):
        await history.watch("move", relay.call("move", 1, timeout=0.2), 0.2)
    return {
        "status": status_s,
        "event": heard_at[0] - began,
        "caller told": history.operations[0].ended_at - began,
    }
