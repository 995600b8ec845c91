"""A look at a large MessagePack header before it is decoded.

MessagePack allows any value as a key of a map. Python hashes keys of text with a secret, but a
tuple, a complex or a datetime without: whoever sends them can choose thousands with one hash, and
filling a dict with them takes minutes. Such keys are refused in the end, but only a decoded dict
can be looked at, so large headers are taken apart without building any dict first.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec
from msgspec import Raw

from labmesh.errors import ProtocolError, TooLarge
from labmesh.protocol.arrays import Buffer
from labmesh.protocol.values import Limits

__all__ = ["vet"]

#: Below this a header holds too few keys for a noticeable delay.
_LARGE: Final = 16_384
#: The same for each of the many parts of a large header.
_SMALL_PART: Final = 1024
#: The map of a message, the list of records in it, a record: around the users' values.
_ENVELOPE_DEPTH: Final = 4

_MAP16, _MAP32, _ARRAY16, _ARRAY32, _DOUBLE = 0xDE, 0xDF, 0xDC, 0xDD, 0xCB
#: First bytes of None, bool, int, float and text.
_KEYS: Final = frozenset(
    {*range(0x80), *range(0xA0, 0xC1), 0xC2, 0xC3, *range(0xCA, 0xD4), *range(0xD9, 0xDC)}
    | set(range(0xE0, 0x100))
)

_parts = msgspec.msgpack.Decoder(list[Raw]).decode
_plain_list = msgspec.msgpack.Decoder(list[str | int | float | bool | None]).decode


def vet(packed: Buffer, limits: Limits) -> None:
    """Refuse maps with too many keys, or keys that are neither text nor numbers.

    Looks only at what is large enough to matter; the rest is left to the checks after decoding.
    """
    if len(packed) < _LARGE:
        return
    content = bytes(packed)
    # Without a map of more than 15 keys there is nothing to find.
    if _MAP16 in content or _MAP32 in content:
        _vet_part(content, limits, 0)


def _vet_part(packed: bytes, limits: Limits, depth: int) -> None:
    if depth > limits.max_depth + _ENVELOPE_DEPTH:
        raise ProtocolError("too deep: lists and dicts within each other")
    lead = packed[0]
    if lead in (_MAP16, _MAP32) or lead & 0xF0 == 0x80:
        parts = _map_values(packed, limits)
    elif (lead in (_ARRAY16, _ARRAY32) or lead & 0xF0 == 0x90) and not _is_plain(packed):
        parts = _parts(packed)
    else:
        return
    for part in parts:
        if len(part) >= _SMALL_PART:
            _vet_part(bytes(part), limits, depth + 1)


def _map_values(packed: bytes, limits: Limits) -> list[Any]:
    width = {_MAP16: 2, _MAP32: 4}.get(packed[0], 0)
    count = int.from_bytes(packed[1 : 1 + width], "big") if width else packed[0] & 0x0F
    if count > limits.max_keys:
        raise TooLarge(f"a dict of {count} keys; the limit is {limits.max_keys}")
    # The same bytes as a list of keys and values: nothing is hashed.
    parts = _parts(bytes([_ARRAY32]) + (2 * count).to_bytes(4, "big") + packed[1 + width :])
    if any(bytes(key)[0] not in _KEYS for key in parts[::2]):
        raise ProtocolError("a dict has a key that is neither text nor a number")
    return parts[1::2]


def _is_plain(packed: bytes) -> bool:
    """Whether all elements are text, numbers or None."""
    count = int.from_bytes(packed[1:5], "big")
    if packed[0] == _ARRAY32 and len(packed) == 5 + 9 * count:
        # A long list of doubles is the usual case: its first bytes lie nine apart.
        return packed[5::9].count(_DOUBLE) == count or _decodes(packed)
    return _decodes(packed)


def _decodes(packed: bytes) -> bool:
    try:
        _plain_list(packed)
    except msgspec.ValidationError:
        return False
    return True
