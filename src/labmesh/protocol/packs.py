"""Several short messages in one frame: a *pack*.

To send a message costs ZeroMQ, and the system below it, as much as it costs Python to make it.
Messages that are ready at the same time travel as one: a MessagePack array of their headers, byte
for byte as they would be sent alone. Only short messages in MessagePack without buffers are packed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec
from msgspec import Raw

from labmesh.errors import ProtocolError, TooLarge
from labmesh.protocol.arrays import Buffer
from labmesh.protocol.refusals import FAULTS, MAPS

__all__ = [
    "MAX_MEMBER_BYTES",
    "MAX_PACK",
    "MAX_PACK_BYTES",
    "fits",
    "is_pack",
    "pack",
    "unpack",
]

#: Messages of one pack.
MAX_PACK: Final = 64
#: A longer message travels alone; so no pack that we send is over :data:`MAX_PACK_BYTES`.
MAX_MEMBER_BYTES: Final = 1000
#: The frame that every socket of a node lets in.
MAX_PACK_BYTES: Final = 65_536

_ARRAY16: Final = 0xDC
_split = msgspec.msgpack.Decoder(list[Raw]).decode


def fits(header: Buffer) -> bool:
    """Whether a message of this header alone may travel in a pack."""
    return len(header) <= MAX_MEMBER_BYTES and header[0] in MAPS


def is_pack(frame: Buffer) -> bool:
    """Whether this frame is a pack, by its first byte: an array, where a header is a map."""
    if not frame:
        return False
    first = frame[0]
    return first & 0xF0 == 0x90 or first == _ARRAY16


def pack(headers: Sequence[Buffer]) -> Buffer:
    """One frame of at most :data:`MAX_PACK` headers that fit; a single one stays as it is."""
    count = len(headers)
    if count == 1:
        return headers[0]
    lead = bytes([0x90 | count]) if count < 16 else bytes([_ARRAY16]) + count.to_bytes(2, "big")
    return lead + b"".join(headers)


def unpack(frame: Buffer) -> list[bytes]:
    """The headers in a pack; what is wrong within one of them is found when it is decoded.

    :raises TooLarge: over one of the limits.
    :raises ProtocolError: it is empty or cut off, or has something else in it than maps.
    """
    count = frame[0] & 0x0F if frame[0] != _ARRAY16 else int.from_bytes(frame[1:3], "big")
    if count > MAX_PACK or len(frame) > MAX_PACK_BYTES:
        raise TooLarge(
            f"a pack of {count} messages in {len(frame)} bytes; the limits are {MAX_PACK} messages "
            f"and {MAX_PACK_BYTES} bytes"
        )
    try:
        headers = [bytes(each) for each in _split(frame)]
    except FAULTS as cause:
        raise ProtocolError(f"this pack cannot be decoded: {str(cause)[:200]}") from cause
    if not headers:
        raise ProtocolError("object expected: this is an empty list, and a pack has messages in it")
    for each in headers:
        if each[0] not in MAPS:
            raise ProtocolError(
                f"object expected: a pack is a list of MessagePack maps, and one in this begins "
                f"with byte 0x{each[0]:02x}; packs have no packs in them, and no JSON"
            )
    return headers
