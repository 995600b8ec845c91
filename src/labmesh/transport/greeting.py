"""What a server says of itself before any handshake: the mechanism in its ZMTP greeting.

libzmq does not tell why a handshake broke. The greeting does: each side sends it at once, readable,
to everybody (RFC 37, "Connection greeting").
"""

from __future__ import annotations

import asyncio

from labmesh.errors import ProtocolError
from labmesh.protocol.addresses import parse_connect

__all__ = ["mechanism_at"]

#: Signature and major version: enough for a server to send its own greeting.
_OURS = b"\xff" + bytes(8) + b"\x7f\x03"
_SIGNATURE = (0xFF, 0x7F)
_NAME = slice(12, 32)
_PATIENCE_S = 1.0


async def mechanism_at(endpoint: str) -> str:
    """``NULL``, ``CURVE``, ... : what the server at ``endpoint`` speaks; empty: it does not say.

    One connection that ends before the handshake begins; it takes at most a second.
    """
    try:
        async with asyncio.timeout(_PATIENCE_S):
            greeting = await _greeting_of(endpoint)
    except (OSError, EOFError, TimeoutError, ProtocolError):
        return ""
    if (greeting[0], greeting[9]) != _SIGNATURE:
        return ""
    return greeting[_NAME].rstrip(b"\0").decode("ascii", "replace")


async def _greeting_of(endpoint: str) -> bytes:
    address = parse_connect(endpoint)
    reader, writer = await asyncio.open_connection(address.host, address.port)
    try:
        writer.write(_OURS)
        return await reader.readexactly(_NAME.stop)
    finally:
        # Not waited for: nothing is left to be sent, and the other side may have closed it.
        writer.transport.abort()
