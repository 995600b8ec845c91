"""Who waits for a link goes in the order of coming, and whoever gives up holds up nobody."""

from __future__ import annotations

import asyncio

from labmesh.asking.turns import Turns


async def test_each_waits_for_those_before_it() -> None:
    free: list[str] = []
    turns = Turns(free.append)
    assert not turns.wait_for("a")
    waiting = [turns.come("a") for _ in range(3)]
    (_, first), (before_second, second), (before_third, third) = waiting
    assert (before_second, before_third) == (first, second)
    assert turns.come("b")[0] is None
    turns.go("a", second, third)
    turns.go("a", first, second)
    await asyncio.sleep(0)
    assert not second.done()
    assert turns.wait_for("a")
    turns.go("a", None, first)
    assert first.done()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert third.done()
    assert not turns.wait_for("a")
    assert turns.wait_for("b")
    assert free == ["a"]
    turns.go("a", *waiting[2])
    assert free == ["a"]
