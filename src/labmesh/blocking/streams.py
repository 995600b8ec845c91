"""The items of a method that yields, for a caller that blocks."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, Generic, Protocol, Self, TypeVar

from labmesh.errors import LabmeshError

__all__ = ["Source", "Stream"]

T = TypeVar("T")


class Source(Protocol):
    """The items on the background loop."""

    @property
    def result(self) -> Any:
        """What the method returned, once it has."""

    def __len__(self) -> int:
        """How many items can be had without waiting."""

    async def next(self) -> Any:
        """The next item.

        :raises StopAsyncIteration: there is none: the method has returned.
        """

    def close(self) -> None:
        """Have the method end; twice is fine."""


#: Runs a coroutine on the background loop and waits for it.
Run = Callable[[Coroutine[Any, Any, T]], T]


class Stream(Iterator[T], Generic[T]):
    """What a method yields: ``for point in psu.scan(0, 1): ...``

    As with a generator, the method begins when the first item is asked for, and a few items at
    most are made ahead of whoever takes them. It is told to end when the loop is left and nothing
    refers to this object any more, at once by :meth:`close` or at the end of a ``with`` statement,
    by Ctrl-C, and when the mesh is closed or the program dies. A link that breaks ends it.

    What is raised while it is iterated is what a call raises: the driver's error, ``LinkLost``.

    :param run: runs work on the background loop.
    :param begin: calls the method; run there.
    :param what: the method, for people.
    """

    def __init__(
        self, run: Run[Any], begin: Callable[[], Coroutine[Any, Any, Source]], what: str
    ) -> None:
        self._run = run
        self._begin = begin
        self._what = what
        self._ready: deque[T] = deque()
        #: ``ended`` by itself, ``closed``, or ``broken off``; empty: none of them yet
        self._end = ""
        self._source: Source | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._result: Any = None
        #: what ended it behind the items that are ready
        self._error: LabmeshError | None = None

    @property
    def result(self) -> Any:
        """What the method returned, as a generator does by ``return``; None where it does not.

        :raises RuntimeError: it has not ended by itself: iterate to the end first.
        """
        if self._end == "ended" and not self._ready:
            return self._result
        if self._ready or not self._end:
            why = "it is known when the last item was taken; iterate to the end first"
        else:
            why = f"it was {self._end} before its end"
        raise RuntimeError(f"{self._what} has no result: {why}")

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> T:
        if not self._ready and not self._end:
            self._fetch()
        if self._ready:
            return self._ready.popleft()
        if self._error is not None:
            error, self._error = self._error, None
            raise error
        raise StopIteration

    def _fetch(self) -> None:
        """Wait for the next item, and take those that came with it: one hop for all of them."""
        try:
            items = self._run(self._take())
        except BaseException as exc:
            # Ctrl-C among them: the notebook keeps the traceback, and with it this, for long.
            self._finish("broken off")
            if isinstance(exc, LabmeshError):
                # Which coroutine of which thread raised it says nothing to whoever iterates.
                raise exc.with_traceback(None)  # noqa: B904  (it is the same error)
            raise
        self._ready.extend(items)

    async def _take(self) -> list[Any]:
        if self._source is None:
            self._loop = asyncio.get_running_loop()
            self._source = await self._begin()
        source, items = self._source, []
        try:
            items.append(await source.next())
            while len(source):
                items.append(await source.next())
        except StopAsyncIteration:
            self._result = source.result
            self._end = "ended"
        except LabmeshError as exc:
            if not items:
                raise
            self._error, self._end = exc, "broken off"
        return items

    def close(self) -> None:
        """Take no more: the method is told to end. Twice is fine."""
        self._ready.clear()
        self._finish("closed")

    def _finish(self, how: str) -> None:
        """In any thread, also from a finalizer: nothing is waited for."""
        if self._end:
            return
        self._end = how
        if self._source is None or self._loop is None:
            return
        try:
            self._loop.call_soon_threadsafe(self._source.close)
        except RuntimeError:
            # The loop has ended, and its streams with it.
            if not self._loop.is_closed():
                raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __del__(self) -> None:
        self._finish("closed")

    def __repr__(self) -> str:
        how = self._end or ("not begun" if self._source is None else "under way")
        return f"<Stream of {self._what}: {how}>"
