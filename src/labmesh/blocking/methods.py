"""A driver's methods as Python functions, made from what its relay tells about them."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable, Mapping
from inspect import Parameter, Signature
from typing import Any, NamedTuple

from labmesh.blocking.limits import method_doc, value_marks
from labmesh.protocol.messages import Description, MethodInfo, ValueInfo

__all__ = ["Driver", "Invoke", "changes", "remote_method", "signature_from"]

#: Runs a method with positional and keyword arguments.
Invoke = Callable[[str, list[Any], dict[str, Any]], Any]

_ANYTHING = Signature(
    [
        Parameter("args", Parameter.VAR_POSITIONAL),
        Parameter("kwargs", Parameter.VAR_KEYWORD),
    ]
)


class Driver(NamedTuple):
    """What a relay told of its driver."""

    epoch: str
    name: str
    doc: str
    methods: Mapping[str, MethodInfo]
    signatures: Mapping[str, Signature]
    state_interval_s: float
    #: what can be read, and where it says so written
    values: Mapping[str, ValueInfo]
    #: docstrings of the methods; None: there is nothing to say
    docs: Mapping[str, str | None]

    @classmethod
    def of(cls, description: Description) -> Driver:
        """Read a description."""
        methods = {each.name: each for each in description.methods}
        return cls(
            epoch=description.epoch,
            name=description.driver,
            doc=description.doc,
            methods=methods,
            signatures={name: signature_from(each.signature) for name, each in methods.items()},
            state_interval_s=description.state_interval_s,
            values={each.name: each for each in description.values if each.name not in methods},
            docs={name: method_doc(each) or None for name, each in methods.items()},
        )

    @property
    def names(self) -> list[str]:
        """Methods and values."""
        return [*self.methods, *self.values]


def remote_method(driver: Driver, name: str, invoke: Invoke) -> Callable[..., Any]:
    """A function with the name, signature and docstring of the driver's method."""

    def method(*args: Any, **kwargs: Any) -> Any:
        return invoke(name, list(args), kwargs)

    method.__name__ = name
    method.__qualname__ = f"{driver.name}.{name}"
    method.__doc__ = driver.docs[name]
    method.__signature__ = driver.signatures[name]  # type: ignore[attr-defined]  # inspect's
    return method


def changes(before: Driver, after: Driver) -> list[str]:
    """What is different for whoever calls the driver, one short sentence each."""
    said = []
    if before.name != after.name:
        said.append(f"the driver is {after.name}, it was {before.name}")
    gone = sorted(set(before.names) - set(after.names))
    new = sorted(set(after.names) - set(before.names))
    if gone:
        said.append(f"gone: {', '.join(gone)}")
    if new:
        said.append(f"new: {', '.join(new)}")
    for name in sorted(set(before.names) & set(after.names)):
        was, now = _usage(before, name), _usage(after, name)
        if was != now:
            said.append(f"{now} was {was}")
    return said


def _usage(driver: Driver, name: str) -> str:
    """How a method is called, or what a value is and may be."""
    if name in driver.methods:
        return f"{name}{driver.methods[name].signature}"
    value = driver.values[name]
    return f"{name}{value.type and f': {value.type}'} ({', '.join(value_marks(value))})"


# ── signatures ──────────────────────────────────────────────────────────────────────────────────


class _Verbatim:
    """Shows as its text inside a signature."""

    def __init__(self, text: str) -> None:
        self._text = text

    def __repr__(self) -> str:
        return self._text

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Verbatim) and other._text == self._text

    def __hash__(self) -> int:
        return hash(self._text)


def signature_from(text: str) -> Signature:
    """The signature that reads like ``text``; ``(*args, **kwargs)`` where it is none.

    Nothing of the text is run: it comes from another machine. Annotations stay text, and so do
    defaults that are not plain values.
    """
    try:
        tree = ast.parse(f"def method{text}: ...")
        function = tree.body[0]
        if len(tree.body) != 1 or not isinstance(function, ast.FunctionDef):
            return _ANYTHING
        return _signature(function)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return _ANYTHING  # MemoryError: how the parser says that a text is nested too deeply


def _signature(function: ast.FunctionDef) -> Signature:
    arguments = function.args
    positional = [
        *((each, Parameter.POSITIONAL_ONLY) for each in arguments.posonlyargs),
        *((each, Parameter.POSITIONAL_OR_KEYWORD) for each in arguments.args),
    ]
    without = len(positional) - len(arguments.defaults)
    defaults: list[ast.expr | None] = [*[None] * without, *arguments.defaults]
    parameters = [
        _parameter(each, kind, default)
        for (each, kind), default in zip(positional, defaults, strict=True)
    ]
    if arguments.vararg is not None:
        parameters.append(_parameter(arguments.vararg, Parameter.VAR_POSITIONAL, None))
    for each, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True):
        parameters.append(_parameter(each, Parameter.KEYWORD_ONLY, default))
    if arguments.kwarg is not None:
        parameters.append(_parameter(arguments.kwarg, Parameter.VAR_KEYWORD, None))
    return Signature(parameters, return_annotation=_annotation(function.returns))


def _parameter(argument: ast.arg, kind: inspect._ParameterKind, default: ast.expr | None) -> Any:
    return Parameter(
        argument.arg,
        kind,
        default=Parameter.empty if default is None else _default(default),
        annotation=_annotation(argument.annotation),
    )


def _annotation(node: ast.expr | None) -> Any:
    return Parameter.empty if node is None else _Verbatim(ast.unparse(node))


def _default(node: ast.expr) -> Any:
    try:
        value = ast.literal_eval(node)
    except (ValueError, TypeError):
        value = ...
    return _Verbatim(ast.unparse(node)) if value is ... else value
