"""A row of the table of bad messages, and what rows are made of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec

__all__ = ["BAD", "Case", "nested", "pack", "request"]

pack = msgspec.msgpack.encode

BAD = (400,)


@dataclass(frozen=True)
class Case:
    """One bad message.

    ``codes`` are the error codes one of which must come; 0 stands for a reply that is no error,
    None for none at all (the sender is disconnected, or its message is dropped: there is nobody to
    answer).
    """

    group: str
    name: str
    frames: list[bytes]
    codes: tuple[int | None, ...]


def request(kind: str, **fields: Any) -> list[bytes]:
    """The frames of a request."""
    return [pack({"type": kind, "id": "7", **fields})]


def nested(levels: int) -> Any:
    """Lists within each other."""
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value
