"""The broker's desk for questions about keys: who a node is, and the allow-list for the others."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable

from msgspec.structs import replace

from labmesh.errors import Busy, Forbidden, NotFound
from labmesh.protocol.messages import AccessList, Grant, NodeRecord, WatchAccess
from labmesh.protocol.rates import Rate
from labmesh.transport.keys import Security
from labmesh.transport.service import Answer, Origin

__all__ = ["AccessDesk"]

#: A question for a list that has not changed is answered after so long.
_WAIT_S = 20.0
#: Hellos of one key, or of one connection where none is proved.
_HELLOS_PER_S, _HELLOS_AT_ONCE = 100.0, 2000
#: Viewers and operators have no use for the names and limits of everybody else.
_MAY_WATCH = ("relay", "bank", "broker", "admin")


class AccessDesk:
    """Answers for the broker, on the running loop.

    :param changed: called after each change of the allow-list.
    """

    def __init__(self, security: Security, changed: Callable[[], None]) -> None:
        self._on_change = changed
        self._guard = security.guard
        self._mode = security.mode
        self._loop = asyncio.get_running_loop()
        self._changed = asyncio.Event()
        self._hellos = Rate(_HELLOS_PER_S, _HELLOS_AT_ONCE)
        if self._guard is not None:
            self._guard.on_change(self._tell)

    def checked(self, node: NodeRecord, origin: Origin) -> NodeRecord:
        """A node as it is to be listed: its key is the one that its connection has proved.

        :raises Busy: it says hello too often.
        """
        if not self._hellos.allows(origin.user or origin.peer, time.monotonic()):
            raise Busy(f"{node.node_id} says hello too often; wait a second, and say it once")
        grant = None if self._guard is None else self._guard.grant_of(origin.user)
        return replace(node, server_key="" if grant is None else grant.key)

    def is_revoked(self, node: NodeRecord) -> bool:
        """Whether the key that a listed node has proved is no longer that of this node."""
        if self._guard is None or not node.server_key:
            return False
        grant = Grant(name=node.node_id, role=node.kind, key=node.server_key)
        return self._guard.grant_of(grant.user) is None

    async def watch(self, request: WatchAccess, origin: Origin) -> Answer:
        """The allow-list, once it is another one than the asker has; at the latest after 20 s.

        :raises NotFound: the network has none.
        :raises Forbidden: it is not for the asker.
        """
        guard = self._guard
        if guard is None:
            raise NotFound(f"this network has no allow-list: its mode is {self._mode!r}")
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_WAIT_S):
                while guard.version == request.known_version:
                    await self._changed.wait()
        # Asked afterwards: it may have been revoked meanwhile.
        grant = guard.grant_of(origin.user)
        if grant is None or grant.role not in _MAY_WATCH:
            raise Forbidden("the allow-list is for relays, banks and admins")
        told: AccessList = guard.told(request.id)
        return told

    def _tell(self) -> None:
        # In the thread that noticed the change; a loop that has ended has nobody waiting.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._wake)

    def _wake(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()
        self._on_change()
