"""Arrays and numpy scalars: between numpy, the wire, and machines that have no numpy.

Only numbers, times and text of fixed width cross the wire: the element type is matched against a
list before numpy sees it, so an array can never carry Python objects. A shape is compared with the
length of its buffer in Python's integers, which do not overflow.
"""

from __future__ import annotations

import math
import re
import struct
import sys
from dataclasses import dataclass
from typing import Any

from labmesh.errors import ProtocolError

__all__ = [
    "MAX_DIMENSIONS",
    "ArrayData",
    "Buffer",
    "flat_view",
    "is_numpy_array",
    "is_numpy_scalar",
    "pack_array",
    "pack_scalar",
    "unpack_array",
    "unpack_scalar",
]

#: What a frame may be: anything that hands its memory out as contiguous bytes.
Buffer = bytes | bytearray | memoryview

#: numpy 1.26 stops at 32.
MAX_DIMENSIONS = 32

_UNIT = r"(?:\[(?:[1-9]\d{0,8})?(?:Y|M|W|D|h|m|s|ms|us|ns|ps|fs|as)\])?"
_DTYPE = re.compile(
    r"\|(?:b1|i1|u1|S[1-9]\d{0,8})"
    r"|[<>](?:[iu][248]|f[248]|c(?:8|16)|U[1-9]\d{0,7}|[Mm]8" + _UNIT + ")"
)
_ALLOWED = "bool, int, uint, float (16 to 64 bit), complex, datetime64, timedelta64, bytes and text"

#: Element code → how ``struct`` packs one element (the byte order is put in front).
_PACKED = {
    "b1": "?", "i1": "b", "i2": "h", "i4": "i", "i8": "q", "u1": "B", "u2": "H", "u4": "I",
    "u8": "Q", "f2": "e", "f4": "f", "f8": "d", "c8": "ff", "c16": "dd", "M8": "q", "m8": "q",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class ArrayData:
    """An array as it crosses the wire, and what arrives where numpy is not installed.

    :param dtype: numpy's ``dtype.str``, such as ``<f8``: byte order, kind, bytes an element.
    :param shape: the length of each dimension; ``()`` is a single element.
    :param buffer: the elements in C order (the last index runs fastest), nothing between them.

    Raises :class:`ProtocolError` when the three do not fit, or the element type is not allowed.
    """

    dtype: str
    shape: tuple[int, ...]
    buffer: Buffer

    def __post_init__(self) -> None:
        expected = _array_bytes(self.dtype, self.shape)
        found = memoryview(self.buffer).nbytes
        if expected != found:
            raise ProtocolError(
                f"an array of {self.dtype} with shape {self.shape} has {expected} bytes, but its "
                f"buffer has {found}"
            )


def _item_bytes(dtype: str) -> int:
    if not _DTYPE.fullmatch(dtype):
        raise ProtocolError(
            f"arrays of dtype {dtype[:40]!r} cannot be sent; allowed are {_ALLOWED}: convert the "
            "array, for example with .astype(float)"
        )
    code = dtype[1:].partition("[")[0]
    size = 8 if code in ("M8", "m8") else int(code[1:])
    return 4 * size if code[0] == "U" else size


def _array_bytes(dtype: str, shape: tuple[int, ...]) -> int:
    item_bytes = _item_bytes(dtype)
    if len(shape) > MAX_DIMENSIONS:
        raise ProtocolError(f"an array has {len(shape)} dimensions; at most {MAX_DIMENSIONS}")
    if any(length < 0 for length in shape):
        raise ProtocolError("an array has a dimension of negative length")
    # An empty array can name huge lengths beside its zero; numpy multiplies them in 63 bits.
    if item_bytes * math.prod(max(length, 1) for length in shape) >= 2**62:
        raise ProtocolError("the product of an array's dimensions is out of range")
    return item_bytes * math.prod(shape)


def flat_view(buffer: Buffer) -> memoryview:
    """The same memory as a row of bytes; a copy when it has gaps or other elements than bytes."""
    view = memoryview(buffer)
    if view.format == "B" and view.ndim == 1 and view.contiguous:
        return view
    return memoryview(view.tobytes())


# ── numpy ───────────────────────────────────────────────────────────────────────────────────────


def _import_numpy() -> Any | None:
    """numpy, or None where it is not installed."""
    try:
        import numpy
    except ImportError:
        return None
    return numpy


def _is_loaded_numpy(value: object, name: str) -> bool:
    # A value of numpy's exists only where numpy is loaded; nothing is imported to look for it.
    return isinstance(value, getattr(sys.modules.get("numpy"), name, ()))


def is_numpy_array(value: object) -> bool:
    """Whether this is a numpy array of any class."""
    return _is_loaded_numpy(value, "ndarray")


def is_numpy_scalar(value: object) -> bool:
    """Whether this is one element of an array (``numpy.float64(2.5)``)."""
    return _is_loaded_numpy(value, "generic")


def pack_array(array: Any) -> ArrayData:
    """Describe a numpy array; shares its memory unless it has gaps or is not in C order.

    Raises :class:`ProtocolError` for a class of array that carries more than its elements (a mask,
    a unit), and for element types that are not allowed.
    """
    numpy = sys.modules["numpy"]
    if type(array) not in (numpy.ndarray, numpy.memmap):
        kind = f"{type(array).__module__}.{type(array).__qualname__}"
        raise ProtocolError(
            f"an array of type {kind} cannot be sent, since its mask, unit or other extras would "
            "be lost: send numpy.asarray(...) of it, and the extras beside it"
        )
    dtype = array.dtype.str
    _item_bytes(dtype)
    flat = numpy.ascontiguousarray(array).reshape(-1)
    _check_elements(numpy, flat, dtype)
    return ArrayData(dtype, array.shape, flat.view(numpy.uint8).data)


def unpack_array(described: ArrayData) -> Any:
    """The numpy array over the same memory (read-only when that is); itself without numpy."""
    numpy = _import_numpy()
    if numpy is None:
        return described
    array = numpy.ndarray(described.shape, described.dtype, described.buffer)
    _check_elements(numpy, array, described.dtype)
    return array


def _check_elements(numpy: Any, array: Any, dtype: str) -> None:
    """Refuse bytes that are no value of their type: numpy trusts them and fails much later."""
    if dtype[1] == "U":
        codes = array.reshape(-1).view(dtype[0] + "u4")
        if ((codes > 0x10FFFF) | ((codes >= 0xD800) & (codes < 0xE000))).any():
            raise ProtocolError("invalid unicode in an array of text")
    elif dtype == "|b1" and (array.reshape(-1).view(numpy.uint8) > 1).any():
        raise ProtocolError("an array of bool has a byte that is neither 0 nor 1")
    elif dtype[1:] == "M8" and not numpy.isnat(array).all():
        raise ProtocolError("an array of datetime64 without a unit has elements other than NaT")


def pack_scalar(scalar: Any) -> tuple[str, Any]:
    """Element type, and the same value as a plain Python one; times as their count of units."""
    kind = scalar.dtype.kind
    if kind in "SU":
        return kind, bytes(scalar) if kind == "S" else str.__str__(scalar)
    dtype = scalar.dtype.str
    _item_bytes(dtype)
    return dtype, int(scalar.view("i8")) if kind in "Mm" else scalar.item()


def unpack_scalar(dtype: str, value: Any) -> Any:
    """The numpy scalar again.

    Without numpy the plain value, or, for times, an :class:`ArrayData` of no dimension. Raises
    :class:`ProtocolError` when the value is not one of this element type.
    """
    text: type | None = {"S": bytes, "U": str}.get(dtype)
    if text is None:
        # Many writers of JSON and MessagePack write 3.0 as 3.
        if type(value) is int and dtype[1:2] == "f":
            value = float(value)
        element = ArrayData(dtype, (), _packed(dtype, value))
        if _import_numpy() is not None:
            return unpack_array(element)[()]
        return element if dtype[1] in "Mm" else value
    if type(value) is not text:
        raise _unfit(dtype, value)
    numpy = _import_numpy()
    return value if numpy is None else {"S": numpy.bytes_, "U": numpy.str_}[dtype](value)


def _packed(dtype: str, value: Any) -> bytes:
    _item_bytes(dtype)
    form = _PACKED.get(dtype[1:].partition("[")[0], "")
    expected = {"?": bool, "e": float, "f": float, "d": float, "ff": complex, "dd": complex}
    if not form or type(value) is not expected.get(form, int):
        raise _unfit(dtype, value)
    parts = (value.real, value.imag) if type(value) is complex else (value,)
    try:
        return struct.pack(("<" if dtype[0] == "|" else dtype[0]) + form, *parts)
    except (struct.error, OverflowError) as cause:
        raise _unfit(dtype, value) from cause


def _unfit(dtype: str, value: object) -> ProtocolError:
    return ProtocolError(f"this {type(value).__name__} is no scalar of dtype {dtype[:40]!r}")
