"""What a client listens to, and the subscriptions that this needs.

A subscription is a prefix (``state.psu-1`` brings ``state.psu-10`` as well), and the broker keeps
each distinct one. So the interests of a client are counted, those that share a prefix share the
subscription, and beyond 64 prefixes of a family the whole family is cheaper for everybody.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TypeVar

from labmesh.protocol.topics import matches, subscription

__all__ = ["MAX_PREFIXES", "Changes", "Interests"]

T = TypeVar("T")

#: With more of one family, the family is subscribed to as a whole; with half of it, no longer.
MAX_PREFIXES = 64


@dataclass(frozen=True, slots=True)
class Changes:
    """Subscriptions to make and then those to end; in this order nothing is missed in between."""

    begin: frozenset[str] = frozenset()
    end: frozenset[str] = frozenset()


class _Family:
    """The interests in one family."""

    def __init__(self) -> None:
        self.patterns: Counter[str | None] = Counter()
        self.prefixes: Counter[str] = Counter()
        self.in_force: frozenset[str] = frozenset()
        self.is_whole = False


class Interests:
    """The interests of one client, by family and pattern (None: all nodes)."""

    def __init__(self) -> None:
        self._families: dict[str, _Family] = {}

    def add(self, family: str, pattern: str | None = None) -> Changes:
        """Somebody listens; as often as it is said.

        :raises ProtocolError: an unknown family, or a pattern that begins like no id.
        """
        prefix = subscription(family, pattern)
        held = self._families.setdefault(family, _Family())
        held.patterns[pattern] += 1
        held.prefixes[prefix] += 1
        return _settle(held, family)

    def remove(self, family: str, pattern: str | None = None) -> Changes:
        """Take one :meth:`add` back."""
        held = self._families[family]
        _count_down(held.patterns, pattern)
        _count_down(held.prefixes, subscription(family, pattern))
        return _settle(held, family)

    def wants(self, family: str, node_id: str) -> bool:
        """Whether anybody listens to this node: not every event that comes was asked for."""
        held = self._families.get(family)
        if held is None:
            return False
        patterns = held.patterns
        return (
            None in patterns
            or node_id in patterns
            or any(each is not None and matches(each, node_id) for each in patterns)
        )

    def in_force(self, family: str) -> frozenset[str]:
        """The subscriptions of a family, as they should be now."""
        held = self._families.get(family)
        return frozenset() if held is None else held.in_force


def _settle(held: _Family, family: str) -> Changes:
    whole = subscription(family)
    limit = MAX_PREFIXES // 2 if held.is_whole else MAX_PREFIXES
    held.is_whole = len(held.prefixes) > limit
    wanted = frozenset(held.prefixes)
    if held.is_whole or whole in wanted:
        wanted = frozenset({whole})
    changes = Changes(begin=wanted - held.in_force, end=held.in_force - wanted)
    held.in_force = wanted
    return changes


def _count_down(counts: Counter[T], key: T) -> None:
    counts[key] -= 1
    if not counts[key]:
        del counts[key]
