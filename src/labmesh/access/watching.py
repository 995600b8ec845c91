"""How a relay or bank keeps its copy of the broker's allow-list current, and what follows."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable

from labmesh.errors import Forbidden, LabmeshError
from labmesh.protocol.messages import AccessList, WatchAccess
from labmesh.transport.keys import Guard
from labmesh.transport.link import Link

__all__ = ["fetch_allow_list", "watch_allow_list", "watch_ended_keys"]

log = logging.getLogger(__name__)

#: The broker answers after 20 s also when nothing has changed.
_ANSWER_S = 30.0
_FIRST_S = 5.0
_AGAIN_S, _AGAIN_MAX_S = 0.1, 2.0
#: Keys whose time is over are looked for so often.
_LOOK_S = 1.0


async def fetch_allow_list(guard: Guard | None, broker: Link | None) -> None:
    """Have a list before anybody is told where this node is; where it has one, that will do.

    :raises LabmeshError: the broker does not answer.
    """
    if guard is None or guard.version or broker is None:
        return
    told = await broker.request(WatchAccess(id="-"), AccessList, timeout=_FIRST_S)
    await asyncio.to_thread(guard.take, told, broker.endpoint)


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
                await asyncio.to_thread(guard.take, told, link.endpoint)
                again_s = _AGAIN_S
                continue
        except LabmeshError as exc:
            log.info("the broker does not tell its allow-list, the last one holds: %s", exc)
        await asyncio.sleep(again_s)
        again_s = min(2 * again_s, _AGAIN_MAX_S)


async def watch_ended_keys(
    guard: Guard | None, end: Callable[[Callable[[str], bool]], None]
) -> None:
    """Have what belongs to a key ended soon after it is revoked, or its time is over; for ever.

    :param end: ends what users have open; it is given what tells whether a user's key is over.
    """
    if guard is None:
        return
    loop, changed = asyncio.get_running_loop(), asyncio.Event()

    def tell() -> None:
        # In the thread that noticed the change; a loop that has ended has nothing open.
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(changed.set)

    def is_over(user: str) -> bool:
        try:
            guard.check(user, "look")
        except Forbidden:
            return True
        return False

    guard.on_change(tell)
    while True:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LOOK_S):
                await changed.wait()
        changed.clear()
        end(is_over)
