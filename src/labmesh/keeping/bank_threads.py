"""The threads of a bank, apart by what they wait for."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Literal, TypeVar

__all__ = ["BankThreads", "Work"]

T = TypeVar("T")

#: What is done in a thread: bytes that are read; bytes that are written; uploads that are made
#: durable on the way; uploads that end; records that are looked up; the bank's own housekeeping.
Work = Literal["read", "write", "sync", "commit", "catalog", "upkeep"]

#: A disk that takes seconds for one fsync holds up uploads that end, and nothing else: neither
#: downloads nor other uploads, searches or signs of life. Many may end at a time, since what waits
#: for one folder's fsync is made durable by it together.
_COUNTS: dict[Work, int] = {
    "read": 8,
    "write": 4,
    "sync": 4,
    "commit": 32,
    "catalog": 4,
    "upkeep": 2,
}


class BankThreads:
    """Runs blocking work off the loop, each kind in threads of its own."""

    def __init__(self, name: str) -> None:
        self._executors = {
            work: ThreadPoolExecutor(count, thread_name_prefix=f"{name}-{work}")
            for work, count in _COUNTS.items()
        }

    async def run(self, work: Work, function: Callable[..., T], *arguments: object) -> T:
        """What ``function`` returns or raises, in a thread for this kind of work."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._executors[work], function, *arguments)

    def submit(self, work: Work, function: Callable[..., T], *arguments: object) -> Future[T]:
        """The same, begun at once and not awaited."""
        return self._executors[work].submit(function, *arguments)

    async def finish(self, last: Callable[[], None]) -> None:
        """End the threads when what is under way is done, and then do ``last``; off the loop."""

        def end() -> None:
            for executor in self._executors.values():
                executor.shutdown()
            last()

        # No executor takes work at the interpreter's exit any more, and a thread of its own can
        # still be begun in most cases; a plain call where it cannot.
        loop = asyncio.get_running_loop()
        ended: asyncio.Future[None] = loop.create_future()

        def run() -> None:
            try:
                end()
            except BaseException as exc:
                loop.call_soon_threadsafe(_tell, ended, exc)
            else:
                loop.call_soon_threadsafe(_tell, ended, None)

        try:
            threading.Thread(target=run, name="bank-end").start()
        except RuntimeError:
            end()
            return
        await ended


def _tell(ended: asyncio.Future[None], exc: BaseException | None) -> None:
    if ended.done():
        return
    if exc is None:
        ended.set_result(None)
    else:
        ended.set_exception(exc)
