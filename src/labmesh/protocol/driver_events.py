"""The names of the events that a driver publishes itself."""

from __future__ import annotations

import re

from labmesh.protocol.ids import shown

__all__ = ["CUSTOMARY", "RESERVED", "check_event"]

#: What a relay tells of itself, which no driver may seem to say.
RESERVED = frozenset({"alive", "lease", "safe_state", "state_error", "stuck"})
#: Names that everybody understands: a text, a text, a number from 0 to 1.
CUSTOMARY = ("alarm", "message", "progress")

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,31}")


def check_event(name: object) -> str:
    """Return ``name`` when a driver may publish under it.

    :raises ValueError: it is none, or one of the relay's own.
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        what = shown(name) if isinstance(name, str) else f"a {type(name).__name__}"
        raise ValueError(
            f"{what} is no name of an event: it takes 1 to 32 of A-Z a-z 0-9 _ . -, beginning with "
            f"a letter, such as {', '.join(CUSTOMARY)}"
        )
    if name in RESERVED:
        raise ValueError(f"event {name!r} is the relay's own; choose another name")
    return name
