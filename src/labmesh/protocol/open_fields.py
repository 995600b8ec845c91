"""Which fields of a message hold users' values, found once from its type.

The codec rewrites only these; a message without any passes untouched.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol, TypeVar

import msgspec
from msgspec import inspect

from labmesh.errors import ProtocolError
from labmesh.protocol.values import checked_int

__all__ = ["Walk", "is_plain", "rewritten"]

S = TypeVar("S", bound=msgspec.Struct)


class Walk(Protocol):
    """One way through a message's values: lower, check or restore them."""

    def any(self, value: Any) -> Any: ...

    def items(self, value: list[Any]) -> Any: ...

    def fields(self, value: dict[str, Any]) -> Any: ...


Rewrite = Callable[[Any, Walk], Any]


@dataclass(frozen=True, slots=True)
class _OpenField:
    name: str
    rewrite: Rewrite


def rewritten(struct: S, walk: Walk) -> S:
    """The same struct with its users' values rewritten; itself when nothing changed.

    Also refuses control numbers that one of the encodings cannot carry: NaN and infinities, which
    compare as nobody expects, and integers of more than 64 bits.
    """
    changed = {}
    for field in _open_fields(type(struct)):
        value = getattr(struct, field.name)
        new = field.rewrite(value, walk)
        if new is not value:
            changed[field.name] = new
    return msgspec.structs.replace(struct, **changed) if changed else struct


def is_plain(struct: msgspec.Struct) -> bool:
    """Whether all users' values in it are numbers, short texts, bools or None, and not nested.

    Then MessagePack writes them as they are, and no walk finds anything: most calls are like this,
    and one look in place of a walk saves them a third of their time in the codec.
    """
    for name, kind in _open_kinds(type(struct)):
        value = getattr(struct, name)
        if kind is float:
            # A number that is not finite differs from itself, or its difference does.
            if value is not None and (type(value) is not float or value - value != 0.0):
                return False
        elif kind is list:
            if type(value) is not list or len(value) > _MANY:
                return False
            for each in value:
                if type(each) not in _SCALARS and not _is_short_text(each):
                    return False
        elif kind is dict:
            if type(value) is not dict or len(value) > _MANY:
                return False
            for key, each in value.items():
                if not _is_short_text(key):
                    return False
                if type(each) not in _SCALARS and not _is_short_text(each):
                    return False
        elif kind is int:
            if type(value) is not int:
                return False
        elif type(value) not in _SCALARS and not _is_short_text(value):
            return False
    return True


_SCALARS = frozenset({type(None), bool, int, float})
_SHORT = 1024
#: More elements are left to the walk, which counts them, and looks at long lists as a whole.
_MANY = 256


def _is_short_text(value: Any) -> bool:
    return type(value) is str and len(value) < _SHORT


@cache
def _open_kinds(kind: type[msgspec.Struct]) -> tuple[tuple[str, type], ...]:
    """The fields that :func:`is_plain` looks at, and what it expects; ``object``: any value."""
    declared = inspect.type_info(kind)
    assert isinstance(declared, inspect.StructType)
    return tuple(
        (field.name, _kind(field.type))
        for field in declared.fields
        if _rewrite(field.type) is not None and field.name != "version"
    )


def _kind(declared: inspect.Type) -> type:
    match declared:
        case inspect.ListType(item_type=inspect.AnyType()):
            return list
        case inspect.DictType(value_type=inspect.AnyType()):
            return dict
        case inspect.FloatType() | inspect.UnionType():
            return float
        case inspect.IntType():
            return int
    return object


@cache
def _open_fields(kind: type[msgspec.Struct]) -> tuple[_OpenField, ...]:
    declared = inspect.type_info(kind)
    assert isinstance(declared, inspect.StructType)
    rewrites = ((field.name, _rewrite(field.type)) for field in declared.fields)
    return tuple(_OpenField(name, rewrite) for name, rewrite in rewrites if rewrite is not None)


def _rewrite(declared: inspect.Type) -> Rewrite | None:
    match declared:
        case inspect.AnyType():
            return lambda value, walk: walk.any(value)
        case inspect.ListType(item_type=inspect.AnyType()):
            return lambda value, walk: walk.items(value)
        case inspect.DictType(value_type=inspect.AnyType()):
            return lambda value, walk: walk.fields(value)
        case inspect.ListType(item_type=inspect.StructType()):
            return _each_rewritten
        case inspect.StructType():
            return rewritten
        case inspect.FloatType() | inspect.IntType(le=None):
            return _checked_number
        case inspect.UnionType(types=types) if any(
            isinstance(each, inspect.FloatType) for each in types
        ):
            # The value of a condition may be text as well.
            may_be_text = any(isinstance(each, inspect.StrType) for each in types)
            return _checked_number_or_text if may_be_text else _checked_number
    return None


def _each_rewritten(structs: list[Any], walk: Walk) -> list[Any]:
    new = [rewritten(each, walk) for each in structs]
    return structs if all(map(_same, new, structs)) else new


def _same(new: object, old: object) -> bool:
    return new is old


def _checked_number(value: Any, walk: Walk) -> Any:
    if type(value) is int:
        return checked_int(value)
    if value is not None and not math.isfinite(value):
        raise ProtocolError("a field of a message must be a finite number")
    return value


def _checked_number_or_text(value: Any, walk: Walk) -> Any:
    return value if isinstance(value, str) else _checked_number(value, walk)
