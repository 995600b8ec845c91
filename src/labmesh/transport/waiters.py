"""Coroutines of one loop that wait until something changes."""

from __future__ import annotations

import asyncio
import time

__all__ = ["Waiters"]


class Waiters:
    """Wakes all that wait, in the order in which they came; each looks for itself at what it is."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._futures: dict[asyncio.Future[None], None] = {}

    def __len__(self) -> int:
        return len(self._futures)

    async def wait(self, deadline: float) -> None:
        """Wait for the next change, or until the deadline (monotonic seconds)."""
        future: asyncio.Future[None] = self._loop.create_future()
        self._futures[future] = None
        timer = self._loop.call_later(deadline - time.monotonic(), _set, future)
        try:
            await future
        finally:
            timer.cancel()
            del self._futures[future]

    def wake(self) -> None:
        """Something has changed."""
        for future in self._futures:
            _set(future)


def _set(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
