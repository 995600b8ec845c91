"""What can be called by one name: read from the class of a driver, bound to the driver."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import singledispatchmethod
from typing import Any

from msgspec import Struct

from labmesh.instruments.limits import NO_LIMITS, limits_of, read_annotations
from labmesh.instruments.marks import Marks, marks_of
from labmesh.instruments.members import bound, inherited_doc, innermost
from labmesh.instruments.signatures import Parameters
from labmesh.protocol.messages import ValueLimits

__all__ = ["Method", "read_method"]

#: The relay itself calls them, so they are there even when they are hidden.
_CALLED_BY_THE_RELAY = frozenset({"poll", "safe_state"})


class Method(Struct, frozen=True):
    """What can be called by one name: a method, or the reading or writing of a value."""

    name: str
    #: bound to the driver
    function: Callable[..., Any]
    parameters: Parameters
    doc: str = ""
    marks: Marks = Marks()
    yields: bool = False
    limits: dict[str, ValueLimits] = {}


def read_method(name: str, raw: Any, driver: object, kind: type) -> Method | None:
    marks = marks_of(name, kind)
    if marks.hidden and name not in _CALLED_BY_THE_RELAY:
        return None
    function = bound(raw, driver, kind)
    # A generic method forwards to implementations; what it takes is what its default takes.
    shown = raw.func if isinstance(raw, singledispatchmethod) else raw
    signature = _signature(bound(shown, driver, kind))
    return Method(
        name,
        function,
        Parameters(signature),
        inherited_doc(name, kind),
        marks,
        _yields(function),
        _limits(innermost(raw), kind, signature),
    )


def _signature(function: Callable[..., Any]) -> inspect.Signature | None:
    try:
        return inspect.signature(function)
    except (TypeError, ValueError):
        return None


def _yields(function: Any) -> bool:
    # In the place of a function there may be an object that can be called.
    called = inspect.getattr_static(type(function), "__call__", None)
    return any(
        inspect.isgeneratorfunction(each) or inspect.isasyncgenfunction(each)
        for each in (function, called)
    )


def _limits(
    function: Any, kind: type, signature: inspect.Signature | None
) -> dict[str, ValueLimits]:
    shown = {*signature.parameters, "return"} if signature else set()
    found = {
        name: limits_of(each)
        for name, each in read_annotations(function, kind).items()
        if name in shown
    }
    return {name: limits for name, limits in found.items() if limits != NO_LIMITS}
