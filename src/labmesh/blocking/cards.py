"""How a mesh, an instrument and a dataset look in a terminal and in a notebook: text, no network.

All names, signatures and docstrings come from other machines: in HTML they are escaped, and in text
control characters are made visible, so that none can repaint a terminal.
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from labmesh.protocol.messages import NodeRecord

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
    #: the last state, and its age in seconds
    state: tuple[Mapping[str, Any], float] | None
    #: name and signature
    methods: Sequence[tuple[str, str]]
    #: methods that only ``call()`` reaches, because the proxy uses their names itself
    hidden: Sequence[str]


def instrument_text(card: InstrumentCard) -> str:
    """The card in a terminal."""
    lines = [_heading(card)]
    if card.doc:
        lines.append(f"  {_first_line(card.doc)}")
    lines.append(f"  {_state_line(card)}")
    lines += [f"    .{name}{plain(signature)}" for name, signature in _reachable(card)]
    if card.hidden:
        lines.append(f"    {_hidden_line(card)}")
    return "\n".join(lines)


def instrument_html(card: InstrumentCard) -> str:
    """The card in a notebook."""
    colour = _LIGHTS.get(card.light, _GONE)
    methods = "".join(
        f"<li><code>{html.escape(name)}{html.escape(plain(signature))}</code></li>"
        for name, signature in _reachable(card)
    )
    hidden = f"<li>{html.escape(_hidden_line(card))}</li>" if card.hidden else ""
    return (
        f"<div><span style='color:{colour}'>&#9679;</span> "
        f"<b>{html.escape(_heading(card))}</b>"
        f"<div>{html.escape(_first_line(card.doc))}</div>"
        f"<div>{html.escape(_state_line(card))}</div>"
        f"<ul>{methods}{hidden}</ul></div>"
    )


def _heading(card: InstrumentCard) -> str:
    host = f" on {plain(card.host, 40)}" if card.host else ""
    return f"{card.relay_id}: {plain(card.driver, 60)}{host} ({card.light})"


def _state_line(card: InstrumentCard) -> str:
    if card.state is None:
        return "no state received"
    state, age_s = card.state
    return f"state {ago(age_s)}: {state_text(state)}"


def _reachable(card: InstrumentCard) -> list[tuple[str, str]]:
    return [(name, signature) for name, signature in card.methods if name not in card.hidden]


def _hidden_line(card: InstrumentCard) -> str:
    names = ", ".join(f'call("{name}")' for name in card.hidden)
    return f"the driver has these as well, under names that this object uses itself: {names}"


def _first_line(doc: str) -> str:
    return plain(doc.strip().partition("\n")[0], _DOC_CHARS)
