"""The values of a driver: properties and parameters, that can be read and perhaps written.

A property is found in the class and is not evaluated: reading it is a call like any other, in the
driver's own thread.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

from msgspec import Struct

from labmesh.instruments.limits import limits_of, read_annotations, type_text
from labmesh.instruments.marks import Marks, marks_of
from labmesh.instruments.members import (
    NAME_CHARS,
    accessor,
    guarded,
    inherited_doc,
    is_method,
    is_public,
    is_value,
    members,
)
from labmesh.instruments.pymeasure_like import channels_of, command_property
from labmesh.instruments.qcodes_like import HeldParameter, is_of_the_framework, parameters_of
from labmesh.protocol.messages import ValueInfo

__all__ = ["Value", "values_of"]


class Value(Struct, frozen=True):
    """One value: how to read it, how to write it, what to tell about it."""

    facts: ValueInfo
    #: reads it; None: it can only be written
    getter: Callable[[], Any] | None
    #: writes it; None: it can only be read
    setter: Callable[[Any], Any] | None
    reading: Marks = Marks()
    writing: Marks = Marks()


def values_of(driver: object) -> dict[str, Value]:
    """The values of a driver and of its channels, by name. None of them is read."""
    whose = type(driver).__name__
    held = guarded(f"{whose}.parameters", partial(parameters_of, driver)) or {}
    channels = guarded(f"{whose}.channels", lambda: list(channels_of(driver))) or []
    found: dict[str, Value] = {}
    for prefix, part in [("", driver), *channels]:
        kind = type(part)
        for name, raw in members(kind).items():
            path = f"{prefix}{name}"
            if not is_public(name) or not is_value(raw) or len(path) > NAME_CHARS:
                continue
            if held and is_of_the_framework(name, kind):
                continue
            read = partial(_value, path, name, raw, part, kind)
            value = guarded(f"{whose}.{path}", read)
            if value is not None:
                found[path] = value
    return {**_beside_the_class(held, type(driver)), **found}


def _beside_the_class(held: dict[str, HeldParameter], kind: type) -> dict[str, Value]:
    """Parameters, without those whose name the class has for a method or a property."""
    taken = {name for name, raw in members(kind).items() if is_value(raw) or is_method(raw)}
    return {name: Value(*each) for name, each in held.items() if name not in taken}


def _value(path: str, name: str, raw: Any, driver: object, kind: type) -> Value | None:
    """The property ``raw`` of ``driver``, whose class is ``kind``; None: it is hidden or empty."""
    reading, writing = marks_of(name, kind, accessor), marks_of(name, kind, _mutator)
    commands = command_property(name, raw, driver) if isinstance(raw, property) else None
    gettable = accessor(raw) is not None and (commands is None or commands.gettable)
    settable = _mutator(raw) is not None and (commands is None or commands.settable)
    settable = settable and not writing.hidden
    if reading.hidden or not (gettable or settable):
        return None
    annotation = _annotation(raw, kind)
    facts = ValueInfo(
        name=path,
        doc=inherited_doc(name, kind),
        type=type_text(annotation),
        gettable=gettable,
        settable=settable,
        idempotent=settable and writing.idempotent,
        limits=limits_of(annotation) if commands is None else commands.limits,
    )
    return Value(
        facts,
        partial(type(raw).__get__, raw, driver, kind) if gettable else None,
        partial(type(raw).__set__, raw, driver) if settable else None,
        reading,
        writing,
    )


def _mutator(raw: Any) -> Any:
    """The function that writes a property; None: it cannot be written, as a cached one."""
    return getattr(raw, "fset", None)


def _annotation(raw: Any, kind: type) -> Any:
    """What the getter returns; of a property without one, what the setter takes."""
    if accessor(raw) is not None:
        return read_annotations(accessor(raw), kind).get("return", inspect.Signature.empty)
    taken = [each for key, each in read_annotations(raw.fset, kind).items() if key != "return"]
    return taken[0] if taken else inspect.Signature.empty
