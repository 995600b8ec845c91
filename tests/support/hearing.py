"""A callback that remembers what it was told, and wakes the test that waits for it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")

LIMIT_S = 10.0


class Heard:
    """Give it to ``on_state`` and its like: each call's arguments are one item.

    An only argument is the item itself; several are a tuple.
    """

    def __init__(self) -> None:
        self.items: list[Any] = []
        self._news = asyncio.Event()

    def __call__(self, *arguments: Any) -> None:
        self.items.append(arguments[0] if len(arguments) == 1 else arguments)
        self._news.set()

    async def until(self, enough: Callable[[list[Any]], T], timeout: float = LIMIT_S) -> T:
        """Wait until the items so far are ``enough``; gives what that function returned."""
        try:
            async with asyncio.timeout(timeout):
                while not (found := enough(self.items)):
                    self._news.clear()
                    await self._news.wait()
        except TimeoutError:
            raise AssertionError(f"not heard within {timeout:g} s; heard: {self.items}") from None
        return found

    async def count(self, number: int) -> list[Any]:
        """Wait until there are so many; gives the items so far."""
        await self.until(lambda items: len(items) >= number)
        return list(self.items)

    async def one(self, wanted: Callable[[Any], object]) -> Any:
        """Wait for the first item that is ``wanted``."""
        [item] = await self.until(
            lambda items: [each for each in items if wanted(each)][:1],
        )
        return item
