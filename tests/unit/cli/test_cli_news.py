"""What relays tell beside their states, in words."""

from __future__ import annotations

from typing import Any

import pytest

from labmesh.cli.news import gap_sentence, sentence
from labmesh.events.healing import Gap
from labmesh.protocol.leases import Leases

LEASE = {"holder": "anna@lab-3", "note": "T sweep", "fence": 3}


@pytest.mark.parametrize(
    ("kind", "value", "text"),
    [
        (
            "state_error",
            {"error": "OSError", "text": "no answer from COM3"},
            "its poll() failed: OSError: no answer from COM3",
        ),
        ("lease", {"change": "granted", **LEASE}, "anna@lab-3 alone may write now (T sweep)"),
        (
            "lease",
            {"change": "released", **LEASE, "note": ""},
            "anna@lab-3 has released its lease; everybody may write",
        ),
        (
            "lease",
            {"change": "expired", **LEASE, "held_s": 61.0},
            "the lease of anna@lab-3 (T sweep) ended after 1 min: its program is gone; everybody "
            "may write",
        ),
        (
            "lease",
            {"change": "broken", **LEASE, "by": "bob@lab-1", "why": "my turn"},
            "the lease of anna@lab-3 (T sweep) was broken by bob@lab-1: my turn",
        ),
        (
            "stuck",
            {"method": "ramp", "running_s": 3.0},
            "its driver is STUCK in ramp, for 3.0 s now",
        ),
        (
            "safe_state",
            {"error": None},
            "the holder of its lease is gone; safe_state() was called",
        ),
        (
            "safe_state",
            {"error": "OSError: no answer"},
            "safe_state() FAILED: OSError: no answer; look at the instrument",
        ),
        ("alarm", "3 bar in the\nchamber", "ALARM: 3 bar in the chamber"),
        ("message", "cold", "cold"),
        ("progress", 0.254, "progress 25 %"),
        ("progress", {"done": 2, "of": 3}, "progress done=2 of=3"),
        ("scan.done", None, "scan.done"),
        ("scan.step", {"at": 1.5}, "scan.step at=1.5"),
    ],
)
def test_an_event_in_words(kind: str, value: Any, text: str) -> None:
    assert sentence("Inst-0", kind, value) == f"Inst-0: {text}"


@pytest.mark.parametrize(("kind", "value"), [("alive", None), ("lease", 5)])
def test_what_is_of_no_interest_is_not_told(kind: str, value: object) -> None:
    assert sentence("Inst-0", kind, value) == ""


def test_a_gap_in_words() -> None:
    gap = Gap("event", "Inst-0", "e1", 5, 9, lost=2, recovered=3)
    assert gap_sentence(gap) == ("Inst-0: 5 events did not come, 3 of them delivered late; LOST: 2")
    assert gap_sentence(Gap("state", "Inst-0", "e1", 5, 9, lost=5)) == (
        "Inst-0: 5 states did not come; LOST: 5"
    )


def test_events_of_another_version_do_no_harm() -> None:
    for kind in ("state_error", "lease", "stuck", "safe_state"):
        assert sentence("Inst-0", kind, {}).startswith("Inst-0: ")


def test_the_names_are_those_of_the_leases_of_a_relay() -> None:
    leases = Leases("Inst-0")
    held = leases.acquire("me", ttl_s=5, holder="anna@lab-3", note="T sweep", now=0.0)
    assert sentence("Inst-0", "lease", held.news()).endswith("alone may write now (T sweep)")
    ended = leases.expire(now=6.0)
    assert ended is not None
    assert "ended after" in sentence("Inst-0", "lease", ended.news())
