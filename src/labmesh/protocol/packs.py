"""Several short messages in one frame: a *pack*.

To send a message costs ZeroMQ, and the system below it, as much as it costs Python to make it.
Messages that are ready at the same time travel as one: a MessagePack array of their headers, byte
for byte as they would be sent alone. Only messages without buffers are packed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec
from msgspec import Raw

from labmesh.errors import ProtocolError, TooLarge
from labmesh.protocol.arrays import Buffer

__all__ = ["MAX_PACK", "MAX_PACKED_BYTES", "in_packs", "is_pack", "pack", "unpack"]

#: Messages of one pack.
MAX_PACK: Final = 256
#: A longer message travels alone; so a pack is at most MAX_PACK times as long.
MAX_PACKED_BYTES: Final = 1024

_ARRAY16: Final = 0xDC
_split = msgspec.msgpack.Decoder(list[Raw]).decode


def is_pack(frame: Buffer) -> bool:
    """Whether this frame is a pack, by its first byte: an array, where a header is a map."""
    if not frame:
        return False
    first = frame[0]
    return first & 0xF0 == 0x90 or first == _ARRAY16


def pack(messages: Sequence[Buffer]) -> bytes:
    """One frame of these headers: at most :data:`MAX_PACK`, in MessagePack."""
    count = len(messages)
    lead = bytes([0x90 | count]) if count < 16 else bytes([_ARRAY16]) + count.to_bytes(2, "big")
    return lead + b"".join(messages)


def in_packs(messages: Sequence[Buffer]) -> list[Buffer]:
    """The frames for any number of short messages, in their order."""
    if len(messages) == 1:
        return [messages[0]]
    return [pack(messages[start : start + MAX_PACK]) for start in range(0, len(messages), MAX_PACK)]


def unpack(frame: Buffer) -> list[bytes]:
    """The headers in a pack.

    :raises TooLarge: over one of the limits.
    :raises ProtocolError: it is cut off, or has something else in it.
    """
    count = frame[0] & 0x0F if frame[0] != _ARRAY16 else int.from_bytes(frame[1:3], "big")
    if count > MAX_PACK or len(frame) > MAX_PACK * (MAX_PACKED_BYTES + 1):
        raise TooLarge(
            f"a pack of {count} messages in {len(frame)} bytes; the limits are {MAX_PACK} messages "
            f"of {MAX_PACKED_BYTES} bytes"
        )
    try:
        parts = [bytes(each) for each in _split(frame)]
    except (msgspec.MsgspecError, RecursionError) as cause:
        raise ProtocolError(f"this pack cannot be decoded: {str(cause)[:200]}") from cause
    if any(is_pack(each) for each in parts):
        raise ProtocolError("a pack has messages in it, not packs")
    return parts
