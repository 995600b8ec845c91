"""The rule for ids and names, and near misses for "did you mean" texts."""

from __future__ import annotations

import re
from collections.abc import Iterable
from difflib import get_close_matches

from labmesh.errors import ProtocolError

MAX_ID_LENGTH = 128

#: The rule in words, as error texts give it.
ID_RULE = (
    f"1 to {MAX_ID_LENGTH} of A-Z a-z 0-9 . _ -, beginning with a letter or digit, "
    "without '..', not ending in '.', and not a Windows device name such as con, nul or com1"
)

_CHARACTERS = re.compile(r"[A-Za-z0-9._-]+")
#: Windows opens the device for these names, whatever extension follows and in any case.
_DEVICE = re.compile(r"(?:con|prn|aux|nul|com[0-9]|lpt[0-9])(?:\..*)?", re.IGNORECASE)


def check_id(text: object, what: str = "id") -> str:
    """Return ``text`` when it is a valid id; ``what`` names it in the error ("relay id").

    An id is safe as a file name on every system, as a topic and in a log line.

    :raises ProtocolError: with the reason, the rule, and the text cut short and escaped.
    """
    if not isinstance(text, str):
        raise ProtocolError(f"{what} is a {type(text).__name__}, not text; the rule: {ID_RULE}")
    reason = _why_not(text)
    if reason:
        raise ProtocolError(f"{what} {shown(text)} {reason}; the rule: {ID_RULE}")
    return text


def _why_not(text: str) -> str:
    if not text:
        return "is empty"
    if len(text) > MAX_ID_LENGTH:
        return f"has {len(text)} characters"
    if not _CHARACTERS.fullmatch(text):
        return "has a character that is not allowed"
    if text[0] in "._-":
        return f"begins with {text[0]!r}"
    if ".." in text:
        return "has '..' in it"
    if text[-1] == ".":
        return "ends in '.'"
    if _DEVICE.fullmatch(text):
        return "is a Windows device name"
    return ""


def shown(text: str, characters: int = 40) -> str:
    """A text from outside for an error or log line: quoted, ASCII, on one line, cut short."""
    if len(text) <= characters:
        return ascii(text)
    return f"{text[:characters]!a}..."


def closest(name: str, known: Iterable[str]) -> list[str]:
    """At most three of ``known`` that are spelled like ``name``, best first; case is ignored."""
    spellings: dict[str, list[str]] = {}
    for each in known:
        spellings.setdefault(each.casefold(), []).append(each)
    # The comparison takes quadratic time, and the name may come from anywhere.
    near = get_close_matches(name[:MAX_ID_LENGTH].casefold(), spellings, n=3)
    return [each for folded in near for each in spellings[folded]][:3]


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """``did you mean 'a' or 'b'?``; empty when nothing is close."""
    near = closest(name, known)
    return f"did you mean {' or '.join(map(repr, near))}?" if near else ""
