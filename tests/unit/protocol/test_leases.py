"""One writer at a time, and nobody who was one before."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable
from dataclasses import dataclass

import msgspec
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from labmesh.errors import Conflict, Locked, NotFound, ProtocolError
from labmesh.protocol.leases import MAX_TTL_S, Ended, Held, Leases
from labmesh.protocol.messages import Acquire, Lease

ALICE, BOB = ("alice", "her session"), ("bob", "his session")


def acquire(
    leases: Leases,
    owner: tuple[str, str] = ALICE,
    *,
    now: float = 0.0,
    ttl_s: float = 10.0,
    note: str = "",
) -> Held:
    holder = f"{owner[0]}@lab1 (pid 7)"
    return leases.acquire(owner, ttl_s=ttl_s, holder=holder, note=note, now=now)


@pytest.fixture
def leases() -> Leases:
    return Leases("Inst-0")


def may_write(leases: Leases, owner: object, fence: int, now: float) -> bool:
    try:
        leases.check_write(owner, fence, now)
    except Locked:
        return False
    return True


def refusal(refused: Callable[[], object]) -> str:
    with pytest.raises(Locked) as caught:
        refused()
    return str(caught.value)


def test_its_time_begins_when_others_have_ended_what_they_write(leases: Leases) -> None:
    held = leases.acquire(ALICE, ttl_s=1.0, holder="alice", note="", now=0.0, waits=True)
    assert leases.next_deadline() is None
    assert leases.expire(100.0) is None
    assert held.facts(100.0)["left_s"] == 1.0
    assert not may_write(leases, BOB, 0, 100.0)
    leases.renew(ALICE, held.fence, 100.0)
    assert leases.message("1", 100.0).age_s == 100.0
    assert leases.next_deadline() == 101.0
    assert leases.expire(101.0) is not None


# ── writing ─────────────────────────────────────────────────────────────────────────────────────


def test_without_a_lease_everybody_may_write(leases: Leases) -> None:
    leases.check_write(ALICE, 0, 0.0)
    leases.check_write(BOB, 0, 0.0)
    assert leases.facts(0.0) is None
    assert leases.held is None
    assert leases.next_deadline() is None


def test_with_a_lease_only_its_holder_may_write_and_only_under_its_fence(leases: Leases) -> None:
    held = acquire(leases)
    leases.check_write(ALICE, held.fence, 9.9)
    assert not may_write(leases, BOB, 0, 1.0)
    assert not may_write(leases, BOB, held.fence, 1.0)
    assert not may_write(leases, ALICE, 0, 1.0)
    assert not may_write(leases, ALICE, held.fence + 1, 1.0)


def test_who_finds_it_locked_is_told_who_holds_it_since_when_and_why(leases: Leases) -> None:
    acquire(leases, note="T sweep")
    with pytest.raises(Locked, match=r"alice@lab1 \(pid 7\) has held.*Inst-0 for 4.0 s") as caught:
        leases.check_write(BOB, 0, 4.0)
    assert "'T sweep'" in str(caught.value)
    assert caught.value.detail == {
        "fence": 1,
        "holder": "alice@lab1 (pid 7)",
        "note": "T sweep",
        "ttl_s": 10.0,
        "age_s": 4.0,
        "left_s": 6.0,
    }
    assert leases.facts(4.0) == caught.value.detail


def test_a_holder_without_a_name_is_another_client(leases: Leases) -> None:
    leases.acquire(ALICE, ttl_s=10.0, holder="", note="", now=0.0)
    assert refusal(lambda: leases.check_write(BOB, 0, 1.0)).startswith("another client has held")


def test_nobody_is_told_what_lets_the_holder_write(leases: Leases) -> None:
    held = acquire(leases)
    ended = leases.release(ALICE, held.fence, 1.0)
    assert ended is not None
    assert "session" not in f"{held!r} {held.facts(0.0)} {held.news()} {ended!r} {ended.news()}"


def test_a_write_that_was_sent_before_the_grant_says_so(leases: Leases) -> None:
    acquire(leases)
    assert "before this client had the lease" in refusal(lambda: leases.check_write(ALICE, 0, 1.0))


def test_where_a_lease_is_required_a_write_without_one_says_how_to_take_one() -> None:
    leases = Leases("Inst-0", require=True)
    text = refusal(lambda: leases.check_write(ALICE, 0, 0.0))
    assert "may be written only under a lease" in text
    assert "with psu.lease(note=...)" in text
    held = acquire(leases)
    leases.check_write(ALICE, held.fence, 1.0)


# ── grants ──────────────────────────────────────────────────────────────────────────────────────


def test_a_lease_that_is_held_is_not_granted(leases: Leases) -> None:
    held = acquire(leases)
    text = refusal(lambda: acquire(leases, BOB, now=2.0))
    assert text.startswith("alice@lab1 (pid 7) has held the lease of Inst-0 for 2.0 s")
    assert "break_lease()" in text
    assert leases.held == held


def test_its_holder_is_told_that_it_holds_it(leases: Leases) -> None:
    held = acquire(leases, note="T sweep")
    with pytest.raises(Locked, match=r"this client holds .* \(fence 1, note 'T sweep'\)") as caught:
        acquire(leases, now=2.0)
    assert caught.value.detail["own"] is True
    assert caught.value.detail["fence"] == held.fence
    assert leases.held == held


@pytest.mark.parametrize("ttl_s", [0.0, -1.0, math.nan, math.inf, MAX_TTL_S + 1])
def test_a_time_to_live_that_is_none_is_refused(leases: Leases, ttl_s: float) -> None:
    with pytest.raises(ProtocolError, match="more than 0 and at most 86400 s"):
        acquire(leases, ttl_s=ttl_s)
    assert leases.held is None


def test_the_longest_time_to_live_is_that_of_the_message(leases: Leases) -> None:
    assert acquire(leases, ttl_s=MAX_TTL_S).ends_at == MAX_TTL_S
    fields = {"type": "acquire", "id": "1", "ttl_s": MAX_TTL_S}
    assert msgspec.convert(fields, Acquire).ttl_s == MAX_TTL_S
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({**fields, "ttl_s": MAX_TTL_S + 1}, Acquire)


def test_each_grant_has_a_higher_fence(leases: Leases) -> None:
    fences = []
    for turn in range(5):
        held = acquire(leases, ALICE if turn % 2 else BOB)
        fences.append(held.fence)
        leases.release(held.owner, held.fence, 0.0)
    assert fences == [1, 2, 3, 4, 5]


def test_the_reply_to_the_holder(leases: Leases) -> None:
    acquire(leases, note="T sweep")
    assert leases.message("8", 3.0) == Lease(
        id="8",
        fence=1,
        ttl_s=10.0,
        left_s=7.0,
        holder="alice@lab1 (pid 7)",
        note="T sweep",
        age_s=3.0,
    )


def test_without_a_lease_there_is_no_reply(leases: Leases) -> None:
    with pytest.raises(ValueError, match="nobody"):
        leases.message("8", 3.0)


# ── renewing and expiring ───────────────────────────────────────────────────────────────────────


def test_a_renewed_lease_has_its_whole_time_again(leases: Leases) -> None:
    held = acquire(leases)
    assert leases.next_deadline() == 10.0
    assert leases.renew(ALICE, held.fence, 7.0).ends_at == 17.0
    assert leases.next_deadline() == 17.0
    assert leases.expire(16.9) is None
    leases.check_write(ALICE, held.fence, 16.9)
    facts = leases.facts(8.0)
    assert facts is not None
    assert (facts["age_s"], facts["left_s"]) == (8.0, 9.0)


def test_a_lease_that_is_not_renewed_expires_once_and_wants_the_safe_state(leases: Leases) -> None:
    held = acquire(leases)
    assert leases.expire(9.9) is None
    ended = leases.expire(10.0)
    assert ended == Ended(held, "expired", 10.0)
    assert ended.safe_state
    assert leases.expire(10.0) is None
    assert leases.next_deadline() is None


def test_when_its_time_is_over_nobody_writes_until_its_end_was_reported(leases: Leases) -> None:
    held = acquire(leases)
    text = refusal(lambda: leases.check_write(ALICE, held.fence, 10.0))
    assert "not renewed in time" in text
    assert not may_write(leases, BOB, 0, 10.0)
    assert "not renewed in time" in refusal(lambda: leases.renew(ALICE, held.fence, 10.0))
    assert leases.release(ALICE, held.fence, 10.0) is None
    with pytest.raises(Locked):
        acquire(leases, BOB, now=10.0)
    with pytest.raises(NotFound):
        leases.break_lease(0, 10.0, by="bob", reason="")
    assert leases.facts(11.0) == {**held.facts(11.0), "left_s": 0.0}
    assert leases.expire(10.5) is not None
    assert may_write(leases, BOB, 0, 10.5)


def test_who_was_paused_beyond_the_end_of_its_lease_writes_no_more(leases: Leases) -> None:
    before = acquire(leases)
    leases.expire(10.0)
    assert not may_write(leases, ALICE, before.fence, 11.0)
    text = refusal(lambda: leases.check_write(ALICE, before.fence, 12.0))
    assert "with fence 1 expired (not renewed for 10 s) 2.0 s ago: acquire it again" in text
    after = acquire(leases, BOB, now=20.0, note="calibration")
    text = refusal(lambda: leases.check_write(ALICE, before.fence, 21.0))
    assert "1 expired (not renewed for 10 s) 11.0 s ago, and bob@lab1 (pid 7) has held" in text
    with pytest.raises(Locked):
        leases.renew(ALICE, before.fence, 21.0)
    assert leases.release(ALICE, before.fence, 21.0) is None
    assert leases.held == after
    leases.release(BOB, after.fence, 22.0)
    text = refusal(lambda: leases.check_write(ALICE, before.fence, 23.0))
    assert "the lease of Inst-0 with fence 1 is over: acquire it again" in text


def test_a_holder_from_before_a_restart_is_told_of_it(leases: Leases) -> None:
    assert "was restarted" in refusal(lambda: leases.renew(ALICE, 4, 0.0))
    assert "was restarted" in refusal(lambda: leases.check_write(ALICE, 4, 0.0))


# ── other ends ──────────────────────────────────────────────────────────────────────────────────


def test_a_released_lease_leaves_the_instrument_as_it_is(leases: Leases) -> None:
    held = acquire(leases)
    ended = leases.release(ALICE, held.fence, 3.0)
    assert ended == Ended(held, "released", 3.0)
    assert not ended.safe_state
    leases.check_write(BOB, 0, 3.0)
    assert "was released 1.0 s ago" in refusal(lambda: leases.check_write(ALICE, 1, 4.0))


def test_an_abandoned_lease_wants_the_safe_state(leases: Leases) -> None:
    held = acquire(leases)
    ended = leases.release(ALICE, held.fence, 3.0, abandoned=True)
    assert ended == Ended(held, "abandoned", 3.0)
    assert ended.safe_state


def test_only_its_holder_releases_or_renews_it(leases: Leases) -> None:
    held = acquire(leases)
    assert leases.release(BOB, held.fence, 1.0) is None
    assert leases.release(ALICE, held.fence + 1, 1.0) is None
    with pytest.raises(Locked):
        leases.renew(BOB, held.fence, 1.0)
    assert leases.held == held


def test_whoever_breaks_a_lease_takes_over_the_instrument_as_it_is(leases: Leases) -> None:
    held = acquire(leases)
    ended = leases.break_lease(0, 2.0, by="bob@lab2 (pid 9)", reason="he went home")
    assert ended == Ended(held, "broken", 2.0, "bob@lab2 (pid 9)", "he went home")
    assert not ended.safe_state
    text = refusal(lambda: leases.check_write(ALICE, held.fence, 3.0))
    assert "was broken by bob@lab2 (pid 9) (he went home) 1.0 s ago" in text
    assert acquire(leases, BOB, now=3.0).fence == 2


def test_a_lease_that_was_broken_without_a_word(leases: Leases) -> None:
    held = acquire(leases)
    leases.break_lease(held.fence, 2.0, by="", reason="")
    text = refusal(lambda: leases.check_write(ALICE, held.fence, 3.0))
    assert "was broken by another client (no reason given)" in text


def test_the_lease_that_is_meant_is_broken_and_no_other(leases: Leases) -> None:
    with pytest.raises(NotFound, match="nobody holds a lease of Inst-0"):
        leases.break_lease(0, 0.0, by="bob", reason="")
    first = acquire(leases)
    leases.release(ALICE, first.fence, 1.0)
    second = acquire(leases, now=1.0)
    with pytest.raises(Conflict, match=r"lease 1 of Inst-0 is over; alice.*with fence 2"):
        leases.break_lease(first.fence, 2.0, by="bob", reason="")
    assert leases.held == second


def test_what_the_world_hears_of_a_lease(leases: Leases) -> None:
    held = acquire(leases, now=1.0, note="T sweep")
    assert held.news() == {
        "change": "granted",
        "fence": 1,
        "holder": "alice@lab1 (pid 7)",
        "note": "T sweep",
        "ttl_s": 10.0,
    }
    assert leases.break_lease(0, 3.5, by="bob", reason="home").news() == {
        "change": "broken",
        "fence": 1,
        "holder": "alice@lab1 (pid 7)",
        "note": "T sweep",
        "held_s": 2.5,
        "by": "bob",
        "why": "home",
    }


# ── any order of events ─────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Grant:
    owner: str
    fence: int


class AnyOrder(RuleBasedStateMachine):
    """Clients that acquire, renew, write, vanish and come back, in any order, at any time."""

    grants = Bundle("grants")

    def __init__(self) -> None:
        super().__init__()
        self.leases = Leases("Inst-0")
        self.now = 0.0
        self.granted: list[Grant] = []
        #: the model: who holds it, and until when
        self.holder: Grant | None = None
        self.ends_at = 0.0
        self.ttl_s = 0.0

    def expire(self) -> None:
        ended = self.leases.expire(self.now)
        is_due = self.holder is not None and self.now >= self.ends_at
        assert (ended is not None) == is_due
        if ended is not None:
            assert ended.safe_state
            self.holder = None

    @rule(seconds=st.sampled_from([0.0, 0.5, 1.0, 3.0, 20.0]), tell=st.booleans())
    def time_passes(self, seconds: float, tell: bool) -> None:
        self.now += seconds
        if tell:
            self.expire()

    @rule(target=grants, owner=st.sampled_from("abc"), ttl_s=st.sampled_from([1.0, 2.5, 10.0]))
    def acquire(self, owner: str, ttl_s: float) -> Grant:
        self.expire()
        try:
            held = self.leases.acquire(owner, ttl_s=ttl_s, holder=owner, note="", now=self.now)
        except Locked as exc:
            own = bool(exc.detail.get("own"))
            assert self.holder is not None
            assert own == (self.holder.owner == owner)
            return self.holder
        assert self.holder is None
        assert not self.granted or held.fence > self.granted[-1].fence
        self.holder = Grant(owner, held.fence)
        self.ends_at, self.ttl_s = self.now + ttl_s, ttl_s
        self.granted.append(self.holder)
        return self.holder

    def in_force(self, grant: Grant) -> bool:
        return grant == self.holder and self.now < self.ends_at

    @rule(grant=grants)
    def renew(self, grant: Grant) -> None:
        expected = self.in_force(grant)
        try:
            self.leases.renew(grant.owner, grant.fence, self.now)
        except Locked:
            assert not expected
        else:
            assert expected
            self.ends_at = self.now + self.ttl_s

    @rule(grant=consumes(grants), abandoned=st.booleans())
    def release(self, grant: Grant, abandoned: bool) -> None:
        expected = self.in_force(grant)
        ended = self.leases.release(grant.owner, grant.fence, self.now, abandoned=abandoned)
        assert (ended is not None) == expected
        if ended is not None:
            assert ended.safe_state == abandoned
            self.holder = None

    @rule(grant=grants)
    def break_it(self, grant: Grant) -> None:
        self.expire()
        try:
            ended = self.leases.break_lease(grant.fence, self.now, by="d", reason="")
        except NotFound:
            assert self.holder is None
        except Conflict:
            assert self.holder is not None
            assert grant != self.holder
        else:
            assert self.holder is not None
            assert ended.held.fence == self.holder.fence == grant.fence
            self.holder = None

    @rule(grant=grants, owner=st.sampled_from("abc"))
    def write_under_a_lease(self, grant: Grant, owner: str) -> None:
        expected = self.in_force(grant) and owner == grant.owner
        assert may_write(self.leases, owner, grant.fence, self.now) == expected

    @rule(owner=st.sampled_from("abc"))
    def write_without_one(self, owner: str) -> None:
        assert may_write(self.leases, owner, 0, self.now) == (self.holder is None)

    @invariant()
    def one_holder_at_most(self) -> None:
        can_write = [each for each in self.granted if self.may(each)]
        assert len(can_write) <= 1
        assert not can_write or can_write[0] == self.granted[-1]

    def may(self, grant: Grant) -> bool:
        return may_write(self.leases, grant.owner, grant.fence, self.now)


AnyOrder.TestCase.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)
TestAnyOrder = AnyOrder.TestCase


def test_ten_clients_race_for_it_ten_thousand_times() -> None:
    """FR12: at each moment one of them holds it, and no fence comes twice."""
    seed = 12
    chance = random.Random(seed)
    leases = Leases("Inst-0")
    clients = list(range(10))
    fence_of = dict.fromkeys(clients, 0)
    fences: list[int] = []
    two_holders = late_writes = expired = 0
    now = 0.0
    for _ in range(10_000):
        now += 1.0
        expired += leases.expire(now) is not None
        chance.shuffle(clients)
        granted = []
        for each in clients[: chance.randint(2, 10)]:
            try:
                held = leases.acquire(each, ttl_s=2.5, holder="", note="", now=now)
            except Locked:
                continue
            granted.append(each)
            fence_of[each] = held.fence
            fences.append(held.fence)
        tried = [each for each in clients if fence_of[each]]
        writers = [each for each in tried if may_write(leases, each, fence_of[each], now)]
        two_holders += len(granted) > 1 or len(writers) > 1
        late_writes += any(fence_of[each] != fences[-1] for each in writers)
        if writers and chance.random() < 0.5:
            leases.release(writers[0], fence_of[writers[0]], now)
    rising = all(one < other for one, other in itertools.pairwise(fences))
    print(
        f"seed {seed}: {len(fences)} grants in 10000 rounds, {expired} expired; two holders "
        f"{two_holders}, writes of former holders {late_writes}, fences rising {rising}"
    )
    assert len(fences) > 3000
    assert expired > 500
    assert (two_holders, late_writes, rising) == (0, 0, True)
