"""What a user types on a command line → Python values."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import msgspec

from labmesh.errors import ConfigError, ProtocolError
from labmesh.protocol.codec import decode_value

__all__ = ["call_values", "keyword_values", "positional_values", "read_value"]

_KEYWORD = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)=(.*)", re.DOTALL)


def read_value(text: str) -> Any:
    """A value: JSON where it is JSON, else the text itself.

    ``2.5``, ``true``, ``null``, ``[1, 2]``, ``{"a": 1}``, ``"2.5"`` (the text), ``on`` (the text),
    and ``{"$float": "nan"}`` for what JSON lacks.

    :raises ConfigError: JSON that stands for no value.
    """
    try:
        msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return text
    try:
        return decode_value(text.encode(), json=True)
    except ProtocolError as exc:
        raise ConfigError(f"value {text[:60]!r}: {exc}") from exc


def call_values(words: Sequence[str]) -> tuple[list[Any], dict[str, Any]]:
    """The arguments of a call: ``name=value`` is a keyword, anything else is positional.

    A text that looks like ``name=value`` is written as JSON: ``'"name=value"'``.

    :raises ConfigError: a keyword twice.
    """
    positional = [each for each in words if not _KEYWORD.fullmatch(each)]
    keywords = [each for each in words if _KEYWORD.fullmatch(each)]
    return positional_values(positional), keyword_values(keywords)


def positional_values(words: Sequence[str]) -> list[Any]:
    """Each word as a value."""
    return [read_value(each) for each in words]


def keyword_values(words: Sequence[str]) -> dict[str, Any]:
    """Each ``name=value``.

    :raises ConfigError: one of another form, or a name twice.
    """
    values: dict[str, Any] = {}
    for word in words:
        match = _KEYWORD.fullmatch(word)
        if match is None:
            raise ConfigError(f"{word!r} is not name=value; write it like port=COM3")
        name, text = match.groups()
        if name in values:
            raise ConfigError(f"{name} is given twice")
        values[name] = read_value(text)
    return values
