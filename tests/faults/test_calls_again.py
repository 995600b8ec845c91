"""Replies that are lost and relays that are restarted: a call that is sent again runs once.

    pytest tests/faults/test_calls_again.py -s

prints a line of figures for each fault; with ``-m soak`` it lasts longer.
"""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest
from tests.support.cable import Cable
from tests.support.direct import connected_sockets
from tests.support.history import Execution, History, Journal, conclude, twice
from tests.support.peers import until
from tests.support.places import Places, list_relay
from tests.support.plain_client import plain_clients
from tests.support.processes import free_ports
from tests.support.recorder import Recorder, relay_of
from tests.support.served import eventually

import labmesh
from labmesh import RelayAgent, RelayClient
from labmesh.blocking.background import BackgroundLoop
from labmesh.protocol.messages import Result

RELAY = "Inst-0"
LIMIT_S = 20.0
#: A call may be open so long in these tests.
TIMEOUT_S = 10.0


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
