"""After a power cut at any moment, in any state that a disk may leave, a bank keeps its promises.

The figures (FD4), some minutes::

    python -m pytest -m soak -s tests/faults/test_bank_power_cut.py
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.bank_promises import Violation, check
from tests.support.bank_scenarios import SCENARIOS, Scenario, in_memory, promised, record
from tests.support.crash_states import Recorder, crash_states

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="files are looked at in Linux's /proc"
)


@pytest.fixture
def disk() -> Iterator[Path]:
    with in_memory() as folder:
        yield folder


def _tried(disk: Path, scenario: Scenario, share: int, **options: bool) -> int:
    """Every ``share``-th state of a scenario, and the last; how many those are."""
    events = record(scenario, disk / "bank", Recorder)
    expected = promised(events)
    tried = 0
    for number, state in enumerate(crash_states(events, **options)):
        if number % share:
            continue
        tried += 1
        again = tried % 10 == 0
        state.build(disk / "crashed")
        try:
            check(disk / "crashed", expected[state.at], again=again)
        except Violation as error:
            pytest.fail(f"{scenario.__name__}, {state.story}: {error}")
    return tried


def test_some_states_that_a_power_cut_may_leave(disk: Path) -> None:
    states = sum(_tried(disk, each, share=11) for each in SCENARIOS)
    print(f"FD4: {states} states / 0 violations")
    assert states > 500


@pytest.mark.soak
@pytest.mark.timeout(1200)
def test_every_state_that_a_power_cut_may_leave(disk: Path) -> None:
    states = sum(_tried(disk, each, share=1, all_derived=True) for each in SCENARIOS)
    print(f"FD4: {states} states / 0 violations")
    assert states > 10_000
