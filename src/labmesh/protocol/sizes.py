"""Amounts of storage as people write them: ``"10 GB"``."""

from __future__ import annotations

import re

from labmesh.errors import ProtocolError
from labmesh.protocol.ids import shown

__all__ = ["parse_size"]

_UNITS = {
    "": 1,
    "B": 1,
    **{f"{prefix}B": 1000**power for power, prefix in enumerate("kMGTP", 1)},
    **{f"{prefix}iB": 1024**power for power, prefix in enumerate("KMGTP", 1)},
}
_FOLDED = {unit.lower(): factor for unit, factor in _UNITS.items()}
_SIZE = re.compile(r"\s*([0-9]{1,15}(?:\.[0-9]{1,9})?)\s*([A-Za-z]{0,3})\s*")
_MAX_BYTES = 2**60


def parse_size(text: str) -> int:
    """Bytes of ``"10 GB"``, ``"1.5TB"``, ``"512 MiB"``, ``"1000000"``; case does not matter.

    :raises ProtocolError: it is none, or none between 1 byte and 2**60.
    """
    found = _SIZE.fullmatch(text)
    factor = _FOLDED.get(found[2].lower()) if found else None
    size = round(float(found[1]) * factor) if found and factor else 0
    if not 1 <= size <= _MAX_BYTES:
        raise ProtocolError(
            f'{shown(text)} is no amount of storage; write it like "10 GB" (B, kB, MB, GB, TB, PB, '
            "or KiB, MiB, GiB, TiB, PiB)"
        )
    return size
