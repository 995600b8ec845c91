"""The parts of an event, and the payload of a change of presence."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct

from labmesh.protocol.messages.base import EPOCH
from labmesh.protocol.messages.directory import NodeRecord

__all__ = ["Event", "PresenceChange", "Stamp"]


class Event(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The header of an event (see ``protocol/event_frame.py``)."""

    publisher: Annotated[str, Meta(max_length=128)]
    epoch: Annotated[str, EPOCH]
    #: counts the events of this topic and epoch, from 1
    sequence: Annotated[int, Meta(ge=0, le=2**53)]
    #: POSIX seconds (UTC) at the publisher
    time: float
    kind: Annotated[str, Meta(max_length=32)] = "state"
    #: seconds after which the next one of this kind is due; 0: not said
    interval_s: Annotated[float, Meta(ge=0)] = 0.0


class Stamp(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What the broker puts behind an event: its epoch, its time, who published (if proved)."""

    broker: Annotated[str, EPOCH]
    time: float
    by: Annotated[str, Meta(max_length=160)] = ""


class PresenceChange(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The payload of ``presence.<node id>``."""

    node: NodeRecord
    change: Literal["joined", "suspect", "back", "left"]
    #: why it left: ``goodbye``, ``expired``, ``replaced``, ``revoked``
    reason: str = ""
