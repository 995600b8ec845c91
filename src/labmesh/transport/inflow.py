"""The items of one stream, on the loop of its link."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any

from labmesh.protocol.codec import Decoded
from labmesh.protocol.flow import Inflow
from labmesh.protocol.messages import Item, Result

__all__ = ["ItemStream"]


class ItemStream:
    """What a method yields, one by one, and at last what it returns.

    At most ``credit`` items wait here; the method waits with the next one until there is room.

    :param ended: done with the reply, or the error, that ends the stream.
    :param more: tells the other side that so many more items may come.
    :param stop: tells the other side that nobody listens any more.
    """

    def __init__(
        self,
        credit: int,
        ended: asyncio.Future[Decoded | Result],
        more: Callable[[int], None],
        stop: Callable[[], None],
    ) -> None:
        self._flow = Inflow(credit)
        self._items: deque[Any] = deque()
        self._ended = ended
        self._more = more
        self._stop = stop
        self._changed = asyncio.Event()
        ended.add_done_callback(self._end)

    def __len__(self) -> int:
        return len(self._items)

    @property
    def result(self) -> Any:
        """What the method returned; None until it has."""
        ended = self._ended
        if not ended.done() or ended.cancelled() or ended.exception() is not None:
            return None
        answered = ended.result()
        message = answered.message if isinstance(answered, Decoded) else answered
        assert isinstance(message, Result)
        return message.value

    def take(self, item: Item) -> None:
        """An item came in.

        :raises ProtocolError: it is not the next one, or was not asked for.
        """
        self._flow.arrived(item.index)
        self._items.append(item.value)
        self._changed.set()

    async def next(self) -> Any:
        """The next item. Cancelling the wait ends the stream.

        :raises StopAsyncIteration: the method has returned.
        :raises LabmeshError: the method raised, or what happened to the link.
        """
        try:
            while not self._items:
                if self._ended.done():
                    if not self._ended.cancelled():
                        self._ended.result()  # raises what ended it
                    raise StopAsyncIteration
                self._changed.clear()
                await self._changed.wait()
        except asyncio.CancelledError:
            self.close()
            raise
        value = self._items.popleft()
        more = self._flow.taken()
        if more and not self._ended.done():
            self._more(more)
        return value

    def close(self) -> None:
        """Listen no more; the method is told to end. Twice is fine."""
        self._items.clear()
        if not self._ended.done():
            self._stop()
            self._ended.cancel()

    def _end(self, ended: asyncio.Future[Decoded | Result]) -> None:
        if not ended.cancelled():
            ended.exception()  # looked at, also where nobody reads to the end
        self._changed.set()
