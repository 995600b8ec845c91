"""Values that a laboratory sends: strategies that make them, and a strict comparison."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import numpy as np
from hypothesis import strategies as st

_NUMBERS = ["|b1", "|i1", "|u1", "<i2", ">i4", "<i8", "<u4", ">u8", "<f2", "<f4", ">f8", "<c8"]
_TIMES = ["<M8[ns]", ">M8[25s]", "<m8[us]", "<m8"]


def same(sent: Any, received: Any) -> bool:
    """Equal in value and in type; NaN equals NaN."""
    if type(sent) is not type(received):
        return False
    if isinstance(sent, np.ndarray):
        layout = sent.dtype == received.dtype and sent.shape == received.shape
        return layout and sent.tobytes() == received.tobytes()
    if isinstance(sent, np.generic):
        return sent.dtype == received.dtype and (
            sent.tobytes() == received.tobytes() or (sent != sent and received != received)
        )
    if isinstance(sent, dict):
        # In order, and by type: 1, 1.0 and True are three keys here.
        pairs = zip(sent.items(), received.items(), strict=True)
        return len(sent) == len(received) and all(
            same(key, got_key) and same(each, got) for (key, each), (got_key, got) in pairs
        )
    if isinstance(sent, list):
        return len(sent) == len(received) and all(map(same, sent, received))
    if isinstance(sent, complex):
        return same(sent.real, received.real) and same(sent.imag, received.imag)
    if isinstance(sent, float):
        return sent.hex() == received.hex() or (math.isnan(sent) and math.isnan(received))
    if isinstance(sent, datetime):
        return sent == received and sent.tzinfo is received.tzinfo
    return bool(sent == received)


def _array_of_bytes(dtype: str, shape: list[int], raw: bytes) -> np.ndarray:
    count = math.prod(shape) * np.dtype(dtype).itemsize
    content = bytearray((raw * (count // len(raw) + 1))[:count])
    if dtype == "|b1":
        content = bytearray(byte & 1 for byte in content)
    return np.ndarray(shape, dtype, content)


_shapes = st.lists(st.integers(0, 4), max_size=3)
_raw = st.binary(min_size=1, max_size=16)
_arrays_of_numbers = st.builds(_array_of_bytes, st.sampled_from(_NUMBERS + _TIMES), _shapes, _raw)
_arrays_of_text = st.lists(st.text(max_size=5), min_size=1, max_size=5).map(
    lambda texts: np.array([text.rstrip("\0") or "x" for text in texts])
)
arrays = _arrays_of_numbers | _arrays_of_text | st.just(np.array(["NaT"], "M8"))

_elements = st.builds(
    lambda dtype, raw: _array_of_bytes(dtype, [1], raw)[0],
    st.sampled_from(_NUMBERS + _TIMES),
    _raw,
)
numpy_scalars = _elements | st.text(max_size=5).map(np.str_) | st.binary(max_size=5).map(np.bytes_)

#: Times that arrive as they were sent: of no zone, or of UTC.
moments = st.datetimes() | st.datetimes(timezones=st.just(UTC))
#: Times of any zone; they arrive as the same instant in UTC.
zoned_moments = st.datetimes(
    min_value=datetime(2, 1, 1),
    max_value=datetime(9998, 1, 1),
    timezones=st.integers(-1439, 1439).map(lambda minutes: timezone(timedelta(minutes=minutes))),
)

numbers = st.integers(-(2**63), 2**64 - 1) | st.floats() | st.complex_numbers() | st.booleans()
#: Now and then long enough for a frame of its own.
octets = st.binary(max_size=30) | st.sampled_from([bytes(4095), bytes(4096), b"\xff" * 5000])
texts = st.text(max_size=12) | st.sampled_from(
    ["$", "$bytes", "$map", "", "\0", "µV", "\U0001f600"]
)
leaves = st.none() | numbers | texts | octets | moments | arrays | numpy_scalars

_keys = texts | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | st.booleans()


def _containers(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return (
        st.lists(inner, max_size=4)
        | st.dictionaries(texts, inner, max_size=4)
        | st.dictionaries(_keys | st.none(), inner, max_size=4)
    )


values = st.recursive(leaves, _containers, max_leaves=12)
