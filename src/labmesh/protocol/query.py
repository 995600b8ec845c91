"""Conditions of a search as people write them: in a shell, as arguments in Python, as times.

>>> condition("temperature<4")
Condition(field='meta.temperature', op='<', value=4)
>>> conditions_of(sample__id="A1", name="scan-*")  # doctest: +NORMALIZE_WHITESPACE
[Condition(field='meta.sample.id', op='==', value='A1'),
 Condition(field='name', op='like', value='scan-*')]
"""

from __future__ import annotations

import math
import re
from datetime import date, datetime
from numbers import Integral, Real
from typing import Any, Literal, TypeAlias

from labmesh.errors import ProtocolError
from labmesh.protocol.ids import shown
from labmesh.protocol.messages import Condition
from labmesh.protocol.search import NUMBER_FIELDS, TEXT_FIELDS, Value

__all__ = ["condition", "conditions_of", "moment"]

_Operator: TypeAlias = Literal["==", "!=", "<", "<=", ">", ">=", "like", "in"]

#: Shorter names of fields.
_ALIASES = {"relay": "relay_id", "id": "dataset_id", "tag": "tags"}

_WORDS: dict[str, Value] = {"true": True, "false": False, "none": None, "null": None}
_OPERATORS: dict[str, _Operator] = {
    "=": "==",
    "==": "==",
    "!=": "!=",
    "<": "<",
    "<=": "<=",
    ">": ">",
    ">=": ">=",
    "~": "in",
}
_SUFFIXES: dict[str, _Operator] = {
    "eq": "==",
    "ne": "!=",
    "lt": "<",
    "le": "<=",
    "gt": ">",
    "ge": ">=",
    "like": "like",
    "in": "in",
}
_CONDITION = re.compile(r"\s*([^<>=!~]*?)\s*(==|!=|<=|>=|<|>|=|~)\s*(.*?)\s*", re.DOTALL)
_QUOTED = re.compile(r"""(["'])(.*)\1""", re.DOTALL)
_SIZE = re.compile(r"([0-9.]+)\s*((?:[kMGT]i?)?)B", re.IGNORECASE)
_DURATION = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*(s|min|m|h|d|w)")
_UNIT_S = {"s": 1, "m": 60, "min": 60, "h": 3600, "d": 86_400, "w": 604_800}


def condition(text: str) -> Condition:
    """A condition such as ``temperature<4``, ``sample.id=A1``, ``name=scan-*``, ``size>1GB``.

    The operators are ``=`` (or ``==``), ``!=``, ``<``, ``<=``, ``>``, ``>=`` and ``~`` for text
    inside. Names other than ``relay``, ``name``, ``kind``, ``size``, ``created``, ``id`` and
    ``tag`` are keys of the metadata, also behind ``meta.``. What looks like a number, ``true``,
    ``false`` or ``none`` is one; in quotes it is text. With ``=``, text with ``*`` or ``?`` is a
    pattern, unless it is in quotes.

    :raises ProtocolError: it cannot be read; the text says how one is written.
    """
    found = _CONDITION.fullmatch(text)
    if found is None or not found[1]:
        raise ProtocolError(
            f"{shown(text)} is no condition; write NAME=VALUE, or one of != < <= > >= ~ between "
            "them, such as temperature<4"
        )
    field = _field(found[1])
    op = _OPERATORS[found[2]]
    quoted = _QUOTED.fullmatch(found[3])
    if quoted is not None:
        return Condition(field=field, op=op, value=quoted[2])
    return _pattern_or(field, op, _value(field, op, found[3]))


def conditions_of(**facts: Any) -> list[Condition]:
    """Conditions from arguments: ``sample="A1"``, ``temperature__lt=4``, ``sample__id="A1"``.

    Names are as those of :func:`condition`, with two underscores between nested keys, and at the
    end one of ``__eq``, ``__ne``, ``__lt``, ``__le``, ``__gt``, ``__ge``, ``__like`` (a pattern),
    ``__in`` (text inside). ``relay``, ``name``, ``kind``, ``id`` and ``tag`` with ``*`` or ``?``
    are patterns; a time may be a :class:`~datetime.datetime`.

    :raises ProtocolError: a value is no text, number, boolean or None.
    """
    return [_keyword(name, value) for name, value in facts.items()]


def moment(when: str | float | date, now: float) -> float:
    """POSIX seconds of a time: ``"2h"`` before ``now`` (units ``s min h d w``), ``"2026-11-22"``
    (its begin), ``"2026-11-22T14:00+01:00"``, a :class:`~datetime.datetime` or
    :class:`~datetime.date`, or POSIX seconds. Without a zone it is the local one.

    :raises ProtocolError: it cannot be read; the text says how one is written.
    """
    if isinstance(when, datetime):
        return _posix(when)
    if isinstance(when, date):
        return _posix(datetime(when.year, when.month, when.day))
    if isinstance(when, str):
        ago = _DURATION.fullmatch(when.strip())
        if ago is not None:
            return now - float(ago[1]) * _UNIT_S[ago[2]]
        seconds = _iso(when.strip())
        if seconds is not None:
            return seconds
    elif not isinstance(when, bool) and math.isfinite(when):
        return float(when)
    raise ProtocolError(
        f"{shown(str(when))} is no time; write how long ago (30min, 2h, 3d), a date "
        "(2026-11-22), or a date and time (2026-11-22T14:00, with a zone such as +01:00)"
    )


def _keyword(name: str, value: Any) -> Condition:
    keys = name.split("__")
    op: _Operator | None = None
    if len(keys) > 1 and keys[-1] in _SUFFIXES:
        op = _SUFFIXES[keys.pop()]
    field = _field(".".join(keys))
    plain = _plain_value(field, name, value)
    if op is None:
        return _pattern_or(field, "==", plain) if field in TEXT_FIELDS else _equal(field, plain)
    return Condition(field=field, op=op, value=plain)


def _equal(field: str, value: Value) -> Condition:
    return Condition(field=field, op="==", value=value)


def _pattern_or(field: str, op: _Operator, value: Value) -> Condition:
    if op == "==" and isinstance(value, str) and ("*" in value or "?" in value):
        op = "like"
    return Condition(field=field, op=op, value=value)


def _field(name: str) -> str:
    name = _ALIASES.get(name, name)
    if name in TEXT_FIELDS or name in NUMBER_FIELDS or name.startswith("meta."):
        return name
    return f"meta.{name}"


def _plain_value(field: str, name: str, value: Any) -> Value:
    if field == "created" and isinstance(value, str | datetime):
        return _posix(value) if isinstance(value, datetime) else _time(value)
    if value is None or isinstance(value, str | bool):
        return value
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real):
        return float(value)
    raise ProtocolError(
        f"{name} is compared with a {type(value).__name__}; use text, a number, True, False or "
        "None, and one condition for each"
    )


def _value(field: str, op: _Operator, text: str) -> Value:
    """What an unquoted text means."""
    if field in TEXT_FIELDS or op == "in":
        return text
    if field == "created":
        return _time(text)
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    number = _number(text)
    if number is not None:
        return number
    size = _SIZE.fullmatch(text) if field == "size" else None
    return text if size is None else _bytes(size)


def _number(text: str) -> int | float | None:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return None


def _bytes(size: re.Match[str]) -> Value:
    number = _number(size[1])
    if number is None:
        return size[0]
    prefix = size[2].lower()
    unit = (1024 if prefix.endswith("i") else 1000) ** " kmgt".index(prefix[:1] or " ")
    return round(number * float(unit))


def _time(text: str) -> float:
    """An absolute time: what is relative to now would be another one on the next page."""
    number = _number(text)
    seconds = _iso(text) if number is None else float(number)
    if seconds is None:
        raise ProtocolError(
            f"created is compared with a date (2026-11-22) or a time (2026-11-22T14:00), not with "
            f"{shown(text)}; for how long ago there are 'since' and 'until'"
        )
    return seconds


def _iso(text: str) -> float | None:
    try:
        return _posix(datetime.fromisoformat(text))
    except ValueError:
        return None


def _posix(when: datetime) -> float:
    try:
        return when.timestamp()
    except (OverflowError, OSError, ValueError) as error:
        raise ProtocolError(f"{when} is out of the range of times; use a year near now") from error
