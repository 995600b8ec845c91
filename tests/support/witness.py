"""A healthy client that is served while others are attacked, or is not."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from labmesh.protocol.messages import GetStatus, Status
from labmesh.transport.link import Link

__all__ = ["Witness", "watching"]

_EVERY_S = 0.02
_PATIENCE_S = 10.0


class Witness:
    """A healthy client of one socket, all the time: its round trips, and what went wrong."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self.trips_s: list[float] = []

    async def run(self) -> None:
        while True:
            began = time.perf_counter()
            await self._link.request(GetStatus(id="-"), Status, timeout=_PATIENCE_S)
            self.trips_s.append(time.perf_counter() - began)
            await asyncio.sleep(_EVERY_S)

    @property
    def p99_ms(self) -> float:
        """Of all round trips 99 of 100 took no longer; 0 where there was none."""
        ordered = sorted(self.trips_s)
        return 1e3 * ordered[math.ceil(0.99 * len(ordered)) - 1] if ordered else 0.0


@asynccontextmanager
async def watching(link: Link, where: str) -> AsyncIterator[Witness]:
    """A witness while the context is open; a request of it that fails, fails the test."""
    witness = Witness(link)
    task = asyncio.create_task(witness.run())
    try:
        yield witness
    finally:
        task.cancel()
        (ended,) = await asyncio.gather(task, return_exceptions=True)
    assert isinstance(ended, asyncio.CancelledError), f"the witness was not served: {ended}"
    print(f"witness of {where}: {len(witness.trips_s)} served, p99 {witness.p99_ms:.1f} ms")
