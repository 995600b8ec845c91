"""``@expose`` and ``@hidden``: what the author of a driver says about its methods and values."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Collection
from functools import cached_property
from typing import Any, TypeVar, overload

from msgspec import Struct

from labmesh.instruments.members import innermost, is_value

__all__ = ["Marks", "expose", "hidden", "marks_of", "own_marks"]

F = TypeVar("F")

#: On the function itself, so that ``functools.wraps`` passes it on.
_ATTRIBUTE = "__labmesh_marks__"
_EXAMPLE = "write @expose(read_only=True) directly above the def of a method or of a property"


class Marks(Struct, frozen=True):
    """What was said about one method, getter or setter."""

    read_only: bool = False
    idempotent: bool = False
    hidden: bool = False
    #: 0: none
    timeout_s: float = 0.0
    #: parameters whose values no journal is told
    redact: tuple[str, ...] = ()


UNMARKED = Marks()


@overload
def expose(marked: F, /) -> F: ...


@overload
def expose(
    *,
    read_only: bool = False,
    idempotent: bool = False,
    timeout: float | None = None,
    redact: Collection[str] = (),
) -> Callable[[F], F]: ...


def expose(
    marked: Any = None,
    /,
    *,
    read_only: bool = False,
    idempotent: bool = False,
    timeout: float | None = None,
    redact: Collection[str] = (),
) -> Any:
    """Say what calling a method means, as ``@expose(...)`` directly above its ``def``.

    Public methods are exposed without it; the bare ``@expose`` shows again what a base class has
    hidden. A method that overrides a marked one has its marks, unless it has marks of its own,
    which then replace them all. Above the getter or the setter of a property, the marks are those
    of reading or writing it; reading is read-only always.

    :param read_only: it changes nothing, so it may be called while another client holds a lease,
        and by those who may only look.
    :param idempotent: to run it twice is to run it once, so a call that was lost with its
        connection is sent again. Not implied by ``read_only``: a method that takes the next value
        out of a buffer changes no setting, and must not be repeated unseen.
    :param timeout: seconds that one call may take.
    :param redact: parameters whose values are kept out of the audit journal, such as
        ``redact=["pin"]``; that of a setter is called ``value``.
    """
    _check_flag("read_only", read_only)
    _check_flag("idempotent", idempotent)
    marks = Marks(
        read_only=read_only,
        idempotent=idempotent,
        timeout_s=_seconds(timeout),
        redact=_names(redact),
    )
    if marked is not None:
        return _mark(marked, marks, "expose")
    return lambda function: _mark(function, marks, "expose")


def hidden(marked: F) -> F:
    """Keep a method or a property from clients: ``@hidden`` directly above its ``def``.

    It stays hidden where a subclass overrides it, unless it says ``@expose`` there. Above a setter:
    the property can be read, and no longer be written. ``poll`` and ``safe_state``, which the relay
    itself calls, are only left out of the description.
    """
    _mark(marked, Marks(hidden=True), "hidden")
    return marked


def marks_of(name: str, kind: type, part: Callable[[Any], Any] = innermost) -> Marks:
    """The marks of the method, or of the nearest one that it overrides and that has some.

    :param part: picks what carries the marks out of the stored attribute.
    """
    for base in kind.__mro__:
        if name in vars(base):
            raw = vars(base)[name]
            marks = own_marks(raw) or own_marks(part(raw))
            if marks is not None:
                return marks
    return UNMARKED


def own_marks(carrier: object) -> Marks | None:
    """What was said about this very object."""
    found = inspect.getattr_static(carrier, _ATTRIBUTE, None)
    return found if isinstance(found, Marks) else None


def _mark(marked: Any, marks: Marks, mark: str) -> Any:
    try:
        setattr(_carrier(marked, mark), _ATTRIBUTE, marks)
    except (AttributeError, TypeError) as exc:
        if isinstance(exc, _Misuse):
            raise
        raise _Misuse(f"a {type(marked).__name__} cannot carry @{mark}: {_advice(mark)}") from None
    return marked


class _Misuse(TypeError):
    """With a sentence for who wrote the mark."""


def _carrier(marked: Any, mark: str) -> Any:
    if isinstance(marked, type):
        raise _Misuse(f"@{mark} stands above the class {marked.__name__}: {_advice(mark)}")
    if is_value(marked):
        return _accessor_to_mark(marked, mark)
    if not callable(innermost(marked)):
        raise _Misuse(f"@{mark} was given a {type(marked).__name__}: {_advice(mark)}")
    # A partial method shares its function with the method that it was made from.
    return marked.__func__ if isinstance(marked, staticmethod | classmethod) else marked


def _accessor_to_mark(marked: Any, mark: str) -> Any:
    if isinstance(marked, cached_property):
        return marked.func
    if marked.fset is not None or marked.fget is None:
        raise _Misuse(
            f"@{mark} stands above a property that has a setter, so it does not say which of the "
            f"two it means: write it below @property or below the .setter, directly above the def"
        )
    return marked.fget


def _advice(mark: str) -> str:
    return _EXAMPLE if mark == "expose" else _EXAMPLE.replace("expose(read_only=True)", mark)


def _check_flag(name: str, value: object) -> None:
    if not isinstance(value, bool):
        raise TypeError(f"{name} is True or False, not {value!r}: write @expose({name}=True)")


def _names(redact: object) -> tuple[str, ...]:
    if not isinstance(redact, list | tuple | set | frozenset) or not all(
        isinstance(each, str) for each in redact
    ):
        raise TypeError(f'redact is a list of names, not {redact!r}: write @expose(redact=["pin"])')
    return tuple(redact)


def _seconds(timeout: object) -> float:
    if timeout is None:
        return 0.0
    if isinstance(timeout, bool) or not isinstance(timeout, int | float):
        raise TypeError(f"timeout is seconds, not {timeout!r}: write @expose(timeout=30)")
    if not (math.isfinite(timeout) and timeout > 0):
        raise ValueError(
            f"timeout is more than 0 seconds, not {timeout}: write @expose(timeout=30)"
        )
    return float(timeout)
