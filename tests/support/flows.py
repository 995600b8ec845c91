"""What the proxies of tests share: bytes that are held, and two directions that end together."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

__all__ = ["Flows", "until_one_ends"]


class Flows:
    """Whether bytes pass, in each direction by itself: ``up`` is to the server."""

    def __init__(self) -> None:
        self._flows = {"up": asyncio.Event(), "down": asyncio.Event()}
        self.release()

    def hold(self, *directions: str) -> None:
        """Pass nothing on in these directions, or in both, and soon take nothing more."""
        for each in directions or self._flows:
            self._flows[each].clear()

    def release(self) -> None:
        """Pass on what was held, and what comes."""
        for each in self._flows.values():
            each.set()

    async def may_pass(self, direction: str) -> None:
        """Wait while it is held."""
        await self._flows[direction].wait()


async def until_one_ends(*directions: Coroutine[Any, Any, None]) -> None:
    """Run both directions of a connection until one of them ends; then end the other."""
    tasks = [asyncio.ensure_future(each) for each in directions]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for each in tasks:
            each.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
