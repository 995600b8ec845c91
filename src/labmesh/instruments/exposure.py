"""Which methods of a driver can be called over the network.

The table is built once, from the driver's *class*; a call is a dictionary look-up and a check of
its arguments. No name from the wire ever reaches ``getattr``, so a property, a ``__getattr__`` or
a private method cannot be reached, and the build itself runs none of the driver's code.

Marks on methods (read-only, idempotent, hidden), readable properties and batches belong here, as
fields of :class:`Method`.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from functools import partialmethod, singledispatchmethod
from types import (
    BuiltinFunctionType,
    CoroutineType,
    FunctionType,
    GeneratorType,
    GenericAlias,
    MethodType,
    ModuleType,
)
from typing import Any

from msgspec import Struct

from labmesh.errors import BadArguments, ConfigError, UnknownMethod
from labmesh.instruments.signatures import Parameters, shortened
from labmesh.protocol.messages import MethodInfo

__all__ = ["BoundCall", "Method", "MethodTable", "call_arguments"]

log = logging.getLogger(__name__)

_NAME_CHARS = 64
_DOC_CHARS = 65_536
#: Up to so many names an error lists all of them.
_FEW = 12
_TEXT_CHARS = 2000
_NO_KEYWORDS: Mapping[str, Any] = {}

_FUNCTIONS = (FunctionType, BuiltinFunctionType, MethodType)
_VALUES = (bool, int, float, complex, str, bytes, bytearray, list, tuple, dict, set, frozenset)


class BoundCall(Struct):
    """A call that was checked and can be run, once, in any thread."""

    method: str
    function: Callable[..., Any]
    args: Sequence[Any]
    kwargs: Mapping[str, Any]

    def run(self) -> Any:
        """Call the driver. A coroutine method returns its coroutine; nothing is awaited here."""
        return self.function(*self.args, **self.kwargs)


class Method(Struct, frozen=True):
    """One entry of the table."""

    name: str
    #: bound to the driver
    function: Callable[..., Any]
    parameters: Parameters
    doc: str


class MethodTable:
    """The public methods of one driver object."""

    def __init__(self, driver_name: str, doc: str, methods: Mapping[str, Method]) -> None:
        #: the name of the driver's class
        self.driver_name = driver_name
        #: the docstring of the driver's class
        self.doc = doc
        self._methods = dict(sorted(methods.items()))
        poll = self._methods.get("poll")
        #: the driver has a ``poll()`` that can be called without arguments
        self.has_poll = poll is not None and poll.parameters.fit((), {})

    @classmethod
    def of(cls, driver: object) -> MethodTable:
        """Read the class of ``driver``.

        Exposed is what a subclass-aware reader would call a method: a callable in the class or its
        bases (``object`` apart) whose name does not begin with an underscore and is at most 64
        characters long: functions, static, class, partial and coroutine methods, callable objects.
        Not exposed are properties, nested classes, and whatever only the instance has.

        :raises ConfigError: it is a class, function, module or plain value, not a driver object.
        """
        kind = type(driver)
        _refuse_what_is_no_driver(driver, kind)
        methods = {}
        for name, raw in _members(kind).items():
            if _is_public(name) and _is_method(raw):
                method = _method(name, raw, driver, kind)
                if method is not None:
                    methods[name] = method
        return cls(kind.__name__, _text(vars(kind).get("__doc__")), methods)

    def __contains__(self, method: object) -> bool:
        return method in self._methods

    def __len__(self) -> int:
        return len(self._methods)

    def bind(
        self,
        method: str,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] = _NO_KEYWORDS,
    ) -> BoundCall:
        """Check a call. The driver is not touched.

        :raises UnknownMethod: no public method of this name; private ones are unknown too.
        :raises BadArguments: the arguments do not fit the signature, by number or by name.
        """
        try:
            entry = self._methods[method]
        except (KeyError, TypeError):
            raise self._unknown(method) from None
        if not entry.parameters.fit(args, kwargs):
            raise self._misfit(entry, args, kwargs)
        return BoundCall(entry.name, entry.function, args, kwargs)

    def describe(self) -> list[MethodInfo]:
        """Every method, by name."""
        return [
            MethodInfo(name=each.name, signature=each.parameters.text, doc=each.doc)
            for each in self._methods.values()
        ]

    def _unknown(self, method: object) -> UnknownMethod:
        asked = shortened(str(method), _NAME_CHARS)
        close = get_close_matches(asked, self._methods, n=3)
        text = f"{self.driver_name} has no method {asked!r}"
        if close:
            text += f"; did you mean {' or '.join(map(repr, close))}?"
        if not self._methods:
            text += ". It has no public methods at all"
        elif len(self._methods) <= _FEW:
            text += f" (its methods: {', '.join(self._methods)})"
        else:
            text += f" (`labmesh show` lists its {len(self._methods)} methods)"
        return UnknownMethod(text, method=asked, closest=close)

    def _misfit(
        self, entry: Method, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> BadArguments:
        parameter, sentence = entry.parameters.complaint(args, kwargs)
        usage = f"{entry.name}{entry.parameters.text}"
        text = f"{self.driver_name}.{entry.name}: {sentence}; it is called as {usage}"
        return BadArguments(shortened(text, _TEXT_CHARS), method=entry.name, parameter=parameter)


def call_arguments(params: Any = None) -> tuple[list[Any], dict[str, Any]]:
    """What ``call(method, params)`` passes on: ``(args, kwargs)``.

    A dict is keywords; a list or tuple is positional; any other value, also ``False``, ``0`` and
    ``""``, is one positional argument. ``{}``, ``[]`` and None are no arguments: None means "no
    parameters given" and is never passed on (write ``[None]`` to pass a None).

    :raises BadArguments: a dict has a key that is not text.
    """
    if params is None:
        return [], {}
    if isinstance(params, dict):
        for key in params:
            if not isinstance(key, str):
                raise BadArguments(
                    f"a dict of parameters is keyword arguments: its keys are names, not "
                    f"{type(key).__name__}; to pass the dict itself, write [{{...}}]",
                    parameter=shortened(repr(key)),
                )
        return [], dict(params)
    if isinstance(params, list | tuple):
        return list(params), {}
    return [params], {}


def _refuse_what_is_no_driver(driver: object, kind: type) -> None:
    """The kinds are asked, never the object: even ``isinstance`` may run a driver's code."""
    if issubclass(kind, type):
        name = getattr(driver, "__name__", "Driver")
        raise ConfigError(f"{name} is a class, not a driver object: make one with {name}(...)")
    if issubclass(kind, CoroutineType | GeneratorType):
        raise ConfigError(
            f"the driver is a {kind.__name__} that has not run: await or call it first, "
            "and give the object that it returns"
        )
    if issubclass(kind, ModuleType | type(None)) or kind in (*_FUNCTIONS, *_VALUES):
        what = "None" if driver is None else f"a {kind.__name__}"
        raise ConfigError(
            f"{what} cannot be a driver: give an object of a class that has the methods to call"
        )


def _members(kind: type) -> dict[str, Any]:
    """The class' attributes as they are stored; no descriptor and no metaclass is asked."""
    members: dict[str, Any] = {}
    for base in kind.__mro__:
        if base is not object:
            for name, raw in vars(base).items():
                members.setdefault(name, raw)
    return members


def _is_public(name: str) -> bool:
    return not name.startswith("_") and len(name) <= _NAME_CHARS and name.isidentifier()


def _is_method(raw: Any) -> bool:
    if hasattr(type(raw), "__set__"):
        return False  # a property of one kind or another, even when it can be called
    inner = _innermost(raw)
    kind = type(inner)
    # Aliases and NewTypes of the typing module can be called, and make no sense as methods.
    is_type = issubclass(kind, type | GenericAlias) or kind.__module__ == "typing"
    return callable(inner) and not is_type


def _innermost(raw: Any) -> Any:
    """The function inside the wrappers that make static, class, partial and generic methods."""
    while True:
        if isinstance(raw, staticmethod | classmethod):
            raw = raw.__func__
        elif isinstance(raw, partialmethod | singledispatchmethod):
            raw = raw.func
        else:
            return raw


def _method(name: str, raw: Any, driver: object, kind: type) -> Method | None:
    try:
        function = _bound(raw, driver, kind)
        # A generic method forwards to implementations; what it takes is what its default takes.
        shown = raw.func if isinstance(raw, singledispatchmethod) else raw
        parameters = Parameters(_signature(_bound(shown, driver, kind)))
    except Exception:
        # A descriptor of the driver's author may raise anything; the other methods still work.
        log.warning("%s.%s is left out: it cannot be bound", kind.__name__, name, exc_info=True)
        return None
    return Method(name, function, parameters, _inherited_doc(name, kind))


def _bound(raw: Any, driver: object, kind: type) -> Any:
    """What ``driver.name`` would give, without asking the driver."""
    binder = getattr(type(raw), "__get__", None)
    return raw if binder is None else binder(raw, driver, kind)


def _signature(function: Callable[..., Any]) -> inspect.Signature | None:
    try:
        return inspect.signature(function)
    except (TypeError, ValueError):
        return None


def _inherited_doc(name: str, kind: type) -> str:
    """The docstring of the method, or of the one that it overrides."""
    for base in kind.__mro__:
        if name in vars(base):
            doc = _text(getattr(_innermost(vars(base)[name]), "__doc__", None))
            if doc:
                return doc
    return ""


def _text(doc: object) -> str:
    return inspect.cleandoc(doc)[:_DOC_CHARS] if isinstance(doc, str) else ""
