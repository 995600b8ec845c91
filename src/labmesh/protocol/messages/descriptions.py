"""What a relay tells of its driver."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct, field

from labmesh.protocol.messages.base import LONG_TEXT, SHORT_TEXT, Reply, Request

__all__ = [
    "Describe",
    "Description",
    "MethodInfo",
    "ValueInfo",
    "ValueLimits",
]


class Describe(Request, frozen=True, kw_only=True, omit_defaults=True, tag="describe"):
    """What can your driver do? → Description"""


class ValueLimits(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a value or an argument may be, as far as its driver says."""

    unit: Annotated[str, Meta(max_length=64)] = ""
    lowest: float | None = None
    highest: float | None = None
    #: the values that are allowed, as they are written in Python
    choices: Annotated[list[str], Meta(max_length=256)] = field(default_factory=list)


class MethodInfo(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One callable method."""

    name: str
    signature: Annotated[str, Meta(max_length=4096)] = "()"
    doc: Annotated[str, LONG_TEXT] = ""
    #: it changes nothing: it may be called while another client holds a lease
    read_only: bool = False
    #: to run it twice is to run it once: it is sent again when the link breaks
    idempotent: bool = False
    #: it yields its values one by one
    yields: bool = False
    #: seconds that it may run; 0: as long as it takes
    timeout_s: float = 0.0
    #: parameter → its unit and limits; ``return`` → those of what it returns
    limits: dict[str, ValueLimits] = field(default_factory=dict)


class ValueInfo(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One value that can be read, and written where it is settable: a property or parameter."""

    name: str
    doc: Annotated[str, LONG_TEXT] = ""
    #: the annotation, as Python writes it; empty: not said
    type: Annotated[str, SHORT_TEXT] = ""
    gettable: bool = True
    settable: bool = False
    #: to write it twice is to write it once
    idempotent: bool = False
    limits: ValueLimits = field(default_factory=ValueLimits)


class Description(Reply, frozen=True, kw_only=True, omit_defaults=True, tag="description"):
    """The driver behind a relay: class, docstring, methods, values."""

    node_id: str
    epoch: str
    driver: str
    methods: list[MethodInfo]
    values: list[ValueInfo] = field(default_factory=list)
    doc: Annotated[str, LONG_TEXT] = ""
    #: seconds between states; 0: the driver has no ``poll()``
    state_interval_s: float = 0.0
