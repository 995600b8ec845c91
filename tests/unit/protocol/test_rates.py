"""How often somebody may ask, and how long refusals wait."""

from __future__ import annotations

import pytest

from labmesh.protocol.rates import Rate
from labmesh.protocol.slowing import Slowing


def test_so_many_at_once_and_so_many_a_second_for_each_asker() -> None:
    rate = Rate(2.0, 3)
    assert [rate.allows("a", 0.0) for _ in range(4)] == [True, True, True, False]
    assert rate.allows("b", 0.0)
    assert not rate.allows("a", 0.4)
    assert [rate.allows("a", 1.0) for _ in range(3)] == [True, True, False]
    assert sum(rate.allows("a", 100.0) for _ in range(10)) == 3


def test_askers_are_not_remembered_without_end() -> None:
    rate = Rate(1.0, 1, max_askers=2)
    assert rate.allows("a", 0.0)
    assert not rate.allows("a", 0.0)
    for each in "bc":
        assert rate.allows(each, 0.0)
    assert rate.allows("a", 0.0), "it was forgotten"


def test_refusals_wait_longer_and_longer_up_to_a_limit() -> None:
    slowing = Slowing(free=2, step_s=0.1, most_s=0.25, window_s=60.0)
    waits = [slowing.refused("10.0.0.7", 0.0) for _ in range(6)]
    assert waits == pytest.approx([0.0, 0.0, 0.1, 0.2, 0.25, 0.25])
    assert slowing.refused("10.0.0.8", 0.0) == 0.0, "each address for itself"
    assert slowing.counted(1.0) == {"10.0.0.7": 6, "10.0.0.8": 1}
    assert slowing.refused("10.0.0.7", 61.0) == 0.0, "a minute later it is forgotten"
    assert slowing.counted(61.0) == {"10.0.0.7": 1}


def test_addresses_are_not_remembered_without_end() -> None:
    slowing = Slowing(free=0, step_s=1.0, most_s=9.0, max_addresses=2)
    assert [slowing.refused(each, 0.0) for each in ("a", "a", "b", "c", "a")] == [1, 2, 1, 1, 1]
