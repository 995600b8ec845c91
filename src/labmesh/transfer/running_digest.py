"""The SHA-256 of bytes that are on their way, taken beside."""

from __future__ import annotations

import asyncio
import hashlib
from collections import deque
from concurrent.futures import Executor

__all__ = ["RunningDigest"]

Piece = bytes | bytearray | memoryview

#: So many pieces are hashed in one go: a hop to a thread costs as much as 100 kB.
_TOGETHER = 4
#: Less than this is hashed sooner than a thread has begun.
_AT_ONCE_BYTES = 32 * 2**10


class RunningDigest:
    """Hashes pieces in a thread, in the order in which they are given; on the running loop."""

    def __init__(self, executor: Executor) -> None:
        self._executor = executor
        self._sha256 = hashlib.sha256()
        self._queue: deque[Piece] = deque()
        self._job: asyncio.Future[None] | None = None
        #: bytes that were given; those that are hashed
        self.reached = 0
        self._hashed = 0

    def add(self, offset: int, piece: Piece) -> None:
        """Take the bytes at ``offset``; those that were given before are skipped. They must not
        change afterwards.
        """
        new = memoryview(piece).cast("B")[max(0, self.reached - offset) :]
        if not new:
            return
        self.reached += len(new)
        if len(new) <= _AT_ONCE_BYTES and self._job is None:
            self._sha256.update(new)
            self._hashed += len(new)
            return
        self._queue.append(new)
        self._go_on()

    async def room(self, limit: int) -> None:
        """Wait until no more than ``limit`` bytes wait to be hashed."""
        while self.reached - self._hashed > limit and self._job is not None:
            await asyncio.wait([self._job])

    async def hexdigest(self) -> str:
        """Of everything that was given."""
        await self.room(0)
        return self._sha256.hexdigest()

    def _go_on(self) -> None:
        if self._job is None and self._queue:
            loop = asyncio.get_running_loop()
            self._job = loop.run_in_executor(self._executor, self._hash)
            self._job.add_done_callback(self._ended)

    def _ended(self, _job: asyncio.Future[None]) -> None:
        self._job = None
        self._go_on()

    def _hash(self) -> None:
        for _ in range(min(_TOGETHER, len(self._queue))):
            piece = self._queue.popleft()
            self._sha256.update(piece)
            self._hashed += len(piece)
