"""Topics of events: ``<family>.<id>``, built and taken apart.

======== ============= ============ ==========================================
family   id            published by payload
======== ============= ============ ==========================================
state    relay         relay        the driver's state, once an interval
event    relay         relay        something that happened
dataset  bank          bank         a dataset was stored
log      relay or bank relay, bank  a log line
tail     relay or bank relay, bank  the last sequence of each of its topics
presence relay or bank broker       a node joined, went silent, came back, left
mark     a token       broker       nothing: subscriptions before it are in force
======== ============= ============ ==========================================

An id may have dots in it, so the first dot of a topic ends the family.
"""

from __future__ import annotations

import re
from fnmatch import fnmatchcase

from labmesh.errors import ProtocolError
from labmesh.protocol.ids import MAX_ID_LENGTH, check_id, closest, shown

#: Families that relays and banks publish, each under its own id, and who publishes which.
NODE_FAMILIES = ("state", "event", "dataset", "log", "tail")
FAMILIES_OF = {"relay": ("state", "event", "log", "tail"), "bank": ("dataset", "log", "tail")}
#: Families that the broker alone publishes.
BROKER_FAMILIES = ("presence", "mark")
FAMILIES = NODE_FAMILIES + BROKER_FAMILIES

#: What the broker's proxy lets through from a node, before it asks whose topic it is.
PUBLISHER_PATTERN = re.compile(
    rf"(?:{'|'.join(NODE_FAMILIES)})\.[A-Za-z0-9._-]{{1,{MAX_ID_LENGTH}}}\Z"
)

_WILDCARD = re.compile(r"[*?\[]")
_LITERAL = re.compile(rf"[A-Za-z0-9._-]{{0,{MAX_ID_LENGTH}}}")


def topic(family: str, node_id: str) -> str:
    """``topic("state", "psu-1")`` is ``state.psu-1``.

    :raises ProtocolError: an unknown family, or an id that is none.
    """
    _check_family(family)
    return f"{family}.{check_id(node_id, 'the id in a topic')}"


def split(published: str | bytes) -> tuple[str, str]:
    """The family and id of a topic, as text or as it came in a frame.

    :raises ProtocolError: no topic; then nothing of it may be used.
    """
    text = published if isinstance(published, str) else published.decode("latin-1")
    family, dot, node_id = text.partition(".")
    if not dot:
        raise ProtocolError(f"topic {shown(text)} is not <family>.<id>, such as state.psu-1")
    _check_family(family)
    return family, check_id(node_id, "the id in a topic")


def _check_family(family: str) -> None:
    if family not in FAMILIES:
        near = closest(family, FAMILIES) or FAMILIES
        raise ProtocolError(f"topic family {shown(family)} is unknown; use {', '.join(near)}")


def publishable(published: str | bytes) -> bool:
    """Whether a relay or bank may publish under some topic of this form (not: under whose id)."""
    text = published if isinstance(published, str) else published.decode("latin-1")
    return PUBLISHER_PATTERN.match(text) is not None


def matches(pattern: str, node_id: str) -> bool:
    """Whether a shell-style pattern (``*``, ``?``, ``[a-f]``, ``[!a]``) names this id.

    Case counts. Without such a character it is the id itself: ``psu-1`` never names ``psu-10``.
    """
    return fnmatchcase(node_id, pattern)


def subscription(family: str, pattern: str | None = None) -> str:
    """The shortest prefix whose subscription brings every topic that ``pattern`` names.

    None: the whole family. ZeroMQ subscribes to prefixes, so more may come than was asked for
    (``state.psu-1`` brings ``state.psu-10``): filter what arrives with :func:`matches`.

    :raises ProtocolError: an unknown family, or a pattern that begins like no id.
    """
    _check_family(family)
    if pattern is None:
        return f"{family}."
    literal = _WILDCARD.split(pattern, maxsplit=1)[0]
    if not pattern or not _LITERAL.fullmatch(literal):
        raise ProtocolError(
            f"pattern {shown(pattern)} names no id; write an id or a pattern such as 'Inst-*'"
        )
    return f"{family}.{literal}"
