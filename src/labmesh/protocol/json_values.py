"""What JSON lacks, as objects with one key that begins with ``$``.

==============================================================  ==================================
``{"$float": "nan"}`` (or ``inf``, ``-inf``)                    a float that JSON cannot write
``{"$complex": [re, im]}``                                      complex
``{"$bytes": "<base64>"}``                                      bytes
``{"$datetime": "2026-01-31T12:00:00.5+00:00"}``                datetime; no offset: no zone
``{"$array": {"dtype": "<f8", "shape": [2], "base64": "…"}}``   array, elements in C order
``{"$scalar": {"dtype": "<f4", "value": 2.5}}``                 numpy scalar
``{"$map": [[key, value], …]}``                                 dict with a key that is not text,
                                                                or that begins with ``$``
==============================================================  ==================================

An object with a key that begins with ``$`` is always one of these, so nothing is ambiguous.
"""

from __future__ import annotations

import math
from base64 import b64encode
from collections.abc import Callable
from datetime import UTC, datetime
from types import NoneType
from typing import Any

import msgspec

from labmesh.errors import ProtocolError
from labmesh.protocol.arrays import ArrayData, Buffer, flat_view, unpack_array, unpack_scalar
from labmesh.protocol.values import Bounds, checked_int

__all__ = ["JsonLeaves", "Restoring"]

_SPECIAL_FLOATS = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}


class JsonLeaves:
    """Writes leaves as tagged objects."""

    plain: frozenset[type] = frozenset({NoneType, bool})

    def number(self, value: float) -> Any:
        if type(value) is int:
            return checked_int(value)
        return value if math.isfinite(value) else {"$float": str(value)}

    def octets(self, value: Buffer) -> dict[str, str]:
        return {"$bytes": _base64(value)}

    def array(self, array: ArrayData) -> dict[str, Any]:
        content = {"dtype": array.dtype, "shape": array.shape, "base64": _base64(array.buffer)}
        return {"$array": content}

    def scalar(self, dtype: str, value: Any) -> dict[str, Any]:
        return {"$scalar": {"dtype": dtype, "value": self._scalar_value(value)}}

    def complex_number(self, value: complex) -> dict[str, Any]:
        return {"$complex": [self.number(value.real), self.number(value.imag)]}

    def moment(self, value: datetime) -> dict[str, str]:
        return {"$datetime": value.isoformat()}

    def mapping(self, value: dict[Any, Any]) -> dict[str, Any]:
        if all(type(key) is str and not key.startswith("$") for key in value):
            return value
        return {"$map": [[self._key(key), each] for key, each in value.items()]}

    def _key(self, key: Any) -> Any:
        return self.number(key) if type(key) in (int, float) else key

    def _scalar_value(self, value: Any) -> Any:
        if type(value) is bytes:
            return self.octets(value)
        if type(value) is complex:
            return self.complex_number(value)
        return self.number(value) if type(value) in (int, float) else value


def _base64(value: Buffer) -> str:
    return b64encode(flat_view(value)).decode("ascii")


class _Array(msgspec.Struct):
    dtype: str
    shape: list[int]
    base64: bytes


class _Scalar(msgspec.Struct):
    dtype: str
    value: Any


class Restoring(Bounds):
    """Turns what was read from JSON back into values, and holds it to the limits."""

    def any(self, value: Any, depth: int = 0) -> Any:
        """Restore any value; ``depth``: the containers around it."""
        kind = type(value)
        if kind is str:
            return self.text(value)
        if kind is int:
            return checked_int(value)
        if kind is list:
            return self.items(value, depth)
        if kind is dict:
            tag = next((key for key in value if key.startswith("$")), None)
            return self._mapping(value, depth) if tag is None else self._tagged(tag, value, depth)
        return value

    def items(self, value: list[Any], depth: int = 0) -> list[Any]:
        """Restore the elements of a list."""
        self.enter(depth)
        return [self.any(each, depth + 1) for each in value]

    def fields(self, value: dict[str, Any]) -> dict[str, Any]:
        """Restore the values of a dict that a message declares; its keys are names, no tags."""
        return self._mapping(value, 0)

    def _mapping(self, value: dict[str, Any], depth: int) -> dict[str, Any]:
        self.enter(depth)
        self.keys(value)
        return {key: self.any(each, depth + 1) for key, each in value.items()}

    def _tagged(self, tag: str, value: dict[str, Any], depth: int) -> Any:
        if len(value) == 1 and tag == "$map":
            return self._map(value[tag], depth)
        if len(value) == 1 and tag in _LEAVES:
            return _LEAVES[tag](value[tag])
        raise ProtocolError(
            f"an object with the key {tag[:40]!r} must be one of {', '.join(_LEAVES)}, $map and "
            'have no other key; write a dict with such keys as {"$map": [[key, value], …]}'
        )

    def _map(self, content: Any, depth: int) -> dict[Any, Any]:
        self.enter(depth)
        pairs = msgspec.convert(content, list[tuple[Any, Any]])
        restored = {self.key(_simple(key)): self.any(each, depth + 1) for key, each in pairs}
        self.keys(restored)
        return restored


def _special_float(content: Any) -> float:
    if type(content) is not str or content not in _SPECIAL_FLOATS:
        raise ProtocolError("the content of $float must be nan, inf or -inf")
    return _SPECIAL_FLOATS[content]


def _complex(content: Any) -> complex:
    parts = [_simple(each) for each in msgspec.convert(content, tuple[Any, Any])]
    return complex(*msgspec.convert(parts, tuple[float, float]))


_SIMPLE: dict[str, Callable[[Any], Any]] = {
    "$float": _special_float,
    "$bytes": lambda content: msgspec.convert(content, bytes),
    "$complex": _complex,
}


def _simple(value: Any) -> Any:
    """A value that contains no others: a part of a complex, a scalar, a key."""
    if type(value) is not dict:
        return value
    tag, content = next(iter(value.items()), ("", None))
    if tag not in _SIMPLE or len(value) != 1:
        raise ProtocolError(f"expected a plain value, or an object with one of {list(_SIMPLE)}")
    return _SIMPLE[tag](content)


def _scalar(content: Any) -> Any:
    scalar = msgspec.convert(content, _Scalar)
    return unpack_scalar(scalar.dtype, _simple(scalar.value))


def _moment(content: Any) -> datetime:
    try:
        moment = datetime.fromisoformat(content)
        return moment if moment.tzinfo is None else moment.astimezone(UTC)
    except (TypeError, ValueError, OverflowError) as cause:
        raise ProtocolError(
            "the content of $datetime must be ISO 8601, such as 2026-01-31T12:00:00.5+00:00"
        ) from cause


def _array(content: Any) -> Any:
    array = msgspec.convert(content, _Array)
    return unpack_array(ArrayData(array.dtype, tuple(array.shape), array.base64))


_LEAVES: dict[str, Callable[[Any], Any]] = {
    **_SIMPLE,
    "$datetime": _moment,
    "$array": _array,
    "$scalar": _scalar,
}
