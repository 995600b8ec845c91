"""What MessagePack lacks, as its extension types.

====  ================================  ===========================================================
code  value                             payload
====  ================================  ===========================================================
-1    datetime with a zone              MessagePack's own timestamp (UTC)
1     complex                           two big-endian doubles: real, imaginary
2     datetime without a zone           big-endian int64: microseconds since 1970-01-01 00:00
3     array                             MessagePack ``[dtype, shape, bytes | index of a buffer]``
4     bytes in a buffer                 MessagePack ``index of a buffer``
5     numpy scalar                      MessagePack ``[dtype, value]`` or ``[dtype, real, imag]``
====  ================================  ===========================================================
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from types import NoneType
from typing import Any

import msgspec
from msgspec.msgpack import Ext

from labmesh.errors import ProtocolError
from labmesh.protocol.arrays import ArrayData, Buffer, flat_view, unpack_array, unpack_scalar

__all__ = ["FRAME_BYTES", "PackedLeaves", "Unpacking"]

#: Arrays and bytes of this length and more travel as frames of their own.
FRAME_BYTES = 4096

COMPLEX, LOCAL_TIME, ARRAY, BUFFER, SCALAR = 1, 2, 3, 4, 5

_PAIR = struct.Struct(">dd")
_MICROSECONDS = struct.Struct(">q")
_EPOCH = datetime(1970, 1, 1)
_TICK = timedelta(microseconds=1)

_encode = msgspec.msgpack.Encoder().encode
_decode_array = msgspec.msgpack.Decoder(tuple[str, list[int], bytes | int]).decode
_decode_index = msgspec.msgpack.Decoder(int).decode
_decode_raws = msgspec.msgpack.Decoder(list[msgspec.Raw]).decode
_decode_text = msgspec.msgpack.Decoder(str).decode
_decode_float = msgspec.msgpack.Decoder(float).decode
_decode_bytes = msgspec.msgpack.Decoder(bytes).decode
_decode_plain = msgspec.msgpack.Decoder(str | int | float | bool).decode


class PackedLeaves:
    """Writes leaves as extension types; large ones into ``buffers``, while it has room."""

    plain: frozenset[type] = frozenset({NoneType, bool, int, float})

    def __init__(self, max_buffers: int = 0) -> None:
        self._max_buffers = max_buffers
        self.buffers: list[Buffer] = []

    def number(self, value: float) -> float:
        return value

    def octets(self, value: Buffer) -> bytes | Ext:
        buffer = value if type(value) is bytes else flat_view(value)
        index = self._own_frame(buffer)
        return bytes(buffer) if index is None else Ext(BUFFER, _encode(index))

    def array(self, array: ArrayData) -> Ext:
        buffer = flat_view(array.buffer)
        index = self._own_frame(buffer)
        place = buffer if index is None else index
        return Ext(ARRAY, _encode((array.dtype, array.shape, place)))

    def scalar(self, dtype: str, value: Any) -> Ext:
        if type(value) is complex:
            return Ext(SCALAR, _encode((dtype, value.real, value.imag)))
        return Ext(SCALAR, _encode((dtype, value)))

    def complex_number(self, value: complex) -> Ext:
        return Ext(COMPLEX, _PAIR.pack(value.real, value.imag))

    def moment(self, value: datetime) -> datetime | Ext:
        if value.tzinfo is not None:
            return value
        return Ext(LOCAL_TIME, _MICROSECONDS.pack((value - _EPOCH) // _TICK))

    def mapping(self, value: dict[Any, Any]) -> dict[Any, Any]:
        return value

    def _own_frame(self, buffer: bytes | memoryview) -> int | None:
        if len(buffer) < FRAME_BYTES or len(self.buffers) >= self._max_buffers:
            return None
        self.buffers.append(buffer)
        return len(self.buffers) - 1


class Unpacking:
    """Reads extension types; holds each buffer of a message to be named exactly once."""

    def __init__(self) -> None:
        self._buffers: Sequence[Buffer] = ()
        self._unread: set[int] = set()
        self._read: dict[int, Callable[[memoryview], Any]] = {
            COMPLEX: lambda payload: complex(*_PAIR.unpack(payload)),
            LOCAL_TIME: lambda payload: _EPOCH + _MICROSECONDS.unpack(payload)[0] * _TICK,
            ARRAY: self._array,
            BUFFER: lambda payload: bytes(self._take(_decode_index(payload))),
            SCALAR: _scalar,
        }

    def begin(self, buffers: Sequence[Buffer]) -> None:
        """The buffers that the next values may name."""
        self._buffers = buffers
        self._unread = set(range(len(buffers)))

    def body(self) -> Buffer:
        """The one buffer of a message that has a body."""
        if len(self._buffers) != 1:
            raise ProtocolError(
                f"this message is a header and one frame of bytes, not {len(self._buffers)}"
            )
        return self._take(0)

    def end(self) -> None:
        """Raise :class:`ProtocolError` when a buffer was not named."""
        if self._unread:
            raise ProtocolError(
                f"{len(self._unread)} frames behind the header that it does not refer to"
            )

    def hook(self, code: int, payload: memoryview) -> Any:
        """Read one extension type (the ``ext_hook`` of msgspec)."""
        read = self._read.get(code)
        if read is None:
            raise ProtocolError(f"extension type {code} is not known; known are -1 and 1 to 5")
        try:
            return read(payload)
        except struct.error as cause:
            raise ProtocolError(f"extension type {code} of wrong length") from cause

    def _take(self, index: int) -> Buffer:
        if index not in self._unread:
            raise ProtocolError(f"frame {index} is missing, or referred to twice")
        self._unread.remove(index)
        return self._buffers[index]

    def _array(self, payload: memoryview) -> Any:
        dtype, shape, place = _decode_array(payload)
        buffer = flat_view(self._take(place)) if isinstance(place, int) else place
        return unpack_array(ArrayData(dtype, tuple(shape), buffer))


def _scalar(payload: memoryview) -> Any:
    match _decode_raws(payload):
        case [dtype, value]:
            kind = _decode_text(dtype)
            read = _decode_bytes if kind == "S" else _decode_plain
            return unpack_scalar(kind, read(value))
        case [dtype, real, imag]:
            number = complex(_decode_float(real), _decode_float(imag))
            return unpack_scalar(_decode_text(dtype), number)
    raise ProtocolError("a numpy scalar is [dtype, value] or [dtype, real, imag]")
