"""Users' values: what may travel, and the walk that takes a value apart for an encoding.

MessagePack and JSON each lack some of what a laboratory sends. :class:`Lowering` walks a value
once, holds it to the :class:`Limits` and asks a :class:`Leaves` for the form of what the encoding
has no word for. Nothing is pickled, and nothing is turned into its ``repr``: a value of another
type is refused with the name of its type and what to convert it to.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from datetime import UTC, datetime
from enum import Enum
from types import NoneType
from typing import Any, NoReturn, Protocol

import msgspec

from labmesh.errors import ProtocolError, TooLarge
from labmesh.protocol.arrays import (
    ArrayData,
    Buffer,
    is_numpy_array,
    is_numpy_scalar,
    pack_array,
    pack_scalar,
)

__all__ = [
    "INT_RANGE",
    "Bounds",
    "Checking",
    "Leaves",
    "Limits",
    "Lowering",
    "checked_int",
    "too_long_an_integer",
]

#: What fits into MessagePack: a signed or an unsigned integer of 64 bits.
INT_RANGE = range(-(2**63), 2**64)

#: From this length on it pays to look at a list of numbers as a whole.
_LONG = 256

_KEYS = frozenset({str, int, float, bool, NoneType})
_ALLOWED = (
    "None, bool, int, float, complex, text, bytes, datetime, list, tuple, dict, dataclass, Enum, "
    "numpy arrays and numpy scalars"
)
#: Types that msgspec would turn into text or a list without a word, and other frequent ones.
_ADVICE = {
    "set": "sorted(...) or list(...)",
    "frozenset": "sorted(...) or list(...)",
    "generator": "list(...)",
    "range": "list(...)",
    "Decimal": "float(...) or str(...)",
    "Fraction": "float(...) or str(...)",
    "date": "a datetime, or text by .isoformat()",
    "time": "text by .isoformat()",
    "timedelta": "seconds by .total_seconds()",
    "UUID": "str(...)",
    "PosixPath": "str(...)",
    "Timestamp": "a datetime by .to_pydatetime()",
    "Series": "an array by .to_numpy()",
    "DataFrame": "an array by .to_numpy(), or a dict by .to_dict('list')",
    "DataArray": "an array by .to_numpy()",
}


@dataclasses.dataclass(frozen=True, slots=True)
class Limits:
    """What a message may measure; held on both sides, so that a sender hears of it first.

    :param max_header_bytes: room for one text of the largest size and its envelope, or for 10⁵
        numbers in a list. What is larger belongs into arrays, bytes or datasets: those travel in
        frames of their own, and cost nothing to decode. A socket that needs no users' values
        should set less: 1 MiB of nested empty lists takes about 0.2 s to decode.
    :param max_value_bytes: a value in a frame of its own (the payload of an event, a file).
    :param max_depth: lists and dicts within each other, the outermost counts.
    :param max_keys: entries of one dict.
    :param max_text_bytes: one text, in UTF-8.
    :param max_containers: lists and dicts in one value, all together.
    """

    max_frames: int = 64
    max_header_bytes: int = 2**20 + 2**16
    max_value_bytes: int = 16 * 2**20
    max_depth: int = 32
    max_keys: int = 10_000
    max_text_bytes: int = 2**20
    max_containers: int = 2**17


class Leaves(Protocol):
    """How one encoding writes what it has no form of its own for."""

    #: types that need no look, each of a few bytes
    plain: frozenset[type]

    def number(self, value: float) -> Any: ...

    def octets(self, value: Buffer) -> Any: ...

    def array(self, array: ArrayData) -> Any: ...

    def scalar(self, dtype: str, value: Any) -> Any: ...

    def complex_number(self, value: complex) -> Any: ...

    def moment(self, value: datetime) -> Any:
        """Write a time: UTC when it has a zone, else a local time of no known zone."""
        ...

    def mapping(self, value: dict[Any, Any]) -> Any:
        """Write a dict whose values are written already."""
        ...


def checked_int(value: int) -> int:
    """The same, when it fits into 64 bits."""
    if value not in INT_RANGE:
        raise too_long_an_integer()
    return value


def too_long_an_integer() -> ProtocolError:
    """Why a number of more than 64 bits is refused."""
    return ProtocolError(
        "an integer below -2**63 or above 2**64 - 1 cannot be sent: send it as text or float"
    )


class Bounds:
    """Counts what a walk meets against the limits."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._containers = 0

    def begin(self) -> None:
        """Count from zero: another message."""
        self._containers = 0

    def enter(self, depth: int) -> None:
        """Go into a container that has ``depth`` others around it."""
        if depth >= self._limits.max_depth:
            raise ProtocolError(
                f"too deep: lists and dicts within each other over {self._limits.max_depth} "
                "levels, or a value that contains itself"
            )
        self._containers += 1
        if self._containers > self._limits.max_containers:
            raise TooLarge(
                f"more than {self._limits.max_containers} lists and dicts in one message: "
                "send arrays instead"
            )

    def text(self, value: str) -> str:
        limit = self._limits.max_text_bytes
        # Four bytes are the most that a character takes: most texts need no encoding to tell.
        if len(value) * 4 > limit and len(value.encode("utf-8", "surrogatepass")) > limit:
            raise TooLarge(f"a text of {len(value)} characters; the limit is {limit} bytes")
        return value

    def texts(self, values: Iterable[Any]) -> None:
        for each in values:
            if type(each) is str:
                self.text(each)

    def keys(self, value: dict[Any, Any]) -> None:
        if len(value) > self._limits.max_keys:
            raise TooLarge(f"a dict of {len(value)} keys; the limit is {self._limits.max_keys}")
        self.texts(value)

    def key(self, key: object) -> Any:
        """A key of a dict in its plain type."""
        plain = key.value if isinstance(key, Enum) else key
        for kind in (bool, str, int, float, NoneType):
            if isinstance(plain, kind):
                return plain if type(plain) is kind else _plain(plain)
        raise ProtocolError(
            f"a dict has a key of type {_type_name(key)}; keys are text (or int, float, bool, None)"
        )


class Lowering(Bounds):
    """Takes a value apart into what one encoding can write; the value itself is not changed.

    A value that the encoding can write as it is comes back itself, not copied.
    """

    def __init__(self, leaves: Leaves, limits: Limits) -> None:
        super().__init__(limits)
        self._leaves = leaves
        self._plain = leaves.plain

    def any(self, value: Any, depth: int = 0) -> Any:
        """Lower any value; ``depth``: the containers around it."""
        kind = type(value)
        if kind in self._plain:
            return value
        if kind is str:
            return self.text(value)
        if kind is list or kind is tuple:
            return self.items(value, depth)
        if kind is dict:
            return self._leaves.mapping(self._mapping(value, depth))
        if kind is int or kind is float:
            return self._leaves.number(value)
        return self._other(value, depth)

    def items(self, value: list[Any] | tuple[Any, ...], depth: int = 0) -> Any:
        """Lower the elements of a list."""
        self.enter(depth)
        # One pass in C finds out whether there is anything to do; long lists are of numbers.
        if set(map(type, value)) <= self._plain:
            return value
        return [self.any(each, depth + 1) for each in value]

    def fields(self, value: dict[Any, Any]) -> dict[str, Any]:
        """Lower the values of a dict that a message declares; its keys are names."""
        if set(map(type, value)) - {str}:
            raise ProtocolError("the names of arguments and facts must be text")
        return self._mapping(value, 0)

    def _mapping(self, value: dict[Any, Any], depth: int) -> dict[Any, Any]:
        self.enter(depth)
        if set(map(type, value)) - _KEYS:
            renamed = {self.key(key): each for key, each in value.items()}
            if len(renamed) != len(value):
                raise ProtocolError("two keys of a dict would become the same on the way")
            value = renamed
        self.keys(value)
        if set(map(type, value.values())) <= self._plain:
            return value
        return {key: self.any(each, depth + 1) for key, each in value.items()}

    def _other(self, value: Any, depth: int) -> Any:
        if isinstance(value, ArrayData):
            return self._leaves.array(value)
        if is_numpy_array(value):
            return self._leaves.array(pack_array(value))
        if is_numpy_scalar(value):
            return self._leaves.scalar(*pack_scalar(value))
        if isinstance(value, bytes | bytearray | memoryview):
            return self._leaves.octets(value)
        if isinstance(value, complex):
            return self._leaves.complex_number(value)
        if type(value) is datetime:
            return self._leaves.moment(_utc_or_local(value))
        return self.any(_plain(value), depth)


def _plain(value: Any) -> Any:
    """The same content in the builtin type that it extends or consists of."""
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, str):
        # Not str(value): that is the class's own idea of itself.
        return str.__str__(value)
    if isinstance(value, int):
        return int.__int__(value)
    if isinstance(value, float):
        return float.__float__(value)
    if isinstance(value, dict):
        return dict(value)
    if isinstance(value, list | tuple):
        return list(value)
    if isinstance(value, msgspec.Struct):
        return _struct_content(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = (field.name for field in dataclasses.fields(value))
        return {name: getattr(value, name) for name in names if hasattr(value, name)}
    _refuse(value)


def _struct_content(value: msgspec.Struct) -> Any:
    kind, config = type(value), value.__struct_config__
    content = [getattr(value, name) for name in kind.__struct_fields__]
    if config.array_like:
        return content if config.tag is None else [config.tag, *content]
    named = dict(zip(kind.__struct_encode_fields__, content, strict=True))
    if config.tag is not None and config.tag_field is not None:
        named = {config.tag_field: config.tag, **named}
    return {name: each for name, each in named.items() if each is not msgspec.UNSET}


def _utc_or_local(value: datetime) -> datetime:
    try:
        if value.utcoffset() is None:
            return value.replace(tzinfo=None)
        return value.astimezone(UTC)
    except (OverflowError, ValueError) as cause:
        raise ProtocolError("a datetime lies outside of the years 1 to 9999 in UTC") from cause


def _type_name(value: object) -> str:
    kind = type(value)
    module = "" if kind.__module__ == "builtins" else f"{kind.__module__}."
    return f"{module}{kind.__qualname__}"


def _refuse(value: object) -> NoReturn:
    advice = _ADVICE.get(type(value).__name__, "one of these")
    raise ProtocolError(
        f"a value of type {_type_name(value)} cannot be sent: convert it to {advice}. "
        f"Allowed are {_ALLOWED}",
        python_type=_type_name(value),
    )


def _all_plain(value: list[Any]) -> bool:
    # The same answer as a set of the elements' types, in a quarter of the time.
    try:
        msgspec.convert(value, list[bool | int | float | None])
    except msgspec.ValidationError:
        return False
    return True


class Checking(Bounds):
    """Holds values that were decoded from MessagePack to the limits; returns them unchanged."""

    def any(self, value: Any, depth: int = 0) -> Any:
        """Check any value; ``depth``: the containers around it."""
        kind = type(value)
        if kind is list:
            self.items(value, depth)
        elif kind is dict:
            self._mapping(value, depth)
        elif kind is str:
            self.text(value)
        return value

    def items(self, value: list[Any], depth: int = 0) -> list[Any]:
        """Check the elements of a list."""
        self.enter(depth)
        if len(value) < _LONG or not _all_plain(value):
            self._elements(value, depth)
        return value

    def fields(self, value: dict[str, Any]) -> dict[str, Any]:
        """Check the values of a dict that a message declares."""
        return self._mapping(value, 0)

    def _mapping(self, value: dict[Any, Any], depth: int) -> dict[Any, Any]:
        self.enter(depth)
        if set(map(type, value)) - _KEYS:
            raise ProtocolError("a dict has a key that is neither text nor a number")
        self.keys(value)
        self._elements(value.values(), depth)
        return value

    def _elements(self, values: Iterable[Any], depth: int) -> None:
        kinds = set(map(type, values))
        if not kinds.isdisjoint((list, dict)):
            for each in values:
                self.any(each, depth + 1)
        elif str in kinds:
            self.texts(values)
