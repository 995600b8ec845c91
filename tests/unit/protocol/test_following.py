"""Which of two brokers is followed, as a table of what happens and when a client turns."""

from __future__ import annotations

import pytest

from labmesh.protocol.following import FIRST, SPARE, Following

#: What happens, in the order of time: when (seconds), what.
History = list[tuple[float, str]]

BOTH_WHOLE: History = [(0.1, "+first"), (0.1, "+spare"), (0.2, "+events")]


def turns(history: History, until: float) -> list[tuple[float, int]]:
    """When another broker is followed, and which, by a machine that is called when it asks."""
    machine = Following(0.0, grace_s=0.25, settle_s=3.0)
    found: list[tuple[float, int]] = []
    waiting = sorted(history, reverse=True)
    now = 0.0
    while True:
        due = machine.next_deadline()
        at = waiting[-1][0] if waiting else until
        if due is not None and max(due, now) <= min(at, until):
            assert not machine.turn(due - 0.001)
            now = max(due, now)
            assert machine.turn(now)
            assert machine.other != machine.followed
            found.append((now, machine.followed))
        elif waiting:
            now, what = waiting.pop()
            if what[1:] == "events":
                machine.events(what[0] == "+", now)
            else:
                machine.usable(FIRST if what[1:] == "first" else SPARE, what[0] == "+", now)
        else:
            return found


@pytest.mark.parametrize(
    ("history", "expected"),
    [
        pytest.param(BOTH_WHOLE, [], id="nothing is wrong"),
        pytest.param([*BOTH_WHOLE, (5.0, "-spare")], [], id="the other one dies"),
        pytest.param([*BOTH_WHOLE, (5.0, "-first")], [(5.25, SPARE)], id="dies"),
        pytest.param(
            [*BOTH_WHOLE, (5.0, "-first"), (5.0, "-events"), (5.2, "+first"), (5.2, "+events")],
            [],
            id="a short break",
        ),
        pytest.param([*BOTH_WHOLE, (5.0, "-events")], [(5.25, SPARE)], id="its events alone"),
        pytest.param(
            [*BOTH_WHOLE, (5.0, "-first"), (5.0, "-spare"), (9.0, "+spare"), (9.1, "+events")],
            [(9.0, SPARE)],
            id="both die, the spare comes back",
        ),
        pytest.param([(0.1, "+spare")], [(0.25, SPARE)], id="the first was never there"),
        pytest.param([], [], id="nobody is there"),
        pytest.param(
            [(0.1, "+first"), (0.1, "+spare"), (1.0, "-events")],
            [(3.1, SPARE)],
            id="answers, but no events come",
        ),
        pytest.param(
            [(10.0, "+first"), (10.1, "+spare"), (10.2, "+events")],
            [],
            id="both come late, the first one first",
        ),
        pytest.param(
            [*BOTH_WHOLE, (5.0, "-first"), (5.3, "+events"), (6.0, "+first"), (9.0, "-spare")],
            [(5.25, SPARE), (9.25, FIRST)],
            id="it stays with the spare until that dies, too",
        ),
    ],
)
def test_turns(history: History, expected: list[tuple[float, int]]) -> None:
    until = max([each[0] for each in history], default=0.0) + 2.5
    found = [(round(at, 6), broker) for at, broker in turns(history, until)]
    assert found == expected


def test_one_that_answers_without_events_is_left_again() -> None:
    assert turns([*BOTH_WHOLE, (5.0, "-events")], 20.0) == [
        *((5.25, SPARE), (8.25, FIRST), (11.25, SPARE), (14.25, FIRST), (17.25, SPARE)),
    ]
