"""Relays that die, and frames that come again and in any order: no call runs twice.

    pytest tests/faults/test_calls_twice.py -s

prints a line of figures for each fault; with ``-m soak`` it lasts longer.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
import secrets
import signal
import time
from collections import Counter
from typing import Any

import pytest
import zmq
from tests.support.history import History, Journal, conclude, twice
from tests.support.peers import until
from tests.support.places import Places
from tests.support.plain_client import PlainClient, plain_clients
from tests.support.processes import Process, free_ports, program
from tests.support.promptness import SLACK_S
from tests.support.recorder import Recorder, relay_of

from labmesh import RelayClient
from labmesh.blocking.background import BackgroundLoop
from labmesh.protocol.messages import Failure, Message, Result
from labmesh.protocol.past_calls import Memory

RELAY = "Inst-0"
LIMIT_S = 20.0
#: A call may be open so long in these tests.
TIMEOUT_S = 10.0
DETECTED_S = 4.0


def p99(times_s: list[float]) -> float:
    return sorted(times_s)[int(0.99 * len(times_s))] if times_s else 0.0


# ── the relay is killed ─────────────────────────────────────────────────────────────────────────


class _Nursery:
    """A relay in a process of its own that has a successor as soon as it is killed."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self._lines = 0
        self.pid = 0

    async def next(self) -> None:
        """Wait until one serves that was not known."""
        await asyncio.to_thread(
            self._process.wait_until, self._is_next, LIMIT_S, "no further relay serves"
        )

    def _is_next(self, lines: list[Any]) -> bool:
        texts = [each.text for each in lines]
        fresh = [number for number, text in enumerate(texts) if text == "ready"]
        if not fresh or fresh[-1] < self._lines:
            return False
        (*_, found) = (each for each in map(re.compile(r"relay (\d+)").fullmatch, texts) if each)
        self.pid = int(found[1])
        self._lines = len(texts)
        return True

    def kill9(self) -> float:
        """Kill the present one; when."""
        os.kill(self.pid, signal.SIGKILL)
        return time.monotonic()


class _Kills:
    """Rounds of calls in the middle of which their relay is killed."""

    def __init__(self, relay: RelayClient, nursery: _Nursery, journal: Journal) -> None:
        self._relay, self._nursery, self._journal = relay, nursery, journal
        self.history = History()
        #: how long after the kill each call was told that its outcome is unknown
        self.detected_s: list[float] = []

    async def round(self, number: int, begun: int) -> None:
        """Seven calls; the relay dies when so many of them have begun, and the next one comes."""
        await self._relay.call("put", f"ready-{number}", timeout=LIMIT_S)
        # In every other round the call that is killed while it runs may be sent again.
        victim = ("hold", "hold_put")[number % 2]
        methods = ["move", "put", "move", victim, "move", "put", "move"]
        before, ran = len(self.history.operations), len(self._journal.executions)
        watched = [
            asyncio.create_task(self._call(method, f"{method}-{number}.{place}"))
            for place, method in enumerate(methods)
        ]
        await until(lambda: len(self._journal.executions) >= ran + begun, LIMIT_S)
        killed_at = self._nursery.kill9()
        async with asyncio.timeout(LIMIT_S):
            await asyncio.gather(*watched)
        ended = self.history.operations[before:]
        self.detected_s += [each.ended_at - killed_at for each in ended if each.told == "unknown"]
        await self._nursery.next()

    async def _call(self, method: str, tag: str) -> None:
        args = [tag, self._nursery.pid] if method.startswith("hold") else [tag]
        work = self._relay.call(method, args, timeout=TIMEOUT_S)
        await self.history.watch(tag, work, TIMEOUT_S)

    def conclude(self, count: int) -> None:
        """What must be so when all of them are over."""
        operations = self.history.operations
        executions = [each for each in self._journal.executions if "ready" not in each.tag]
        harmless = {each.tag for each in operations if each.tag.startswith(("put-", "hold_put-"))}
        detected_s = p99(self.detected_s)
        conclude(
            "FR3",
            f"{count} relays killed",
            len(operations),
            {
                "executed twice": twice(executions, harmless),
                "not told how it ended": self.history.not_told(),
                "told wrongly": self.history.falsely_told(executions),
                "hung": [each for each in operations if each.ended_at >= each.deadline],
                "idempotent and not done": [
                    each for each in operations if each.tag in harmless and each.told != "result"
                ],
                "told later": [detected_s] if detected_s > DETECTED_S + SLACK_S else [],
            },
            f"told: {self.history.told()}; {len(twice(executions))} idempotent calls ran again; "
            f"unknown after p99 {detected_s:.2f} s, at most {max(self.detected_s):.2f} s",
        )


@pytest.mark.parametrize(
    "kills",
    [15, pytest.param(1000, marks=[pytest.mark.soak, pytest.mark.timeout(3600)])],
)
async def test_a_relay_that_is_killed_in_the_middle_of_calls_runs_none_of_them_twice(
    kills: int, places: Places, journal: Journal
) -> None:
    """FR3: some calls have ended, one runs, others wait. What is idempotent comes to its end."""
    chance = random.Random(seed := secrets.randbits(32))
    print(f"seed {seed}")
    options = {
        "relay_id": RELAY,
        "broker_rpc": places.rpc,
        "state_pub": places.xsub,
        "rpc_bind": f"tcp://127.0.0.1:{free_ports(1)[0]}",
        "heartbeat_seconds": 0.5,
    }
    arguments = [program("recording_relay.py"), journal.path, json.dumps(options), "again"]
    async with places.broker(), places.client() as client:
        with Process(arguments, cwd=places.folder) as process:
            nursery = _Nursery(process)
            await nursery.next()
            relay = await client.get_relay_agent(RELAY, wait=LIMIT_S)
            rounds = _Kills(relay, nursery, journal)
            for number in range(kills):
                await rounds.round(number, begun=chance.randint(0, 4))
    rounds.conclude(kills)


# ── frames that come again, and in any order ────────────────────────────────────────────────────


_WINDOW = 50


@pytest.mark.parametrize(
    "calls",
    [5000, pytest.param(100_000, marks=[pytest.mark.soak, pytest.mark.timeout(1800)])],
)
def test_frames_that_come_several_times_in_any_order_run_once(
    calls: int, places: Places, driver: Recorder, journal: Journal, nodes: BackgroundLoop
) -> None:
    """FR4: each request 1 to 5 times over either connection of its client, old ones between."""
    chance = random.Random(seed := secrets.randbits(32))
    print(f"seed {seed}")
    relay = nodes.enter(relay_of(places, driver))
    sent: Counter[tuple[int, int]] = Counter()
    answered: Counter[tuple[int, int]] = Counter()
    wrong: list[Message] = []
    with plain_clients(f"tcp://127.0.0.1:{relay.rpc.port}", count=2, peers=2) as both:
        for start in range(1, calls // 2 + 1, _WINDOW):
            fresh = {(who, start + step) for who in range(2) for step in range(_WINDOW)}
            for who, call_id in _schedule(sorted(fresh), start, chance):
                both[who].send(call_id, chance.randrange(2))
                sent[who, call_id] += 1
            while fresh:
                for who, reply in _replies(both):
                    call = (who, int(reply.id))  # type: ignore[attr-defined]
                    answered[call] += 1
                    fresh.discard(call)
                    if not _is_right(reply, both[who], call[1], start):
                        wrong.append(reply)
    executions = journal.executions
    counts = Counter(each.tag for each in executions)
    conclude(
        "FR4",
        f"{sum(sent.values())} frames, in any order",
        len(sent),
        {
            "executed twice": twice(executions),
            "wrong replies": wrong,
            "never answered": sent.keys() - answered.keys(),
            "never executed": [each for each in sent if both[each[0]].tag(each[1]) not in counts],
        },
        f"executions per id at most {max(counts.values())}, frames per id at most "
        f"{max(sent.values())}, {sum(answered.values())} replies",
    )


def _schedule(
    fresh: list[tuple[int, int]], start: int, chance: random.Random
) -> list[tuple[int, int]]:
    """Each of these 1 to 5 times and some of all before, in any order."""
    schedule = [each for each in fresh for _ in range(chance.randint(1, 5))]
    schedule += [(chance.randrange(2), chance.randrange(1, start + _WINDOW)) for _ in range(10)]
    chance.shuffle(schedule)
    return schedule


def _replies(both: list[PlainClient]) -> list[tuple[int, Message]]:
    """Who has got which replies; waits for a first one."""
    poller = zmq.Poller()
    for client in both:
        for peer in client.peers:
            poller.register(peer, zmq.POLLIN)
    assert poller.poll(1000 * LIMIT_S), "no answer"
    return [(who, reply) for who, client in enumerate(both) for reply in client.received()]


def _is_right(reply: Message, client: PlainClient, call_id: int, start: int) -> bool:
    if isinstance(reply, Result):
        return bool(reply.value == client.tag(call_id))
    # That it does not know is no wrong answer about a call that is long ago. Those of one window
    # end in any order, and to forget one is to forget all with lower ids.
    is_old = call_id < start + 2 * _WINDOW - Memory().calls_of_one
    return is_old and isinstance(reply, Failure) and reply.name == "outcome_unknown"
