"""States as an asynchronous iterator: a bounded queue, and what reads it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any, Self

from labmesh.errors import NoAnswer
from labmesh.events.reading import Gaps, Reading
from labmesh.protocol.inbox import Inbox

__all__ = ["ReadingQueue", "Readings"]


class ReadingQueue:
    """Readings that wait, at most ``limit``; when full, the newest of each relay. On one loop."""

    def __init__(self, limit: int) -> None:
        self._inbox: Inbox[Reading] = Inbox(limit)
        self._gaps = Gaps()
        self._loop = asyncio.get_running_loop()
        self._arrived = asyncio.Event()
        self._at_end: list[Callable[[], object]] = []
        self.ended = False

    def put(self, *arguments: Any, key: str | None = None, size: int = 0) -> None:
        """Append a reading."""
        if not self.ended:
            self._inbox.put(arguments[0], key=key, size=size)
            self._arrived.set()

    def on_end(self, callback: Callable[[], object]) -> None:
        """Call ``callback()`` on the loop when this has ended."""
        self._at_end.append(callback)

    def cancel(self) -> None:
        """Nothing more will come. In any thread, and twice is fine."""
        try:
            self._loop.call_soon_threadsafe(self._end)
        except RuntimeError:
            if not self._loop.is_closed():
                raise

    async def closed(self) -> None:
        """Wait until a cancelled one has ended."""
        self._end()

    async def take(self) -> Reading | None:
        """The next reading; None: there will be none."""
        while not len(self._inbox):
            if self.ended:
                return None
            self._arrived.clear()
            await self._arrived.wait()
        return self._gaps.told(self._inbox.pop())

    def _end(self) -> None:
        if not self.ended:
            self.ended = True
            self._arrived.set()
            for each in self._at_end:
                each()


class Readings(AsyncIterator[Reading]):
    """The states of some relays as they come, the last known ones first::

        async for reading in client.watch("Inst-*"):
            print(reading.relay_id, reading["voltage"], reading.missed)

    It ends with :meth:`close`, when its client is closed, or when nobody holds it any more: leave
    the loop whenever you like. Whoever reads too slowly gets the newest of each relay;
    :attr:`Reading.missed` counts what was skipped or lost before each.
    """

    def __init__(self, queue: ReadingQueue, *, what: str, timeout: float | None) -> None:
        self._queue = queue
        self._what = what
        self._timeout = timeout

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Reading:
        try:
            async with asyncio.timeout(self._timeout) as limit:
                reading = await self._queue.take()
        except TimeoutError:
            if not limit.expired():
                raise
            raise NoAnswer(
                f"no state of {self._what} within {self._timeout or 0:g} s: does its driver have a "
                "poll() method, and does its relay run?"
            ) from None
        if reading is None:
            raise StopAsyncIteration
        return reading

    def close(self) -> None:
        """Stop receiving; in any thread, and twice is fine."""
        self._queue.cancel()

    async def aclose(self) -> None:
        """:meth:`close`, for ``contextlib.aclosing``."""
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self.close()

    def __del__(self) -> None:
        self._queue.cancel()

    def __repr__(self) -> str:
        return f"<Readings of {self._what}>"
