"""Whether a node still lets anybody in: without its authenticator nobody gets in any more."""

from __future__ import annotations

import asyncio
import logging

from labmesh.transport.sockets import Sockets

__all__ = ["watch_authenticator"]

log = logging.getLogger(__name__)

_EVERY_S = 8.0
#: After a pause of the whole process its threads need a moment.
_AGAIN_S = 1.0


async def watch_authenticator(
    sockets: Sockets, *, every_s: float = _EVERY_S, again_s: float = _AGAIN_S
) -> None:
    """Look again and again; say it once when the authenticator is dead, and when it is back."""
    told = False
    while True:
        await asyncio.sleep(every_s)
        if not sockets.admits and not told:
            await asyncio.sleep(again_s)
        if sockets.admits == told:
            told = not told
            if told:
                log.error(
                    "%s is degraded: its authenticator does not answer, so nobody new gets in; "
                    "who is connected is served on. Restart it, and report this with its log",
                    sockets.name,
                )
            else:
                log.warning("%s lets new peers in again", sockets.name)
