"""A driver may use its buffers again as soon as its method has returned; nobody sees that."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import pytest

from labmesh import RelayClient
from labmesh.testing import LocalMesh

LIMIT_S = 20.0
VALUES = 1_000_000
CALLS = 100
#: Calls that are on their way at once: the driver runs one while the reply before is being sent.
AT_ONCE = 5


class Digitizer:
    """Measures into one buffer, over and over; each shot is full of its number."""

    def __init__(self) -> None:
        self._buffer = np.zeros(VALUES)
        self._history: list[int] = []
        self._shots = 0

    def ready(self) -> bool:
        return True

    def acquire(self) -> Any:
        """8 MB of the buffer that the next shot overwrites."""
        self._shots += 1
        self._buffer.fill(self._shots)
        return self._buffer

    def part(self) -> Any:
        self.acquire()
        return {"part": self._buffer[:2000], "number": self._shots}

    def fresh(self) -> Any:
        self.acquire()
        return self._buffer.copy()

    def history(self) -> list[int]:
        self._history.append(len(self._history) + 1)
        return self._history

    def scan(self, count: int) -> Iterator[Any]:
        for _ in range(count):
            yield self.acquire()


@asynccontextmanager
async def digitizing() -> AsyncIterator[RelayClient]:
    async with LocalMesh({"Scope-0": Digitizer()}, banks=0) as mesh:
        client = await mesh.client()
        relay = await client.get_relay_agent("Scope-0")
        # Calls that wait for the first connection may overtake each other, later ones do not.
        assert await relay.call("ready", timeout=LIMIT_S)
        yield relay


def assert_whole(shot: Any, number: int) -> None:
    assert shot[0] == number
    assert (shot == number).all(), "torn: a part of it is of another shot"


@pytest.mark.parametrize("method", ["acquire", "fresh"])
async def test_a_buffer_that_is_overwritten_at_once_arrives_as_it_was(method: str) -> None:
    async with digitizing() as relay:
        for first in range(1, CALLS + 1, AT_ONCE):
            calls = [relay.call(method, timeout=LIMIT_S) for _ in range(AT_ONCE)]
            for number, shot in enumerate(await asyncio.gather(*calls), first):
                assert_whole(shot, number)


async def test_a_small_part_of_a_buffer_arrives_as_it_was() -> None:
    async with digitizing() as relay:
        calls = [relay.call("part", timeout=LIMIT_S) for _ in range(CALLS)]
        for number, shot in enumerate(await asyncio.gather(*calls), 1):
            assert shot["number"] == number
            assert_whole(shot["part"], number)


async def test_the_items_of_a_stream_arrive_as_they_were() -> None:
    async with digitizing() as relay:
        number = 0
        async for shot in relay.stream("scan", 20, LIMIT_S):
            number += 1
            assert_whole(shot, number)
        assert number == 20


async def test_the_results_of_a_batch_are_what_they_were_when_their_calls_ended() -> None:
    async with digitizing() as relay:
        async with relay.batch() as batch:
            shots = [batch.acquire() for _ in range(4)]
            histories = [batch.history() for _ in range(3)]
        for number, shot in enumerate(shots, 1):
            assert_whole(shot.value, number)
        assert [each.value for each in histories] == [[1], [1, 2], [1, 2, 3]]
