"""Units, ranges and choices, as far as the annotations of a driver say them.

They are shown to users and never enforced: what a value may be is the driver's own business.

=================================================== =============================================
``Annotated[float, "V"]``, or an object with        the unit
``.unit``
``Annotated[float, msgspec.Meta(ge=0, le=30)]``,    the range; the objects of ``annotated_types``
or any object with ``.ge``, ``.gt``, ``.le``,       and of pydantic are read alike
``.lt``
``Literal["AC", "DC"]``, an :class:`enum.Enum`      the choices; of an enumeration its values,
                                                    which are what can be sent
=================================================== =============================================

Annotations are objects of the driver's author: looking at one may raise, and then it says nothing.
"""

from __future__ import annotations

import enum
import inspect
import math
from collections.abc import Callable, Iterable, Mapping
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from labmesh.instruments.members import sendable
from labmesh.protocol.messages import ValueLimits

__all__ = [
    "NO_LIMITS",
    "as_range",
    "choices_of",
    "limits_of",
    "number",
    "read_annotations",
    "type_text",
]

NO_LIMITS = ValueLimits()

_UNIT_CHARS = 64
_TYPE_CHARS = 256
_MOST_CHOICES = 256
_CHOICE_CHARS = 60
#: Annotations that hold others of themselves, deeper than anybody writes them.
_DEEPEST = 8
_SCALARS = (type(None), bool, int, float, complex, str, bytes)


def read_annotations(function: Callable[..., Any], kind: type) -> dict[str, Any]:
    """The annotations of a function of the class ``kind``; those that are text are evaluated.

    One that cannot be (its name is imported for type checkers only) stays text.
    """
    try:
        inner = inspect.unwrap(function)
        written = inspect.get_annotations(inner)
        names: Mapping[str, Any] = getattr(inner, "__globals__", {})
        return {name: _evaluated(each, names, kind) for name, each in written.items()}
    except Exception:
        return {}  # not a function after all, or one that lies about what it wraps


def _evaluated(annotation: Any, names: Mapping[str, Any], kind: type) -> Any:
    if not isinstance(annotation, str):
        return annotation
    try:
        return eval(annotation, dict(names), dict(vars(kind)))
    except Exception:
        # Text of the driver's author: its names may be missing, and evaluating it may do anything.
        return annotation


def limits_of(annotation: Any) -> ValueLimits:
    """What an annotation says of its values."""
    try:
        return _limits_of(annotation, _DEEPEST)
    except Exception:
        # Objects of the driver's author: their attributes may raise, and what they say is extra.
        return NO_LIMITS


def _limits_of(annotation: Any, depth: int) -> ValueLimits:
    origin = get_origin(annotation)
    if origin is Literal:
        return ValueLimits(choices=choices_of(get_args(annotation)))
    if isinstance(annotation, type) and issubclass(annotation, enum.Enum):
        return ValueLimits(choices=choices_of(each.value for each in annotation))
    if depth == 0:
        return NO_LIMITS
    if origin is Annotated:
        inner = _limits_of(annotation.__origin__, depth - 1)
        return _with_metadata(inner, annotation.__metadata__)
    if origin in (Union, UnionType):
        found = (_limits_of(each, depth - 1) for each in get_args(annotation))
        return next((each for each in found if each != NO_LIMITS), NO_LIMITS)
    named = getattr(annotation, "__supertype__", None) or getattr(annotation, "__value__", None)
    return NO_LIMITS if named is None else _limits_of(named, depth - 1)


def _with_metadata(inner: ValueLimits, metadata: Iterable[object]) -> ValueLimits:
    units = [inner.unit]
    lowest, highest = [inner.lowest], [inner.highest]
    for each in metadata:
        units.append(_unit(each))
        lowest += [_bound(each, "ge"), _bound(each, "gt")]
        highest += [_bound(each, "le"), _bound(each, "lt")]
    return ValueLimits(
        unit=next(filter(None, units), ""),
        lowest=max((each for each in lowest if each is not None), default=None),
        highest=min((each for each in highest if each is not None), default=None),
        choices=inner.choices,
    )


def _unit(stated: object) -> str:
    # Types are asked for their base classes here: isinstance() would ask the object, too.
    unit = stated if issubclass(type(stated), str) else _attribute(stated, "unit")
    return unit_text(unit)


def unit_text(unit: object) -> str:
    """A unit as it is told; empty: none."""
    return sendable(str(unit), _UNIT_CHARS) if issubclass(type(unit), str) else ""


def _bound(stated: object, name: str) -> float | None:
    return number(_attribute(stated, name))


def _attribute(stated: object, name: str) -> Any:
    try:
        return getattr(stated, name, None)
    except Exception:
        return None  # an object of the author's, which may compute its attributes


def number(value: object) -> float | None:
    """A finite number, or None."""
    if issubclass(type(value), bool) or not hasattr(type(value), "__float__"):
        return None
    try:
        found = float(value)  # type: ignore[arg-type]  # its type has __float__
    except Exception:
        return None  # too large for a float, or not a number after all
    return found if math.isfinite(found) else None


def as_range(lowest: object, highest: object, unit: str = "") -> ValueLimits:
    """A range of which either end may be missing, or no number at all."""
    return ValueLimits(unit=unit, lowest=number(lowest), highest=number(highest))


def choices_of(values: Iterable[object]) -> list[str]:
    """The values as Python writes them; none where they are too many or cannot be written."""
    found: list[str] = []
    each: Any
    for each in values:
        plain = each.value if issubclass(type(each), enum.Enum) else each
        text = repr(plain) if type(plain) in _SCALARS else ""
        if not text or len(text) > _CHOICE_CHARS or len(found) == _MOST_CHOICES:
            return []
        found.append(text)
    return found


def type_text(annotation: Any) -> str:
    """An annotation as Python writes it, without what :func:`limits_of` tells; empty: not said."""
    if annotation is inspect.Signature.empty or annotation is Any:
        return ""
    try:
        while get_origin(annotation) is Annotated:
            annotation = annotation.__origin__
        text = annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)
        return sendable(text, _TYPE_CHARS)
    except Exception:
        return ""
