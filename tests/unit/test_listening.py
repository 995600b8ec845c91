"""Users' callbacks: in order, one at a time each, and no harm to anybody."""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from tests.support.peers import until

from labmesh.events.listening import Subscription
from labmesh.events.reading import Reading
from labmesh.events.watching import ReadingQueue

LIMIT_S = 5.0


class Heard:
    """A callback that remembers; ``until(n)`` waits for its n-th call."""

    def __init__(self) -> None:
        self.items: list[Any] = []
        self._news = asyncio.Event()

    def __call__(self, item: Any) -> None:
        self.items.append(item)
        self._news.set()

    async def until(self, count: int) -> None:
        async with asyncio.timeout(LIMIT_S):
            while len(self.items) < count:
                await self._news.wait()
                self._news.clear()


@pytest.fixture
async def subscribe() -> AsyncIterator[Callable[..., Subscription]]:
    made: list[Subscription] = []

    def make(callback: Callable[..., object]) -> Subscription:
        made.append(Subscription(callback, "state"))
        return made[-1]

    yield make
    for each in made:
        each.cancel()
        await each.closed()
        assert each.ended
    left = asyncio.all_tasks() - {asyncio.current_task()}
    assert not {each.get_name() for each in left if "callback" in each.get_name()}


async def test_items_come_in_order_with_all_their_arguments(subscribe: Any) -> None:
    heard = Heard()
    subscription = subscribe(lambda *arguments: heard(arguments))
    subscription.put("Inst-0", 1)
    subscription.put("Inst-1", 2)
    await heard.until(2)
    subscription.put("Inst-0", 3)
    await heard.until(3)
    assert heard.items == [("Inst-0", 1), ("Inst-1", 2), ("Inst-0", 3)]


async def test_a_coroutine_function_is_awaited_before_the_next_item(subscribe: Any) -> None:
    heard = Heard()
    at_once = 0

    async def slow(number: int) -> None:
        nonlocal at_once
        at_once += 1
        assert at_once == 1
        for _ in range(5):
            await asyncio.sleep(0)
        at_once -= 1
        heard(number)

    subscription = subscribe(slow)
    for number in range(5):
        subscription.put(number)
    await heard.until(5)
    assert heard.items == [0, 1, 2, 3, 4]


async def test_a_task_that_is_returned_is_held_and_not_waited_for(subscribe: Any) -> None:
    heard = Heard()
    gate = asyncio.Event()

    async def work(number: int) -> None:
        await gate.wait()
        heard(number)

    subscription = subscribe(lambda number: asyncio.ensure_future(work(number)))
    subscription.put(1)
    subscription.put(2)
    await until(lambda: len(subscription._returned) == 2)
    gate.set()
    await heard.until(2)
    await until(lambda: not subscription._returned)


@pytest.mark.parametrize("kind", ["plain", "async", "task"])
async def test_what_a_callback_raises_is_logged_and_the_next_item_comes(
    kind: str, subscribe: Any, caplog: pytest.LogCaptureFixture
) -> None:
    heard = Heard()

    def plain(number: int) -> None:
        heard(number)
        raise ZeroDivisionError(f"item {number}")

    async def coroutine(number: int) -> None:
        plain(number)

    def task(number: int) -> asyncio.Future[None]:
        return asyncio.ensure_future(coroutine(number))

    subscription = subscribe({"plain": plain, "async": coroutine, "task": task}[kind])
    subscription.put(1)
    subscription.put(2)
    await heard.until(2)
    await until(lambda: len(caplog.records) == 2)
    for record, number in zip(caplog.records, (1, 2), strict=True):
        assert record.levelno == logging.ERROR
        assert subscription.name in record.getMessage()
        assert record.exc_info is not None
        assert str(record.exc_info[1]) == f"item {number}"


async def test_a_callback_that_awaits_something_cancelled_goes_on(
    subscribe: Any, caplog: pytest.LogCaptureFixture
) -> None:
    heard = Heard()
    gone: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    gone.cancel()

    async def wait(number: int) -> None:
        heard(number)
        await gone

    subscription = subscribe(wait)
    subscription.put(1)
    subscription.put(2)
    await heard.until(2)
    assert not subscription.ended
    assert "was cancelled" in caplog.text


async def test_a_callback_that_blocks_the_loop_is_named(
    subscribe: Any, caplog: pytest.LogCaptureFixture
) -> None:
    heard = Heard()

    def blocking(number: int) -> None:
        time.sleep(0.12)  # the fault itself, not a way to wait for something
        heard(number)

    subscription = subscribe(blocking)
    subscription.put(1)
    await heard.until(1)
    await until(lambda: caplog.records)
    assert re.search(r"blocking blocked its loop for [\d.]+ s", caplog.text)


async def test_a_slow_callback_gets_the_newest_of_each_state(subscribe: Any) -> None:
    heard = Heard()
    subscription = subscribe(heard)
    for number in range(2001):
        subscription.put(number, key="Inst-0")
    await heard.until(1)
    assert heard.items == [2000]
    assert (subscription.conflated, subscription.lost) == (2000, 0)


async def test_what_finds_no_room_is_counted_and_logged_once_a_second(
    subscribe: Any, caplog: pytest.LogCaptureFixture
) -> None:
    heard = Heard()
    subscription = subscribe(heard)
    # After a stall all that the broker kept comes at once: 20,000 events, and what it replays.
    for number in range(25_500):
        subscription.put(number)
    await heard.until(25_000)
    assert heard.items == list(range(500, 25_500))
    assert (subscription.conflated, subscription.lost) == (0, 500)
    [record] = caplog.records
    assert "too slow" in record.getMessage()


async def test_what_waits_for_a_slow_callback_is_limited_in_bytes_too(subscribe: Any) -> None:
    heard = Heard()
    subscription = subscribe(heard)
    for number in range(12):
        subscription.put(number, size=16 * 2**20)
    await heard.until(8)
    assert heard.items == list(range(4, 12))
    assert (subscription.conflated, subscription.lost) == (0, 4)


async def test_readings_that_nobody_reads_are_limited_in_bytes_too() -> None:
    queue = ReadingQueue(1000)
    for sequence in range(1, 10):
        for relay_id in ("psu-1", "psu-2"):
            queue.put(Reading(relay_id, {}, 0.0, "e1", sequence), key=relay_id, size=30 * 2**20)
    queue.cancel()
    got = [await queue.take(), await queue.take()]
    assert [(each.relay_id, each.sequence) for each in got if each] == [("psu-1", 9), ("psu-2", 9)]
    await queue.closed()
    assert await queue.take() is None


async def test_a_cancelled_subscription_is_not_called_again(subscribe: Any) -> None:
    heard = Heard()
    subscription = subscribe(heard)
    subscription.put(1)
    await heard.until(1)
    subscription.cancel()
    subscription.put(2)
    await subscription.closed()
    assert heard.items == [1]
    assert subscription.ended
    assert "ended" in repr(subscription)


async def test_it_may_be_cancelled_from_another_thread_and_tells_that_it_ended(
    subscribe: Any,
) -> None:
    told: list[str] = []
    subscription = subscribe(Heard())
    subscription.on_end(lambda: told.append("ended"))
    await asyncio.to_thread(subscription.cancel)
    await asyncio.to_thread(subscription.cancel)
    await subscription.closed()
    await asyncio.sleep(0)
    assert told == ["ended"]


def test_cancelling_after_the_loop_has_closed_is_harmless() -> None:
    async def subscribe() -> Subscription:
        subscription = Subscription(print, "state")
        subscription.cancel()
        await subscription.closed()
        return subscription

    subscription = asyncio.run(subscribe())
    subscription.cancel()
    assert subscription.ended


async def test_a_callback_may_cancel_its_own_subscription(subscribe: Any) -> None:
    heard = Heard()

    def last(number: int) -> None:
        heard(number)
        subscription.cancel()

    subscription = subscribe(last)
    assert "active" in repr(subscription)
    subscription.put(1)
    subscription.put(2)
    await subscription.closed()
    assert heard.items == [1]


async def test_cancelling_ends_what_the_callback_is_doing_and_the_tasks_it_returned(
    subscribe: Any,
) -> None:
    began, ended = asyncio.Event(), Heard()

    async def forever(_: int) -> None:
        began.set()
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            ended("ended")

    for callback in (forever, lambda number: asyncio.ensure_future(forever(number))):
        began.clear()
        subscription = subscribe(callback)
        subscription.put(1)
        await began.wait()
        subscription.cancel()
        await subscription.closed()
    assert ended.items == ["ended", "ended"]


async def test_one_callback_does_not_wait_for_another(subscribe: Any) -> None:
    heard = Heard()

    async def stuck(_: int) -> None:
        await asyncio.get_running_loop().create_future()

    first, second = subscribe(stuck), subscribe(heard)
    for number in range(3):
        first.put(number)
        second.put(number)
    await heard.until(3)
    assert heard.items == [0, 1, 2]
