"""What a search of datasets means: its conditions, words, order and pages, for every catalogue.

A catalogue with a database of its own has to find the same datasets as :meth:`Search.meets` does.

- *Facts* are the values of a record under the names that conditions use. Keys of nested dicts are
  joined with dots: ``{"sample": {"id": "A1"}}`` is ``meta.sample.id``. Each element of a list is a
  value of the list, so that a name can have several; a condition holds when one of them meets it,
  and ``!=`` when none equals. Looked at are the first 100 elements of each list, the first 4,000
  characters of each text, and 2,000 values of a dataset.
- Text compares by code points, ``like`` with case, ``in`` and the words of a search without.
- Each *word* must stand in the id, the name, a tag or a text of the metadata, also inside a longer
  one: ``scan`` finds ``big-scan-42``.
- Pages go on by *cursor*: the sort key and sequence of the last record that was seen. Records of
  the same key are in the order of their sequences.
"""

from __future__ import annotations

import fnmatch
import math
import re
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import Any, Literal, NamedTuple, TypeAlias

from labmesh.errors import ProtocolError
from labmesh.protocol.ids import did_you_mean, shown
from labmesh.protocol.messages import Condition, DatasetRecord, SearchDatasets

__all__ = [
    "NUMBER_FIELDS",
    "TEXT_FIELDS",
    "Comparison",
    "Cursor",
    "Search",
    "Value",
    "checked",
    "facts",
    "matcher",
    "searchable",
    "sort_key",
]

Value: TypeAlias = str | int | float | bool | None
Operator: TypeAlias = Literal["==", "!=", "<", "<=", ">", ">=", "like", "in"]

TEXT_FIELDS = ("relay_id", "name", "kind", "dataset_id", "tags")
NUMBER_FIELDS = ("size", "created")

_META = "meta."
_MAX_LIST = 100
_MAX_TEXT = 4000
_MAX_FACTS = 2000
#: of a condition's field; what has a longer name cannot be asked for
_MAX_NAME = 256
_ORDERED: dict[str, Callable[[Any, Any], bool]] = {
    "<": lambda one, other: one < other,
    "<=": lambda one, other: one <= other,
    ">": lambda one, other: one > other,
    ">=": lambda one, other: one >= other,
}


class Comparison(NamedTuple):
    """A condition that makes sense, with its value as facts have it."""

    field: str
    op: Operator
    value: Value

    def holds(self, values: Sequence[Value]) -> bool:
        """Whether the values of the field in one record meet it."""
        if self.op == "!=":
            return not any(_equal(each, self.value) for each in values)
        return any(self._met_by(each) for each in values)

    def _met_by(self, value: Value) -> bool:
        if self.op == "==":
            return _equal(value, self.value)
        if _kind(value) != _kind(self.value):
            return False
        if self.op in _ORDERED:
            return _ORDERED[self.op](value, self.value)
        if self.op == "like":
            return matcher(str(self.value))(str(value))
        return str(self.value) in str(value).casefold()


class Cursor(NamedTuple):
    """Where a page ended: the sort key and the sequence of its last record."""

    key: str | int | float
    sequence: int


class Search(NamedTuple):
    """A :class:`SearchDatasets` that makes sense."""

    comparisons: tuple[Comparison, ...]
    #: without case
    words: tuple[str, ...]
    tags: tuple[str, ...]
    parent: str
    sort: str
    descending: bool
    cursor: Cursor | None
    limit: int

    def meets(self, record: DatasetRecord) -> bool:
        """Whether a record belongs to what is searched, on whatever page."""
        if self.parent and self.parent not in record.parents:
            return False
        values: dict[str, list[Value]] = {}
        for name, value in facts(record):
            values.setdefault(name, []).append(value)
        if not set(self.tags) <= set(values.get("tags", ())):
            return False
        if not all(each.holds(values.get(each.field, ())) for each in self.comparisons):
            return False
        text = searchable(record) if self.words else ""
        return all(each in text for each in self.words)

    def place(self, record: DatasetRecord) -> Cursor:
        """Where a record stands in the order of this search."""
        return Cursor(sort_key(record, self.sort), record.sequence)

    def follows(self, record: DatasetRecord) -> bool:
        """Whether a record is behind the cursor."""
        if self.cursor is None:
            return True
        place = self.place(record)
        return place < self.cursor if self.descending else place > self.cursor

    def after(self, record: DatasetRecord) -> str:
        """What a next search gives as ``after`` to go on behind this record."""
        key, sequence = self.place(record)
        return f"{self.sort}{'-' if self.descending else '+'}{sequence}:{key}"


def checked(query: SearchDatasets) -> Search:
    """:raises ProtocolError: a condition or ``after`` makes no sense; the text says what does."""
    return Search(
        comparisons=tuple(_checked_condition(each) for each in query.where),
        words=tuple(dict.fromkeys(_plain(query.text).casefold().split())),
        tags=tuple(dict.fromkeys(_plain(each) for each in query.tags)),
        parent=query.parent,
        sort=query.sort,
        descending=query.descending,
        cursor=_cursor(query) if query.after else None,
        limit=query.limit,
    )


def facts(record: DatasetRecord) -> Iterator[tuple[str, Value]]:
    """The values of a record by the names that conditions use; not a number is left out."""
    yield "relay_id", _plain(record.relay_id)
    yield "name", _plain(record.name)
    yield "kind", _plain(record.kind)
    yield "dataset_id", record.dataset_id
    yield "size", record.size
    yield "created", _created(record)
    for tag in record.tags:
        yield "tags", _plain(tag)
    left = _MAX_FACTS
    for name, value in _flat("meta", record.meta):
        if left == 0:
            return
        left -= 1
        yield name, value


def searchable(record: DatasetRecord) -> str:
    """All text in which words are found, without case. No word stands across a line's end."""
    texts = [record.dataset_id, record.name, *record.tags]
    texts += [
        value for name, value in facts(record) if isinstance(value, str) and name.startswith(_META)
    ]
    return _plain("\n".join(texts)).casefold()


def sort_key(record: DatasetRecord, sort: str) -> str | int | float:
    """By what a record is sorted: ``sequence``, ``created``, ``size`` or ``name``."""
    if sort == "created":
        return _created(record)
    if sort == "name":
        return _plain(record.name)
    return record.size if sort == "size" else record.sequence


@lru_cache(maxsize=256)
def matcher(pattern: str) -> Callable[[str], bool]:
    """Whether a text matches a pattern with ``*`` and ``?``; no other character is special."""
    # fnmatch's expression takes no exponential time, however many stars there are.
    expression = re.compile(fnmatch.translate(pattern.replace("[", "[[]")))
    return lambda text: expression.match(text) is not None


def _flat(name: str, value: Any) -> Iterator[tuple[str, Value]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _flat(f"{name}.{_plain(key)}", inner)
    elif isinstance(value, list | tuple):
        for inner in value[:_MAX_LIST]:
            yield from _flat(name, inner)
    elif len(name) <= _MAX_NAME and not (isinstance(value, float) and math.isnan(value)):
        yield name, _comparable(value)


def _plain(text: str) -> str:
    # Databases end a text at this character, each in its own way.
    return text.replace("\0", "\ufffd")


def _comparable(value: Any) -> Value:
    """A value as every database can have it."""
    if isinstance(value, str):
        return _plain(value)[:_MAX_TEXT]
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        try:
            return float(value)
        except OverflowError:
            return math.inf if value > 0 else -math.inf
    return value  # type: ignore[no-any-return]


def _created(record: DatasetRecord) -> float:
    return 0.0 if math.isnan(record.created) else record.created


def _kind(value: Value) -> str:
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, int | float):
        return "number"
    return "nothing" if value is None else "text"


def _equal(one: Value, other: Value) -> bool:
    return one == other and _kind(one) == _kind(other)


# ── checks ──────────────────────────────────────────────────────────────────────────────────────


def _checked_condition(condition: Condition) -> Comparison:
    field, op, value = condition.field, condition.op, condition.value
    kind = _kind(value)
    if field in NUMBER_FIELDS:
        wanted = "number"
    elif field in TEXT_FIELDS:
        wanted = "text"
    elif field.startswith(_META):
        wanted = kind
    else:
        raise _unknown_field(field)
    if kind != wanted:
        raise ProtocolError(f"{field} is compared with a {wanted}, not with {_shown(value)}")
    if op in ("like", "in") and kind != "text":
        raise ProtocolError(f"{field} {op} needs text, not {_shown(value)}; compare it with ==")
    if op in _ORDERED and kind in ("boolean", "nothing"):
        raise ProtocolError(f"{field} {op} {_shown(value)} has no order; use == or !=")
    comparable = _comparable(value)
    if op == "in" and isinstance(comparable, str):
        comparable = comparable.casefold()
    return Comparison(_plain(field), op, comparable)


def _unknown_field(field: str) -> ProtocolError:
    known = (*TEXT_FIELDS, *NUMBER_FIELDS)
    guess = did_you_mean(field, known)
    return ProtocolError(
        f"there is no field {shown(field)}; {guess + ' ' if guess else ''}a search knows "
        f"{', '.join(known)}, and meta.KEY for what is in the metadata"
    )


def _shown(value: Value) -> str:
    return shown(value) if isinstance(value, str) else str(value)


_CURSOR = re.compile(r"(sequence|created|size|name)([+-])([0-9]{1,18}):(.*)", re.DOTALL)


def _cursor(query: SearchDatasets) -> Cursor:
    found = _CURSOR.fullmatch(query.after)
    if found is not None:
        sort, direction, sequence, text = found.groups()
        if (sort, direction) != (query.sort, "-" if query.descending else "+"):
            raise ProtocolError(
                f"'after' comes from a search sorted by {sort}{direction}; go on with the same "
                "order, or begin without 'after'"
            )
        key = _key(sort, text)
        if key is not None:
            return Cursor(key, int(sequence))
    raise ProtocolError(
        f"'after' is {shown(query.after)}: give what the page before had as 'next', or nothing"
    )


def _key(sort: str, text: str) -> str | int | float | None:
    """The key that :meth:`Search.after` wrote, or None."""
    if sort == "name":
        return _plain(text)
    if sort == "created":
        try:
            key = float(text)
        except ValueError:
            return None
        return None if math.isnan(key) else key
    return int(text) if re.fullmatch(r"[0-9]{1,18}", text) else None
