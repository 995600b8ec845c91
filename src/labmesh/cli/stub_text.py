"""A driver's methods and values as a Python class for editors and type checkers."""

from __future__ import annotations

import ast
import builtins
import keyword
import re
import unicodedata
from collections.abc import Iterable, Iterator
from typing import Any

from labmesh.asking.remote import RelayClient
from labmesh.blocking.instrument import Instrument
from labmesh.blocking.limits import method_doc, value_marks
from labmesh.cli.annotations import Annotation, TypeWriter
from labmesh.protocol.messages import Description, MethodInfo, ValueInfo

__all__ = ["MARK", "stub_class", "stub_text"]

#: Stands in each text: what has it may be written over.
MARK = "Made by ``labmesh stubs``"

_MODULES = frozenset(("builtins", "collections", "labmesh", "typing"))
_INDENT = "    "
_COMMENT_CHARS = 200
_DEFAULT_CHARS = 60
_STREAM_MODULE = "labmesh.blocking.streams"


def stub_class(driver: str) -> str:
    """The name of the class for a driver: its own, where that is free."""
    if not _is_name(driver) or driver in _MODULES or hasattr(builtins, driver):
        return re.sub(r"\W", "_", driver, flags=re.ASCII).lstrip("_0123456789").title() + "Driver"
    return driver


def _is_name(text: str) -> bool:
    """Whether Python reads it as this name: of two ways to write one letter it takes the plain."""
    plain = unicodedata.normalize("NFKC", text) == text
    return plain and text.isidentifier() and not keyword.iskeyword(text)


def stub_text(
    description: Description, *, module: str, is_async: bool = False, for_pyi: bool = False
) -> str:
    """A module with a class for one driver.

    At run time the class is empty, and its base does the work.

    :param module: the name under which the text will be imported, for its docstring.
    :param is_async: a subclass of RelayClient; else one of the blocking Instrument.
    :param for_pyi: the file will be a ``.pyi``, not a ``.py``.
    """
    writer = _AsyncStub if is_async else _BlockingStub
    return writer(description, for_pyi=for_pyi).text(module)


class _Stub:
    """What both kinds of class have in common."""

    base: type
    base_module: str
    usage: str

    def __init__(self, description: Description, *, for_pyi: bool) -> None:
        self._description = description
        self._for_pyi = for_pyi
        self._name = stub_class(description.driver)
        self._methods = [each for each in description.methods if self._can_have(each.name)]
        self._values = [each for each in description.values if self._can_have(each.name)]
        names = [each.name for each in description.methods]
        names += [each.name for each in description.values]
        self._left_out = [each for each in names if not self._can_have(each)]
        self._types = TypeWriter({*names, *dir(self.base)})

    def _can_have(self, name: str) -> bool:
        return _is_name(name) and not hasattr(self.base, name) and name not in _MODULES

    def text(self, module: str) -> str:
        body = list(self._body())
        if all(not line or line.startswith("#") for line in body):
            body.append("pass")
        usage = self.usage.format(name=self._name, relay=self._description.node_id)
        modules = sorted({"typing", self.base_module, *self._types.modules})
        lines = [
            f'"""The driver {self._name} behind {self._description.node_id}, for editors.',
            "",
            f"{MARK}; make it again when the driver changes. ::",
            "",
            f"{_INDENT}from {module} import {self._name}",
            "",
            f"{_INDENT}{usage}",
            '"""',
            "",
            "from __future__ import annotations",
            "",
            *(f"import {each}" for each in modules),
            "",
            "",
            f"class {self._name}({self.base_module}.{self.base.__name__}):",
            *_docstring(self._description.doc or f"The driver {self._name}.", _INDENT),
            "",
            f"{_INDENT}if typing.TYPE_CHECKING:",
            *(f"{2 * _INDENT}{line}".rstrip() for line in body),
            *self._rest(),
        ]
        return "\n".join(lines) + "\n"

    def _body(self) -> Iterator[str]:
        raise NotImplementedError

    def _rest(self) -> list[str]:
        names = ", ".join(_comment(name) for name in self._left_out)
        return [f"{_INDENT}# by call() or get() only: {names}"] if names else []

    def _method(self, method: MethodInfo, *, prefix: str, returns: str | None) -> Iterator[str]:
        """``returns`` with ``{}`` for the type of an item; None: what the driver says."""
        function = _parsed(method.signature)
        if function is None:
            arguments = [f"*args: {self._types.any()}", f"**kwargs: {self._types.any()}"]
            written, exact = Annotation(self._types.any(), exact=True), False
        else:
            arguments, exact = self._arguments(function.args)
            annotated = self._types.item if returns else self._types.annotation
            written = annotated(function.returns)
        if not (exact and written.exact):
            yield f"# the driver's own: {_comment(method.name + method.signature)}"
        result = returns.format(written.text) if returns else written.text
        yield f"{prefix}def {method.name}({', '.join(['self', *arguments])}) -> {result}:"
        doc = method_doc(method)
        if doc:
            yield from _docstring(doc, _INDENT)
        yield f"{_INDENT}..."

    def _arguments(self, arguments: ast.arguments) -> tuple[list[str], bool]:
        texts: list[str] = []
        exact = True
        for argument, default in _positional(arguments):
            text, is_exact = self._argument(argument, default)
            texts.append(text)
            exact = exact and is_exact
        if arguments.posonlyargs:
            texts.insert(len(arguments.posonlyargs), "/")
        if arguments.vararg is not None:
            text, is_exact = self._argument(arguments.vararg, None)
            texts.append(f"*{text}")
            exact = exact and is_exact
        elif arguments.kwonlyargs:
            texts.append("*")
        for argument, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True):
            text, is_exact = self._argument(argument, default)
            texts.append(text)
            exact = exact and is_exact
        if arguments.kwarg is not None:
            text, is_exact = self._argument(arguments.kwarg, None)
            texts.append(f"**{text}")
            exact = exact and is_exact
        return texts, exact

    def _argument(self, argument: ast.arg, default: ast.expr | None) -> tuple[str, bool]:
        written = self._types.annotation(argument.annotation)
        text = f"{argument.arg}: {written.text}"
        if default is None:
            return text, written.exact
        value = _literal(default)
        if value is None and written.text != self._types.any() and "None" not in written.text:
            text += " | None"  # a type checker takes no None for a float
        return f"{text} = {_default_text(value, written.text)}", written.exact


class _BlockingStub(_Stub):
    base, base_module = Instrument, "labmesh.mesh"
    usage = 'psu = mesh.instrument("{relay}", {name})'

    def _body(self) -> Iterator[str]:
        for value in self._values:
            yield from self._value(value)
            yield ""
        for method in self._methods:
            returns = None
            if method.yields:
                self._types.modules.add(_STREAM_MODULE)
                returns = f"{_STREAM_MODULE}.Stream[{{}}]"
            yield from self._method(method, prefix="", returns=returns)
            yield ""

    def _value(self, value: ValueInfo) -> Iterator[str]:
        written = self._types.text(value.type)
        if not written.exact:
            yield f"# the driver's own: {_comment(f'{value.name}: {value.type}')}"
        yield f"@{self._types.builtin('property')}"
        yield f"def {value.name}(self) -> {written.text}:"
        yield from _docstring(_value_doc(value), _INDENT)
        yield f"{_INDENT}..."
        if value.settable:
            yield ""
            yield f"@{value.name}.setter"
            yield f"def {value.name}(self, value: {written.text}) -> None: ..."


class _AsyncStub(_Stub):
    base, base_module = RelayClient, "labmesh"
    usage = 'psu = await client.get_relay_agent("{relay}", {name})'

    def _body(self) -> Iterator[str]:
        for method in self._methods:
            if method.yields:
                yield f'# it yields: async for item in psu.stream("{method.name}", [...])'
                yield f"# {_comment(method.name + method.signature)}"
            else:
                yield from self._method(method, prefix="async ", returns=None)
            yield ""
        yield from self._overloads(
            "get",
            ((each, "") for each in self._values if each.gettable),
            "*, timeout: float | None = None",
        )
        yield from self._overloads(
            "set",
            ((each, "value: {}, ") for each in self._values if each.settable),
            "*, timeout: float | None = None",
        )

    def _overloads(
        self, function: str, values: Iterable[tuple[ValueInfo, str]], last: str
    ) -> Iterator[str]:
        """One signature for each value, by its name."""
        anything = self._types.any()
        head, returns = f"async def {function}(self, name: ", "None"
        any_value = ""
        for value, taken in values:
            written = self._types.text(value.type)
            returns = written.text if function == "get" else "None"
            any_value = taken.format(anything)
            if not written.exact:
                yield f"# the driver's own: {_comment(f'{value.name}: {value.type}')}"
            yield "@typing.overload"
            yield (
                f'{head}typing.Literal["{value.name}"], {taken.format(written.text)}{last}) '
                f"-> {returns}:"
            )
            yield from _docstring(_value_doc(value), _INDENT)
            yield f"{_INDENT}..."
            yield ""
        if returns != "None" or any_value:
            yield "@typing.overload"
            result = anything if function == "get" else "None"
            general = f"{head}str, {any_value}{last}) -> {result}: ..."
            # A .py wants an implementation behind the overloads, a .pyi wants none.
            yield from (general, "", *([] if self._for_pyi else [general, ""]))


# ── pieces ──────────────────────────────────────────────────────────────────────────────────────


def _parsed(signature: str) -> ast.FunctionDef | None:
    """Nothing of the text is run: it comes from another machine."""
    try:
        tree = ast.parse(f"def method{signature}: ...")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    function = tree.body[0]
    return function if len(tree.body) == 1 and isinstance(function, ast.FunctionDef) else None


def _positional(arguments: ast.arguments) -> Iterator[tuple[ast.arg, ast.expr | None]]:
    every = [*arguments.posonlyargs, *arguments.args]
    without: list[ast.expr | None] = [None] * (len(every) - len(arguments.defaults))
    yield from zip(every, [*without, *arguments.defaults], strict=True)


def _literal(node: ast.expr) -> Any:
    """The value of a default; the ellipsis: it is no plain one."""
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return ...


def _default_text(value: Any, annotation: str) -> str:
    """The default, where a type checker will not doubt that it fits."""
    kinds = {bool: ("bool",), int: ("int", "float", "complex"), float: ("float", "complex")}
    names = kinds.get(type(value), (type(value).__name__,))
    fits = any(re.search(rf"\b{name}\b", annotation) for name in names)
    is_shown = value is None or fits or annotation.endswith("Any") or repr(value) in annotation
    text = repr(value)
    return text if is_shown and value is not ... and len(text) <= _DEFAULT_CHARS else "..."


def _value_doc(value: ValueInfo) -> str:
    marks = ", ".join(value_marks(value))
    return "\n\n".join(filter(None, (value.doc.rstrip(), f"({marks})")))


def _docstring(doc: str, indent: str) -> list[str]:
    """A docstring, whatever its text is."""
    text = "".join(each if each.isprintable() or each == "\n" else " " for each in doc.strip())
    text = text.replace("\\", "\\\\").replace('"""', '\\"\\"\\"')
    if re.search(r'(?<!\\)(\\\\)*"$', text):  # it would end the docstring too early
        text = text[:-1] + '\\"'
    lines = text.split("\n")
    if len(lines) == 1:
        return [f'{indent}"""{text}"""']
    below = [f"{indent}{line}".rstrip() for line in lines[1:]]
    return [f'{indent}"""{lines[0]}', *below, f'{indent}"""']


def _comment(text: str) -> str:
    """One printable line."""
    line = " ".join(text.split())
    line = "".join(each if each.isprintable() else "?" for each in line)
    return line if len(line) <= _COMMENT_CHARS else f"{line[: _COMMENT_CHARS - 3]}..."
