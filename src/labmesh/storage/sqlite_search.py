"""A search as one SQL query over the tables of :mod:`labmesh.storage.sqlite`.

The rarest condition drives, when few datasets meet it; else the datasets are walked in the order
that is asked for, until a page is full, and each is held to every condition.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from typing import Any, NamedTuple

from labmesh.protocol.search import Comparison, Search, Value

__all__ = ["found_rows", "stored_value"]

#: Fewer than so many datasets drive a query; so many look-ups take some milliseconds.
_FEW = 5000

_COLUMNS = ("relay_id", "name", "kind", "dataset_id", "size", "created")
_RANGES = ("<", "<=", ">", ">=")
#: A trigram index knows no shorter words.
_LONG = 3
#: casefold() where it differs from the built-in lower(), which knows ASCII alone
_FOLDED = "CASE WHEN length({0}) = length(CAST({0} AS BLOB)) THEN lower({0}) ELSE fold({0}) END"


#: A dataset by itself is looked at sooner than the index has listed all that have a common word.
_HAS_WORD = "EXISTS (SELECT 1 FROM texts t WHERE t.sequence = d.sequence AND instr(t.text, ?))"


class _Term(NamedTuple):
    """A condition on ``d.sequence``: to check one dataset by, or to select all that meet it."""

    check: str
    select: str
    parameters: tuple[Any, ...]
    #: those of ``check``, where they are others
    checked: tuple[Any, ...] | None = None


def stored_value(value: Value) -> str | int | float | bytes:
    """A fact as the tables have it. SQLite sorts numbers before text before bytes, so that truth
    values and None, as bytes, are in nobody's way.
    """
    if value is None:
        return b""
    if isinstance(value, bool):
        return b"\1" if value else b"\0"
    return value


def found_rows(
    connection: sqlite3.Connection, search: Search, full_text: bool
) -> list[tuple[Any, ...]]:
    """``(sequence, record)`` of at most ``limit + 1`` datasets that follow the cursor."""
    terms = _Terms(connection, search, full_text)
    if terms.impossible:
        return []
    rarest, few = terms.rarest()
    if rarest is not None and not few:
        return []
    clauses, parameters = list(terms.plain), list(terms.plain_parameters)
    for term in terms.selective:
        if term is rarest:
            clauses.append(f"d.sequence IN ({', '.join(map(str, few))})")
        else:
            clauses.append(term.check)
            parameters += term.parameters if term.checked is None else term.checked
    source = "datasets d"
    if terms.match and search.sort == "sequence":
        # Without a rare condition and in the order of sequences the word index is walked itself.
        if rarest is None:
            source = "words w CROSS JOIN datasets d ON d.sequence = w.rowid"
            clauses.append("words MATCH ?")
            parameters.append(terms.match)
        else:
            clauses += [_HAS_WORD] * len(terms.long)
            parameters += terms.long
    key = "w.rowid" if source != "datasets d" else f"d.{search.sort}"
    if search.cursor is not None:
        clauses.append(f"({key}, d.sequence) {'<' if search.descending else '>'} (?, ?)")
        parameters += search.cursor
    direction = "DESC" if search.descending else "ASC"
    order = key if search.sort == "sequence" else f"{key} {direction}, d.sequence"
    where = f"WHERE {' AND '.join(clauses)}" if clauses else ""
    return connection.execute(
        f"SELECT d.sequence, d.record FROM {source} {where} ORDER BY {order} {direction} LIMIT ?",
        (*parameters, search.limit + 1),
    ).fetchall()


class _Terms:
    """The conditions of a search, by how they can be used."""

    def __init__(self, connection: sqlite3.Connection, search: Search, full_text: bool) -> None:
        self._connection = connection
        self.impossible = False
        #: those that may select few datasets
        self.selective: list[_Term] = []
        #: those that can only be checked
        self.plain: list[str] = []
        self.plain_parameters: list[Any] = []
        self.long = [each for each in search.words if full_text and len(each) >= _LONG]
        #: of the word index
        self.match = " ".join('"' + each.replace('"', '""') + '"' for each in self.long)
        for word in search.words:
            if word not in self.long:
                self._add_short_word(word)
        if self.match and search.sort != "sequence":
            select = "SELECT rowid FROM words WHERE words MATCH ?"
            check = " AND ".join([_HAS_WORD] * len(self.long))
            self.selective.append(_Term(check, select, (self.match,), tuple(self.long)))
        for group in _grouped(_comparisons(search), self._single_valued):
            self._add(group)

    def rarest(self) -> tuple[_Term | None, list[int]]:
        """The condition that fewest datasets meet, if they are few, and their sequences."""
        rarest: _Term | None = None
        found: list[int] = []
        for term in self.selective:
            limit = _FEW if rarest is None else len(found)
            rows = self._connection.execute(
                f"{term.select} LIMIT {limit}", term.parameters
            ).fetchall()
            if len(rows) < limit:
                rarest, found = term, [sequence for (sequence,) in rows]
        return rarest, found

    def _add(self, group: list[Comparison]) -> None:
        first = group[0]
        if first.field in _COLUMNS:
            test, parameters = _tests(f"d.{first.field}", group)
            if first.op == "!=":
                self._check(test, *parameters)
            else:
                select = f"SELECT sequence FROM datasets d WHERE {test}"
                # With the + no index is used to check.
                check = test.replace(f"d.{first.field}", f"+d.{first.field}")
                self.selective.append(_Term(check, select, parameters))
            return
        number = self._name(first.field)[0]
        test, parameters = _tests("value", group)
        if number is None:
            self.impossible |= first.op != "!="
            return
        of_one = f"EXISTS (SELECT 1 FROM facts WHERE sequence = d.sequence AND name = ? AND {test})"
        if first.op == "!=":
            self._check(f"NOT {of_one}", number, *parameters)
        else:
            select = f"SELECT sequence FROM facts WHERE name = ? AND {test}"
            self.selective.append(_Term(of_one, select, (number, *parameters)))

    def _add_short_word(self, word: str) -> None:
        select = "SELECT sequence FROM texts WHERE instr(text, ?)"
        self.selective.append(_Term(_HAS_WORD, select, (word,)))

    def _check(self, clause: str, *parameters: Any) -> None:
        self.plain.append(clause)
        self.plain_parameters += parameters

    def _single_valued(self, field: str) -> bool:
        return field in _COLUMNS or not self._name(field)[1]

    def _name(self, field: str) -> tuple[int | None, int]:
        """The number of a name, and whether any dataset has several values of it."""
        row = self._connection.execute(
            "SELECT number, several FROM names WHERE name = ?", (field,)
        ).fetchone()
        return (None, 0) if row is None else row


def _comparisons(search: Search) -> list[Comparison]:
    tags = [Comparison("tags", "==", each) for each in search.tags]
    parents = [Comparison("parents", "==", search.parent)] if search.parent else []
    return [*search.comparisons, *tags, *parents]


def _grouped(comparisons: Iterable[Comparison], single_valued: Any) -> list[list[Comparison]]:
    """The two ends of a range together, where no dataset can meet them by two values."""
    groups: dict[object, list[Comparison]] = {}
    for number, each in enumerate(comparisons):
        joined = each.op in _RANGES and single_valued(each.field)
        key = (each.field, isinstance(each.value, str)) if joined else number
        groups.setdefault(key, []).append(each)
    return list(groups.values())


def _tests(column: str, group: list[Comparison]) -> tuple[str, tuple[Any, ...]]:
    tests = [_test(column, each) for each in group]
    return " AND ".join(test for test, _ in tests), tuple(value for _, value in tests)


def _test(column: str, comparison: Comparison) -> tuple[str, Any]:
    op, value = comparison.op, stored_value(comparison.value)
    if op == "!=":
        # In the tables of facts it is the equal ones that must not exist. Not a number, which
        # SQLite takes for NULL, equals nothing.
        return f"{column} {'=' if column == 'value' else 'IS NOT'} ?", value
    if op == "==":
        return f"{column} = ?", value
    texts_alone = f"{column} >= '' AND {column} < x''"
    if op == "like":
        return f"{texts_alone} AND {column} GLOB ?", str(value).replace("[", "[[]")
    if op == "in":
        return f"{texts_alone} AND instr({_FOLDED.format(column)}, ?)", value
    if isinstance(value, str):
        return f"{column} {op} ? AND {texts_alone}", value
    return f"{column} {op} ? AND {column} < ''", value
