from __future__ import annotations

from labmesh.protocol.seldom import Seldom


def test_the_first_is_said_at_once() -> None:
    assert Seldom().due(0.0) == 0


def test_what_comes_within_the_interval_is_held_back_and_counted() -> None:
    seldom = Seldom(interval_s=2.0)
    assert seldom.due(10.0) == 0
    assert [seldom.due(10.0 + 0.1 * step) for step in range(19)] == [None] * 19
    assert seldom.due(12.0) == 19
    assert seldom.due(12.1) is None
    assert seldom.due(100.0) == 1
    assert seldom.due(200.0) == 0
