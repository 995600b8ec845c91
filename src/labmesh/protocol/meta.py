"""What may be a dataset's metadata: plain values, which any program can read from a JSON file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from labmesh.errors import ProtocolError, TooLarge
from labmesh.protocol.arrays import is_numpy_scalar
from labmesh.protocol.ids import shown

__all__ = ["MAX_META_BYTES", "check_meta", "plain_meta"]

MAX_META_BYTES = 256 * 2**10
_MAX_DEPTH = 32


def check_meta(meta: dict[str, object], max_bytes: int = MAX_META_BYTES) -> None:
    """Refuse metadata that is not plain values: text, numbers, booleans, None, lists, dicts.

    :raises TooLarge: it is over ``max_bytes`` when encoded (MessagePack).
    :raises ProtocolError: the text names the place.
    """
    size: int | None
    try:
        size = len(msgspec.msgpack.encode(meta))
    except (TypeError, ValueError, OverflowError, RecursionError):
        size = None  # the walk below tells where
    if size is not None and size > max_bytes:
        raise TooLarge(
            f"meta takes {size} bytes, over the limit of {max_bytes}; put large values into the "
            "dataset",
            limit=max_bytes,
        )
    _check_plain(meta, "meta", 0)
    if size is None:
        raise ProtocolError("meta has text that is not valid Unicode")


def plain_meta(meta: Mapping[str, object]) -> dict[str, object]:
    """What a sender does with metadata, before a byte leaves: numpy's scalars become plain numbers
    and text, and the rest is checked as by :func:`check_meta`.
    """
    plain = {key: _without_numpy(value, 1) for key, value in meta.items()}
    check_meta(plain)
    return plain


def _without_numpy(value: Any, depth: int) -> object:
    if depth > _MAX_DEPTH:
        _check_plain(value, "meta", depth)
    if isinstance(value, dict):
        return {key: _without_numpy(inner, depth + 1) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_without_numpy(inner, depth + 1) for inner in value]
    return value.item() if is_numpy_scalar(value) else value


def _check_plain(value: object, place: str, depth: int) -> None:
    if depth > _MAX_DEPTH:
        raise ProtocolError(f"meta is nested deeper than {_MAX_DEPTH}")
    if isinstance(value, dict):
        for key, inner in value.items():
            if not isinstance(key, str):
                raise ProtocolError(f"{place} has a key that is not text; use text keys")
            _check_plain(inner, f"{place}[{shown(key)}]", depth + 1)
    elif isinstance(value, list | tuple):
        for index, inner in enumerate(value):
            _check_plain(inner, f"{place}[{index}]", depth + 1)
    elif isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise ProtocolError(f"{place} is an integer of more than 64 bits; write it as text")
    elif not isinstance(value, str | int | float | None):
        raise ProtocolError(
            f"{place} is a {type(value).__name__}; meta holds text, numbers, booleans, None, lists "
            "and dicts: convert it, for example by str(), .item() or .tolist()"
        )
