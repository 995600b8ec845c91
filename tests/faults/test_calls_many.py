"""Many clients, half of whose calls are cancelled: none is lost, mixed up, or run all the same.

    pytest tests/faults/test_calls_many.py -s

prints the seed and a line of figures; with ``-m soak`` it lasts longer.
"""

from __future__ import annotations

import asyncio
import os
import random
import secrets
import threading
from collections.abc import Iterator

import pytest
from tests.support.history import History, Journal, Operation, conclude, note, twice
from tests.support.peers import until

from labmesh import RelayClient
from labmesh.testing import LocalMesh

RELAY = "Inst-0"
CLIENTS = 100
#: client objects, each with a connection of its own, that the clients share
AGENTS = 5
LIMIT_S = 30.0


class Gated:
    """Writes down what it runs, once the gate is open."""

    def __init__(self, journal: Journal) -> None:
        self.journal = journal.open()
        self.opened = threading.Event()

    def move(self, tag: str) -> str:
        note(self.journal, tag)
        return tag

    def gate(self, tag: str) -> str:
        """Nothing runs before it is opened."""
        note(self.journal, tag)
        assert self.opened.wait(LIMIT_S)
        return tag


@pytest.fixture
def driver(journal: Journal) -> Iterator[Gated]:
    gated = Gated(journal)
    yield gated
    gated.opened.set()
    os.close(gated.journal)


class _Round:
    """One call of each client, half of them cancelled."""

    def __init__(self, number: int, relays: list[RelayClient], history: History) -> None:
        self._history = history
        self._tasks = {
            tag: asyncio.create_task(self._call(relays[client % AGENTS], tag), name=tag)
            for client in range(CLIENTS)
            for tag in [f"r{number}.c{client}"]
        }
        self.cancelled: set[str] = set()

    async def _call(self, relay: RelayClient, tag: str) -> Operation:
        return await self._history.watch(tag, relay.call("move", tag, timeout=LIMIT_S), LIMIT_S)

    def cancel_half(self, chance: random.Random) -> None:
        """At random; those that have ended meanwhile are not among them."""
        for tag in chance.sample(sorted(self._tasks), CLIENTS // 2):
            if self._tasks[tag].cancel():
                self.cancelled.add(tag)

    async def ended(self) -> None:
        async with asyncio.timeout(LIMIT_S):
            await asyncio.wait(self._tasks.values())

    @property
    def kept(self) -> list[Operation]:
        """The calls that nobody cancelled."""
        return [
            each.result()
            for tag, each in self._tasks.items()
            if tag not in self.cancelled or not each.cancelled()
        ]


@pytest.mark.parametrize(
    "rounds", [50, pytest.param(1000, marks=[pytest.mark.soak, pytest.mark.timeout(1800)])]
)
async def test_half_of_all_calls_are_cancelled_and_the_others_get_their_own_replies(
    rounds: int, driver: Gated, journal: Journal
) -> None:
    """FR10. In every other round all that is cancelled waits, for certain, in the queue."""
    chance = random.Random(seed := secrets.randbits(32))
    print(f"seed {seed}")
    history = History()
    kept: list[Operation] = []
    queued: set[str] = set()
    racing: set[str] = set()
    async with LocalMesh({RELAY: driver}, banks=0, state_interval=60.0) as mesh:
        agents = [await mesh.client() for _ in range(AGENTS)]
        relays = [await each.get_relay_agent(RELAY) for each in agents]
        for number in range(rounds):
            if number % 2 == 0:
                turn = await _gated_round(number, relays, driver, history, journal, chance)
                queued |= turn.cancelled
            else:
                turn = _Round(number, relays, history)
                for _ in range(chance.randrange(30)):
                    await asyncio.sleep(0)
                turn.cancel_half(chance)
                await turn.ended()
                racing |= turn.cancelled
            kept += turn.kept
        assert await relays[0].call("move", "last", timeout=LIMIT_S) == "last"
    executions = journal.executions
    ran = {each.tag for each in executions}
    conclude(
        "FR10",
        f"{len(queued) + len(racing)} calls cancelled",
        CLIENTS * rounds,
        {
            "lost replies": [each for each in kept if each.told != "result"],
            "mixed-up replies": [each for each in kept if each.value != each.tag],
            "cancelled while queued and ran": sorted(queued & ran),
            "ran twice": twice(executions),
            "answered and did not run": [each for each in kept if each.tag not in ran],
        },
        f"{CLIENTS} clients: {len(kept)} calls answered; of {len(racing)} cancelled on their "
        f"way {len(racing & ran)} ran, of {len(queued)} in the queue {len(queued & ran)}",
    )
    assert len(queued) == CLIENTS // 2 * ((rounds + 1) // 2)
    assert len(kept) + len(queued) + len(racing) >= CLIENTS * rounds


async def _gated_round(
    number: int,
    relays: list[RelayClient],
    driver: Gated,
    history: History,
    journal: Journal,
    chance: random.Random,
) -> _Round:
    driver.opened.clear()
    gate, before = f"gate-{number}", len(journal.executions)
    gating = asyncio.create_task(relays[0].call("gate", gate, timeout=LIMIT_S))
    await until(lambda: any(each.tag == gate for each in journal.executions[before:]), LIMIT_S)
    turn = _Round(number, relays, history)
    await _until_queued(relays[0], CLIENTS)
    turn.cancel_half(chance)
    await _until_queued(relays[0], CLIENTS - CLIENTS // 2)
    driver.opened.set()
    assert await gating == gate
    await turn.ended()
    return turn


async def _until_queued(relay: RelayClient, calls: int) -> None:
    async with asyncio.timeout(LIMIT_S):
        while (await relay.status()).facts["queued"] != calls:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
