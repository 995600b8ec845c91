"""Joining and leaving, told once to a client that may turn from one broker to another."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Iterable
from typing import Any

from labmesh.protocol.messages import NodeRecord, PresenceChange
from labmesh.protocol.presence import PresenceTold

__all__ = ["PresenceOnce"]

#: So long after a turn every node has registered with the broker, also if that has just begun.
_SETTLED_S = 5.0


class PresenceOnce:
    """Leaves out what was told already, and adds what no announcement told; on the running loop.

    :param spawn: makes a task that the client owns.
    :param refresh: has the directory fetched, and :meth:`listed` called with it.
    :param tell: called with each change that only the list shows.
    """

    def __init__(
        self,
        spawn: Callable[[Coroutine[Any, Any, Any], str], asyncio.Task[Any]],
        refresh: Callable[[], object],
        tell: Callable[[PresenceChange], object],
    ) -> None:
        self._spawn = spawn
        self._refresh = refresh
        self._tell = tell
        self._told = PresenceTold()
        self._settling: asyncio.Task[None] | None = None
        self._settled_at: float | None = None

    def is_news(self, change: PresenceChange) -> bool:
        """Take an announcement; False: nobody need hear it."""
        return self._told.is_news(change)

    def relinked(self) -> None:
        """Announcements may have been missed: a while from now the list is taken as the truth."""
        self._settled_at = time.monotonic() + _SETTLED_S
        if self._settling is None or self._settling.done():
            self._settling = self._spawn(self._settle(self._settled_at), "presence")

    def listed(self, nodes: Iterable[NodeRecord]) -> None:
        """The directory was fetched."""
        known = list(nodes)
        self._told.begin(known)
        if self._settled_at is not None and time.monotonic() >= self._settled_at:
            self._settled_at = None
            for each in self._told.differences(known):
                self._tell(each)

    async def _settle(self, until: float) -> None:
        while (left_s := until - time.monotonic()) > 0:
            await asyncio.sleep(left_s)
            until = self._settled_at or until
        self._refresh()
