"""Leases over real sockets: one writer, whom all see, and what happens when it vanishes."""

from __future__ import annotations

import asyncio
import itertools
import re
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from tests.support.hearing import Heard
from tests.support.processes import Process, program
from tests.support.promptness import SLACK_S
from tests.support.served import ServedMesh, eventually

from labmesh import DirectorClientAgent, RelayClient, expose
from labmesh.asking.held_lease import HeldLease
from labmesh.asking.holding import holder_name
from labmesh.errors import Busy, Conflict, LabmeshError, Locked, NotFound
from labmesh.protocol.messages import Acquire, Lease
from labmesh.testing import LocalMesh

RELAY = "Inst-0"
LIMIT_S = 20.0
#: Long enough for a busy machine to renew in time, where nobody is to vanish.
TTL_S = 30.0


class Supply:
    """Writes down who wrote what, in order."""

    def __init__(self) -> None:
        self.log: list[tuple[str, Any]] = []
        self._level = 0.0
        self._changed = threading.Condition()
        self.go_on = threading.Event()

    def note(self, who: str, what: Any) -> None:
        with self._changed:
            self.log.append((who, what))
            self._changed.notify_all()

    def wait_for(self, entry: tuple[str, Any]) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: entry in self.log, LIMIT_S), self.log

    def write(self, who: str, what: Any) -> None:
        self.note(who, what)

    @expose(read_only=True)
    def read(self) -> int:
        return len(self.log)

    @property
    def level(self) -> float:
        return self._level

    @level.setter
    def level(self, value: float) -> None:
        self._level = value

    def scan(self, who: str, points: int) -> Iterator[int]:
        """One write a point."""
        for point in range(points):
            self.note(who, point)
            yield point

    def block(self, who: str) -> None:
        """Last until the test says so."""
        self.note(who, "block")
        assert self.go_on.wait(LIMIT_S)

    def safe_state(self) -> None:
        self.note("relay", "safe_state")

    @property
    def safe_states(self) -> int:
        return self.log.count(("relay", "safe_state"))


@dataclass
class Lab:
    """One relay and its clients."""

    mesh: LocalMesh
    supply: Supply
    news: Heard = field(default_factory=Heard)

    async def client(self) -> tuple[DirectorClientAgent, RelayClient]:
        client = await self.mesh.client()
        return client, await client.get_relay_agent(RELAY)

    async def relay(self) -> RelayClient:
        return (await self.client())[1]

    async def change(self, change: str) -> dict[str, Any]:
        """Wait for the event of this change of a lease."""
        _, _, value = await self.news.one(
            lambda item: item[:2] == (RELAY, "lease") and item[2]["change"] == change
        )
        return dict(value)


@asynccontextmanager
async def lab_of(supply: Supply | None = None, **options: Any) -> AsyncIterator[Lab]:
    supply = supply or Supply()
    try:
        async with LocalMesh(banks=0, heartbeat_seconds=0.2) as mesh:
            await mesh.start_relay(RELAY, supply, **options)
            lab = Lab(mesh, supply)
            observer = await mesh.client()
            observer.on_event(lab.news)
            await observer.follow_states()
            yield lab
    finally:
        supply.go_on.set()


@pytest.fixture
async def lab() -> AsyncIterator[Lab]:
    async with lab_of() as lab:
        yield lab


async def facts(relay: RelayClient) -> Any:
    return (await relay.status()).facts["lease"]


async def vanish(client: DirectorClientAgent, lease: HeldLease) -> None:
    """The client no longer renews, as one that crashed or was paused."""
    client.fences._stop_renewing(lease._grant)


async def blocked(lab: Lab, relay: RelayClient, who: str) -> asyncio.Task[Any]:
    """The driver runs a call of theirs that lasts."""
    task = asyncio.create_task(relay.block(who))
    await asyncio.to_thread(lab.supply.wait_for, (who, "block"))
    return task


async def until_fact(relay: RelayClient, true: Callable[[dict[str, Any]], bool]) -> None:
    """Ask until its status is so."""
    async with asyncio.timeout(LIMIT_S):
        while not true((await relay.status()).facts):  # noqa: ASYNC110  (nobody announces it)
            await asyncio.sleep(0.001)


async def until_queued(relay: RelayClient, calls: int) -> None:
    await until_fact(relay, lambda facts: facts["queued"] >= calls)


# ── one writer ──────────────────────────────────────────────────────────────────────────────────


async def test_only_the_holder_writes_and_everybody_reads(lab: Lab) -> None:
    alice, bob = await lab.relay(), await lab.relay()
    async with alice.lease(note="T sweep", ttl=TTL_S):
        await alice.write("alice", 1)
        with pytest.raises(Locked, match="has held the lease of Inst-0") as caught:
            await bob.write("bob", 1)
        assert caught.value.detail["holder"] == holder_name()
        assert caught.value.detail["note"] == "T sweep"
        assert 0 < caught.value.detail["left_s"] <= TTL_S
        assert await bob.read() == 1
        await alice.write("alice", 2)
    await bob.write("bob", 2)
    assert lab.supply.log == [("alice", 1), ("alice", 2), ("bob", 2)]


async def test_reading_a_value_is_reading_and_setting_it_is_writing(lab: Lab) -> None:
    alice, bob = await lab.relay(), await lab.relay()
    async with alice.lease(ttl=TTL_S):
        await alice.set("level", 2.5)
        with pytest.raises(Locked):
            await bob.set("level", 9.0)
        assert await bob.get("level") == 2.5
    await bob.set("level", 9.0)
    assert await alice.get("level") == 9.0


async def test_a_scan_is_a_write(lab: Lab) -> None:
    alice, bob = await lab.relay(), await lab.relay()
    async with alice.lease(ttl=TTL_S):
        assert await read(alice.stream("scan", ["alice", 3])) == [0, 1, 2]
        with pytest.raises(Locked):
            await read(bob.stream("scan", ["bob", 3]))
    assert lab.supply.log == [("alice", 0), ("alice", 1), ("alice", 2)]


async def test_a_batch_that_writes_is_a_write(lab: Lab) -> None:
    alice, bob = await lab.relay(), await lab.relay()
    async with alice.lease(ttl=TTL_S):
        async with alice.batch() as batch:
            batch.write("alice", 1)
            batch.write("alice", 2)
        with pytest.raises(Locked):
            await batch_of_both(bob)
        async with bob.batch() as batch:
            count = batch.read()
        assert count.value == 2
    assert lab.supply.log == [("alice", 1), ("alice", 2)]


async def batch_of_both(relay: RelayClient) -> None:
    async with relay.batch() as batch:
        batch.read()
        batch.write("bob", 1)


async def test_who_holds_it_is_seen_by_all(lab: Lab) -> None:
    alice, bob = await lab.relay(), await lab.relay()
    assert await facts(bob) is None
    async with alice.lease(note="T sweep", ttl=TTL_S) as lease:
        seen = await facts(bob)
        assert (seen["fence"], seen["holder"], seen["note"]) == (1, holder_name(), "T sweep")
        assert 0 < seen["left_s"] <= seen["ttl_s"] == TTL_S
        assert seen["age_s"] >= 0
        granted = await lab.change("granted")
        assert (granted["fence"], granted["note"]) == (lease.fence, "T sweep")
    assert (await lab.change("released"))["holder"] == holder_name()
    assert await facts(bob) is None
    assert lab.supply.safe_states == 0


async def test_a_lease_that_is_held_long_is_renewed(lab: Lab) -> None:
    alice, bob = await lab.relay(), await lab.relay()
    async with alice.lease(ttl=SLACK_S) as lease:
        await until_fact(bob, lambda facts: facts["lease"]["age_s"] > SLACK_S + 0.5)
        await alice.write("alice", 1)
        assert lease.lost == ""
    assert lab.supply.safe_states == 0


async def test_a_relay_may_take_no_writes_without_a_lease() -> None:
    async with lab_of(require_lease=True) as lab:
        alice = await lab.relay()
        assert await alice.read() == 0
        with pytest.raises(Locked, match=r"only under a lease.*with psu\.lease\(note="):
            await alice.write("alice", 1)
        async with alice.lease(ttl=TTL_S):
            await alice.write("alice", 2)
    assert lab.supply.log == [("alice", 2)]


# ── order ───────────────────────────────────────────────────────────────────────────────────────


async def test_what_waited_before_the_grant_does_not_come_between(lab: Lab) -> None:
    alice, bob = await lab.relay(), await lab.relay()
    blocking = await blocked(lab, bob, "bob")
    waiting = [asyncio.create_task(bob.write("bob", number)) for number in range(5)]
    await until_queued(alice, 5)
    acquiring = asyncio.create_task(alice.acquire(TTL_S))
    await until_fact(alice, lambda facts: facts["lease"])
    lab.supply.go_on.set()
    async with await acquiring:
        writing = [asyncio.create_task(alice.write("alice", number)) for number in range(5)]
        await asyncio.gather(blocking, *writing)
        refused = await asyncio.gather(*waiting, return_exceptions=True)
    assert [type(each) for each in refused] == [Locked] * 5
    assert lab.supply.log == [("bob", "block"), *(("alice", number) for number in range(5))]


async def test_a_lease_is_granted_when_nobody_else_writes_any_more(lab: Lab) -> None:
    """A scan ends before; a batch, which is one write, as a whole; who only reads goes on."""
    alice, bob, carol = await lab.relay(), await lab.relay(), await lab.relay()
    scan = bob.stream("scan", ["bob", 100], credit=1)
    assert await anext(scan) == 0
    acquiring = asyncio.create_task(alice.acquire(0.5, note="T sweep"))
    await until_fact(alice, lambda facts: facts["lease"])
    with pytest.raises(Locked, match="'T sweep'"):
        await carol.write("carol", 1)
    # Longer than it lives: its time begins with the grant.
    await until_fact(alice, lambda facts: facts["lease"]["age_s"] > 0.6)
    assert not acquiring.done()
    assert await read(scan) == list(range(1, 100))
    async with await acquiring as lease:
        await alice.write("alice", 1)
        assert lease.ends_at > time.monotonic()

        async def two_writes() -> None:
            async with bob.batch() as batch:
                batch.block("bob")
                batch.write("bob", "behind it")

    batch = asyncio.create_task(two_writes())
    await asyncio.to_thread(lab.supply.wait_for, ("bob", "block"))
    watching = asyncio.create_task(carol.read())
    acquiring = asyncio.create_task(alice.acquire(TTL_S))
    await until_fact(alice, lambda facts: facts["lease"])
    lab.supply.go_on.set()
    async with await acquiring:
        await alice.write("alice", 2)
    await asyncio.gather(batch, watching)
    assert lab.supply.log == [
        *(("bob", point) for point in range(100)),
        ("alice", 1),
        *(("bob", "block"), ("bob", "behind it")),
        ("alice", 2),
    ]
    assert lab.supply.safe_states == 0


async def test_who_acquires_in_vain_learns_who_writes(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And afterwards others may write again; also when he went away meanwhile, or was broken."""
    # The relay answers when a part of his time is over; the rest is for the way.
    monkeypatch.setattr("labmesh.serving.lease_desk._WAITED_PART", 0.15)
    (client, alice), bob = await lab.client(), await lab.relay()
    scan = bob.stream("scan", ["bob", 10], credit=1)
    assert await anext(scan) == 0
    with pytest.raises(Busy) as caught:
        await client.request(RELAY, Acquire(id="-", ttl_s=TTL_S), Lease, timeout=LIMIT_S)
    assert caught.value.detail["running"] == "scan"
    assert caught.value.detail["running_by"] == holder_name()
    said = f"busy with scan (called by {holder_name()}), which has run for"
    assert said in str(caught.value)
    assert await facts(bob) is None

    for _ in range(2):
        acquiring = asyncio.create_task(alice.acquire(TTL_S))
        await until_fact(bob, lambda facts: facts["lease"])
        await bob.break_lease("not now")
        with pytest.raises(Locked, match=r"was broken by .* \(not now\)"):
            await acquiring
    acquiring = asyncio.create_task(alice.acquire(TTL_S))
    await until_fact(bob, lambda facts: facts["lease"])
    acquiring.cancel()
    assert await read(scan) == list(range(1, 10))
    await until_fact(bob, lambda facts: facts["lease"] is None)
    await bob.write("bob", "again")
    assert lab.supply.safe_states == 0


async def test_calls_under_one_lease_are_never_interleaved_with_anothers(lab: Lab) -> None:
    clients = [await lab.relay() for _ in range(6)]
    done = asyncio.Event()

    async def write_under_leases(relay: RelayClient, who: str) -> None:
        for turn in range(5):
            lease = await acquired(relay)
            for step in range(8):
                await relay.write(who, (lease.fence, turn, step))
            await lease.release()

    async def write_without(relay: RelayClient, who: str) -> int:
        written = 0
        while not done.is_set():
            try:
                await relay.write(who, None)
            except Locked:
                await asyncio.sleep(0.001)
            else:
                written += 1
        return written

    rogues = [
        asyncio.create_task(write_without(each, f"rogue {number}"))
        for number, each in enumerate(clients[4:])
    ]
    holders = [write_under_leases(each, f"client {i}") for i, each in enumerate(clients[:4])]
    async with asyncio.timeout(LIMIT_S):
        await asyncio.gather(*holders)
    done.set()
    between = sum(await asyncio.gather(*rogues))
    runs = [
        (who, [what for _, what in run])
        for who, run in itertools.groupby(lab.supply.log, key=lambda entry: entry[0])
        if who.startswith("client")
    ]
    steps = [what for _, run in runs for what in run]
    torn = sum(
        (before[:2] == after[:2]) != (after[2] == before[2] + 1)
        for before, after in itertools.pairwise(steps)
    )
    whole = sum(len(run) % 8 == 0 for _, run in runs)
    print(f"20 leases, {between} writes by others: torn {torn}, runs whole {whole} of {len(runs)}")
    assert len(steps) == 4 * 5 * 8
    assert (torn, whole) == (0, len(runs))
    assert [fence for fence, _, step in steps if step == 0] == sorted(
        {fence for fence, _, _ in steps}
    )


async def acquired(relay: RelayClient, ttl_s: float = TTL_S) -> HeldLease:
    """As soon as nobody else holds it."""
    async with asyncio.timeout(LIMIT_S):
        while True:
            try:
                return await relay.acquire(ttl_s)
            except Locked:
                await asyncio.sleep(0.001)


# ── holders that vanish ─────────────────────────────────────────────────────────────────────────


async def test_an_expired_lease_brings_the_safe_state_before_all_that_waits(lab: Lab) -> None:
    (alice_client, alice), bob = await lab.client(), await lab.relay()
    lease = await alice.acquire(0.5)
    await vanish(alice_client, lease)
    blocking = await blocked(lab, alice, "alice")
    late = asyncio.create_task(alice.write("alice", "late"))
    await until_queued(bob, 1)
    expired = await lab.change("expired")
    assert (expired["fence"], expired["holder"]) == (lease.fence, holder_name())
    acquiring = asyncio.create_task(bob.acquire(TTL_S))
    await until_fact(bob, lambda facts: facts["lease"])
    lab.supply.go_on.set()
    async with await acquiring:
        await asyncio.gather(blocking, bob.write("bob", 1))
        with pytest.raises(Locked, match=r"with fence 1 expired \(not renewed for 0.5 s\)"):
            await late
    assert lab.supply.log == [("alice", "block"), ("relay", "safe_state"), ("bob", 1)]


async def test_a_scan_ends_with_the_lease_of_its_reader_that_froze(lab: Lab) -> None:
    (client, alice), bob = await lab.client(), await lab.relay()
    lease = await alice.acquire(0.5)
    await vanish(client, lease)
    stream = alice.stream("scan", ["alice", 1000], credit=4)
    assert [await anext(stream) for _ in range(2)] == [0, 1]
    await lab.change("expired")
    async with bob.lease(ttl=TTL_S), asyncio.timeout(LIMIT_S):
        await bob.write("bob", 1)
        with pytest.raises(LabmeshError):
            await read(stream)
        await bob.write("bob", 2)
    points = [("alice", point) for point in range(len(lab.supply.log) - 3)]
    assert lab.supply.log == [*points, ("relay", "safe_state"), ("bob", 1), ("bob", 2)]
    assert len(points) < 10


async def read(stream: AsyncIterator[Any]) -> list[Any]:
    return [item async for item in stream]


class Careful(Supply):
    """Its safe state takes as long as the test says."""

    def __init__(self) -> None:
        super().__init__()
        self.is_safe = threading.Event()

    def safe_state(self) -> None:
        self.note("relay", "begins")
        assert self.is_safe.wait(LIMIT_S)
        super().safe_state()


async def test_beside_the_safe_state_nobody_writes_in_another_thread_either() -> None:
    supply = Careful()
    async with lab_of(supply, threads=3) as lab:
        (client, alice), bob = await lab.client(), await lab.relay()
        lease = await alice.acquire(0.1)
        await vanish(client, lease)
        await asyncio.to_thread(supply.wait_for, ("relay", "begins"))
        async with bob.lease(ttl=TTL_S):
            writes = [asyncio.create_task(bob.write("bob", number)) for number in range(5)]
            await until_queued(bob, 5)
            assert await alice.read() == 1
            supply.is_safe.set()
            await asyncio.gather(*writes)
            assert sorted(supply.log[2:]) == [("bob", number) for number in range(5)]
    assert supply.log[:2] == [("relay", "begins"), ("relay", "safe_state")]


async def test_the_safe_state_comes_behind_a_write_that_was_just_taken_up() -> None:
    """A thread has it and is about to ask whether it may begin when the lease before it ends."""
    supply = Careful()
    supply.is_safe.set()
    asked, answer = threading.Event(), threading.Event()
    async with lab_of(supply, threads=2) as lab:
        (client, alice), (other, bob) = await lab.client(), await lab.client()
        desk = lab.mesh.relays[RELAY]._desk
        check = desk.check_write

        def slow(owner: Any, fence: int, now: float) -> None:
            if threading.current_thread().name.startswith("labmesh-driver") and owner[1] == token:
                asked.set()
                assert answer.wait(LIMIT_S)
            check(owner, fence, now)

        token = other.session.token
        running = [await blocked(lab, alice, each) for each in ("one", "two")]
        moving = asyncio.create_task(bob.block("bob"))
        await until_queued(bob, 1)
        desk.check_write = slow
        lease = await alice.acquire(0.3)
        await vanish(client, lease)
        supply.go_on.set()
        await asyncio.to_thread(asked.wait, LIMIT_S)
        await asyncio.gather(*running)
        supply.go_on.clear()
        await lab.change("expired")
        answer.set()
        await asyncio.to_thread(supply.wait_for, ("bob", "block"))
        supply.go_on.set()
        await moving
        await asyncio.to_thread(supply.wait_for, ("relay", "safe_state"))
    assert supply.log[2:] == [("bob", "block"), ("relay", "begins"), ("relay", "safe_state")]


async def test_a_driver_without_a_safe_state_is_left_as_it_is() -> None:
    class Plain:
        def square(self, value: int) -> int:
            return value * value

    async with LocalMesh({RELAY: Plain()}, banks=0) as mesh:
        client, other = await mesh.client(), await mesh.client()
        alice = await client.get_relay_agent(RELAY)
        lease = await alice.acquire(0.2)
        await vanish(client, lease)
        bob = await other.get_relay_agent(RELAY)
        await (await acquired(bob)).release()
        assert await bob.square(3) == 9


async def test_a_client_that_closes_while_it_holds_a_lease(lab: Lab) -> None:
    client, alice = await lab.client()
    _lease = await alice.acquire(TTL_S, note="T sweep")
    await alice.write("alice", 1)
    await client.close()
    assert (await lab.change("abandoned"))["note"] == "T sweep"
    bob = await lab.relay()
    await bob.write("bob", 1)
    assert lab.supply.log == [("alice", 1), ("relay", "safe_state"), ("bob", 1)]


async def test_a_restarted_relay_has_no_leases(lab: Lab) -> None:
    alice = await lab.relay()
    async with alice.lease(ttl=SLACK_S) as lease:
        await lab.mesh.restart_relay(RELAY)
        with pytest.raises(Locked, match="was restarted"):
            await alice.write("alice", 1)
        async with asyncio.timeout(LIMIT_S):
            assert "was restarted" in await lease.wait_ended()
    await alice.write("alice", 2)
    assert lab.supply.log == [("alice", 2)]


async def test_a_holder_that_was_paused_writes_no_more(
    lab: Lab, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """FR11."""
    bob = await lab.relay()
    arguments = [program("lease_holder.py"), lab.mesh.address, RELAY, str(SLACK_S)]
    with Process(arguments, cwd=tmp_path) as holder:
        await asyncio.to_thread(holder.wait_for, r"^wrote 3$", LIMIT_S)
        holder.stop()
        await lab.change("expired")
        async with bob.lease(note="mine now", ttl=TTL_S) as lease:
            await bob.write("bob", 1)
            before = list(lab.supply.log)
            holder.cont()
            refused = await asyncio.to_thread(holder.wait_for, "^refused (.*)", LIMIT_S)
            lost = await asyncio.to_thread(holder.wait_for, "^lost (.*)", LIMIT_S)
            await bob.write("bob", 2)
            after = lab.supply.log[len(before) :]
        await asyncio.to_thread(holder.wait_end, LIMIT_S)
    accepted = sum(who == "paused" for who, _ in after)
    print(f"FR11: accepted {accepted} writes, safe_state {lab.supply.safe_states}: {refused[1]}")
    assert accepted == 0
    assert lab.supply.safe_states == 1
    assert before[-2:] == [("relay", "safe_state"), ("bob", 1)]
    assert re.search(r"fence 1 (expired|is over)", refused[1])
    assert "fence 1" in lost[1]
    assert lease.fence == 2


# ── breaking ────────────────────────────────────────────────────────────────────────────────────


async def test_a_lease_can_be_broken_and_its_holder_learns_by_whom(lab: Lab) -> None:
    alice, bob = await lab.relay(), await lab.relay()
    with pytest.raises(NotFound, match="nobody holds a lease"):
        await bob.break_lease()
    async with alice.lease(note="over the weekend", ttl=SLACK_S) as lease:
        with pytest.raises(Conflict, match=f"with fence {lease.fence}"):
            await bob.break_lease(fence=lease.fence + 1)
        await bob.break_lease("she went home", fence=lease.fence)
        broken = await lab.change("broken")
        assert (broken["by"], broken["why"]) == (holder_name(), "she went home")
        with pytest.raises(Locked, match=r"was broken by .* \(she went home\)"):
            await alice.write("alice", 1)
        await bob.write("bob", 1)
        async with asyncio.timeout(LIMIT_S):
            assert "she went home" in await lease.wait_ended()
    assert lab.supply.log == [("bob", 1)]


# ── races ───────────────────────────────────────────────────────────────────────────────────────


async def race(lab: Lab, rounds: int) -> str:
    """Ten clients race for the lease, and whoever has it writes; gives the figures."""
    clients = [await lab.relay() for _ in range(10)]
    fences: list[int] = []
    holders = two_holders = nobody = 0

    async def try_once(relay: RelayClient, who: str) -> None:
        nonlocal holders, two_holders
        try:
            lease = await relay.acquire(TTL_S)
        except Locked:
            return
        holders += 1
        two_holders += holders > 1
        fences.append(lease.fence)
        await relay.write(who, lease.fence)
        holders -= 1
        await lease.release()

    began = time.monotonic()
    for _ in range(rounds):
        before = len(fences)
        tries = (try_once(each, f"client {i}") for i, each in enumerate(clients))
        await asyncio.gather(*tries)
        nobody += len(fences) == before
    lasted_s = time.monotonic() - began
    rising = all(one < other for one, other in itertools.pairwise(fences))
    written = [what for _, what in lab.supply.log]
    assert two_holders == 0
    assert rising
    assert written == fences
    assert nobody == 0
    return (
        f"FR12: {rounds} rounds of 10 clients, {len(fences)} grants in {lasted_s:.1f} s: two "
        f"holders {two_holders}, fences strictly increasing {rising}, safe_state "
        f"{lab.supply.safe_states}"
    )


async def test_ten_clients_race_for_it(lab: Lab) -> None:
    """FR12, a few rounds of it."""
    print(await race(lab, 100))
    assert lab.supply.safe_states == 0


@pytest.mark.soak
@pytest.mark.timeout(900)
async def test_ten_clients_race_for_it_all_day(lab: Lab) -> None:
    """FR12."""
    print(await race(lab, 10_000))
    assert lab.supply.safe_states == 0


# ── scripts and notebooks ───────────────────────────────────────────────────────────────────────


def test_a_script_holds_a_lease() -> None:
    supply = Supply()
    with ServedMesh({RELAY: supply}, banks=0) as served:
        mesh = served.connect()
        mine, other = mesh[RELAY], served.connect()[RELAY]
        with mine.lease(note="T sweep", ttl=TTL_S) as lease:
            assert (lease.relay_id, lease.note, lease.lost) == (RELAY, "T sweep", "")
            assert lease.fence == 1
            assert repr(lease) == "<lease of Inst-0, fence 1, note 'T sweep': held>"
            mine.write("mine", 1)
            with pytest.raises(Locked, match="'T sweep'"):
                other.write("other", 1)
        lease.release()
        other.write("other", 2)
        kept = mine.lease(ttl=TTL_S)
        mesh.close()
        kept.release()
        eventually(lambda: supply.safe_states, "the abandoned lease brought the safe state")
    assert supply.log == [("mine", 1), ("other", 2), ("relay", "safe_state")]


def test_a_script_finds_it_held_and_breaks_it() -> None:
    supply = Supply()
    with ServedMesh({RELAY: supply}, banks=0) as served:
        mine, other = served.connect()[RELAY], served.connect()[RELAY]
        with mine.lease(note="over the weekend", ttl=TTL_S):
            with pytest.raises(Locked, match=r"'over the weekend'.*break_lease\(\)"):
                other.lease()
            other.break_lease("she went home")
            with pytest.raises(Locked, match=r"\(she went home\)"):
                mine.write("mine", 1)
            with other.lease(ttl=TTL_S):
                other.write("other", 1)
        mine.write("mine", 2)
    assert supply.log == [("other", 1), ("mine", 2)]


def test_threads_of_one_script_share_its_lease() -> None:
    supply = Supply()
    with ServedMesh({RELAY: supply}, banks=0) as served:
        psu = served.connect()[RELAY]
        with psu.lease(ttl=TTL_S):
            with pytest.raises(Locked, match="this client holds the lease of Inst-0 already"):
                psu.lease()
            threads = [threading.Thread(target=psu.write, args=(f"t{i}", i)) for i in range(3)]
            for each in threads:
                each.start()
            for each in threads:
                each.join()
    assert sorted(supply.log) == [("t0", 0), ("t1", 1), ("t2", 2)]


def test_a_lease_whose_object_is_lost_is_given_back() -> None:
    """In a cell without a name for it, or by Ctrl-C at the wrong moment."""
    supply = Supply()
    with ServedMesh({RELAY: supply}, banks=0) as served:
        psu, other = served.connect()[RELAY], served.connect()[RELAY]

        def lose() -> None:
            psu.lease(ttl=TTL_S)
            eventually(lambda: psu.status().lease is None, "it was given back")

        with pytest.warns(ResourceWarning, match=r"the lease of Inst-0 .* is given back: nobody"):
            lose()
        with other.lease(ttl=TTL_S):
            other.write("other", 1)
        lost = [psu.lease(ttl=TTL_S)]
        with pytest.raises(Locked, match=r"where its object is lost, break_lease\(\) ends it"):
            psu.lease()
        psu.break_lease()
        with psu.lease(ttl=TTL_S):
            psu.write("mine", 1)
        assert lost[0].lost == "this client broke it"
    assert supply.log == [("other", 1), ("mine", 1)]
