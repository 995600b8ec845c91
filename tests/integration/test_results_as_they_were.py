"""A driver may use its buffers again as soon as its method has returned; nobody sees that."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import numpy as np

from labmesh import RelayClient
from labmesh.testing import LocalMesh

VALUES = 1_000_000  # of 8 bytes
CALLS = 100


class Digitizer:
    """Measures into one buffer, over and over, also when nobody asks."""

    def __init__(self) -> None:
        self._buffer = np.zeros(VALUES)
        self._shots = 0
        self._returned = threading.Event()
        self._stop = False
        self._thread = threading.Thread(target=self._overwrite, name="digitizer")
        self._thread.start()

    def close(self) -> None:
        self._stop = True
        self._returned.set()
        self._thread.join()

    def acquire(self) -> Any:
        self._shots += 1
        self._buffer.fill(self._shots)
        return self._buffer

    def overwrite_soon(self) -> None:
        """From here on the buffer is spoilt, as by the next trigger."""
        self._returned.set()

    def fresh(self) -> Any:
        self._shots += 1
        return np.full(VALUES, float(self._shots))

    def small(self) -> Any:
        self._shots += 1
        part = self._buffer[:2000]
        part.fill(self._shots)
        return part

    def scan(self) -> Iterator[Any]:
        for _ in range(10):
            yield self.acquire()

    def _overwrite(self) -> None:
        while not self._stop:
            self._returned.wait()
            self._returned.clear()
            self._buffer.fill(-1.0)


@asynccontextmanager
async def digitizing() -> AsyncIterator[tuple[RelayClient, Digitizer]]:
    driver = Digitizer()
    try:
        async with LocalMesh({"Scope-0": driver}, banks=0) as mesh, mesh.client() as client:
            yield await client.relay("Scope-0"), driver
    finally:
        driver.close()


def assert_whole(shot: Any, number: float) -> None:
    assert shot[0] == number
    assert (shot == number).all(), "torn: a part of it is of another shot"


async def test_a_buffer_that_is_overwritten_at_once_arrives_as_it_was() -> None:
    async with digitizing() as (relay, _):
        for number in range(1, CALLS + 1):
            # The relay runs the next one while the reply before is still on its way.
            shot, _ = await ask_twice(relay, number)
            assert_whole(shot, float(number))


async def ask_twice(relay: RelayClient, number: int) -> tuple[Any, Any]:
    return await relay.call("acquire", timeout=10.0), await relay.call("overwrite_soon")
