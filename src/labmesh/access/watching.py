"""How a relay or bank keeps its copy of the broker's allow-list current."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from labmesh.errors import LabmeshError
from labmesh.protocol.messages import AccessList, WatchAccess
from labmesh.transport.keys import Guard
from labmesh.transport.link import Link

__all__ = ["fetch_allow_list", "watch_allow_list"]

log = logging.getLogger(__name__)

#: The broker answers after 20 s also when nothing has changed.
_ANSWER_S = 30.0
_FIRST_S = 5.0
_AGAIN_S, _AGAIN_MAX_S = 0.1, 2.0


async def fetch_allow_list(guard: Guard | None, broker: Link | None) -> None:
    """Have a list before anybody is told where this node is; where it has one, that will do.

    :raises LabmeshError: the broker does not answer.
    """
    if guard is None or guard.version or broker is None:
        return
    told = await broker.request(WatchAccess(id="-"), AccessList, timeout=_FIRST_S)
    await asyncio.to_thread(guard.take, told)


async def watch_allow_list(guard: Guard | None, broker: Callable[[], Link | None]) -> None:
    """Take each new list as soon as the broker has it; for ever. While the broker is away, the
    list that was taken last holds.

    :param broker: the link to a broker that answers, or that is waited for.
    """
    again_s = _AGAIN_S
    while guard is not None:
        link = broker()
        try:
            if link is not None:
                await link.wait_up(_FIRST_S)
                request = WatchAccess(id="-", known_version=guard.version)
                told = await link.request(request, AccessList, timeout=_ANSWER_S)
                await asyncio.to_thread(guard.take, told)
                again_s = _AGAIN_S
                continue
        except LabmeshError as exc:
            log.info("the broker does not tell its allow-list, the last one holds: %s", exc)
        await asyncio.sleep(again_s)
        again_s = min(2 * again_s, _AGAIN_MAX_S)
