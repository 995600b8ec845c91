"""An async generator of a driver's, run in one task by a thread whose loop stops in between."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

__all__ = ["AsyncItems", "Underway"]

#: What runs, and what to run the loop for.
Underway = tuple[asyncio.Task[None], asyncio.Future[None]]


class AsyncItems:
    """Gives the items of an async generator one by one.

    All of the generator runs in one task, which waits while its loop stands still between two
    items. So it may hold across a ``yield`` what belongs to a task: ``asyncio.timeout()``, a task
    group, context variables. Time that ends while the loop stands still is noticed when the
    generator is asked to go on.

    All of this belongs to the thread of one loop.
    """

    def __init__(self, items: AsyncGenerator[Any, Any]) -> None:
        self._items = items
        self._task: asyncio.Task[None] | None = None
        #: an item is there, or the end
        self._given: asyncio.Future[None]
        #: the generator is to go on
        self._is_wanted = False
        self._wanted: asyncio.Future[None]
        self._is_over = False
        self._is_enough = False
        self._error: BaseException | None = None
        #: what was given last
        self.item: Any = None

    def go_on(self, loop: asyncio.AbstractEventLoop) -> Underway:
        """Have it go on to its next item: run the loop, then look whether one :meth:`is_there`."""
        self._given = loop.create_future()
        if self._task is None:
            self._task = loop.create_task(self._run(loop))
            self._task.add_done_callback(self._ended)
        else:
            self._want()
        return self._task, self._given

    def end(self, loop: asyncio.AbstractEventLoop) -> Underway:
        """End it where it stands, after :meth:`go_on`: run the loop until it has cleaned up."""
        assert self._task is not None
        self._is_enough = True
        is_waiting = self._given.done() and not self._is_over
        if self._given.done():
            self._given = loop.create_future()
        if is_waiting:
            self._want()
        elif self._is_over:
            self._given.set_result(None)
        return self._task, self._given

    def is_there(self) -> bool:
        """Whether there is another item; False: it has ended.

        :raises BaseException: whatever the generator raised, SystemExit included.
        """
        error, self._error = self._error, None
        if error is None:
            return not self._is_over
        try:
            raise error
        finally:
            del error  # or this frame and the traceback keep each other, and the driver's locals

    def _want(self) -> None:
        self._is_wanted = True
        # It may just have been cancelled, and not know yet.
        if not self._wanted.done():
            self._wanted.set_result(None)

    async def _run(self, loop: asyncio.AbstractEventLoop) -> None:
        cancelled: asyncio.CancelledError | None = None
        try:
            while not self._is_enough:
                step = anext(self._items) if cancelled is None else self._items.athrow(cancelled)
                self.item = await step
                if not self._is_enough:
                    self._is_wanted, self._wanted = False, loop.create_future()
                    self._given.set_result(None)
                    cancelled = await self._until_wanted(loop)
            await self._items.aclose()
        except StopAsyncIteration:
            pass
        except BaseException as exc:
            # A SystemExit that left the task would stop the loop and be logged as never retrieved.
            self._error = exc
        finally:
            del cancelled

    async def _until_wanted(self, loop: asyncio.AbstractEventLoop) -> asyncio.CancelledError | None:
        """A timeout of the generator's that ends now is raised where it waits: at its yield."""
        cancelled = None
        while not self._is_wanted:
            try:
                await self._wanted
            except asyncio.CancelledError as exc:
                cancelled = exc
                self._wanted = loop.create_future()
        return cancelled

    def _ended(self, task: asyncio.Task[None]) -> None:
        if task.cancelled():  # before it began
            self._error = asyncio.CancelledError()
        self._is_over = True
        if not self._given.done():
            self._given.set_result(None)
