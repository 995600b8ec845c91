"""A relay whose driver does everything that a driver should not: rogue_relay.py OPTIONS.

OPTIONS are the keywords of RelayAgent as JSON. Prints ``ready`` when it serves.
"""

from __future__ import annotations

import asyncio
import builtins
import json
import math
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

from labmesh import RelayAgent


class OfTheDriver(Exception):
    """An exception that only this process knows."""


class Steering(BaseException):
    """No Exception at all."""


class Unprintable(Exception):
    """It cannot even be told."""

    def __str__(self) -> str:
        raise RuntimeError("no text")

    __repr__ = __str__


class Hostile:
    """A value that objects to being looked at."""

    def __getattr__(self, name: str) -> Any:
        raise SystemExit(name)

    def __repr__(self) -> str:
        raise KeyboardInterrupt


class Endless(dict[str, Any]):
    """A mapping that never ends."""

    def __iter__(self) -> Any:
        raise RecursionError("the end of it is not known")

    items = keys = values = __iter__  # type: ignore[assignment]


class Rogue:
    """Each method is one fault."""

    def raises(self, name: str, text: str = "channel 3 is gone") -> None:
        """An exception of Python's own."""
        kind = getattr(builtins, name, None) or getattr(asyncio, name)
        raise kind(text)

    def custom(self) -> None:
        """An exception that nobody else knows."""
        raise OfTheDriver("only here")

    def steering(self) -> None:
        """A BaseException that nobody else knows."""
        raise Steering("only here")

    def unprintable(self) -> None:
        """An exception without a text."""
        raise Unprintable

    def group(self) -> None:
        """Several exceptions at a time."""
        raise BaseExceptionGroup("both", [SystemExit(1), ValueError("no")])

    def leave(self) -> None:
        """End the program."""
        sys.exit(3)

    def recurse(self) -> Any:
        """Never come back."""
        return self.recurse()

    def exhaust(self) -> bytes:
        """More memory than there is."""
        return bytes(2**60)

    def in_a_thread(self) -> str:
        """A thread of the driver's own ends by an error."""
        threading.excepthook = lambda _: None
        thread = threading.Thread(target=self.leave)
        thread.start()
        thread.join()
        return "ended"

    def generator(self) -> Iterator[int]:
        """Is to be iterated."""
        yield 1

    async def async_generator(self) -> AsyncIterator[int]:
        """Is to be iterated."""
        yield 1

    def returned_generator(self) -> Any:
        """Nobody can know that it is one before it was called."""
        return (number for number in range(3))

    async def coroutine(self) -> str:
        """Is awaited."""
        await asyncio.sleep(0)
        return "awaited"

    def returned_coroutine(self) -> Any:
        """Is awaited, too."""
        return self.coroutine()

    async def coroutine_exits(self) -> None:
        """Ends the program from a coroutine."""
        await asyncio.sleep(0)
        raise SystemExit(4)

    async def stops_the_loop(self) -> str:
        """Ends the loop that it runs on."""
        asyncio.get_running_loop().stop()
        await asyncio.sleep(0)
        return "went on"

    def itself(self) -> Any:
        """The driver."""
        return self

    def a_class(self) -> Any:
        """A class."""
        return Rogue

    def a_function(self) -> Any:
        """A method."""
        return self.itself

    def hostile(self) -> Any:
        """What objects to being looked at."""
        return Hostile()

    def endless(self) -> Any:
        """What never ends."""
        return Endless(a=1)

    def a_set(self) -> set[int]:
        """No value of the wire."""
        return {1, 2}

    def a_cycle(self) -> list[Any]:
        """What contains itself."""
        cycle: list[Any] = []
        cycle.append({"again": cycle})
        return cycle

    def deep(self) -> list[Any]:
        """Deeper than any value may be."""
        value: list[Any] = []
        for _ in range(100_000):
            value = [value]
        return value

    def too_big(self) -> int:
        """No number of the wire."""
        return 2**64

    def a_surrogate(self) -> str:
        """No text."""
        return "\ud800"

    def keys(self) -> dict[Any, int]:
        """Keys that are no names."""
        return {(1, 2): 3}

    def nan(self) -> list[float]:
        """Numbers that are none."""
        return [math.nan, math.inf, -math.inf]

    def some_bytes(self) -> bytes:
        """Bytes."""
        return b"\x00\xff" * 1000

    def large(self) -> bytes:
        """100 MB."""
        return bytes(100_000_000)

    def nothing(self) -> None:
        """None."""

    def fine(self) -> str:
        """As it should be."""
        return "fine"


async def main(options: dict[str, Any]) -> None:
    """One relay."""
    async with RelayAgent(options.pop("relay_id"), Rogue(), **options):
        print("ready")
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(json.loads(sys.argv[1])))
