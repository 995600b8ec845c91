"""Who listens to what: callbacks and iterators, found by the id of the node that is heard."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Protocol

from labmesh.protocol.topics import matches

__all__ = ["Listeners", "Sink", "hears", "patterns_of"]

_WILDCARDS = frozenset("*?[")


class Sink(Protocol):
    """Takes items, until it ends."""

    @property
    def ended(self) -> bool:
        """Nothing more is wanted."""

    def put(self, *arguments: Any, key: str | None = None, size: int = 0) -> None:
        """The next item, which takes about ``size`` bytes."""

    def on_end(self, callback: Callable[[], object]) -> None:
        """Call ``callback()`` on the loop when this has ended."""

    def cancel(self) -> None:
        """End."""

    async def closed(self) -> None:
        """Wait until a cancelled one has ended."""


class Listeners:
    """The sinks of one kind of item.

    One that listens to single nodes costs nothing when the others publish.
    """

    def __init__(self) -> None:
        #: None: all nodes
        self._sinks: dict[Sink, tuple[str, ...] | None] = {}
        self._by_id: dict[str, dict[Sink, None]] = {}
        #: those that need a look at each id
        self._others: dict[Sink, None] = {}

    def add(self, sink: Sink, patterns: tuple[str, ...] | None = None) -> None:
        """Have a sink hear these nodes: ids and patterns; None: all."""
        self._sinks[sink] = patterns
        if patterns is None or any(_WILDCARDS & set(each) for each in patterns):
            self._others[sink] = None
        else:
            for each in patterns:
                self._by_id.setdefault(each, {})[sink] = None

    def discard(self, sink: Sink) -> None:
        """It has ended."""
        patterns = self._sinks.pop(sink, None)
        self._others.pop(sink, None)
        for each in patterns or ():
            sinks = self._by_id.get(each, {})
            sinks.pop(sink, None)
            if not sinks:
                self._by_id.pop(each, None)

    def of(self, node_id: str) -> list[Sink]:
        """Who hears this node."""
        sinks = [each for each in self._others if hears(self._sinks[each], node_id)]
        return [each for each in (*sinks, *self._by_id.get(node_id, ())) if not each.ended]

    def all(self) -> list[Sink]:
        """Everybody."""
        return [each for each in self._sinks if not each.ended]

    async def close(self) -> None:
        """End every sink, and wait for it."""
        sinks = list(self._sinks)
        for each in sinks:
            each.cancel()
        for each in sinks:
            await each.closed()
            self.discard(each)


def hears(patterns: tuple[str, ...] | None, node_id: str) -> bool:
    """Whether these patterns (None: all) name this id."""
    return patterns is None or any(matches(each, node_id) for each in patterns)


def patterns_of(ids: str | Iterable[str] | None) -> tuple[str, ...] | None:
    """What somebody gave as ids: None (all), an id or a pattern, or several of them."""
    if ids is None:
        return None
    patterns = (ids,) if isinstance(ids, str) else tuple(dict.fromkeys(ids))
    for each in patterns:
        if not isinstance(each, str):
            raise TypeError(f"ids and patterns are text, not {type(each).__name__}")
    return patterns
