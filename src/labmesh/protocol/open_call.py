"""A call that a callee has taken."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any, Literal

from msgspec import Struct

from labmesh.errors import LabmeshError
from labmesh.protocol.codec import Buffer
from labmesh.protocol.messages import Call, CallOutcome, Invocation
from labmesh.protocol.packs import PlainCall

__all__ = ["Ended", "OpenCall", "Owner", "given_of"]

#: A client: its session, or its connection when it has none.
Owner = Hashable
Ended = Literal["returned", "raised", "not_run"]

_PLAIN = frozenset({int, float, str, bool, type(None)})
#: Python has one and the same hash for -1 and -2.
_MINUS_ONE = "\0minus one"


# Thousands of them are remembered. None is part of a cycle, so Python need not look for any: where
# it did, that took a fifth of the time of a call.
class OpenCall(Struct, eq=False, gc=False):
    """A call that a callee has taken. ``begun_at`` is set right before the driver runs."""

    owner: Owner
    #: where its replies go; the newest connection that sent it
    origin: Any
    id: str
    method: str
    #: in the callee's clock, capped
    deadline: float
    #: it is remembered when it has ended: it belongs to a session
    kept: bool
    accepted_at: float
    #: of its parameters, by :func:`given_of`
    given: int = 0
    begun_at: float | None = None
    #: when its caller was last sent a sign of life, or has last sent it
    heard_at: float = 0.0
    ended: Ended | None = None
    ended_at: float = 0.0
    #: the frames of its last reply, while they are kept
    reply: list[Buffer] | None = None
    #: how it failed
    error: LabmeshError | None = None

    @property
    def state(self) -> CallOutcome:
        """How it stands, or how it ended."""
        if self.ended is not None:
            return self.ended
        return "queued" if self.begun_at is None else "running"

    @property
    def since(self) -> float:
        """When it got into its state."""
        if self.ended is not None:
            return self.ended_at
        return self.accepted_at if self.begun_at is None else self.begun_at


def given_of(request: Invocation) -> int:
    """A number that tells parameters from others, if they are numbers and short texts; else 0.

    Who sends another command under a used id is to be refused; but a repeat must never be, so what
    does not compare equal to itself when it is read again (NaN), and what is costly to compare, is
    not compared.
    """
    if not isinstance(request, Call):
        return 0
    args, kwargs = request.args, request.kwargs
    values = [*args, *kwargs.values()] if kwargs else args
    if type(request) is not PlainCall and not _PLAIN.issuperset(map(type, values)):
        return 0
    for each in values:
        if each != each:
            return 0
    if -1 in values:
        values = [_MINUS_ONE if each == -1 else each for each in values]
    return hash((len(args), *values, *kwargs, request.access)) or 1
