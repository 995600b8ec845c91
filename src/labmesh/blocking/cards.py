"""How a mesh, an instrument and a dataset look in a terminal and in a notebook: text, no network.

All names, signatures and docstrings come from other machines: in HTML they are escaped, and in text
control characters are made visible, so that none can repaint a terminal.
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from labmesh.blocking.limits import method_marks, value_marks
from labmesh.events.reading import Reading
from labmesh.protocol.messages import MethodInfo, NodeRecord, ValueInfo

__all__ = [
    "InstrumentCard",
    "ago",
    "byte_size",
    "count",
    "duration",
    "html_table",
    "instrument_html",
    "instrument_text",
    "node_rows",
    "plain",
    "state_text",
    "table",
]

NODE_HEADINGS = ("id", "kind", "state", "driver or folder", "host", "endpoint")

_VALUE_CHARS = 24
_STATE_CHARS = 200
_DOC_CHARS = 100
#: A longer list is folded in a notebook.
_OPEN_ROWS = 20
_LIGHTS = {"live": "#2e9e44", "suspect": "#d99000"}
_GONE = "#b3261e"


# ── pieces ──────────────────────────────────────────────────────────────────────────────────────


def plain(text: object, characters: int = 200) -> str:
    """One printable line, cut short."""
    line = " ".join(str(text).split())
    line = "".join(each if each.isprintable() else ascii(each)[1:-1] for each in line)
    return line if len(line) <= characters else f"{line[: characters - 3]}..."


def duration(seconds: float) -> str:
    """``0.42 s``, ``12 s``, ``3 min 5 s``, ``2 h 10 min``, ``4 d 3 h``."""
    if seconds < 10:
        return f"{seconds:.2g} s" if seconds >= 0.01 else "0 s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    if whole < 86_400:
        return f"{whole // 3600} h {whole % 3600 // 60} min"
    return f"{whole // 86_400} d {whole % 86_400 // 3600} h"


def ago(seconds: float | None) -> str:
    """``3 s ago``, or ``never``."""
    return "never" if seconds is None else f"{duration(seconds)} ago"


def byte_size(size: int) -> str:
    """``812 B``, ``1.3 MB``: in powers of 1000."""
    if size < 1000:
        return f"{size} B"
    amount, units = size / 1000, ["kB", "MB", "GB"]
    while amount >= 999.5 and len(units) > 1:
        amount /= 1000
        units.pop(0)
    return f"{amount:.3g} {units[0]}"


def count(number: int, what: str) -> str:
    """``1 relay``, ``2 relays``."""
    return f"{number} {what}{'' if number == 1 else 's'}"


def state_text(state: Mapping[str, Any]) -> str:
    """``voltage=2.5, output=True``, cut short."""
    pairs = (
        f"{plain(name, 40)}={plain(repr(value), _VALUE_CHARS)}" for name, value in state.items()
    )
    return plain(", ".join(pairs) or "(empty)", _STATE_CHARS)


# ── tables ──────────────────────────────────────────────────────────────────────────────────────


def table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Columns, two spaces apart."""
    lines = [list(headings), *(list(row) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(headings))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def html_table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """The same for a notebook."""
    head = "".join(f"<th style='text-align:left'>{html.escape(each)}</th>" for each in headings)
    body = "".join(
        "<tr>"
        + "".join(f"<td style='text-align:left'>{html.escape(cell)}</td>" for cell in row)
        + "</tr>"
        for row in rows
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def node_rows(nodes: Iterable[NodeRecord]) -> list[tuple[str, ...]]:
    """Relays, then banks, under ``NODE_HEADINGS``."""
    ordered = sorted(nodes, key=lambda each: (each.kind != "relay", each.node_id))
    return [
        (
            each.node_id,
            each.kind,
            each.state,
            plain(each.title, 40),
            plain(each.host, 40),
            plain(each.endpoints.get("rpc") or each.endpoints.get("ingest", ""), 60),
        )
        for each in ordered
    ]


# ── instruments ─────────────────────────────────────────────────────────────────────────────────


class InstrumentCard(NamedTuple):
    """What is known of an instrument without asking."""

    relay_id: str
    driver: str
    doc: str
    #: ``live``, ``suspect`` (no heartbeat), or ``gone``
    light: str
    host: str
    #: the last state
    reading: Reading | None
    methods: Sequence[MethodInfo]
    values: Sequence[ValueInfo]
    #: methods and values that only ``call()`` and ``get()`` reach: the proxy uses their names
    hidden: Sequence[str]


def instrument_text(card: InstrumentCard) -> str:
    """The card in a terminal."""
    lines = [_heading(card)]
    if card.doc:
        lines.append(f"  {_first_line(card.doc)}")
    lines.append(f"  {_state_line(card)}")
    lines += [f"    {_with_comment(*row)}" for row in _value_rows(card)]
    lines += [f"    {_with_comment(*row)}" for row in _method_rows(card)]
    if card.hidden:
        lines.append(f"    {_hidden_line(card)}")
    return "\n".join(lines)


def instrument_html(card: InstrumentCard) -> str:
    """The card in a notebook."""
    is_stale = card.reading is not None and card.reading.stale
    state_style = f" style='color:{_GONE}'" if is_stale else ""
    hidden = f"<div>{html.escape(_hidden_line(card))}</div>" if card.hidden else ""
    return (
        f"<div><span style='color:{_LIGHTS.get(card.light, _GONE)}'>&#9679;</span> "
        f"<b>{html.escape(_heading(card))}</b>"
        f"<div>{html.escape(_first_line(card.doc))}</div>"
        f"<div{state_style}>{html.escape(_state_line(card))}</div>"
        f"{_html_rows('values', _value_rows(card))}"
        f"{_html_rows('methods', _method_rows(card))}{hidden}</div>"
    )


def _html_rows(what: str, rows: Sequence[_Row]) -> str:
    if not rows:
        return ""
    lines = "".join(
        f"<tr><td style='text-align:left'><code>{html.escape(row.name)}</code></td>"
        f"<td style='text-align:left'>{html.escape(', '.join(row.marks))}</td>"
        f"<td style='text-align:left'>{html.escape(row.doc)}</td></tr>"
        for row in rows
    )
    is_open = " open" if len(rows) <= _OPEN_ROWS else ""
    return (
        f"<details{is_open}><summary>{count(len(rows), what.removesuffix('s'))}</summary>"
        f"<table>{lines}</table></details>"
    )


class _Row(NamedTuple):
    """One method or value."""

    name: str
    marks: Sequence[str]
    doc: str


def _value_rows(card: InstrumentCard) -> list[_Row]:
    state = card.reading.value if card.reading is not None else {}
    return [
        _Row(
            f".{each.name}{_type_text(each.type)}{_last_text(state, each.name)}",
            [plain(mark) for mark in value_marks(each)],
            _first_line(each.doc),
        )
        for each in card.values
        if each.name not in card.hidden
    ]


def _type_text(annotation: str) -> str:
    return f": {plain(annotation, 60)}" if annotation else ""


def _last_text(state: object, name: str) -> str:
    """What the last state says of a value; nobody is asked for it."""
    if not isinstance(state, Mapping) or name not in state:
        return ""
    return f" = {plain(repr(state[name]), _VALUE_CHARS)}"


def _method_rows(card: InstrumentCard) -> list[_Row]:
    return [
        _Row(
            f".{each.name}{plain(each.signature)}",
            method_marks(each),
            _first_line(each.doc),
        )
        for each in card.methods
        if each.name not in card.hidden
    ]


def _with_comment(name: str, marks: Sequence[str], doc: str) -> str:
    words = "; ".join(filter(None, (", ".join(marks), doc)))
    return f"{name}  # {words}" if words else name


def _heading(card: InstrumentCard) -> str:
    host = f" on {plain(card.host, 40)}" if card.host else ""
    return f"{card.relay_id}: {plain(card.driver, 60)}{host} ({card.light})"


def _state_line(card: InstrumentCard) -> str:
    reading = card.reading
    if reading is None:
        return "no state received"
    text = f"state {ago(reading.age_s)}"
    if reading.stale:
        text += f", STALE (one is due each {duration(reading.interval_s)})"
    return f"{text}: {state_text(reading.value)}"


def _hidden_line(card: InstrumentCard) -> str:
    methods = {each.name for each in card.methods}
    names = ", ".join(f'{"call" if name in methods else "get"}("{name}")' for name in card.hidden)
    return f"the driver has these as well, under names that this object uses itself: {names}"


def _first_line(doc: str) -> str:
    return plain(doc.strip().partition("\n")[0], _DOC_CHARS)
