"""The steps of one upload at a bank, which wait for those before them."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from typing import Any

from labmesh.errors import StorageError
from labmesh.protocol.messages import DatasetRecord, Reply
from labmesh.protocol.upload_steps import Step, Write
from labmesh.storage.base import Part

__all__ = ["Item", "Turn", "leave", "write_all"]

log = logging.getLogger(__name__)

#: Chunks of one upload that are written in one go: a hop to a thread costs as much as 100 kB. So
#: few of a window that its sender hears of the first while the rest are written.
_TOGETHER = 5


class Item:
    """A step that waits for its turn."""

    __slots__ = ("body", "done", "step")

    def __init__(self, step: Step, body: memoryview | None) -> None:
        self.step = step
        self.body = body
        #: of the record that it has stored, or of what is to be answered
        self.done: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    def end(self, outcome: DatasetRecord | Reply | None) -> None:
        """It was done."""
        if not self.done.done():
            self.done.set_result(outcome)

    def fail(self, exc: BaseException) -> None:
        """It was not."""
        if not self.done.done():
            self.done.set_exception(exc)


class Turn:
    """One upload: its part, and the steps that wait for those before them."""

    def __init__(self, part: Part | None = None) -> None:
        self.part = part
        self.queue: deque[Item] = deque()
        self.worker: asyncio.Task[None] | None = None
        self.syncing: asyncio.Task[None] | None = None
        self.timer: asyncio.TimerHandle | None = None
        #: set, and replaced, when more of it is durable, or it has failed
        self.moved = asyncio.Event()

    def take(self) -> list[Item]:
        """The next steps that can be done together: a run of chunks, or one of another kind."""
        items = [self.queue.popleft()]
        if _is_write(items[0]):
            while self.queue and len(items) < _TOGETHER and _is_write(self.queue[0]):
                items.append(self.queue.popleft())
        return items


def _is_write(item: Item) -> bool:
    return item.step.effect is None or isinstance(item.step.effect, Write)


def write_all(part: Part, pieces: list[tuple[int, memoryview]]) -> None:
    """In a thread: write these, which follow each other."""
    for offset, piece in pieces:
        part.write(offset, piece)


def leave(part: Part) -> None:
    """In a thread: what was acknowledged before a stop need not be sent again after it."""
    try:
        part.sync()
    except StorageError as exc:
        log.warning("an unfinished upload was not kept: %s", exc)
    part.leave()
