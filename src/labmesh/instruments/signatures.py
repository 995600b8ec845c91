"""What one method takes: do these arguments fit, and if not, what is wrong with them?

:meth:`inspect.Signature.bind` answers the same question in 5 to 10 µs and builds an object on the
way; a call needs only yes or no, so the signature is read once into numbers and a dictionary.
"""

from __future__ import annotations

import ast
import enum
import inspect
import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from difflib import get_close_matches
from inspect import Parameter, Signature
from typing import Annotated, Any, get_args, get_origin

from labmesh.instruments.members import sendable

__all__ = ["Parameters", "shortened"]

#: Further than any position: the place of a parameter that only a keyword can fill.
_NO_POSITION = sys.maxsize
#: Keywords that would reach the receiver of a bound method instead of its ``**`` parameter.
_RECEIVERS = frozenset({"self", "cls"})
_SIGNATURE_CHARS = 4096
_DEFAULT_CHARS = 60
_SCALARS = (type(None), bool, int, float, complex, str, bytes)


def shortened(text: str, limit_chars: int = 64) -> str:
    """``text``, or its beginning and an ellipsis: for names that came from outside."""
    return text if len(text) <= limit_chars else f"{text[: limit_chars - 1]}…"


class Parameters:
    """The parameters of one bound method.

    :param signature: without the receiver. None: the method has none that Python can read (many
        methods written in C); then all arguments fit, apart from keywords that are never taken.
    """

    __slots__ = (
        "_all_names",
        "_open",
        "_order",
        "_positional_only",
        "_positions",
        "_required",
        "_rest",
        "fewest",
        "most",
        "text",
    )

    def __init__(self, signature: Signature | None) -> None:
        #: for people: ``(value: float, *, slew: float = 1.0) -> None``
        self.text = "(...)" if signature is None else _render(signature)
        self._open = signature is None
        self._all_names = list(signature.parameters) if signature else []
        #: keyword → position that it fills, so that no parameter is given twice
        self._positions: dict[str, int] = {}
        #: what must be given, apart from what only a position can fill
        self._required: list[tuple[str, int]] = []
        self._positional_only: list[str] = []
        #: the parameters that positions fill; and those that take further positions, and names
        self._order: list[str] = []
        self._rest = ["", ""]
        needs_keyword = False
        fewest = most = 0
        for name, parameter in signature.parameters.items() if signature else ():
            is_required = parameter.default is Parameter.empty
            match parameter.kind:
                case Parameter.VAR_POSITIONAL:
                    most = _NO_POSITION
                    self._rest[0] = name
                case Parameter.VAR_KEYWORD:
                    self._open = True
                    self._rest[1] = name
                case Parameter.KEYWORD_ONLY:
                    self._add_keyword(name, _NO_POSITION, is_required)
                    needs_keyword = needs_keyword or is_required
                case Parameter.POSITIONAL_ONLY:
                    self._positional_only += [name] if is_required else []
                    self._order.append(name)
                    fewest, most = fewest + is_required, most + 1
                case _:  # by position or by name
                    self._order.append(name)
                    self._add_keyword(name, most, is_required)
                    fewest, most = fewest + is_required, most + 1
        #: how many positional arguments fit when there is no keyword
        self.fewest = _NO_POSITION if needs_keyword else fewest
        self.most = _NO_POSITION if signature is None else most

    def _add_keyword(self, name: str, position: int, is_required: bool) -> None:
        if _is_allowed_keyword(name):
            self._positions[name] = position
        if is_required:
            self._required.append((name, position))

    def fit(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
        """Can the method be called like this? Only names and numbers count, never types."""
        count = len(args)
        if not kwargs:
            return self.fewest <= count <= self.most
        if count > self.most or count < len(self._positional_only):
            return False
        positions = self._positions
        for key in kwargs:
            position = positions.get(key)
            if position is None:
                if not (self._open and _is_free_keyword(key)):
                    return False
            elif position < count:
                return False
        return all(position < count or name in kwargs for name, position in self._required)

    def unknown(self, names: Iterable[str]) -> list[str]:
        """Which of these names no parameter has."""
        return [each for each in names if each not in self._all_names]

    def masked(
        self, args: Sequence[Any], kwargs: Mapping[str, Any], names: Collection[str], mask: Any
    ) -> tuple[list[Any], dict[str, Any]]:
        """The arguments, with ``mask`` in the place of those of the parameters ``names``."""
        order, (rest, others) = self._order, self._rest
        by_position = [
            mask if (order[index] if index < len(order) else rest) in names else each
            for index, each in enumerate(args)
        ]
        by_name = {
            key: mask if (key if key in self._all_names else others) in names else each
            for key, each in kwargs.items()
        }
        return by_position, by_name

    def complaint(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[str, str]:
        """The first thing that is wrong with arguments that do not fit: (parameter, sentence)."""
        count = len(args)
        for key in kwargs:
            if key not in self._positions and not (self._open and _is_free_keyword(key)):
                return shortened(str(key)), self._unknown_keyword(key)
            if self._positions.get(key, _NO_POSITION) < count:
                return key, f"'{key}' is given twice, by position and by name"
        if count > self.most:
            return "", f"{count} positional arguments were given, and it takes at most {self.most}"
        missing = [
            *self._positional_only[count:],
            *(
                name
                for name, position in self._required
                if position >= count and name not in kwargs
            ),
        ]
        return missing[0], f"{' and '.join(map(repr, missing))} must be given"

    def _unknown_keyword(self, key: str) -> str:
        shown = shortened(str(key))
        if key in self._all_names and _is_allowed_keyword(key):
            return f"{shown!r} cannot be given by name"
        close = get_close_matches(shown, self._positions, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        return f"it has no parameter {shown!r}{hint}"


def _is_allowed_keyword(key: str) -> bool:
    return key != "self" and not key.startswith("__")


def _is_free_keyword(key: object) -> bool:
    """May a ``**`` parameter take it?"""
    return (
        isinstance(key, str)
        and key.isidentifier()
        and key not in _RECEIVERS
        and _is_allowed_keyword(key)
    )


class _Verbatim:
    """Shows as its text inside a rendered signature."""

    def __init__(self, text: str) -> None:
        self._text = text

    def __repr__(self) -> str:
        return self._text


def _render(signature: Signature) -> str:
    """The signature as a person would write it, whatever its annotations and defaults are."""
    try:
        parameters = [_readable(each) for each in signature.parameters.values()]
        returned = _annotation(signature.return_annotation)
        text = str(signature.replace(parameters=parameters, return_annotation=returned))
    except Exception:
        # Annotations and defaults are objects of the driver's author; their repr may do anything.
        return "(...)"
    return sendable(text, _SIGNATURE_CHARS) if len(text) <= _SIGNATURE_CHARS else "(...)"


def _readable(parameter: Parameter) -> Parameter:
    default = parameter.default
    return parameter.replace(
        annotation=_annotation(parameter.annotation),
        default=default if default is Parameter.empty else _Verbatim(_default_text(default)),
    )


def _annotation(annotation: Any) -> Any:
    """As a reader wants it: text (``from __future__ import annotations``) loses its quotes, and
    ``Annotated[float, "V"]`` is a float, whose unit is told elsewhere."""
    if isinstance(annotation, str):
        return _Verbatim(_without_notes(annotation))
    return get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation


def _without_notes(text: str) -> str:
    if "Annotated" not in text:
        return text
    try:
        return ast.unparse(_Bare().visit(ast.parse(text, mode="eval")))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return text


class _Bare(ast.NodeTransformer):
    """Puts the type of each ``Annotated[type, ...]`` in its place."""

    def visit_Subscript(self, node: ast.Subscript) -> ast.AST:
        self.generic_visit(node)
        name = node.value.attr if isinstance(node.value, ast.Attribute) else None
        name = node.value.id if isinstance(node.value, ast.Name) else name
        if name == "Annotated" and isinstance(node.slice, ast.Tuple) and node.slice.elts:
            return node.slice.elts[0]
        return node


def _default_text(value: object) -> str:
    """A default, or ``...`` where its repr could be long or do more than print."""
    kind = type(value)
    if isinstance(value, enum.Enum):
        return f"{kind.__name__}.{value.name}"
    if inspect.isclass(value) or inspect.isroutine(value):
        return value.__name__
    if kind in (tuple, list, set, frozenset):
        plain = all(type(each) in _SCALARS for each in value)  # type: ignore[attr-defined]  # by its type
    elif kind is dict:
        plain = value == {}
    else:
        plain = kind in _SCALARS
    text = repr(value) if plain else "..."
    return text if len(text) <= _DEFAULT_CHARS else "..."
