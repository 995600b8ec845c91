"""Who has to wait for a link sends in the order of coming."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

__all__ = ["Turns"]

Turn = asyncio.Future[None]


class Turns:
    """The requests that wait for a link to a node, on the running loop.

    :param none_waits: called with the node's id when the last of them has gone.
    """

    def __init__(self, none_waits: Callable[[str], None]) -> None:
        self._none_waits = none_waits
        #: node id → whoever came last
        self._last: dict[str, Turn] = {}

    def wait_for(self, node_id: str) -> bool:
        """Somebody waits for a link to this node."""
        return node_id in self._last

    def come(self, node_id: str) -> tuple[Turn | None, Turn]:
        """Wait behind all others: whoever is before this one, and its own turn, which
        :meth:`go` ends.
        """
        before = self._last.get(node_id)
        own = self._last[node_id] = asyncio.get_running_loop().create_future()
        return before, own

    def go(self, node_id: str, before: Turn | None, own: Turn) -> None:
        """It has its link, or has given up: whoever is behind it waits only for those before."""
        if before is None or before.done():
            self._gone(node_id, own)
        else:
            before.add_done_callback(lambda _: self._gone(node_id, own))

    def _gone(self, node_id: str, own: Turn) -> None:
        if not own.done():
            own.set_result(None)
        if self._last.get(node_id) is own:
            del self._last[node_id]
            self._none_waits(node_id)
