"""What a class has, read as it is stored: no descriptor, no metaclass and no driver is asked."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable
from functools import cached_property, partialmethod, singledispatchmethod
from types import GenericAlias
from typing import Any, TypeVar

__all__ = [
    "NAME_CHARS",
    "accessor",
    "bound",
    "guarded",
    "inherited_doc",
    "innermost",
    "instance_attributes",
    "is_method",
    "is_public",
    "is_value",
    "members",
    "sendable",
    "sendable_doc",
]

log = logging.getLogger(__name__)

T = TypeVar("T")

#: The longest name of a method or value.
NAME_CHARS = 64
_DOC_CHARS = 65_536


def members(kind: type) -> dict[str, Any]:
    """The attributes of a class and its bases, ``object`` apart."""
    found: dict[str, Any] = {}
    for base in kind.__mro__:
        if base is not object:
            for name, raw in vars(base).items():
                found.setdefault(name, raw)
    return found


def instance_attributes(driver: object) -> dict[str, Any]:
    """What the object itself holds; empty where it holds nothing, or keeps it in slots."""
    try:
        held = object.__getattribute__(driver, "__dict__")
    except AttributeError:
        return {}
    return held if isinstance(held, dict) else {}


def is_public(name: object) -> bool:
    """Can this name be asked for over the network?"""
    return (
        isinstance(name, str)
        and not name.startswith("_")
        and len(name) <= NAME_CHARS
        and name.isidentifier()
    )


def is_value(raw: Any) -> bool:
    """A property, of whatever subclass, or a cached one."""
    return issubclass(type(raw), property | cached_property)


def is_method(raw: Any) -> bool:
    """Something to call, that is neither a property nor a type."""
    if hasattr(type(raw), "__set__"):
        return False  # a property of one kind or another, even when it can be called
    inner = innermost(raw)
    kind = type(inner)
    # Aliases and NewTypes of the typing module can be called, and make no sense as methods.
    is_type = issubclass(kind, type | GenericAlias) or kind.__module__ == "typing"
    return callable(inner) and not is_type


def innermost(raw: Any) -> Any:
    """The function inside the wrappers that make static, class, partial and generic methods."""
    while True:
        if isinstance(raw, staticmethod | classmethod):
            raw = raw.__func__
        elif isinstance(raw, partialmethod | singledispatchmethod):
            raw = raw.func
        else:
            return raw


def accessor(raw: Any) -> Any:
    """The function that reads a property; None: it cannot be read."""
    return getattr(raw, "func" if issubclass(type(raw), cached_property) else "fget", None)


def bound(raw: Any, driver: object, kind: type) -> Any:
    """What ``driver.name`` would give, without asking the driver."""
    binder = getattr(type(raw), "__get__", None)
    return raw if binder is None else binder(raw, driver, kind)


def inherited_doc(name: str, kind: type) -> str:
    """The docstring of the method or property, or of the one that it overrides."""
    for base in kind.__mro__:
        if name in vars(base):
            doc = sendable_doc(_documented(vars(base)[name]))
            if doc:
                return doc
    return ""


def _documented(raw: Any) -> object:
    documented = raw if is_value(raw) else innermost(raw)
    try:
        return getattr(documented, "__doc__", None)
    except Exception:
        # An object in the place of a method may compute its docstring, and fail.
        return None


def guarded(whose: str, read: Callable[[], T]) -> T | None:
    """What ``read`` makes of an attribute; None, and a line in the log, when it fails."""
    try:
        return read()
    except Exception:
        # A descriptor of the driver's author may raise anything; the other attributes still work.
        log.warning("%s is left out: it cannot be bound", whose, exc_info=True)
        return None


def sendable_doc(doc: object) -> str:
    """A docstring without its indentation; empty when it is no text."""
    return sendable(inspect.cleandoc(doc), _DOC_CHARS) if isinstance(doc, str) else ""


def sendable(text: str, limit_chars: int) -> str:
    """The beginning of a text, with what UTF-8 cannot carry (lone surrogates) as escapes."""
    return text[:limit_chars].encode("utf-8", "backslashreplace").decode()[:limit_chars]
