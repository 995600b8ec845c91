"""Methods that yield, several calls in one trip, and values, over a whole mesh."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from tests.support.lab_values import same
from tests.support.peers import until

from labmesh import RelayClient, expose
from labmesh.errors import (
    BadArguments,
    Cancelled,
    DriverError,
    LabmeshError,
    LinkLost,
    TooLarge,
    UnknownMethod,
)
from labmesh.testing import LocalMesh

LIMIT_S = 10.0


class Scanner:
    """Yields points, and remembers what was done to it."""

    def __init__(self) -> None:
        self.made: list[int] = []
        self.log: list[str] = []
        self.closed = threading.Event()
        self._voltage = 0.0

    @property
    def voltage(self) -> float:
        """Output voltage."""
        return self._voltage

    @voltage.setter
    def voltage(self, value: float) -> None:
        if value < 0:
            raise ValueError("no negative voltage")
        self._voltage = value
        self.log.append(f"voltage {value}")

    @property
    def serial(self) -> str:
        """Cannot be set."""
        return "4711"

    def scan(self, count: int) -> Iterator[int]:
        try:
            for number in range(count):
                self.made.append(number)
                yield number
        finally:
            self.closed.set()
        return f"{count} points"

    async def slowly(self, count: int) -> AsyncIterator[int]:
        for number in range(count):
            await asyncio.sleep(0)
            yield number

    def break_down(self) -> Iterator[int]:
        yield 1
        raise ValueError("channel 3 is gone")

    def add(self, name: str, *, times: int = 1) -> int:
        self.log += times * [name]
        return len(self.log)

    def fail(self) -> None:
        self.log.append("fail")
        raise ValueError("channel 3 is gone")

    @expose(read_only=True)
    def read(self) -> list[str]:
        return list(self.log)


@asynccontextmanager
async def scanning() -> AsyncIterator[tuple[RelayClient, Scanner, LocalMesh]]:
    driver = Scanner()
    async with LocalMesh({"Inst-0": driver}, banks=0) as mesh:
        client = await mesh.client()
        yield await client.get_relay_agent("Inst-0"), driver, mesh


# ── streams ─────────────────────────────────────────────────────────────────────────────────────


async def test_a_method_that_yields_is_iterated_and_its_return_value_kept() -> None:
    async with scanning() as (relay, driver, _):
        stream = relay.stream("scan", {"count": 200}, LIMIT_S)
        assert "not begun" in repr(stream)
        assert stream.result is None
        assert [point async for point in stream] == list(range(200))
        assert stream.result == "200 points"
        assert "ended" in repr(stream)
        assert [point async for point in stream] == []
        assert driver.made == list(range(200))
        assert [point async for point in relay.stream("slowly", 30)] == list(range(30))


async def test_a_slow_consumer_has_no_more_made_than_it_can_hold() -> None:
    async with scanning() as (relay, driver, _), relay.stream("scan", 1000, credit=8) as stream:
        assert await anext(stream) == 0
        assert "under way" in repr(stream)
        await until(lambda: len(driver.made) >= 8)
        for _ in range(20):
            await relay.status()
        assert len(driver.made) <= 8 + 1 + 1, "what waits, the one taken, and one in the making"
    await asyncio.to_thread(driver.closed.wait, LIMIT_S)


async def closed_early(relay: Any, driver: Scanner) -> None:
    await asyncio.to_thread(driver.closed.wait, LIMIT_S)
    assert driver.closed.is_set()
    assert len(driver.made) < 100
    assert await relay.read() == []


async def test_closing_a_stream_early_closes_the_generator() -> None:
    async with scanning() as (relay, driver, _):
        stream = relay.stream("scan", 1000)
        assert [await anext(stream) for _ in range(3)] == [0, 1, 2]
        await stream.aclose()
        await stream.aclose()
        with pytest.raises(StopAsyncIteration):
            await anext(stream)
        await closed_early(relay, driver)


async def test_a_stream_that_nobody_refers_to_is_closed() -> None:
    async with scanning() as (relay, driver, _):
        async for point in relay.stream("scan", 1000):
            if point == 3:
                break
        gc.collect()
        await closed_early(relay, driver)


async def test_cancelling_the_reader_closes_the_generator() -> None:
    class Waiting(Scanner):
        def scan(self, count: int) -> Iterator[int]:
            try:
                yield 0
                while not self.closed.wait(0.01):
                    yield 0
            finally:
                self.closed.set()

    driver = Waiting()
    async with LocalMesh({"Inst-0": driver}, banks=0) as mesh:
        client = await mesh.client()
        relay = await client.get_relay_agent("Inst-0")

        async def read_all() -> None:
            async for _ in relay.stream("scan", 0):
                pass

        reading = asyncio.create_task(read_all())
        while (await relay.status()).facts["busy_with"] is None:
            assert not reading.done()
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
        assert await asyncio.to_thread(driver.closed.wait, LIMIT_S)
        assert await relay.read() == []


async def test_what_a_generator_raises_arrives_behind_its_items() -> None:
    async with scanning() as (relay, _, _):
        stream = relay.stream("break_down")
        assert await anext(stream) == 1
        with pytest.raises(ValueError, match="channel 3 is gone") as caught:
            await anext(stream)
        assert isinstance(caught.value, DriverError)


async def test_what_cannot_be_streamed_says_so_before_anything_runs() -> None:
    async with scanning() as (relay, driver, _):
        with pytest.raises(ValueError, match="credit must be 1 to 1024"):
            relay.stream("scan", 3, credit=0)
        with pytest.raises(UnknownMethod):
            await anext(relay.stream("nonsense"))
        with pytest.raises(BadArguments):
            await anext(relay.stream("scan", {"number": 3}))
        assert driver.made == []


async def test_a_stream_is_read_from_any_loop() -> None:
    async with scanning() as (relay, _, _):

        def elsewhere() -> tuple[list[int], Any]:
            async def read() -> tuple[list[int], Any]:
                stream = relay.stream("scan", 20)
                return [point async for point in stream], stream.result

            return asyncio.run(read())

        assert await asyncio.to_thread(elsewhere) == (list(range(20)), "20 points")


async def test_a_relay_that_stops_ends_its_streams_at_once() -> None:
    async with scanning() as (relay, driver, mesh):
        stream = relay.stream("scan", 10**6, None)
        assert await anext(stream) == 0
        began = time.monotonic()
        await mesh.restart_relay("Inst-0")
        assert driver.closed.is_set()
        assert time.monotonic() - began < LIMIT_S, "it does not wait for a reader who never comes"
        with pytest.raises(LabmeshError, match="its relay is shutting down"):
            await rest_of(stream)


async def rest_of(stream: AsyncIterator[Any]) -> list[Any]:
    async with asyncio.timeout(LIMIT_S):
        return [item async for item in stream]


# ── batches ─────────────────────────────────────────────────────────────────────────────────────


async def test_a_batch_is_one_trip_and_each_call_has_its_value() -> None:
    async with scanning() as (relay, driver, _):
        async with relay.batch() as b:
            first = b.add("a")
            b.add("b", times=2)
            third = b.call("add", {"name": "c"})
            b.set("voltage", 2.5)
            voltage = b.get("voltage")
            assert len(b) == 5
            assert not first.done
            with pytest.raises(RuntimeError, match="add has not been sent yet"):
                _ = first.value
            assert driver.log == []
        assert (first.value, third.value, voltage.value) == (1, 4, 2.5)
        assert first.done
        assert first.error is None
        assert "add: 1" in repr(first)
        assert driver.log == ["a", "b", "b", "c", "voltage 2.5"]
        with pytest.raises(RuntimeError, match="behind the end"):
            b.add("d")


async def test_a_batch_stops_at_its_first_error_and_raises_it() -> None:
    async with scanning() as (relay, driver, _):
        with pytest.raises(ValueError, match="channel 3 is gone"):
            async with relay.batch() as b:
                before, failing, behind = b.add("a"), b.fail(), b.add("b")
        assert before.value == 1
        assert isinstance(failing.error, DriverError)
        with pytest.raises(ValueError, match="channel 3"):
            _ = failing.value
        assert isinstance(behind.error, Cancelled)
        assert "add was not run: fail, before it in its batch, failed" in str(behind.error)
        assert driver.log == ["a", "fail"]


async def test_a_batch_that_keeps_going_leaves_errors_with_their_calls() -> None:
    async with scanning() as (relay, driver, _):
        async with relay.batch(keep_going=True) as b:
            before, failing, behind = b.add("a"), b.fail(), b.add("b")
        assert (before.value, behind.value) == (1, 3)
        assert isinstance(failing.error, ValueError)
        assert "channel 3" in repr(failing)
        assert driver.log == ["a", "fail", "b"]


async def test_a_batch_whose_block_raised_is_never_sent() -> None:
    async with scanning() as (relay, driver, _):
        written = []

        async def changes_its_mind() -> None:
            async with relay.batch() as b:
                written.append(b.add("a"))
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            await changes_its_mind()
        [added] = written
        with pytest.raises(RuntimeError, match="was never sent"):
            _ = added.error
        assert "never sent" in repr(added)
        async with relay.batch():
            pass
        assert driver.log == []


async def test_a_batch_that_is_refused_runs_nothing_and_each_call_says_why() -> None:
    async with scanning() as (relay, driver, _):
        with pytest.raises(UnknownMethod):
            async with relay.batch() as b:
                fine, unknown = b.add("a"), b.nonsense()
        assert fine.error is unknown.error
        assert isinstance(fine.error, UnknownMethod)
        with pytest.raises(TooLarge, match="256"):
            async with relay.batch() as b:
                many = [b.add("a") for _ in range(257)]
        assert isinstance(many[0].error, TooLarge)
        assert driver.log == []


async def test_nothing_of_anybody_else_runs_between_the_calls_of_a_batch() -> None:
    async with scanning() as (relay, driver, mesh):
        other = await (await mesh.client()).get_relay_agent("Inst-0")

        async def in_batches(proxy: Any, name: str) -> None:
            for _ in range(10):
                async with proxy.batch() as b:
                    for _ in range(3):
                        b.add(name)

        await asyncio.gather(in_batches(relay, "a"), in_batches(other, "b"))
        triples = [driver.log[i : i + 3] for i in range(0, 60, 3)]
        assert all(len({*triple}) == 1 for triple in triples)


# ── values ──────────────────────────────────────────────────────────────────────────────────────


async def test_values_are_read_and_written() -> None:
    async with scanning() as (relay, driver, _):
        assert await relay.get("serial") == "4711"
        await relay.set("voltage", 2.5)
        assert same(await relay.get("voltage", timeout=LIMIT_S), 2.5)
        with pytest.raises(ValueError, match="no negative voltage"):
            await relay.set("voltage", -1.0)
        with pytest.raises(LabmeshError, match="serial"):
            await relay.set("serial", "4712")
        with pytest.raises(LabmeshError, match="nonsense"):
            await relay.get("nonsense")
        assert driver.log == ["voltage 2.5"]


async def test_what_cannot_be_reached_any_more_is_a_lost_link() -> None:
    async with scanning() as (relay, _, mesh):
        assert await relay.get("voltage") == 0.0
        await mesh.relays["Inst-0"].stop()
        # What is sent before the end of the link is noticed ends otherwise: nobody knows how.
        await until(lambda: not relay._client.health("Inst-0").up)
        with pytest.raises(LinkLost):
            await relay.get("voltage", timeout=1.0)
