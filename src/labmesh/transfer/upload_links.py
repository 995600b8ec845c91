"""The links of uploads to a bank."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from weakref import WeakKeyDictionary

from labmesh.transport.link import Link
from labmesh.transport.sockets import Sockets

__all__ = ["own_link", "shared_link"]

#: A bank takes 64 requests of one connection at a time.
_AT_A_TIME = 48


@dataclass(eq=False)
class _Shared:
    link: Link
    users: int = 0
    turns: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(_AT_A_TIME))


_shared: WeakKeyDictionary[Sockets, dict[str, _Shared]] = WeakKeyDictionary()


@asynccontextmanager
async def own_link(sockets: Sockets, endpoint: str) -> AsyncIterator[Link]:
    """A link for one upload: the chunks of a large one would hold up others."""
    link = Link(sockets, endpoint, where="the bank")
    try:
        yield link
    finally:
        link.close()


@asynccontextmanager
async def shared_link(sockets: Sockets, endpoint: str) -> AsyncIterator[Link]:
    """A link that small uploads at the same time share: to make one costs more than they do."""
    links = _shared.setdefault(sockets, {})
    shared = links.get(endpoint)
    if shared is None:
        links[endpoint] = shared = _Shared(Link(sockets, endpoint, where="the bank"))
    shared.users += 1
    try:
        async with shared.turns:
            yield shared.link
    finally:
        shared.users -= 1
        if not shared.users:
            del links[endpoint]
            shared.link.close()
