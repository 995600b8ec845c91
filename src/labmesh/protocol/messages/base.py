"""What all messages have in common: ids, limits, and the fields of every request and reply."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, NewType

from msgspec import Meta, Struct

__all__ = [
    "EPOCH",
    "ID",
    "ID_PATTERN",
    "LONG_TEXT",
    "PROTOCOL_VERSION",
    "SHA256",
    "SHORT_TEXT",
    "SIZE",
    "CallId",
    "DatasetId",
    "Epoch",
    "LiveState",
    "Message",
    "NodeId",
    "NodeKind",
    "Reply",
    "Request",
]

#: The version of this protocol; a request with another one is refused with code 415.
PROTOCOL_VERSION = 1

#: Ids and names: ASCII, no path separators, no leading dot or dash.
ID_PATTERN = r"^[A-Za-z0-9](?:[A-Za-z0-9._-]{0,126}[A-Za-z0-9_-])?\Z"

NodeId = NewType("NodeId", str)
Epoch = NewType("Epoch", str)
CallId = NewType("CallId", str)
DatasetId = NewType("DatasetId", str)

#: Limits of fields that several messages have.
ID = Meta(pattern=ID_PATTERN, max_length=128)
EPOCH = Meta(max_length=64)
SHORT_TEXT = Meta(max_length=256)
LONG_TEXT = Meta(max_length=65_536)
SHA256 = Meta(pattern=r"^[0-9a-f]{64}\Z")
SIZE = Meta(ge=0, le=2**53)

NodeKind = Literal["broker", "relay", "bank"]
LiveState = Literal["live", "suspect"]


class Message(Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="type"):
    """Root of requests and replies.

    ``value_fields`` names the fields whose arrays and large bytes travel as frames of their own
    (in all other fields values travel inside the header). ``has_body`` says that one raw buffer
    follows the header.
    """

    value_fields: ClassVar[tuple[str, ...]] = ()
    has_body: ClassVar[bool] = False


class Request(Message, frozen=True, kw_only=True, omit_defaults=True):
    """What every request carries."""

    #: chosen by the caller, echoed in each reply; unique among the caller's open requests, and for
    #: good among those that name a session
    id: Annotated[str, Meta(min_length=1, max_length=64)]
    version: int = PROTOCOL_VERSION
    #: the node that is meant; a port that another node took over must not answer for it
    target: Annotated[str, Meta(max_length=128)] = ""
    #: the incarnation of the target that the caller knows; empty: any
    epoch: Annotated[str, EPOCH] = ""
    #: seconds of the *target's* monotonic clock after which the request must not be begun
    deadline: float | None = None


class Reply(Message, frozen=True, kw_only=True, omit_defaults=True):
    """What every reply carries: the id of its request."""

    id: Annotated[str, Meta(max_length=64)]
