"""The flow of a stream: nothing is missed or repeated, and no more waits than was asked for."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from labmesh.errors import ProtocolError
from labmesh.protocol.flow import Inflow


def test_half_of_the_credit_is_asked_for_at_a_time() -> None:
    flow = Inflow(4)
    for index in range(4):
        flow.arrived(index)
    assert [flow.taken() for _ in range(4)] == [0, 2, 0, 2]
    for index in range(4, 8):
        flow.arrived(index)


def test_a_credit_of_one_is_renewed_item_by_item() -> None:
    flow = Inflow(1)
    for index in range(3):
        flow.arrived(index)
        assert flow.taken() == 1


@pytest.mark.parametrize("index", [0, 2, 5])
def test_a_gap_and_a_repeat_are_refused(index: int) -> None:
    flow = Inflow(4)
    flow.arrived(0)
    with pytest.raises(ProtocolError, match=f"item {index} of a stream came where item 1"):
        flow.arrived(index)
    flow.arrived(1)


def test_more_than_was_asked_for_is_refused() -> None:
    flow = Inflow(2)
    flow.arrived(0)
    flow.arrived(1)
    with pytest.raises(ProtocolError, match="only 2 were asked for"):
        flow.arrived(2)


@given(st.integers(1, 20), st.lists(st.booleans(), max_size=200))
def test_never_more_than_the_credit_waits_and_a_stream_never_stands_still(
    credit: int, moves: list[bool]
) -> None:
    flow = Inflow(credit)
    allowed, sent, taken = credit, 0, 0
    for sends in moves:
        if sends and sent < allowed:
            flow.arrived(sent)
            sent += 1
        elif not sends and taken < sent:
            taken += 1
            allowed += flow.taken()
        assert sent - taken <= allowed - taken <= credit
        assert sent < allowed or taken < sent, "one of both can go on"
