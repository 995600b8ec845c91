"""A wait that never sleeps, so that what is missed by looking is missed for ever."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from labmesh.transport.spinning import Spin

__all__ = ["Sleepless"]

T = TypeVar("T")


class Sleepless(Spin):
    """Always looks, and until it finds: its time stands still."""

    __slots__ = ("finds",)

    def __init__(self) -> None:
        super().__init__(allowed=True, clock=lambda: 0.0)
        #: how often it has looked and found something
        self.finds = 0

    @property
    def pays(self) -> bool:
        return True

    def look(self, find: Callable[[], T], since: float) -> T | None:
        found = super().look(find, since)
        self.finds += bool(found)
        return found
