"""Parameters that an instrument holds as objects, as QCoDeS has them.

``instrument.parameters`` is a dict of parameter objects, each with ``get``, ``set``, unit, label
and validator; ``instrument.submodules`` holds channels and modules with parameters of their own.
They are recognised by these attributes; QCoDeS itself is not needed. A parameter of a submodule has
a name with a dot, ``A.temperature``.

Reading these attributes runs QCoDeS' code, and no command of the instrument: parameters are got and
set only by calls, in the driver's thread. The properties that QCoDeS' own base class has
(``parent``, ``ancestors``, ``label``, …) are no values of the instrument.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

from labmesh.instruments.limits import NO_LIMITS, as_range, choices_of, unit_text
from labmesh.instruments.members import (
    NAME_CHARS,
    guarded,
    instance_attributes,
    is_public,
    members,
    sendable_doc,
)
from labmesh.protocol.messages import ValueInfo, ValueLimits

__all__ = ["HeldParameter", "is_of_the_framework", "modules_of", "parameters_of"]

#: QCoDeS' way to say that there is no bound.
_UNBOUNDED = 1e18
#: Validators whose ``valid_values`` are all that they take; those of others are examples.
_COMPLETE = frozenset({"Bool", "Enum", "LiteralValidator", "OnOff"})
#: Behind it a parameter's docstring repeats what is told in fields of its own.
_FACTS_MARK = "Parameter class:"


class HeldParameter(NamedTuple):
    """One parameter: what to tell about it, how to read it, how to write it."""

    facts: ValueInfo
    getter: Callable[[], Any] | None
    setter: Callable[[Any], Any] | None


def parameters_of(driver: object) -> dict[str, HeldParameter]:
    """The parameters of an instrument and of its submodules, by name; none: it has no such."""
    found: dict[str, HeldParameter] = {}
    for prefix, module in _modules(driver, "", set()):
        for name, parameter in _named(module, "parameters"):
            path = f"{prefix}{name}"
            if is_public(name) and len(path) <= NAME_CHARS and _is_parameter(parameter):
                held = guarded(f"{type(driver).__name__}.{path}", partial(_held, path, parameter))
                if held is not None:
                    found[path] = held
    return found


def modules_of(driver: object) -> Iterator[tuple[str, object]]:
    """The submodules and channels of an instrument: (``ch01.``, it), those within them included."""
    return ((prefix, module) for prefix, module in _modules(driver, "", set()) if prefix)


def is_of_the_framework(name: str, kind: type) -> bool:
    """The class has this attribute from the base class that brings ``add_parameter``, unchanged."""
    bringing = [base for base in kind.__mro__ if "add_parameter" in vars(base)]
    return bool(bringing) and members(kind)[name] is members(bringing[-1]).get(name)


def _modules(module: object, prefix: str, seen: set[int]) -> Iterator[tuple[str, object]]:
    """An instrument and what is in it: (what stands before the names of its parameters, it)."""
    if id(module) in seen:
        return
    seen.add(id(module))
    yield prefix, module
    inner = [(name, each) for name, each in _named(module, "submodules") if is_public(name)]
    lists = [(name, each) for name, each in inner if isinstance(each, Sequence)]
    for name, each in inner:
        if not isinstance(each, Sequence):
            yield from _modules(each, f"{prefix}{name}.", seen)
    # Channels that have no name of their own in the instrument have one in their list.
    for name, each in lists:
        for channel in each:
            short = getattr(channel, "short_name", "")
            if is_public(short):
                yield from _modules(channel, f"{prefix}{name}.{short}.", seen)


def _named(module: object, attribute: str) -> list[tuple[str, Any]]:
    held = instance_attributes(module).get(attribute)
    return list(held.items()) if isinstance(held, Mapping) else []


def _is_parameter(thing: object) -> bool:
    return all(hasattr(type(thing), each) for each in ("gettable", "settable", "get_raw"))


def _held(path: str, parameter: Any) -> HeldParameter | None:
    getter = parameter.get if parameter.gettable else None
    setter = parameter.set if parameter.settable else None
    if getter is None and setter is None:
        return None
    facts = ValueInfo(
        name=path,
        doc=_doc(parameter),
        gettable=getter is not None,
        settable=setter is not None,
        limits=_limits(getattr(parameter, "vals", None), unit_text(_text(parameter, "unit"))),
    )
    return HeldParameter(facts, getter, setter)


def _doc(parameter: Any) -> str:
    written = sendable_doc(_text(parameter, "__doc__").partition(_FACTS_MARK)[0]).strip()
    label = sendable_doc(_text(parameter, "label"))
    if label in (written, _text(parameter, "short_name")):
        return written  # where nobody gave a label, it is the name
    return "\n\n".join(filter(None, (label, written)))


def _text(parameter: Any, name: str) -> str:
    found = getattr(parameter, name, "")
    return found if isinstance(found, str) else ""


def _limits(validator: Any, unit: str) -> ValueLimits:
    if validator is None:
        return ValueLimits(unit=unit) if unit else NO_LIMITS
    if any(base.__name__ in _COMPLETE for base in type(validator).__mro__):
        return ValueLimits(unit=unit, choices=choices_of(validator.valid_values))
    lowest, highest = _bound(validator, "min_value"), _bound(validator, "max_value")
    return as_range(lowest, highest, unit)


def _bound(validator: Any, name: str) -> object:
    bound = getattr(validator, name, None)
    return bound if isinstance(bound, int | float) and abs(bound) < _UNBOUNDED else None
