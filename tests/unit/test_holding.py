"""A lease lives as long as its client does, and no longer."""

from __future__ import annotations

import asyncio
import getpass
import logging
import os
import re
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, TypeVar

import pytest

from labmesh.asking.held_lease import HeldLease
from labmesh.asking.holding import Fences, holder_name
from labmesh.errors import (
    Conflict,
    LabmeshError,
    LinkLost,
    Locked,
    NoAnswer,
    NotFound,
    NotSent,
    Stopping,
)
from labmesh.protocol.leases import Ended, Leases
from labmesh.protocol.messages import (
    Acquire,
    BreakLease,
    Done,
    Release,
    Renew,
    Reply,
    Request,
)
from labmesh.testing import ManualClock

T = TypeVar("T")
R = TypeVar("R", bound=Reply)

RELAY = "Inst-0"
LIMIT_S = 10.0
#: Renewed every 10 ms.
SHORT_S = 0.03


class RelayBehind:
    """A client with a relay behind it, whose leases never expire: its time stands still."""

    node_id = "client-1"
    owner = "this client"

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.leases = Leases(RELAY)
        self.fences = Fences(self)
        self.asked: list[Request] = []
        self.ends: list[Ended] = []
        #: the next requests fail with these; without the relay having heard of them
        self.troubles: list[LabmeshError] = []
        self.unreachable: LabmeshError | None = None
        #: replies to the next requests that get lost
        self.lost_replies: list[LabmeshError] = []
        self.open = asyncio.Event()
        self.open.set()
        self._changed = asyncio.Condition()

    async def at_home(self, work: Coroutine[Any, Any, T]) -> T:
        return await work

    async def request(
        self,
        node_id: str,
        request: Request,
        reply: type[R],
        *,
        timeout: float | None = None,
        endpoint: str = "rpc",
    ) -> tuple[R, memoryview | None]:
        assert (node_id, endpoint) == (RELAY, "rpc")
        assert timeout is not None
        self.asked.append(request)
        async with self._changed:
            self._changed.notify_all()
        await self.open.wait()
        if self.unreachable is not None:
            raise self.unreachable
        if self.troubles:
            raise self.troubles.pop(0)
        answer = self._answer(request)
        if self.lost_replies:
            raise self.lost_replies.pop(0)
        assert isinstance(answer, reply)
        return answer, None

    def _answer(self, request: Request) -> Reply:
        now, ended = self.clock(), None
        match request:
            case Acquire(ttl_s=ttl_s, holder=holder, note=note):
                self.leases.acquire(self.owner, ttl_s=ttl_s, holder=holder, note=note, now=now)
                return self.leases.message(request.id, now)
            case Renew(fence=fence):
                self.leases.renew(self.owner, fence, now)
                return self.leases.message(request.id, now)
            case Release(fence=fence, abandoned=abandoned):
                ended = self.leases.release(self.owner, fence, now, abandoned=abandoned)
            case BreakLease(fence=fence, by=by, reason=reason):
                ended = self.leases.break_lease(fence, now, by=by, reason=reason)
        if ended is not None:
            self.ends.append(ended)
        return Done(id=request.id)

    @property
    def reasons(self) -> list[str]:
        return [each.reason for each in self.ends]

    def count(self, kind: type[Request]) -> int:
        return sum(isinstance(each, kind) for each in self.asked)

    async def until_asked(self, kind: type[Request], times: int = 1) -> None:
        async with asyncio.timeout(LIMIT_S), self._changed:
            await self._changed.wait_for(lambda: self.count(kind) >= times)

    async def acquire(self, ttl_s: float = 60.0, note: str = "") -> HeldLease:
        return await self.fences.acquire(RELAY, ttl_s=ttl_s, note=note)

    async def until_lost(self, lease: HeldLease) -> None:
        async with asyncio.timeout(LIMIT_S):
            assert await lease.wait_ended() == lease.lost != ""


@pytest.fixture
async def relay() -> AsyncIterator[RelayBehind]:
    before = asyncio.all_tasks()
    relay = RelayBehind()
    yield relay
    relay.unreachable = None
    relay.open.set()
    await relay.fences.close()
    left = asyncio.all_tasks() - before - {asyncio.current_task()}
    assert not left, left


async def eventually(true: Callable[[], object]) -> None:
    async with asyncio.timeout(LIMIT_S):
        while not true():  # noqa: ASYNC110  (a few turns of the loop)
            await asyncio.sleep(0)


# ── held ────────────────────────────────────────────────────────────────────────────────────────


async def test_a_lease_is_acquired_with_who_and_why(relay: RelayBehind) -> None:
    lease = await relay.acquire(8.0, "T sweep")
    assert (lease.relay_id, lease.fence, lease.ttl_s, lease.note) == (RELAY, 1, 8.0, "T sweep")
    assert lease.lost == ""
    assert repr(lease) == "<lease of Inst-0, fence 1, note 'T sweep': held>"
    held = relay.leases.held
    assert held is not None
    assert (held.holder, held.note, held.ttl_s) == (holder_name(), "T sweep", 8.0)


async def test_calls_carry_its_fence_until_it_is_released(relay: RelayBehind) -> None:
    assert relay.fences.of(RELAY) == 0
    async with await relay.acquire() as lease:
        assert relay.fences.of(RELAY) == lease.fence == 1
        assert relay.fences.of("Inst-1") == 0
    assert relay.fences.of(RELAY) == 0
    assert relay.reasons == ["released"]
    assert repr(lease) == "<lease of Inst-0, fence 1: released>"
    assert await lease.wait_ended() == ""
    await lease.release()
    assert relay.count(Release) == 1


async def test_an_error_in_the_block_releases_it_too(relay: RelayBehind) -> None:
    with pytest.raises(ZeroDivisionError):
        async with await relay.acquire():
            raise ZeroDivisionError
    assert relay.reasons == ["released"]


async def test_it_is_renewed_for_as_long_as_it_is_held(relay: RelayBehind) -> None:
    lease = await relay.acquire(SHORT_S)
    ends_at = lease.ends_at
    await relay.until_asked(Renew, 5)
    assert relay.leases.held is not None
    assert lease.ends_at > ends_at
    await lease.release()
    renewals = relay.count(Renew)
    assert not relay.fences._renewing
    await relay.fences.close()
    assert relay.count(Renew) == renewals


async def test_a_renewal_that_fails_is_tried_again(relay: RelayBehind) -> None:
    lease = await relay.acquire(1.0)
    relay.troubles = [LinkLost("the link broke"), NoAnswer("too late")]
    await relay.until_asked(Renew, 3)
    await eventually(lambda: not relay.troubles)
    assert lease.lost == ""


# ── lost ────────────────────────────────────────────────────────────────────────────────────────


async def test_a_lease_that_the_relay_has_ended_is_lost_and_says_why(
    relay: RelayBehind, caplog: pytest.LogCaptureFixture
) -> None:
    lease = await relay.acquire(SHORT_S)
    relay.leases.break_lease(0, 0.0, by="bob@lab2 (pid 9)", reason="he went home")
    with caplog.at_level(logging.WARNING, "labmesh.asking.holding"):
        await relay.until_lost(lease)
    assert "was broken by bob@lab2 (pid 9) (he went home)" in lease.lost
    assert caplog.messages == [f"client-1 lost the lease of Inst-0 (fence 1): {lease.lost}"]
    assert repr(lease) == f"<lease of Inst-0, fence 1: LOST: {lease.lost}>"


async def test_under_a_lost_lease_calls_carry_its_fence_and_are_refused(relay: RelayBehind) -> None:
    async with await relay.acquire(SHORT_S) as lease:
        relay.leases.break_lease(0, 0.0, by="", reason="")
        await relay.until_lost(lease)
        with pytest.raises(Locked):
            relay.leases.check_write(relay.owner, relay.fences.of(RELAY), relay.clock())
    assert relay.fences.of(RELAY) == 0
    assert relay.count(Release) == 0


async def test_a_relay_that_was_restarted_knows_of_no_lease(relay: RelayBehind) -> None:
    lease = await relay.acquire(SHORT_S)
    relay.leases = Leases(RELAY)
    await relay.until_lost(lease)
    assert "Inst-0 was restarted" in lease.lost


async def test_a_relay_that_cannot_be_reached_for_its_whole_time(relay: RelayBehind) -> None:
    lease = await relay.acquire(SHORT_S)
    relay.unreachable = NotSent("no link to Inst-0 in time")
    await relay.until_lost(lease)
    assert lease.lost == "Inst-0 could not be reached for 0.03 s: no link to Inst-0 in time"
    assert relay.count(Renew) >= 1


async def test_a_lost_lease_can_be_acquired_anew(relay: RelayBehind) -> None:
    lost = await relay.acquire(SHORT_S)
    relay.leases.break_lease(0, 0.0, by="", reason="")
    await relay.until_lost(lost)
    again = await relay.acquire()
    assert relay.fences.of(RELAY) == again.fence == 2
    await lost.release()
    assert relay.fences.of(RELAY) == 2
    assert relay.count(Release) == 0


# ── acquiring ───────────────────────────────────────────────────────────────────────────────────


async def test_who_finds_it_held_is_told_by_whom(relay: RelayBehind) -> None:
    relay.leases.acquire("another", ttl_s=9.0, holder="bob@lab2 (pid 9)", note="", now=0.0)
    with pytest.raises(Locked, match=r"^bob@lab2 \(pid 9\) has held the lease"):
        await relay.acquire()
    assert relay.fences.of(RELAY) == 0


async def test_one_client_has_one_lease_of_a_relay(relay: RelayBehind) -> None:
    await relay.acquire(note="T sweep")
    with pytest.raises(
        Locked, match=r"already \(fence 1, note 'T sweep'\): release that"
    ) as caught:
        await relay.acquire()
    assert caught.value.detail["own"] is True
    assert relay.count(Acquire) == 1


async def test_two_tasks_of_one_client_that_acquire_at_once(relay: RelayBehind) -> None:
    relay.open.clear()
    first = asyncio.create_task(relay.acquire())
    await relay.until_asked(Acquire)
    with pytest.raises(Locked, match="just acquiring"):
        await relay.acquire()
    relay.open.set()
    assert (await first).fence == 1


async def test_a_grant_whose_reply_was_lost_is_given_back_and_asked_for_again(
    relay: RelayBehind,
) -> None:
    relay.lost_replies = [LinkLost("the link broke")]
    lease = await relay.acquire(note="T sweep")
    assert lease.fence == 2
    assert relay.reasons == ["released"]
    assert [type(each) for each in relay.asked] == [Acquire, Acquire, Release, Acquire]


@pytest.mark.parametrize("trouble", [NotSent("no link"), Stopping("closed"), NoAnswer("too late")])
async def test_a_relay_that_cannot_be_reached_grants_nothing(
    relay: RelayBehind, trouble: LabmeshError
) -> None:
    relay.unreachable = trouble
    with pytest.raises(type(trouble)):
        await relay.acquire()
    assert relay.fences.of(RELAY) == 0
    assert relay.count(Acquire) == 1


async def test_a_refusal_of_ones_own_lease_without_its_fence_is_a_refusal(
    relay: RelayBehind,
) -> None:
    relay.unreachable = Locked("this client holds it already", own=True)
    with pytest.raises(Locked):
        await relay.acquire()


async def test_a_lease_that_nobody_waits_for_any_more_is_given_back(relay: RelayBehind) -> None:
    relay.open.clear()
    acquiring = asyncio.create_task(relay.acquire())
    await relay.until_asked(Acquire)
    acquiring.cancel()
    with pytest.raises(asyncio.CancelledError):
        await acquiring
    relay.open.set()
    await eventually(lambda: relay.reasons == ["released"])
    assert relay.fences.of(RELAY) == 0


async def test_a_lease_that_nobody_refers_to_any_more_is_given_back(
    relay: RelayBehind, caplog: pytest.LogCaptureFixture
) -> None:
    text = r"the lease of Inst-0 \(fence 1, note 'T sweep'\) is given back: nobody refers to it"

    async def lose() -> None:
        lease = await relay.acquire(note="T sweep")
        assert relay.reasons == []
        del lease
        await eventually(lambda: relay.reasons)

    with pytest.warns(ResourceWarning, match=text):
        await lose()
    assert relay.reasons == ["released"]
    assert re.search(text, caplog.text)
    assert relay.fences.of(RELAY) == 0
    lease = await relay.acquire()
    await lease.release()
    del lease
    lease = await relay.acquire(SHORT_S)
    relay.leases.break_lease(0, 0.0, by="bob", reason="mine")
    await relay.until_lost(lease)
    assert relay.fences.of(RELAY) == 3
    # Of one that is over nobody has to be told: warnings are errors here.
    del lease
    await eventually(lambda: relay.fences.of(RELAY) == 0)
    assert relay.reasons == ["released", "released"]


def test_a_lease_that_outlives_its_loop_ends_in_silence() -> None:
    relay = RelayBehind()
    with asyncio.Runner() as runner:
        lease = runner.run(relay.acquire())
    assert lease.lost == ""
    del lease
    assert relay.reasons == []


async def test_a_refusal_that_nobody_waits_for_any_more_is_nothing(relay: RelayBehind) -> None:
    relay.open.clear()
    acquiring = asyncio.create_task(relay.acquire())
    await relay.until_asked(Acquire)
    acquiring.cancel()
    relay.unreachable = NotSent("no link")
    with pytest.raises(asyncio.CancelledError):
        await acquiring
    relay.open.set()
    await eventually(lambda: not relay.fences._asking)
    assert relay.count(Release) == 0


@pytest.mark.parametrize("ttl", [0, -1.0, float("nan"), float("inf"), True, "10", 86_401])
async def test_a_time_to_live_that_is_none(relay: RelayBehind, ttl: Any) -> None:
    with pytest.raises(ValueError, match=r"ttl is a number|at most a day"):
        await relay.acquire(ttl)
    assert not relay.asked


@pytest.mark.parametrize(("note", "error"), [("x" * 257, ValueError), (None, TypeError)])
async def test_a_note_that_is_none(relay: RelayBehind, note: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="the note"):
        await relay.acquire(note=note)
    assert not relay.asked


# ── the end ─────────────────────────────────────────────────────────────────────────────────────


async def test_a_client_that_closes_abandons_what_it_holds(relay: RelayBehind) -> None:
    lease = await relay.acquire(note="T sweep")
    await relay.fences.close()
    assert relay.reasons == ["abandoned"]
    assert relay.ends[0].safe_state
    assert relay.fences.of(RELAY) == 0
    await lease.release()
    assert relay.count(Release) == 1


async def test_what_is_acquired_while_the_client_closes_is_given_back(relay: RelayBehind) -> None:
    relay.open.clear()
    acquiring = asyncio.create_task(relay.acquire())
    await relay.until_asked(Acquire)
    closing = asyncio.create_task(relay.fences.close())
    await asyncio.sleep(0)
    relay.open.set()
    await closing
    with pytest.raises(Stopping, match="Inst-0 was not acquired"):
        await acquiring
    assert relay.reasons == ["released"]


async def test_a_relay_that_does_not_answer_does_not_keep_a_client_from_closing(
    relay: RelayBehind, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("labmesh.asking.holding._CLOSE_S", 0.05)
    relay.open.clear()
    acquiring = asyncio.create_task(relay.acquire())
    await relay.until_asked(Acquire)
    await relay.fences.close()
    with pytest.raises(Stopping, match="Inst-0 was not acquired"):
        await acquiring


async def test_a_relay_that_cannot_be_told_of_a_release_is_logged(
    relay: RelayBehind, caplog: pytest.LogCaptureFixture
) -> None:
    lease = await relay.acquire(30.0)
    relay.unreachable = NotSent("no link to Inst-0 in time")
    with caplog.at_level(logging.WARNING, "labmesh.asking.holding"):
        await lease.release()
    assert relay.fences.of(RELAY) == 0
    (message,) = caplog.messages
    assert re.search(r"lease \(fence 1\) was released, and will take .* vanished in \d", message)


async def test_whoever_breaks_a_lease_says_who_they_are(relay: RelayBehind) -> None:
    with pytest.raises(NotFound):
        await relay.fences.break_lease(RELAY, fence=0, reason="")
    relay.leases.acquire("another", ttl_s=9.0, holder="bob", note="", now=0.0)
    with pytest.raises(Conflict):
        await relay.fences.break_lease(RELAY, fence=7, reason="")
    await relay.fences.break_lease(RELAY, fence=1, reason="he went home")
    (ended,) = relay.ends
    assert (ended.reason, ended.by, ended.why) == ("broken", holder_name(), "he went home")


async def test_a_client_can_break_its_own_lease(relay: RelayBehind) -> None:
    lease = await relay.acquire()
    await relay.fences.break_lease(RELAY, fence=0, reason="")
    assert lease.lost == "this client broke it"
    assert (await relay.acquire()).fence == 2


def test_people_are_told_user_host_and_process() -> None:
    assert re.fullmatch(rf"\S+@\S+ \(pid {os.getpid()}\)", holder_name())


def test_a_user_without_a_name_is_somebody(monkeypatch: pytest.MonkeyPatch) -> None:
    def nameless() -> str:
        raise KeyError("getpwuid(): uid not found: 1001")

    monkeypatch.setattr(getpass, "getuser", nameless)
    assert holder_name().startswith("somebody@")
