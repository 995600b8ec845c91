"""What relays tell beside their states, as sentences."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from labmesh.cli.output import age, one_line, shown_state
from labmesh.events.healing import Gap
from labmesh.protocol.driver_events import RESERVED

__all__ = ["gap_sentence", "sentence"]

_TEXT_CHARACTERS = 500


def sentence(relay_id: str, kind: str, value: object) -> str:
    """An event of a relay for people; empty: it is of no interest to them, or cannot be read."""
    if kind not in RESERVED:
        return f"{relay_id}: {_of_driver(kind, value)}"
    if not isinstance(value, Mapping):
        return ""
    match kind:
        case "state_error":
            return f"{relay_id}: its poll() failed: {value.get('error')}: {value.get('text')}"
        case "lease":
            return f"{relay_id}: {_lease(value)}"
        case "stuck":
            running = _age(value, "running_s")
            return f"{relay_id}: its driver is STUCK in {value.get('method')}, for {running} now"
        case "safe_state" if value.get("error") is None:
            return f"{relay_id}: the holder of its lease is gone; safe_state() was called"
        case "safe_state":
            return f"{relay_id}: safe_state() FAILED: {value['error']}; look at the instrument"
    return ""


def gap_sentence(gap: Gap) -> str:
    """A loss of events for people."""
    what = {"state": "states", "event": "events", "log": "lines of its log"}.get(
        gap.family, f"{gap.family} events"
    )
    count = gap.lost + gap.recovered
    late = f", {gap.recovered} of them delivered late" if gap.recovered else ""
    return f"{gap.node_id}: {count} {what} did not come{late}; LOST: {gap.lost}"


def _of_driver(kind: str, value: object) -> str:
    """What a driver publishes itself."""
    text = one_line(shown_state(value))[:_TEXT_CHARACTERS] if value is not None else ""
    match kind:
        case "alarm":
            return f"ALARM: {text}"
        case "message":
            return text
        case "progress" if isinstance(value, int | float) and not isinstance(value, bool):
            return f"progress {100 * value:.0f} %"
    return f"{one_line(kind)} {text}".rstrip()


def _lease(value: Mapping[Any, Any]) -> str:
    holder = one_line(str(value.get("holder") or "somebody"))
    note = f" ({one_line(str(value['note']))})" if value.get("note") else ""
    match value.get("change"):
        case "granted":
            return f"{holder} alone may write now{note}"
        case "broken":
            why = f": {one_line(str(value['why']))}" if value.get("why") else ""
            return f"the lease of {holder}{note} was broken by {value.get('by') or '?'}{why}"
        case "expired" | "abandoned":
            held = _age(value, "held_s")
            gone = f"ended after {held}: its program is gone"
            return f"the lease of {holder}{note} {gone}; everybody may write"
        case _:
            return f"{holder} has released its lease{note}; everybody may write"


def _age(value: Mapping[Any, Any], name: str) -> str:
    seconds = value.get(name)
    return age(seconds) if isinstance(seconds, int | float) else "?"
