"""The broker's directory: who is here, and their last states."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct

from labmesh.protocol.messages.base import (
    EPOCH,
    ID,
    SHORT_TEXT,
    Epoch,
    LiveState,
    NodeId,
    Reply,
    Request,
)

__all__ = [
    "Goodbye",
    "Heartbeat",
    "Hello",
    "LastEvent",
    "LastEvents",
    "ListLast",
    "ListNodes",
    "Mark",
    "NodeList",
    "NodeRecord",
    "Replay",
    "Welcome",
]


class NodeRecord(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One line of the directory."""

    node_id: Annotated[NodeId, ID]
    kind: Literal["relay", "bank"]
    epoch: Annotated[Epoch, Meta(min_length=1, max_length=64)]
    #: ``rpc`` of a relay; ``ingest`` and ``retrieve`` of a bank; each ``tcp://host:port``
    endpoints: Annotated[
        dict[Annotated[str, Meta(max_length=16)], Annotated[str, SHORT_TEXT]], Meta(max_length=4)
    ]
    #: what is behind it: the driver's class, the bank's folder name
    title: Annotated[str, SHORT_TEXT] = ""
    host: Annotated[str, SHORT_TEXT] = ""
    pid: int = 0
    software: Annotated[str, Meta(max_length=64)] = ""
    heartbeat_s: Annotated[float, Meta(gt=0, le=3600)] = 5.0
    #: filled in by the broker
    state: LiveState = "live"
    #: filled in by the broker: the public key (Z85) that the node has proved; empty: none
    server_key: Annotated[str, Meta(max_length=40)] = ""


class Hello(Request, frozen=True, kw_only=True, omit_defaults=True, tag="hello"):
    """Register this node → Welcome, or 409 while another live node owns the id or an endpoint."""

    node: NodeRecord


class Welcome(Reply, frozen=True, kw_only=True, omit_defaults=True, tag="welcome"):
    """Registered. The registration ends ``ttl_s`` after the last heartbeat."""

    broker_epoch: str
    ttl_s: float


class Heartbeat(Request, frozen=True, kw_only=True, omit_defaults=True, tag="heartbeat"):
    """Still here → Welcome, or 404 from a broker that does not know the node (say Hello again)."""

    node_id: Annotated[NodeId, ID]
    node_epoch: Annotated[Epoch, EPOCH]


class Goodbye(Request, frozen=True, kw_only=True, omit_defaults=True, tag="goodbye"):
    """Leaving now → Done."""

    node_id: Annotated[NodeId, ID]
    node_epoch: Annotated[Epoch, EPOCH]


class ListNodes(Request, frozen=True, kw_only=True, omit_defaults=True, tag="list_nodes"):
    """Who is here? → NodeList"""


class NodeList(Reply, frozen=True, kw_only=True, omit_defaults=True, tag="node_list"):
    """The directory, sorted by kind and id."""

    broker_epoch: str
    nodes: list[NodeRecord]


class Mark(Request, frozen=True, kw_only=True, omit_defaults=True, tag="mark"):
    """Publish an event under ``mark.<token>`` → Done.

    A subscriber that asked for ``mark.<token>`` after its other subscriptions, and receives it,
    knows that all of them are in force: no event from then on can be missed unseen. The payload is
    empty, or a list of those that are not, since the broker refused them (100 at most).
    """

    token: Annotated[str, ID]


class ListLast(Request, frozen=True, kw_only=True, omit_defaults=True, tag="list_last"):
    """The last event of each state topic that begins with ``prefix``, → LastEvents.

    ``after`` continues behind that topic: a page holds at most 128 KiB.
    """

    prefix: Annotated[str, Meta(max_length=200)] = ""
    after: Annotated[str, Meta(max_length=200)] = ""


class Replay(Request, frozen=True, kw_only=True, omit_defaults=True, tag="replay"):
    """The events of a topic again whose sequences are ``first`` to ``last`` → LastEvents, in order.

    The broker remembers the last 1024 events or 8 MiB of states, as many of logs and of the rest.
    What it has forgotten is left out; ``more``: the rest did not fit, ask again behind the last.
    """

    topic: Annotated[str, Meta(max_length=200)]
    #: of the publisher, as in the events
    node_epoch: Annotated[str, EPOCH]
    first: Annotated[int, Meta(ge=1, le=2**53)]
    last: Annotated[int, Meta(ge=1, le=2**53)]


class LastEvent(Struct, frozen=True, kw_only=True):
    """An event as it was published: its topic, and the header and the payload of its frame."""

    topic: str
    header: bytes
    payload: bytes


class LastEvents(Reply, frozen=True, kw_only=True, omit_defaults=True, tag="last_events"):
    """A page of events; ``more``: ask again behind the last of them."""

    events: list[LastEvent]
    more: bool = False
