"""When a thread that waits looks once more before it sleeps, and for how long."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from labmesh.transport import spinning
from labmesh.transport.spinning import FEW, MOST, NEAR_S, SPIN_S, VARIABLE, Spin, may_spin

QUICK_S = SPIN_S / 2
AWOKEN_S = (SPIN_S + NEAR_S) / 2
SLOW_S = 0.1


class Clock:
    """Moves on by so much each time that somebody rests."""

    def __init__(self, step_s: float = SPIN_S / 10) -> None:
        self.now = 100.0
        self.step_s = step_s
        self.rests = 0

    def __call__(self) -> float:
        return self.now

    def rest(self) -> None:
        self.rests += 1
        self.now += self.step_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


def spin_of(clock: Clock, *waits: float, allowed: bool = True) -> Spin:
    spin = Spin(allowed=allowed, clock=clock, rest=clock.rest)
    for each in waits:
        spin.came(each)
    return spin


@pytest.mark.parametrize(
    ("waits", "pays"),
    [
        ([], False),
        ([QUICK_S] * (FEW - 1), False),
        ([QUICK_S] * FEW, True),
        ([AWOKEN_S] * FEW, True),
        ([QUICK_S] * 10 * FEW, True),
        ([SLOW_S] * 100, False),
        ([*[QUICK_S] * (FEW - 1), SLOW_S] * 10, False),
        ([*[QUICK_S] * FEW, SLOW_S], False),
        ([*[QUICK_S] * FEW, AWOKEN_S], False),
        ([*[QUICK_S] * FEW, AWOKEN_S, *[QUICK_S] * FEW], False),
        ([*[QUICK_S] * FEW, AWOKEN_S, *[QUICK_S] * 2 * FEW], True),
        ([*[QUICK_S] * FEW, SLOW_S, *[QUICK_S] * (2 * FEW + 1), SLOW_S, *[QUICK_S] * FEW], False),
        ([*[QUICK_S] * 9 * FEW, SLOW_S, *[QUICK_S] * 2 * FEW], True),
    ],
    ids=[
        "nothing came yet",
        "too few came quickly",
        "a few came quickly",
        "a few came quickly for one who slept",
        "all come quickly",
        "ten a second",
        "never enough in a row",
        "the row has ended",
        "it was looked for in vain",
        "in vain: it takes more than before",
        "in vain: twice as many are enough",
        "a row that has ended once more",
        "one stumble in a long row",
    ],
)
def test_it_pays_while_messages_follow_each_other_at_once(
    clock: Clock, waits: list[float], pays: bool
) -> None:
    assert spin_of(clock, *waits).pays is pays
    assert not spin_of(clock, *waits, allowed=False).pays


def test_each_look_in_vain_needs_twice_the_proof_up_to_a_bound_and_a_find_needs_none(
    clock: Clock,
) -> None:
    spin = spin_of(clock)
    needed = []
    for _ in range(8):
        count = 0
        while not spin.pays:
            spin.came(QUICK_S)
            count += 1
        needed.append(count)
        spin.came(AWOKEN_S)
    assert needed == [FEW, 2 * FEW, 4 * FEW, 8 * FEW, MOST, MOST, MOST, MOST]
    while not spin.pays:
        spin.came(QUICK_S)
    spin.came(QUICK_S)
    spin.came(SLOW_S)
    for _ in range(2 * FEW):
        spin.came(QUICK_S)
    assert spin.pays


def test_a_look_ends_with_what_it_finds_and_offers_the_core_before_each_further_one(
    clock: Clock,
) -> None:
    finds: Iterator[list[int]] = iter([[], [], [7]])
    assert spin_of(clock).look(lambda: next(finds), clock.now) == [7]
    assert clock.rests == 2
    assert spin_of(clock).look(lambda: "at once", clock.now) == "at once"
    assert clock.rests == 2


@pytest.mark.parametrize(
    ("waited_s", "looks"),
    [(0.0, 11), (SPIN_S / 2, 6), (SPIN_S, 1), (60.0, 1)],
    ids=["from the beginning", "half of the time is over", "all of it is", "long ago"],
)
def test_a_look_in_vain_ends_with_its_time(clock: Clock, waited_s: float, looks: int) -> None:
    clock.now = 0.0  # where all sums are exact enough
    asked: list[float] = []
    found = spin_of(clock).look(lambda: asked.append(clock.now), -waited_s)
    assert not found
    assert abs(len(asked) - looks) <= 1
    assert clock.rests == len(asked) - 1


def test_one_thread_of_a_process_looks_at_a_time_whatever_ended_the_look_before(
    clock: Clock,
) -> None:
    spin = spin_of(clock)

    def interrupted() -> bool:
        assert Spin(allowed=True).look(lambda: "found", 0.0) is None, "somebody else looks"
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        spin.look(interrupted, clock.now)
    assert spin.look(lambda: "found", clock.now) == "found"


@pytest.mark.parametrize(
    ("setting", "cores", "has_yield", "may"),
    [
        (None, 2, True, True),
        ("1", 2, True, True),
        ("0", 2, True, False),
        (None, 1, True, False),
        (None, 2, False, False),
    ],
)
@pytest.mark.parametrize("has_affinity", [True, False])
def test_it_is_allowed_by_the_environment_and_by_a_second_core(
    monkeypatch: pytest.MonkeyPatch,
    setting: str | None,
    cores: int,
    has_yield: bool,
    may: bool,
    has_affinity: bool,
) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    if setting is not None:
        monkeypatch.setenv(VARIABLE, setting)
    if has_affinity:
        usable = set(range(cores))
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: usable, raising=False)
    else:
        monkeypatch.delattr(os, "sched_getaffinity", raising=False)
        monkeypatch.setattr(os, "cpu_count", lambda: cores)
    if has_yield:
        monkeypatch.setattr(os, "sched_yield", lambda: None, raising=False)
    else:
        monkeypatch.delattr(os, "sched_yield", raising=False)
    assert may_spin() is may
    spin = Spin()
    for _ in range(FEW):
        spin.came(QUICK_S)
    assert spin.pays is may
    assert not spinning._looking.locked()
