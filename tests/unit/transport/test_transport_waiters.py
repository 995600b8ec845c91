"""Waiting for a change, on a loop without sockets."""

from __future__ import annotations

import asyncio
import time

import pytest

from labmesh.transport.waiters import Waiters

LIMIT_S = 10.0


async def begun(waiters: Waiters, count: int) -> None:
    while len(waiters) < count:  # noqa: ASYNC110
        await asyncio.sleep(0)


async def test_all_that_wait_are_woken_in_the_order_in_which_they_came() -> None:
    waiters, woken = Waiters(), list[int]()

    async def wait(number: int) -> None:
        await waiters.wait(time.monotonic() + LIMIT_S)
        woken.append(number)

    tasks = [asyncio.create_task(wait(number)) for number in range(5)]
    await begun(waiters, 5)
    assert woken == []
    waiters.wake()
    waiters.wake()
    await asyncio.gather(*tasks)
    assert woken == [0, 1, 2, 3, 4]
    assert len(waiters) == 0


async def test_a_change_of_before_is_not_waited_for() -> None:
    waiters = Waiters()
    waiters.wake()
    began = time.monotonic()
    await waiters.wait(began + 0.02)
    assert time.monotonic() - began >= 0.019


@pytest.mark.parametrize("in_s", [0.0, -5.0])
async def test_at_a_deadline_that_has_passed_nobody_waits(in_s: float) -> None:
    async with asyncio.timeout(LIMIT_S):
        await Waiters().wait(time.monotonic() + in_s)


async def test_who_is_cancelled_waits_no_more_and_leaves_nothing() -> None:
    waiters = Waiters()
    task = asyncio.create_task(waiters.wait(time.monotonic() + LIMIT_S))
    await begun(waiters, 1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert len(waiters) == 0
    waiters.wake()
