"""The iterator of a method that yields: items, result, errors, and its end."""

from __future__ import annotations

import asyncio
import gc
from collections import deque
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import pytest

from labmesh.blocking.background import BackgroundLoop
from labmesh.blocking.streams import Stream
from labmesh.errors import DriverError, LabmeshError, NotSent


class Scripted:
    """Items in portions, as they come in; at the end a result or an error."""

    def __init__(self, *portions: list[Any], end: Any = None) -> None:
        self._portions = deque(portions)
        self._here: deque[Any] = deque()
        self._end_with = end
        self.result: Any = None
        self.closed = asyncio.Event()

    def __len__(self) -> int:
        return len(self._here)

    async def next(self) -> Any:
        if not self._here and self._portions:
            await asyncio.sleep(0)
            self._here.extend(self._portions.popleft())
        if self._here:
            return self._here.popleft()
        if isinstance(self._end_with, LabmeshError):
            raise self._end_with
        if self._end_with == "never":
            await asyncio.Event().wait()
        self.result = self._end_with
        raise StopAsyncIteration

    def close(self) -> None:
        self.closed.set()


@pytest.fixture
def loop() -> Iterator[BackgroundLoop]:
    background = BackgroundLoop("streams")
    yield background
    background.close()


Begun = Callable[[Scripted], Stream[Any]]


@pytest.fixture
def hops() -> list[None]:
    """One entry for each wait on the loop."""
    return []


@pytest.fixture
def stream(loop: BackgroundLoop, hops: list[None]) -> Begun:
    def run(work: Coroutine[Any, Any, Any]) -> Any:
        hops.append(None)
        return loop.run(work)

    def made(source: Scripted) -> Stream[Any]:
        async def begin() -> Scripted:
            return source

        return Stream(run, begin, "Inst-0.scan")

    return made


def is_closed(loop: BackgroundLoop, source: Scripted) -> bool:
    async def wait() -> bool:
        async with asyncio.timeout(5):
            return await source.closed.wait()

    return loop.run(wait())


def test_items_come_in_order_and_then_the_result(stream: Begun, hops: list[None]) -> None:
    points = stream(Scripted([1, 2, 3], [4], end="done"))
    assert list(points) == [1, 2, 3, 4]
    assert points.result == "done"
    assert next(points, None) is None
    assert len(hops) == 3  # one for each portion, not one for each item


def test_nothing_happens_before_the_first_item_is_asked_for(
    stream: Begun, hops: list[None]
) -> None:
    points = stream(Scripted([1]))
    assert repr(points) == "<Stream of Inst-0.scan: not begun>"
    points.close()
    assert list(points) == []
    assert hops == []


def test_the_result_is_not_known_before_the_end(stream: Begun) -> None:
    points = stream(Scripted([1, 2], end=5))
    with pytest.raises(RuntimeError, match="has no result: it is known when the last item"):
        _ = points.result
    assert next(points) == 1
    assert repr(points) == "<Stream of Inst-0.scan: under way>"
    with pytest.raises(RuntimeError, match="iterate to the end"):
        _ = points.result
    points.close()
    with pytest.raises(RuntimeError, match="it was closed before its end"):
        _ = points.result


def test_an_error_comes_behind_the_items_before_it(stream: Begun) -> None:
    points = stream(Scripted([1, 2], end=DriverError("no more", exception_type="ValueError")))
    assert [next(points), next(points)] == [1, 2]
    with pytest.raises(DriverError, match="no more"):
        next(points)
    assert list(points) == []
    assert "broken off" in repr(points)


def test_an_error_at_once(stream: Begun) -> None:
    points = stream(Scripted(end=NotSent("nobody there")))
    with pytest.raises(NotSent):
        next(points)


@pytest.mark.parametrize("way", ["close", "with", "forgotten"])
def test_leaving_early_has_the_method_end(stream: Begun, loop: BackgroundLoop, way: str) -> None:
    source = Scripted([1, 2, 3], end="never")
    points = stream(source)
    for point in points:
        assert point == 1
        break
    if way == "close":
        points.close()
        points.close()
        assert list(points) == []
    elif way == "with":
        with points:
            assert next(points) == 2
    else:
        del points
        gc.collect()
    assert is_closed(loop, source)


def test_ctrl_c_has_the_method_end(loop: BackgroundLoop) -> None:
    source = Scripted([1], end="never")

    async def begin() -> Scripted:
        return source

    def run(work: Coroutine[Any, Any, Any]) -> Any:
        if source.result == "interrupt":
            work.close()
            raise KeyboardInterrupt
        return loop.run(work)

    points: Stream[Any] = Stream(run, begin, "Inst-0.scan")
    assert next(points) == 1
    source.result = "interrupt"
    with pytest.raises(KeyboardInterrupt):
        next(points)
    assert is_closed(loop, source)
    assert list(points) == []


def test_when_the_mesh_was_closed_it_has_ended(stream: Begun, loop: BackgroundLoop) -> None:
    points = stream(Scripted([1, 2], end="never"))
    assert next(points) == 1
    loop.close()
    points.close()
    late = stream(Scripted([1]))
    with pytest.raises(NotSent, match="closed"):
        next(late)
