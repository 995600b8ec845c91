"""Which methods and values of a driver can be reached over the network.

The table is built once, from the driver's *class*; a call is a dictionary look-up and a check of
its arguments. No name from the wire ever reaches ``getattr``, so a ``__getattr__`` or a private
method cannot be reached, and the build itself runs none of the driver's code: no method, no
property. (Annotations that are text are evaluated, for units and limits.)
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase
from functools import partial
from types import (
    BuiltinFunctionType,
    CoroutineType,
    FunctionType,
    GeneratorType,
    MethodType,
    ModuleType,
)
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from labmesh.errors import BadArguments, ConfigError, UnknownMethod
from labmesh.instruments.channel_methods import channel_methods
from labmesh.instruments.members import (
    NAME_CHARS,
    guarded,
    is_method,
    is_public,
    members,
    sendable_doc,
)
from labmesh.instruments.methods import Method, read_method
from labmesh.instruments.signatures import Parameters, shortened
from labmesh.instruments.values import Value, values_of
from labmesh.protocol.ids import did_you_mean
from labmesh.protocol.messages import Access, MethodInfo, ValueInfo

__all__ = ["BoundCall", "Method", "MethodTable", "call_arguments"]

#: Up to so many names an error lists all of them.
_FEW = 12
_TEXT_CHARS = 2000
_NO_KEYWORDS: Mapping[str, Any] = {}

_FUNCTIONS = (FunctionType, BuiltinFunctionType, MethodType)
_VALUES = (bool, int, float, complex, str, bytes, bytearray, list, tuple, dict, set, frozenset)


class BoundCall(Struct, gc=False):
    """A call that was checked and can be run, once, in any thread."""

    #: the name of the method or value
    method: str
    function: Callable[..., Any]
    args: Sequence[Any]
    kwargs: Mapping[str, Any]
    #: it changes nothing
    read_only: bool = False
    #: to run it twice is to run it once
    idempotent: bool = False
    #: :meth:`run` returns a generator or an async generator
    yields: bool = False
    #: seconds that it may run; 0: as long as it takes
    timeout_s: float = 0.0

    def run(self) -> Any:
        """Call the driver. A coroutine method returns its coroutine; nothing is awaited here."""
        return self.function(*self.args, **self.kwargs)


class MethodTable:
    """The public methods and values of one driver object."""

    def __init__(
        self,
        driver_name: str,
        doc: str,
        methods: Mapping[str, Method],
        values: Mapping[str, Value] | None = None,
    ) -> None:
        #: the name of the driver's class
        self.driver_name = driver_name
        #: the docstring of the driver's class
        self.doc = doc
        self._methods = dict(sorted(methods.items()))
        self._values = dict(sorted((values or {}).items()))
        self._entries: dict[str, dict[str, Method]] = {
            "call": self._methods,
            "get": _getters(self._values),
            "set": _setters(self._values),
        }
        #: the driver has a ``poll()`` that can be called without arguments
        self.has_poll = self._can_run("poll")
        #: the driver has a ``safe_state()`` that can be called without arguments
        self.has_safe_state = self._can_run("safe_state")

    @classmethod
    def of(cls, driver: object, *, read_only: Sequence[str] = ()) -> MethodTable:
        """Read the class of ``driver``.

        Exposed is what a subclass-aware reader would call a method: a callable in the class or its
        bases (``object`` apart) whose name does not begin with an underscore and is at most 64
        characters long: functions, static, class, partial and coroutine methods, callable objects.
        Properties are exposed as values. Not exposed are nested classes, what is marked with
        :func:`~labmesh.hidden`, and whatever only the instance has, apart from parameters as QCoDeS
        has them (see :mod:`~labmesh.instruments.qcodes_like`), and channels (see
        :mod:`~labmesh.instruments.channel_methods`).

        :param read_only: names of methods that change nothing, or patterns such as ``get_*``.
        :raises ConfigError: it is a class, function, module or plain value, not a driver object; or
            a pattern matches none of its methods.
        """
        kind = type(driver)
        _refuse_what_is_no_driver(driver, kind)
        values = values_of(driver)
        methods = channel_methods(driver)
        for name, raw in members(kind).items():
            if is_public(name) and is_method(raw):
                read = partial(read_method, name, raw, driver, kind)
                method = guarded(f"{kind.__name__}.{name}", read)
                if method is not None:
                    methods[name] = method
        _mark_read_only(kind.__name__, methods, read_only, values)
        _check_redacted(kind.__name__, methods)
        return cls(kind.__name__, sendable_doc(vars(kind).get("__doc__")), methods, values)

    def __contains__(self, method: object) -> bool:
        return method in self._methods

    def __len__(self) -> int:
        return len(self._methods)

    def only_reads(self, method: str, access: Access = "call") -> bool:
        """Whether a call of it changes nothing. One that there is not changes nothing either."""
        entry = self._entries[access].get(method)
        return entry is None or entry.marks.read_only

    def shown_arguments(
        self, method: str, args: Sequence[Any], kwargs: Mapping[str, Any], access: Access = "call"
    ) -> tuple[Sequence[Any], Mapping[str, Any]]:
        """The arguments of a call as a journal may have them: without what is to be kept out."""
        entry = self._entries[access].get(method)
        if entry is None or not entry.marks.redact:
            return args, kwargs
        # A setter has one parameter, whatever its author calls it.
        names = ("value",) if access == "set" else entry.marks.redact
        return entry.parameters.masked(args, kwargs, names, "<not shown>")

    def bind(
        self,
        method: str,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] = _NO_KEYWORDS,
        access: Access = "call",
    ) -> BoundCall:
        """Check a call, or the reading (``get``) or writing (``set``, with the value as its only
        argument) of a value. The driver is not touched.

        :raises UnknownMethod: no public method or value of this name that can be reached so;
            private ones are unknown too.
        :raises BadArguments: the arguments do not fit the signature, by number or by name.
        """
        try:
            entry = self._entries[access][method]
        except (KeyError, TypeError):
            raise self._unknown(method, access) from None
        takes = entry.parameters
        if (kwargs or not takes.fewest <= len(args) <= takes.most) and not takes.fit(args, kwargs):
            raise self._misfit(entry, args, kwargs, access)
        marks = entry.marks
        return BoundCall(
            entry.name,
            entry.function,
            args,
            kwargs,
            marks.read_only,
            marks.idempotent,
            entry.yields,
            marks.timeout_s,
        )

    def describe(self) -> list[MethodInfo]:
        """Every method, by name."""
        return [
            MethodInfo(
                name=each.name,
                signature=each.parameters.text,
                doc=each.doc,
                read_only=each.marks.read_only,
                idempotent=each.marks.idempotent,
                yields=each.yields,
                timeout_s=each.marks.timeout_s,
                limits=each.limits,
            )
            for each in self._methods.values()
            if not each.marks.hidden
        ]

    def values(self) -> list[ValueInfo]:
        """Every value, by name. None of them is read."""
        return [each.facts for each in self._values.values()]

    def _can_run(self, name: str) -> bool:
        method = self._methods.get(name)
        return method is not None and method.parameters.fit((), {})

    def _unknown(self, method: object, access: str) -> UnknownMethod:
        asked = shortened(str(method), NAME_CHARS)
        elsewhere = self._found_elsewhere(asked, access)
        if elsewhere:
            return UnknownMethod(elsewhere, method=asked, closest=[asked])
        what, names = ("value", self._values) if access != "call" else ("method", self._methods)
        known: list[str] = list(names)
        close = get_close_matches(asked, known, n=3)
        text = f"{self.driver_name} has no {what} {asked!r}"
        if close:
            text += f"; did you mean {' or '.join(map(repr, close))}?"
        if not known:
            text += f". It has no public {what}s at all"
        elif len(known) <= _FEW:
            text += f" (its {what}s: {', '.join(known)})"
        else:
            text += f" (`labmesh show` lists its {len(known)} {what}s)"
        return UnknownMethod(text, method=asked, closest=close)

    def _found_elsewhere(self, asked: str, access: str) -> str:
        """The name is there, and is reached in another way; empty: it is not there."""
        name = f"{self.driver_name}.{asked}"
        if access != "call" and asked in self._methods:
            return f"{name} is a method, not a value: call it, as {asked}(...)"
        value = self._values.get(asked)
        if value is None:
            return ""
        reading, writing = _ways(asked)
        if access == "call":
            ways = [reading] if value.getter is not None else []
            ways += [writing] if value.setter is not None else []
            return f"{name} is a value, not a method: {'; '.join(ways)}"
        if access == "get":
            return f"{name} can be set and not read: {writing}"
        return f"{name} can be read and not set: {reading}"

    def _misfit(
        self, entry: Method, args: Sequence[Any], kwargs: Mapping[str, Any], access: str
    ) -> BadArguments:
        parameter, sentence = entry.parameters.complaint(args, kwargs)
        if access == "call":
            sentence += f"; it is called as {entry.name}{entry.parameters.text}"
        elif access == "get":
            sentence = f"reading it takes no arguments: get({entry.name!r})"
        else:
            sentence = f"setting it takes one value, by position: set({entry.name!r}, value)"
        text = f"{self.driver_name}.{entry.name}: {sentence}"
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


def _ways(name: str) -> tuple[str, str]:
    """How a value is read, and how it is written."""
    if "." in name:  # that of a channel is no attribute
        return f"read it with get({name!r})", f"set it with set({name!r}, value)"
    return (
        f"read it as .{name} or with get({name!r})",
        f"set it with .{name} = value or set({name!r}, value)",
    )


def _mark_read_only(
    driver_name: str,
    methods: dict[str, Method],
    patterns: Sequence[str],
    values: Mapping[str, Value],
) -> None:
    for pattern in patterns:
        matching = [name for name in methods if fnmatchcase(name, pattern)]
        if not matching:
            raise ConfigError(_no_match(driver_name, methods, pattern, values))
        for name in matching:
            entry = methods[name]
            methods[name] = replace(entry, marks=replace(entry.marks, read_only=True))


def _check_redacted(driver_name: str, methods: Mapping[str, Method]) -> None:
    """A name that is misspelt would put what is secret into the journal."""
    for method in methods.values():
        if unknown := method.parameters.unknown(method.marks.redact):
            raise ConfigError(
                f"{driver_name}.{method.name}: redact names {shortened(repr(unknown[0]))}, and no "
                f"parameter of {method.name}{method.parameters.text} is called so"
            )


def _no_match(
    driver_name: str, methods: Mapping[str, Method], pattern: str, values: Mapping[str, Value]
) -> str:
    shown = shortened(str(pattern), NAME_CHARS)
    text = f"read_only = {shown!r} matches no method of {driver_name}"
    if any(fnmatchcase(name, pattern) for name in values):
        return f"{text}; it is a value, and reading a value is read-only anyway: leave it out"
    near = did_you_mean(shown.replace("*", ""), methods)
    return f"{text}; {near or 'its methods: ' + (', '.join(sorted(methods)[:_FEW]) or 'none')}"


def _getters(values: Mapping[str, Value]) -> dict[str, Method]:
    takes_nothing = Parameters(inspect.Signature())
    return {
        name: Method(name, each.getter, takes_nothing, marks=replace(each.reading, read_only=True))
        for name, each in values.items()
        if each.getter is not None
    }


def _setters(values: Mapping[str, Value]) -> dict[str, Method]:
    value = inspect.Parameter("value", inspect.Parameter.POSITIONAL_ONLY)
    takes_one = Parameters(inspect.Signature([value]))
    return {
        name: Method(name, each.setter, takes_one, marks=replace(each.writing, read_only=False))
        for name, each in values.items()
        if each.setter is not None
    }
