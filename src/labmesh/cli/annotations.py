"""What a driver annotates, as a type that every type checker knows."""

from __future__ import annotations

import ast
from collections.abc import Set as AbstractSet
from typing import NamedTuple

__all__ = ["Annotation", "TypeWriter"]

_NUMBERS = ("int", "float", "complex", "bool")
_TEXTS = ("str", "bytes", "bytearray")
_CONTAINERS = ("list", "dict", "tuple", "set", "frozenset")
_PLAIN = frozenset((*_NUMBERS, *_TEXTS, *_CONTAINERS, "object"))
_ABSTRACT = frozenset(("Iterable", "Iterator", "Mapping", "Sequence"))
#: As the typing module calls the builtins.
_CAPITALS = {
    "List": "list",
    "Dict": "dict",
    "Tuple": "tuple",
    "Set": "set",
    "FrozenSet": "frozenset",
}
_MODULES = frozenset(("typing", "typing_extensions", "t", "builtins", "collections.abc", "abc"))
_ARGUMENTS = {
    **dict.fromkeys(("list", "set", "frozenset", "Iterable", "Iterator", "Sequence"), 1),
    **dict.fromkeys(("dict", "Mapping"), 2),
}
_YIELDING = frozenset(
    ("Iterator", "Iterable", "Generator", "AsyncIterator", "AsyncIterable", "AsyncGenerator")
)


class Annotation(NamedTuple):
    """A type as text; ``exact``: it says all that the driver says."""

    text: str
    exact: bool


class TypeWriter:
    """Writes types for the body of one class.

    :param members: the names that the class defines: there ``list`` would not be the builtin.
    """

    def __init__(self, members: AbstractSet[str] = frozenset()) -> None:
        self._members = members
        #: modules that the text needs
        self.modules: set[str] = set()

    def any(self) -> str:
        """The type of what nobody knows."""
        return self._named("typing", "Any")

    def annotation(self, node: ast.expr | None) -> Annotation:
        """What an annotation becomes; what is not plain becomes ``Any``."""
        if node is None:
            return Annotation(self.any(), exact=True)
        written = self._written(node)
        return Annotation(self.any(), exact=False) if written is None else written

    def text(self, annotation: str) -> Annotation:
        """The same for a text; empty: nothing was said."""
        if not annotation.strip():
            return Annotation(self.any(), exact=True)
        try:
            node = ast.parse(annotation, mode="eval").body
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            return Annotation(self.any(), exact=False)
        return self.annotation(node)

    def item(self, node: ast.expr | None) -> Annotation:
        """The type of what a method yields, from what it is annotated to return."""
        if isinstance(node, ast.Subscript) and _simple_name(node.value) in _YIELDING:
            arguments = _arguments(node.slice)
            return self.annotation(arguments[0] if arguments else None)
        return Annotation(self.any(), exact=node is None)

    def builtin(self, name: str) -> str:
        """A builtin, where the class may have a member of its name."""
        return self._named("builtins", name) if name in self._members else name

    # ── one node of an annotation ───────────────────────────────────────────────────────────────

    def _written(self, node: ast.expr) -> Annotation | None:
        """None: it is not plain."""
        match node:
            case ast.Constant(value=None):
                return Annotation("None", exact=True)
            case ast.Constant(value=str(text)):
                return self.text(text)
            case ast.Name() | ast.Attribute():
                return self._name(node)
            case ast.BinOp(op=ast.BitOr()):
                return self._union([node.left, node.right])
            case ast.Subscript():
                return self._subscript(node)
        return None

    def _name(self, node: ast.expr) -> Annotation | None:
        name = _simple_name(node)
        if name == "Any":
            return Annotation(self.any(), exact=True)
        if name not in _PLAIN and name not in _ABSTRACT:
            return None
        # A strict type checker wants to be told that the elements are anything.
        arguments = [self.any()] * _ARGUMENTS.get(name, 0)
        arguments += [self.any(), "..."] if name == "tuple" else []
        outer = self._abstract(name) if name in _ABSTRACT else self.builtin(name)
        return Annotation(f"{outer}[{', '.join(arguments)}]" if arguments else outer, exact=True)

    def _subscript(self, node: ast.Subscript) -> Annotation | None:
        name, arguments = _simple_name(node.value), _arguments(node.slice)
        if name == "Optional":
            return self._union([*arguments, ast.Constant(None)])
        if name == "Union":
            return self._union(arguments)
        if name == "Annotated":
            return self.annotation(arguments[0])
        if name == "Literal":
            return self._literal(arguments)
        if name == "tuple":
            return self._tuple(arguments)
        if _ARGUMENTS.get(name) != len(arguments):
            return None
        written = [self.annotation(each) for each in arguments]
        text = ", ".join(each.text for each in written)
        outer = self._abstract(name) if name in _ABSTRACT else self.builtin(name)
        return Annotation(f"{outer}[{text}]", all(each.exact for each in written))

    def _union(self, nodes: list[ast.expr]) -> Annotation:
        written = [self.annotation(each) for each in nodes]
        texts = dict.fromkeys(each.text for each in written)
        return Annotation(" | ".join(texts), all(each.exact for each in written))

    def _literal(self, nodes: list[ast.expr]) -> Annotation | None:
        values = [_constant(each) for each in nodes]
        if not values or None in values:
            return None
        literal = self._named("typing", "Literal")
        return Annotation(f"{literal}[{', '.join(map(str, values))}]", exact=True)

    def _tuple(self, nodes: list[ast.expr]) -> Annotation | None:
        outer = self.builtin("tuple")
        match nodes:
            case [each, ast.Constant(value=last)] if last is ...:
                written = self.annotation(each)
                return Annotation(f"{outer}[{written.text}, ...]", written.exact)
        every = [self.annotation(each) for each in nodes]
        text = ", ".join(each.text for each in every) or "()"
        return Annotation(f"{outer}[{text}]", all(each.exact for each in every))

    def _abstract(self, name: str) -> str:
        self.modules.add("collections.abc")
        return f"collections.abc.{name}"

    def _named(self, module: str, name: str) -> str:
        self.modules.add(module)
        return f"{module}.{name}"


def _simple_name(node: ast.expr) -> str:
    """``list`` for ``list``, ``typing.List`` and ``builtins.list``; empty: another thing."""
    if isinstance(node, ast.Attribute):
        name = node.attr if ast.unparse(node.value) in _MODULES else ""
    else:
        name = node.id if isinstance(node, ast.Name) else ""
    return _CAPITALS.get(name, name)


def _arguments(node: ast.expr) -> list[ast.expr]:
    return list(node.elts) if isinstance(node, ast.Tuple) else [node]


def _constant(node: ast.expr) -> str | None:
    """A value as Literal takes it; None: it takes no such thing."""
    try:
        value = ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return None
    return repr(value) if isinstance(value, str | bytes | bool | int | None) else None
