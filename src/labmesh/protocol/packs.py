"""Several short messages in one frame: a *pack*.

To send a message costs ZeroMQ, and the system below it, as much as it costs Python to make it.
Messages that are ready at the same time travel as one: a MessagePack array of their headers, byte
for byte as they would be sent alone. Only short messages in MessagePack without buffers are packed.

Most packs have nothing in them but *plain* calls or results: of numbers, short texts, bools and
None. Those are read in one go, by decoders that hold the limits themselves, in a sixth of the time
that they take one by one. What is not as plain as that is for the codec, message by message: it
alone says what is wrong with one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta, Raw, field

from labmesh.errors import ProtocolError, TooLarge
from labmesh.protocol.arrays import Buffer
from labmesh.protocol.messages import Call, Result
from labmesh.protocol.refusals import FAULTS, MAPS, Untyped

__all__ = [
    "MAX_MEMBER_BYTES",
    "MAX_PACK",
    "MAX_PACK_BYTES",
    "PlainCall",
    "PlainResult",
    "all_fit",
    "encode_result",
    "fits",
    "is_pack",
    "pack",
    "read_call",
    "read_calls",
    "read_results",
    "unpack",
]

#: Messages of one pack.
MAX_PACK: Final = 64
#: A longer message travels alone; so no pack that we send is over :data:`MAX_PACK_BYTES`.
MAX_MEMBER_BYTES: Final = 1000
#: The frame that every socket of a node lets in.
MAX_PACK_BYTES: Final = 65_536

_ARRAY16: Final = 0xDC
_pack = msgspec.msgpack.Encoder().encode
_split = msgspec.msgpack.Decoder(list[Raw]).decode

_SHORT: Final = 1024
_NUMBERS: Final = frozenset({type(None), bool, int, float})
_ShortText = Annotated[str, Meta(max_length=_SHORT - 1)]
_Scalar = bool | int | float | _ShortText | None
_FEW = Meta(max_length=256)


class PlainCall(Call, frozen=True, kw_only=True, omit_defaults=True, tag="call"):
    """A call with nothing in it that needs a second look, apart from its times."""

    version: Literal[1] = 1
    args: Annotated[list[_Scalar], _FEW] = field(default_factory=list)
    kwargs: Annotated[dict[_ShortText, _Scalar], _FEW] = field(default_factory=dict)


class PlainResult(Result, frozen=True, kw_only=True, omit_defaults=True, tag="result"):
    """A result that needs no second look."""

    value: _Scalar = None


#: How the header of a call begins, behind the byte that counts its fields.
_CALL: Final = b"\xa4type\xa4call"

_read_call = msgspec.msgpack.Decoder(PlainCall).decode
_read_calls = msgspec.msgpack.Decoder(list[PlainCall | Untyped]).decode
_read_results = msgspec.msgpack.Decoder(list[PlainResult | Untyped]).decode
_ONLY_CALLS: Final = {PlainCall}
_ONLY_RESULTS: Final = {PlainResult}


def fits(header: Buffer) -> bool:
    """Whether a message of this header alone may travel in a pack."""
    return len(header) <= MAX_MEMBER_BYTES and header[0] in MAPS


def all_fit(headers: Sequence[Buffer]) -> bool:
    """Whether these messages, one at least, may travel in one pack."""
    return (
        len(headers) <= MAX_PACK
        and max(map(len, headers)) <= MAX_MEMBER_BYTES
        and MAPS.issuperset([header[0] for header in headers])
    )


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


def read_calls(frame: Buffer) -> list[PlainCall] | None:
    """The calls in a pack of nothing but plain calls; None: :func:`unpack` it."""
    if len(frame) > MAX_PACK_BYTES:
        return None
    try:
        found = _read_calls(frame)
    except FAULTS:
        return None
    if set(map(type, found)) != _ONLY_CALLS or len(found) > MAX_PACK:
        return None
    calls: list[PlainCall] = found  # type: ignore[assignment]  # as the set of their types says
    return calls if _are_finite(calls) else None


def read_call(header: Buffer) -> PlainCall | None:
    """A plain call that travels alone; None: it is for the codec, as with :func:`read_calls`."""
    if type(header) is not bytes or len(header) > MAX_MEMBER_BYTES:
        return None
    if not header.startswith(_CALL, 1):
        return None
    try:
        call = _read_call(header)
    except FAULTS:
        return None
    return call if _are_finite((call,)) else None


def _are_finite(calls: Sequence[PlainCall]) -> bool:
    times = 0.0
    for each in calls:
        times += (each.deadline or 0.0) + (each.arrive_by or 0.0)
    # One that is not finite makes the sum so, which then differs from itself, or its difference.
    return times - times == 0.0


def read_results(frame: Buffer) -> list[PlainResult] | None:
    """The results in a pack of nothing but plain results; None: :func:`unpack` it."""
    if len(frame) > MAX_PACK_BYTES:
        return None
    try:
        found = _read_results(frame)
    except FAULTS:
        return None
    if set(map(type, found)) != _ONLY_RESULTS or len(found) > MAX_PACK:
        return None
    return found  # type: ignore[return-value]  # as the set of their types says


def encode_result(call_id: str, value: object) -> bytes | None:
    """The header of a result, where its value is plain; None: it needs the codec's care."""
    if type(value) in _NUMBERS or (type(value) is str and len(value) < _SHORT):
        try:
            return _pack(Result(id=call_id, value=value))
        except (OverflowError, UnicodeEncodeError):
            return None  # the codec says what is wrong
    return None


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
