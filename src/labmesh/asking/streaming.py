"""A method that yields, as an async iterator."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, Self, TypeVar

from labmesh.transport.inflow import ItemStream

__all__ = ["AsyncStream"]

T = TypeVar("T")


class AsyncStream(AsyncIterator[Any]):
    """``async for point in relay.stream("scan"):`` what a method yields, one by one.

    As with a generator, the method begins when the first item is asked for. It is told to end by
    :meth:`aclose`, when the task that waits for an item is cancelled, and when nothing refers to
    this object any more. As an async context manager it is closed at the end of the block.

    :param begin: calls the method, on the client's loop.
    :param at_home: runs a coroutine there.
    """

    def __init__(
        self,
        begin: Callable[[], Coroutine[Any, Any, ItemStream]],
        at_home: Callable[[Coroutine[Any, Any, Any]], Coroutine[Any, Any, Any]],
        what: str,
    ) -> None:
        self._begin = begin
        self._at_home = at_home
        self._what = what
        self._source: ItemStream | None = None
        self._home: asyncio.AbstractEventLoop | None = None
        self._ended = False

    @property
    def result(self) -> Any:
        """What the method returned, as a generator does by ``return``; None until it has."""
        return None if self._source is None else self._source.result

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Any:
        if self._ended:
            raise StopAsyncIteration
        try:
            more, value = await self._at_home(self._next())
        except BaseException:
            # As of a generator: whatever it raised, also a cancellation, was its end.
            self._ended = True
            raise
        if not more:
            self._ended = True
            raise StopAsyncIteration
        return value

    async def _next(self) -> tuple[bool, Any]:
        """Whether there is one, and the next item: a future cannot carry a StopAsyncIteration."""
        if self._source is None:
            self._home = asyncio.get_running_loop()
            self._source = await self._begin()
        try:
            return True, await self._source.next()
        except StopAsyncIteration:
            return False, None

    async def aclose(self) -> None:
        """Take no more: the method is told to end. Twice is fine."""
        self._ended = True
        if self._source is not None:
            await self._at_home(self._close(self._source))

    @staticmethod
    async def _close(source: ItemStream) -> None:
        source.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    def __del__(self) -> None:
        if self._source is None or self._home is None or self._ended:
            return
        try:
            self._home.call_soon_threadsafe(self._source.close)
        except RuntimeError:
            # The loop has ended, and its streams with it.
            if not self._home.is_closed():
                raise

    def __repr__(self) -> str:
        how = "ended" if self._ended else "not begun" if self._source is None else "under way"
        return f"<stream of {self._what}: {how}>"
