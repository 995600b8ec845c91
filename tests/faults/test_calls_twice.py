"""Relays that die, frames that come again, replies that are lost: no call runs twice.

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
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest
import zmq
from tests.support.cable import Cable
from tests.support.direct import connected_sockets
from tests.support.history import Execution, History, Journal, conclude, note, twice
from tests.support.peers import until
from tests.support.places import Places, list_relay
from tests.support.plain_client import PlainClient, plain_clients
from tests.support.processes import Process, free_ports, program
from tests.support.served import eventually

import labmesh
from labmesh import RelayAgent, RelayClient, expose
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
                "told after 4 s": [detected_s] if detected_s > DETECTED_S else [],
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


class Recorder:
    """A driver in this process that writes down what it runs."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal.open()

    def move(self, tag: str) -> str:
        note(self._journal, tag)
        return tag

    @expose(idempotent=True)
    def put(self, tag: str) -> str:
        note(self._journal, tag)
        return tag

    def close(self) -> None:
        os.close(self._journal)


@pytest.fixture
def driver(journal: Journal) -> Iterator[Recorder]:
    recorder = Recorder(journal)
    yield recorder
    recorder.close()


@pytest.fixture
def nodes() -> Iterator[BackgroundLoop]:
    """The loop of the nodes, for tests that block."""
    loop = BackgroundLoop("nodes")
    yield loop
    loop.close()


def relay_of(places: Places, driver: object, port: int | str = "*") -> RelayAgent:
    """A relay without a broker."""
    nobody = f"tcp://127.0.0.1:{free_ports(1)[0]}"
    bind = f"tcp://127.0.0.1:{port}"
    return places.relay(RELAY, driver, rpc_bind=bind, broker_rpc=nobody, state_interval=60.0)


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


# ── the reply is lost ───────────────────────────────────────────────────────────────────────────


class _Lab:
    """A client, a relay that can be restarted, and the cable between them."""

    def __init__(self, places: Places, driver: Recorder) -> None:
        self.places, self.driver = places, driver
        self.port = free_ports(1)[0]

    def relay(self) -> RelayAgent:
        return relay_of(self.places, self.driver, self.port)

    @asynccontextmanager
    async def __call__(self) -> AsyncIterator[tuple[RelayClient, Cable]]:
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(self.places.broker())
            cable = await stack.enter_async_context(Cable(self.port))
            client = await stack.enter_async_context(self.places.client())
            await list_relay(self.places.rpc, cable.endpoint, RELAY)
            yield RelayClient(client, RELAY), cable


@pytest.fixture
def lab(places: Places, driver: Recorder) -> _Lab:
    return _Lab(places, driver)


@pytest.mark.parametrize("rounds", [10, pytest.param(200, marks=pytest.mark.soak)])
async def test_replies_that_are_lost_come_with_the_next_connection(
    rounds: int, lab: _Lab, journal: Journal
) -> None:
    """FR5: the proxy drops what the relay answers, and the link heals."""
    history = History()
    each_round = 10
    async with lab() as (relay, cable), lab.relay():
        await relay.call("move", "first", timeout=LIMIT_S)
        for number in range(rounds):
            cable.hold("down")
            tags = [f"r{number}.{place}" for place in range(each_round)]
            watched = [
                asyncio.create_task(
                    history.watch(tag, relay.call("move", tag, timeout=TIMEOUT_S), TIMEOUT_S)
                )
                for tag in tags
            ]
            await until(lambda n=number: journal.count(f"r{n}.") == each_round, LIMIT_S)
            cable.cut()
            cable.release()
            await asyncio.gather(*watched)
    _conclude_lost("FR5", f"{rounds} connections cut", history, journal.executions)


def _conclude_lost(row: str, faults: str, history: History, executions: list[Execution]) -> None:
    counts = Counter(each.tag for each in executions)
    good = sum(each.told == "result" for each in history.operations)
    conclude(
        row,
        faults,
        len(history.operations),
        {
            "executed twice": twice(executions),
            "reply not returned": [
                each
                for each in history.operations
                if each.told != "result" or each.value != each.tag
            ],
            "told wrongly": history.falsely_told(executions),
        },
        f"cached reply returned {100 * good / len(history.operations):.0f} %, executions at most "
        f"{max(counts.values())}",
    )


@pytest.mark.parametrize("calls", [500, pytest.param(4000, marks=pytest.mark.soak)])
def test_an_id_that_is_sent_again_brings_the_reply_that_was_lost(
    calls: int, places: Places, driver: Recorder, journal: Journal, nodes: BackgroundLoop
) -> None:
    """FR5: the first connection never reads its replies; the second one asks again."""
    relay = nodes.enter(relay_of(places, driver))
    history = History()
    with plain_clients(f"tcp://127.0.0.1:{relay.rpc.port}", count=1, peers=2) as (client,):
        operations = {
            call_id: history.begin(client.tag(call_id), LIMIT_S) for call_id in range(1, calls + 1)
        }
        for call_id in operations:
            client.send(call_id, peer=0)
        eventually(lambda: len(journal.executions) == calls, "all have run", LIMIT_S)
        client.peers.pop(0).close()
        for call_id in operations:
            client.send(call_id, peer=0)
        answered = 0
        while answered < calls:
            replies = client.received(int(1000 * LIMIT_S))
            assert replies, "no answer"
            answered += len(replies)
            for reply in replies:
                operation = operations[int(reply.id)]  # type: ignore[attr-defined]
                if isinstance(reply, Result):
                    operation.told, operation.value = "result", reply.value
    _conclude_lost("FR5", "all replies dropped, ids sent again", history, journal.executions)


@pytest.mark.parametrize("rounds", [5, pytest.param(100, marks=pytest.mark.soak)])
def test_threads_get_the_replies_that_were_lost(
    rounds: int, lab: _Lab, journal: Journal, nodes: BackgroundLoop
) -> None:
    """FR5 for calls of threads, which have connections of their own."""
    at_a_time = 4
    history = History()
    settled: list[str] = []
    nodes.enter(lab.places.broker())
    cable = nodes.enter(Cable(lab.port))
    nodes.enter(lab.relay())
    nodes.run(list_relay(lab.places.rpc, cable.endpoint, RELAY))
    with labmesh.connect(lab.places.rpc) as mesh:
        psu = mesh[RELAY]
        _count_settled(mesh, settled)

        def call(tag: str) -> None:
            history.run(tag, lambda: psu.call("move", tag, timeout=TIMEOUT_S), TIMEOUT_S)

        for number in range(rounds):
            eventually(lambda: mesh._session.client.health(RELAY).up, "the link is up")
            connected_sockets(mesh, RELAY, at_a_time)
            nodes.run(_hold(cable))
            threads = [
                threading.Thread(target=call, args=(f"r{number}.{place}",))
                for place in range(at_a_time)
            ]
            for each in threads:
                each.start()
            eventually(lambda n=number: journal.count(f"r{n}.") == at_a_time, "all have run")
            nodes.run(_heal(cable))
            for each in threads:
                each.join()
    faults = f"{rounds} times all connections cut, {len(settled)} calls settled over the link"
    _conclude_lost("FR5 (threads)", faults, history, journal.executions)
    assert len(settled) == rounds * at_a_time


def _count_settled(mesh: labmesh.Mesh, settled: list[str]) -> None:
    client = mesh._session.client
    settle = client.settle_call

    def settle_call(relay_id: str, request: Any, **options: Any) -> Any:
        settled.append(request.id)
        return settle(relay_id, request, **options)

    client.settle_call = settle_call  # type: ignore[method-assign]


async def _hold(cable: Cable) -> None:
    cable.hold("down")


async def _heal(cable: Cable) -> None:
    cable.cut()
    cable.release()


# ── the relay is restarted between the two sendings ─────────────────────────────────────────────


def test_what_is_sent_again_to_a_restarted_relay_is_refused(
    places: Places, driver: Recorder, journal: Journal, nodes: BackgroundLoop
) -> None:
    """FR6: every other call was run by the relay before; the same bytes go to the next one."""
    calls, port = 500, free_ports(1)[0]
    refused: Counter[str] = Counter()
    stack = AsyncExitStack()
    with plain_clients(f"tcp://127.0.0.1:{port}", count=1, peers=1) as (client,):
        first = nodes.run(stack.enter_async_context(relay_of(places, driver, port)))
        for call_id in range(1, calls + 1, 2):
            client.send(call_id, 0, epoch=first.epoch)
        eventually(lambda: len(journal.executions) == calls // 2, "half of them have run")
        nodes.run(stack.aclose())
        client.received()
        again = nodes.enter(relay_of(places, driver, port))
        assert again.epoch != first.epoch
        for call_id in range(1, calls + 1):
            client.send(call_id, 0, epoch=first.epoch)
        while sum(refused.values()) < calls:
            replies = client.received(int(1000 * LIMIT_S))
            assert replies, "no answer"
            refused.update(getattr(each, "name", "a result") for each in replies)
    executions = journal.executions
    conclude(
        "FR6",
        "1 restart between send and resend",
        calls,
        {
            "executed twice": twice(executions),
            "executed by the second": executions[calls // 2 :],
            "answered otherwise": [each for each in refused if each != "stale_epoch"],
        },
        f"stale_epoch {refused['stale_epoch']}",
    )


async def test_what_was_under_way_when_the_relay_was_restarted_is_unknown(
    lab: _Lab, journal: Journal
) -> None:
    """FR6 for a client: what is idempotent is sent anew, everything else is told."""
    calls = 100
    history = History()
    async with lab() as (relay, cable):
        async with lab.relay():
            await relay.call("put", "first", timeout=LIMIT_S)
            await relay.describe()
            cable.hold("down")
            watched = [
                asyncio.create_task(
                    history.watch(tag, relay.call(tag[:4].strip("-"), tag), TIMEOUT_S)
                )
                for number in range(calls)
                for tag in [f"{('move', 'put')[number % 2]}-{number}"]
            ]
            await until(lambda: len(journal.executions) == calls + 1, LIMIT_S)
            cable.cut()
        async with lab.relay():
            cable.release()
            async with asyncio.timeout(LIMIT_S):
                await asyncio.gather(*watched)
    executions = journal.executions
    harmless = {each.tag for each in executions if each.tag.startswith("put-")}
    moves = [each for each in history.operations if each.tag not in harmless]
    conclude(
        "FR6",
        "1 restart in the middle",
        calls,
        {
            "executed twice": twice(executions, harmless),
            "not told unknown": [each for each in moves if each.told != "unknown"],
            "idempotent and not done": [
                each
                for each in history.operations
                if each.tag in harmless and each.told != "result"
            ],
        },
        f"told: {history.told()}; {len(twice(executions))} idempotent calls ran again",
    )
