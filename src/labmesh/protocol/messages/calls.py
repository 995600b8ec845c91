"""Calls of a relay's driver: one, several in one trip, and what becomes of them."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from msgspec import Meta, field

from labmesh.protocol.messages.base import LONG_TEXT, SHORT_TEXT, Reply, Request

__all__ = [
    "MAX_BATCH",
    "Access",
    "Alive",
    "Batch",
    "BatchResult",
    "Call",
    "CallOutcome",
    "CallState",
    "Cancel",
    "GetCall",
    "Invocation",
    "Item",
    "More",
    "Result",
    "SessionRequest",
]

_CALL_ID = Meta(min_length=1, max_length=64)
_SESSION = Meta(max_length=64)
#: Calls of one batch. While it runs nobody else's call does.
MAX_BATCH = 256
_BATCH = Meta(max_length=MAX_BATCH)

#: What a call does with its name: run a method, read a value, write a value.
Access = Literal["call", "get", "set"]


class SessionRequest(Request, frozen=True, kw_only=True, omit_defaults=True):
    """A request of a client that can be known again over another connection.

    ``session`` is a random token of the client's, which nobody else can know. With it a call that
    is sent again under its id, over whatever connection, runs once, and its reply is kept for who
    asks again. Without it a client is its connection, and a repeated id is a new call as soon as
    the one before has ended.
    """

    session: Annotated[str, _SESSION] = ""


class Invocation(SessionRequest, frozen=True, kw_only=True, omit_defaults=True):
    """What moves an instrument: :class:`Call` and :class:`Batch`."""

    #: the lease under which this is sent; 0: none. Another lease than the one in force is a 423
    fence: Annotated[int, Meta(ge=0, le=2**53)] = 0
    #: seconds of the *target's* monotonic clock by which this must have arrived: a caller that
    #: hears nothing gives a call up long before its deadline, and then it must not begin any more
    arrive_by: float | None = None


class Call(Invocation, frozen=True, kw_only=True, omit_defaults=True, tag="call"):
    """Run a driver's method, or read or write one of its values → Alive* Item* Result or Failure.

    Items come from a method that yields: as many as ``credit`` and :class:`More` allow. With a
    credit of 0 it is refused.
    """

    value_fields: ClassVar[tuple[str, ...]] = ("args", "kwargs")

    method: Annotated[str, SHORT_TEXT]
    args: list[Any] = field(default_factory=list)
    kwargs: dict[str, Any] = field(default_factory=dict)
    access: Access = "call"
    credit: Annotated[int, Meta(ge=0, le=1024)] = 0


class Batch(Invocation, frozen=True, kw_only=True, omit_defaults=True, tag="batch"):
    """Several calls, back to back, with nothing of anybody else between them → Alive* BatchResult.

    ``calls`` has an entry ``[method, args, kwargs, access]`` each, which
    :mod:`labmesh.protocol.batches` reads and writes. All are checked before the first one runs.
    ``keep_going``: also behind one that failed.
    """

    value_fields: ClassVar[tuple[str, ...]] = ("calls",)

    calls: Annotated[list[Any], _BATCH]
    keep_going: bool = False


class Cancel(SessionRequest, frozen=True, kw_only=True, omit_defaults=True, tag="cancel"):
    """Take back a call of this client → Done; the call ends with 499.

    404: no such call is open. 409: it has begun; a generator or coroutine is told to end, any other
    method is told when it asks.
    """

    call: Annotated[str, _CALL_ID]


class More(SessionRequest, frozen=True, kw_only=True, omit_defaults=True, tag="more"):
    """So many more items of an open call can be taken → Done, or 404."""

    call: Annotated[str, _CALL_ID]
    credit: Annotated[int, Meta(ge=1, le=1024)]


class GetCall(SessionRequest, frozen=True, kw_only=True, omit_defaults=True, tag="get_call"):
    """What became of a call? → CallState. One that never arrived will not run after this answer."""

    call: Annotated[str, _CALL_ID]
    #: seconds since it was sent, as the client knows it
    age_s: Annotated[float, Meta(ge=0)] = 0.0


class Alive(Reply, frozen=True, kw_only=True, omit_defaults=True, tag="alive"):
    """A sign of life of an open call: it waits in the queue, or runs. Sent about once a second."""

    state: Literal["queued", "running"]


class Item(Reply, frozen=True, kw_only=True, omit_defaults=True, tag="item"):
    """One of the values that a method yields, counted from 0."""

    value_fields: ClassVar[tuple[str, ...]] = ("value",)

    index: Annotated[int, Meta(ge=0, le=2**53)]
    value: Any = None


class Result(Reply, frozen=True, kw_only=True, omit_defaults=True, tag="result"):
    """What the method returned."""

    value_fields: ClassVar[tuple[str, ...]] = ("value",)

    value: Any = None


class BatchResult(Reply, frozen=True, kw_only=True, omit_defaults=True, tag="batch_result"):
    """One entry for each call that ran or failed, in order; what is missing did not run.

    ``outcomes`` has ``[value]`` or ``[name, text, detail]`` (as in Failure), which
    :mod:`labmesh.protocol.batches` reads and writes.
    """

    value_fields: ClassVar[tuple[str, ...]] = ("outcomes",)

    outcomes: Annotated[list[Any], _BATCH]


#: How a call stands, or ended. ``unknown``: it is too long ago, or this relay was restarted since.
CallOutcome = Literal["queued", "running", "returned", "raised", "not_run", "unknown"]


class CallState(Reply, frozen=True, kw_only=True, omit_defaults=True, tag="call_state"):
    """The answer to GetCall."""

    value_fields: ClassVar[tuple[str, ...]] = ("value",)

    state: CallOutcome
    method: Annotated[str, SHORT_TEXT] = ""
    #: seconds since it began to wait, to run, or ended
    age_s: Annotated[float, Meta(ge=0)] = 0.0
    #: what it returned, where that was kept
    value: Any = None
    kept: bool = False
    #: how it failed, as in Failure
    error: Annotated[str, Meta(max_length=64)] = ""
    text: Annotated[str, LONG_TEXT] = ""
    detail: dict[str, Any] = field(default_factory=dict)
