"""Users' callbacks: each has a queue and a task of its own, so that none harms another."""

from __future__ import annotations

import asyncio
import inspect
import logging
import time
from collections.abc import Callable
from contextvars import copy_context
from typing import Any

from labmesh.events.log_stream import owner
from labmesh.protocol.inbox import MAX_BYTES, Inbox
from labmesh.protocol.seldom import Seldom

__all__ = ["Subscription"]

log = logging.getLogger(__name__)

#: States that wait; or so many of each relay, when those are more: who watches a thousand relays
#: needs the same time to catch up as who watches ten.
_QUEUE, _STATES_OF_EACH = 2000, 20
#: Other items, and bytes of all: after a stall comes at once what was kept meanwhile, and its
#: replay.
_OTHERS = 25_000
_QUEUE_BYTES = 2 * MAX_BYTES
_BLOCKING_S = 0.1
#: How long quick callbacks are called one after the other before others get their turn.
_TURN_S = 0.001


class Subscription:
    """One callback, called for each item in order, on the loop that made this.

    A plain function is called; a coroutine function is awaited before the next item. A task that a
    plain function returns is kept until it ends. What any of them raises is logged. When it is
    slow, its queue keeps only the newest of each state (:attr:`conflated` counts the others).

    :meth:`cancel` ends it.
    """

    #: the next item waits until the task that a plain function returned has ended
    _waits_for_tasks = False

    def __init__(self, callback: Callable[..., object], what: str) -> None:
        self._callback = callback
        self.name = f"{what} callback {getattr(callback, '__qualname__', repr(callback))}"
        self._inbox: Inbox[tuple[Any, ...]] = Inbox(
            _QUEUE, of_each=_STATES_OF_EACH, most=_OTHERS, max_bytes=_QUEUE_BYTES
        )
        self._arrived = asyncio.Event()
        self._warnings = Seldom()
        self._returned: set[asyncio.Future[Any]] = set()
        # What a callback logs belongs to no node, or a log could be published without end.
        context = copy_context()
        context.run(owner.set, self.name)
        self._task = asyncio.get_running_loop().create_task(
            self._run(), name=self.name, context=context
        )

    def __repr__(self) -> str:
        return f"<Subscription {self.name}: {'ended' if self.ended else 'active'}>"

    @property
    def ended(self) -> bool:
        """No more calls will come."""
        return self._task.done()

    @property
    def conflated(self) -> int:
        """States that were skipped because a newer one had arrived."""
        return self._inbox.conflated

    @property
    def lost(self) -> int:
        """Other items that found no room."""
        return self._inbox.lost

    def put(self, *arguments: Any, key: str | None = None, size: int = 0) -> None:
        """Have the callback called with these arguments."""
        lost = self._inbox.lost
        self._inbox.put(arguments, key=key, size=size)
        if self._inbox.lost > lost and self._warnings.due(time.monotonic()) is not None:
            log.warning("%s is too slow: %d items lost", self.name, self._inbox.lost)
        self._arrived.set()

    def cancel(self) -> None:
        """No more calls; what it is doing is cancelled. In any thread, and twice is fine."""
        loop = self._task.get_loop()
        if loop is _running_loop():
            self._cancel()
            return
        try:
            loop.call_soon_threadsafe(self._cancel)
        except RuntimeError:
            if not loop.is_closed():
                raise

    def on_end(self, callback: Callable[[], object]) -> None:
        """Call ``callback()`` on the loop when this has ended, for whatever reason."""
        self._task.add_done_callback(lambda _: callback())

    def _cancel(self) -> None:
        for each in (self._task, *self._returned):
            each.cancel()

    async def closed(self) -> None:
        """Wait until a cancelled subscription has ended."""
        await asyncio.gather(self._task, *self._returned, return_exceptions=True)

    async def _run(self) -> None:
        while True:
            await self._arrived.wait()
            self._arrived.clear()
            since = time.monotonic()
            while len(self._inbox):
                await self._call(self._inbox.pop())
                # A turn of the loop for each call would cost more than most callbacks.
                if self._task.cancelling() or time.monotonic() - since > _TURN_S:
                    await asyncio.sleep(0)
                    since = time.monotonic()

    async def _call(self, arguments: tuple[Any, ...]) -> None:
        try:
            began = time.monotonic()
            returned = self._callback(*arguments)
            lasted_s = time.monotonic() - began
            if lasted_s > _BLOCKING_S:
                log.warning("%s blocked its loop for %.1f s", self.name, lasted_s)
            if isinstance(returned, asyncio.Future):
                self._keep(returned)
                if self._waits_for_tasks:
                    await asyncio.wait([returned])
            elif inspect.isawaitable(returned):
                await returned
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            log.warning("%s: something that it awaited was cancelled", self.name)
        except Exception:
            # Whatever a user's callback raises: its author is told, the next item comes.
            log.exception("%s raised", self.name)

    def _keep(self, task: asyncio.Future[Any]) -> None:
        self._returned.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Future[Any]) -> None:
        self._returned.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("%s: the task that it returned failed", self.name, exc_info=error)


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None
