"""What every node answers, and the two replies that fit any request."""

from __future__ import annotations

from typing import Annotated, Any

from msgspec import Meta, field

from labmesh.protocol.messages.base import LONG_TEXT, SHORT_TEXT, NodeKind, Reply, Request

__all__ = ["Done", "Failure", "GetStatus", "Ping", "Pong", "Status"]


class Ping(Request, frozen=True, kw_only=True, omit_defaults=True, tag="ping"):
    """Are you there, which incarnation, what does your clock say? → Pong.

    To a relay a caller can say who it is: ``caller``, as its user calls it, is shown to everybody
    while a call of this ``session`` keeps the driver busy.
    """

    session: Annotated[str, Meta(max_length=64)] = ""
    caller: Annotated[str, SHORT_TEXT] = ""


class Pong(Reply, frozen=True, kw_only=True, omit_defaults=True, tag="pong"):
    """The answer to Ping; ``clock`` is the node's monotonic clock in seconds."""

    node_id: str
    epoch: str
    clock: float


class Done(Reply, frozen=True, kw_only=True, omit_defaults=True, tag="done"):
    """It was done; there is nothing more to say."""


class Failure(Reply, frozen=True, kw_only=True, omit_defaults=True, tag="error"):
    """It was refused or failed: code and name of errors.py, a sentence, facts for a program."""

    code: int
    name: Annotated[str, Meta(max_length=64)]
    text: Annotated[str, LONG_TEXT] = ""
    retryable: bool = False
    detail: dict[str, Any] = field(default_factory=dict)


class GetStatus(Request, frozen=True, kw_only=True, omit_defaults=True, tag="get_status"):
    """What are you doing? → Status. Answered by the node's loop, also while its driver blocks."""


class Status(Reply, frozen=True, kw_only=True, omit_defaults=True, tag="status"):
    """The answer to GetStatus. ``facts`` depends on the kind of node; ages are in seconds."""

    node_id: str
    kind: NodeKind
    epoch: str
    uptime_s: float
    facts: dict[str, Any] = field(default_factory=dict)
