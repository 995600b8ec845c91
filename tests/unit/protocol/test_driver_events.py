"""Which events a driver may publish."""

from __future__ import annotations

import pytest

from labmesh.protocol.driver_events import CUSTOMARY, RESERVED, check_event


@pytest.mark.parametrize("name", [*CUSTOMARY, "scan.step-3", "x" * 32])
def test_names_of_its_own(name: str) -> None:
    assert check_event(name) == name


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("", "is no name of an event"),
        ("x" * 33, "is no name of an event"),
        ("two words", "is no name of an event"),
        ("alarm\n", "is no name of an event"),
        (3, "a int is no name of an event"),
        *((name, "is the relay's own") for name in sorted(RESERVED)),
    ],
)
def test_other_names_are_refused(name: object, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        check_event(name)
