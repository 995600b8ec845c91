"""A numpy array in a ``.npy`` file: its header, and which bytes a part of it needs. Pure.

The format is that of NEP 1 (``numpy.lib.format``): a magic word, a version, the length of a header,
and the header, a Python literal of dtype, order and shape. It is read without numpy's own reader,
which wants a file, and never with pickle.
"""

from __future__ import annotations

import ast
import math
from collections.abc import Iterator, Sequence
from itertools import product
from types import EllipsisType
from typing import Any, NamedTuple, TypeAlias

from labmesh.content.sources import Piece

__all__ = [
    "HEADER_BYTES",
    "Axis",
    "Index",
    "NpyHeader",
    "Span",
    "npy_header",
    "npy_header_bytes",
    "selection",
    "spans",
]

Index: TypeAlias = int | slice | EllipsisType | tuple[int | slice | EllipsisType, ...]

#: Every header that numpy writes for plain types is within so many bytes.
HEADER_BYTES = 4096
_MAGIC = b"\x93NUMPY"
#: numpy itself refuses a longer one.
_MAX_HEADER_BYTES = 10_000
_MAX_DIMENSIONS = 64
#: Bytes between two pieces that are fetched along, rather than by a request of its own.
GAP_BYTES = 2**16
#: Bytes that are fetched by one request.
SPAN_BYTES = 4 * 2**20


class NpyHeader(NamedTuple):
    """What the beginning of a ``.npy`` file says."""

    #: as ``numpy.lib.format.descr_to_dtype`` takes it
    descr: Any
    shape: tuple[int, ...]
    fortran_order: bool
    #: where the first element begins
    offset: int


def npy_header_bytes(beginning: Piece) -> int:
    """How many bytes the header of a file takes that begins so; it needs the first 12.

    :raises ValueError: this is no ``.npy`` file.
    """
    head = bytes(beginning[:12])
    if not head.startswith(_MAGIC) or len(head) < 12 or not 1 <= head[6] <= 3:
        raise ValueError("this dataset is not a .npy file; read it as bytes")
    size = 8 + _width(head) + int.from_bytes(head[8 : 8 + _width(head)], "little")
    if size > _MAX_HEADER_BYTES:
        raise ValueError(f"the header of this .npy file takes {size} bytes; read it as bytes")
    return size


def npy_header(beginning: Piece) -> NpyHeader:
    """The header of a file that begins so.

    :raises ValueError: this is no ``.npy`` file, or its header is damaged.
    """
    size = npy_header_bytes(beginning)
    head = bytes(beginning[:size])
    encoding = "utf-8" if head[6] == 3 else "latin-1"
    try:
        fields = ast.literal_eval(head[8 + _width(head) :].decode(encoding).strip())
        descr, shape, order = fields["descr"], fields["shape"], fields["fortran_order"]
    except (ValueError, SyntaxError, TypeError, KeyError, RecursionError, MemoryError) as exc:
        raise ValueError("the header of this .npy file is damaged; read it as bytes") from exc
    if (
        not isinstance(order, bool)
        or not isinstance(shape, tuple)
        or len(shape) > _MAX_DIMENSIONS
        or not all(type(each) is int and each >= 0 for each in shape)
    ):
        raise ValueError("the header of this .npy file makes no sense; read it as bytes")
    return NpyHeader(descr, shape, order, size)


def _width(head: bytes) -> int:
    """Bytes of the length of the header: more since version 2."""
    return 2 if head[6] == 1 else 4


class Axis(NamedTuple):
    """What is taken of one axis: ``length`` elements, ``step`` (above 0) apart, from ``start``."""

    start: int
    length: int
    step: int
    #: asked for backwards
    reverse: bool
    #: an index took one element: the axis is not in the result
    drop: bool


def selection(shape: Sequence[int], index: Index) -> list[Axis]:
    """What an index takes of each axis, as numpy's basic indexing has it.

    :raises IndexError: out of range, too many indices, or one that is no whole number or slice.
    """
    entries = list(index) if isinstance(index, tuple) else [index]
    dots = [place for place, each in enumerate(entries) if each is Ellipsis]
    if len(dots) > 1:
        raise IndexError("an index has one '...' at most")
    missing = len(shape) - (len(entries) - len(dots))
    if missing < 0:
        raise IndexError(f"too many indices: {len(entries)} for {len(shape)} dimensions")
    place = dots[0] if dots else len(entries)
    entries[place : place + len(dots)] = [slice(None)] * missing
    return [
        _axis(each, length, axis)
        for axis, (each, length) in enumerate(zip(entries, shape, strict=True))
    ]


def _axis(entry: Any, length: int, axis: int) -> Axis:
    if isinstance(entry, slice):
        chosen = range(*entry.indices(length))
        if chosen.step < 0:
            return Axis(chosen[-1] if chosen else 0, len(chosen), -chosen.step, True, False)
        return Axis(chosen.start, len(chosen), chosen.step, False, False)
    if isinstance(entry, bool) or not hasattr(entry, "__index__"):
        raise IndexError(
            f"a stored array takes whole numbers, slices and '...', not {type(entry).__name__}; "
            "read a range that covers it, and index that"
        )
    number = entry.__index__()
    if not -length <= number < length:
        raise IndexError(f"index {number} is out of bounds for axis {axis} of size {length}")
    return Axis(number % length, 1, 1, False, True)


class Span(NamedTuple):
    """Bytes to fetch, and what they are: of the elements at ``outer`` positions of the outer axes,
    those from ``first`` on, ``length`` in all, of the next axis, with all that is inside.
    """

    outer: tuple[int, ...]
    first: int
    length: int
    offset: int
    size: int


def spans(shape: Sequence[int], itemsize: int, axes: Sequence[Axis]) -> Iterator[Span]:
    """The ranges of bytes that cover a selection (not an empty one) of an array in C order.

    What lies more than ``GAP_BYTES`` apart is not fetched together, and no range is longer than
    ``SPAN_BYTES``, except where one element is.
    """
    strides = [itemsize * math.prod(shape[number + 1 :]) for number in range(len(shape))]
    #: from the first to behind the last selected byte of the axes from here on
    inner = [itemsize] * (len(axes) + 1)
    for number in reversed(range(len(axes))):
        axis = axes[number]
        inner[number] = (axis.length - 1) * axis.step * strides[number] + inner[number + 1]
    depth = 0
    for number, axis in enumerate(axes[:-1]):
        is_far = axis.length > 1 and axis.step * strides[number] - inner[number + 1] > GAP_BYTES
        if is_far or inner[number + 1] > SPAN_BYTES:
            depth = number + 1
    axis, step = axes[depth], axes[depth].step * strides[depth]
    block = axis.length
    if axis.length > 1 and step - inner[depth + 1] > GAP_BYTES:
        block = 1
    elif inner[depth] > SPAN_BYTES:
        block = max(1, 1 + (SPAN_BYTES - inner[depth + 1]) // step)
    base = sum(each.start * stride for each, stride in zip(axes, strides, strict=True))
    for outer in product(*(range(each.length) for each in axes[:depth])):
        begin = base + sum(
            position * each.step * stride
            for position, each, stride in zip(outer, axes, strides, strict=False)
        )
        for first in range(0, axis.length, block):
            length = min(block, axis.length - first)
            size = (length - 1) * step + inner[depth + 1]
            yield Span(outer, first, length, begin + first * step, size)
