"""Where a dataset comes from: who stored it, and with which settings, in words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from labmesh.asking.holding import holder_name

__all__ = ["STATES", "origin_lines", "state_rows", "whoever"]

#: The two moments at which the states of all relays are kept, in words.
STATES = {"states_at_start": "at its start", "states_at_commit": "when it was stored"}


def whoever() -> str:
    """Who this is, for histories: ``alice@lab-pc``."""
    return holder_name().rpartition(" (pid")[0]


def origin_lines(provenance: Mapping[str, Any]) -> list[tuple[str, str]]:
    """All but the states, as pairs of a name and a text: ``("relay.driver", "psu:Supply")``."""
    rest = {key: each for key, each in provenance.items() if key not in (*STATES, "imported")}
    lines = list(_flat("", rest))
    imported = provenance.get("imported")
    if isinstance(imported, Mapping):
        kept = {
            key: each for key, each in imported.items() if key not in ("meta", "provenance", "tags")
        }
        lines += _flat("imported", kept)
    return lines


def state_rows(provenance: Mapping[str, Any], moment: str) -> list[tuple[str, str, str]]:
    """The states at one of the ``STATES``: relay, name of the value, value."""
    states = provenance.get(moment)
    if not states and isinstance(imported := provenance.get("imported"), Mapping):
        former = imported.get("provenance")
        states = former.get(moment) if isinstance(former, Mapping) else None
    if not isinstance(states, Mapping):
        return []
    return [
        (str(relay_id), name, text)
        for relay_id, state in states.items()
        for name, text in _flat("", _value(state))
    ]


def _value(state: Any) -> Mapping[str, Any]:
    """The value of a state, which is kept with its time."""
    value = state.get("value") if isinstance(state, Mapping) else state
    return value if isinstance(value, Mapping) else {"": value}


def _flat(name: str, value: Any) -> Iterator[tuple[str, str]]:
    if not isinstance(value, Mapping):
        yield name, _text(value)
        return
    for key, inner in value.items():
        yield from _flat(f"{name}.{key}" if name else str(key), inner)


def _text(value: Any) -> str:
    shape = getattr(value, "shape", None)
    if isinstance(shape, tuple) and shape:
        return f"<{getattr(value, 'dtype', 'array')} {'x'.join(map(str, shape))}>"
    if isinstance(value, float):
        return f"{value:.9g}"
    return value if isinstance(value, str) else repr(value)
