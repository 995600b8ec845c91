"""A late call never begins."""

from __future__ import annotations

import math

import pytest

from labmesh.errors import (
    Busy,
    Conflict,
    Expired,
    LabmeshError,
    NotFound,
    ProtocolError,
    StaleEpoch,
)
from labmesh.protocol.callee import FIRST_SIGN_S, SIGN_INTERVAL_S, Callee, admit
from labmesh.protocol.caller import SILENCE_S
from labmesh.protocol.messages import Alive, Call, Ping, Request

RELAY = "relay Inst-0 at tcp://10.0.0.3:5801"
PEER, OTHER = b"\x00peer", b"\x00other"


def call(call_id: str = "1", *, deadline: float | None = None, method: str = "ramp") -> Call:
    return Call(id=call_id, method=method, deadline=deadline)


# ── admit ───────────────────────────────────────────────────────────────────────────────────────


def ask(**fields: object) -> Request:
    return Ping(id="1", **fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "request_",
    [
        ask(),
        ask(target="Inst-0"),
        ask(epoch="e1"),
        ask(deadline=10.5),
        ask(target="Inst-0", epoch="e1", deadline=1e300),
    ],
)
def test_a_request_for_this_node_and_a_later_time_is_admitted(request_: Request) -> None:
    admit(request_, node_id="Inst-0", epoch="e1", now=10.0)


@pytest.mark.parametrize(
    ("request_", "error", "says"),
    [
        (ask(target="Inst-1"), NotFound, "this is Inst-0, not Inst-1"),
        (ask(epoch="e0"), StaleEpoch, "was restarted"),
        (ask(deadline=10.0), Expired, "will not be"),
        (ask(deadline=-1.0), Expired, "will not be"),
        (ask(deadline=math.nan), ProtocolError, "finite"),
        (ask(deadline=math.inf), ProtocolError, "finite"),
        (ask(deadline=-math.inf), ProtocolError, "finite"),
    ],
)
def test_a_request_for_another_node_incarnation_or_time_is_refused(
    request_: Request, error: type[LabmeshError], says: str
) -> None:
    with pytest.raises(error, match=says) as caught:
        admit(request_, node_id="Inst-0", epoch="e1", now=10.0)
    assert caught.value.executed is False


def test_a_refused_target_is_quoted_no_longer_than_an_id() -> None:
    with pytest.raises(NotFound) as caught:
        admit(ask(target="x" * 500), node_id="Inst-0", epoch="e1", now=0.0)
    assert "x" * 128 in str(caught.value)
    assert "x" * 129 not in str(caught.value)


# ── the callee ──────────────────────────────────────────────────────────────────────────────────


def test_a_call_is_found_while_it_is_open_and_by_its_own_connection_only() -> None:
    callee = Callee()
    opened = callee.accept(PEER, call("1"), 0.0)
    assert callee.find(PEER, "1") is opened
    with pytest.raises(NotFound, match="no call 1 is open"):
        callee.find(OTHER, "1")
    assert callee.finish(opened)
    with pytest.raises(NotFound):
        callee.find(PEER, "1")


def test_the_ids_of_two_connections_do_not_meet() -> None:
    callee = Callee()
    callee.accept(PEER, call("1"), 0.0)
    callee.accept(OTHER, call("1"), 0.0)
    with pytest.raises(Conflict, match="already open"):
        callee.accept(PEER, call("1"), 0.0)
    assert len(callee) == 2


def test_a_connection_has_a_limit_of_open_calls_and_others_are_not_affected() -> None:
    callee = Callee(max_open=2)
    first = callee.accept(PEER, call("1"), 0.0)
    callee.accept(PEER, call("2"), 0.0)
    with pytest.raises(Busy, match="2 calls of this connection"):
        callee.accept(PEER, call("3"), 0.0)
    callee.accept(OTHER, call("3"), 0.0)
    callee.finish(first)
    callee.accept(PEER, call("3"), 0.0)


def test_a_connection_that_has_no_open_call_leaves_nothing_behind() -> None:
    callee = Callee()
    for number in range(100):
        opened = callee.accept(str(number).encode(), call("1"), 0.0)
        callee.finish(opened)
    assert len(callee) == 0
    assert callee._count == {}


def test_a_call_ends_once() -> None:
    callee = Callee()
    opened = callee.accept(PEER, call("1"), 0.0)
    assert callee.finish(opened)
    assert not callee.finish(opened)


def test_the_late_end_of_a_call_does_not_end_another_one_that_has_its_id() -> None:
    callee = Callee(max_open=1)
    first = callee.accept(PEER, call("1"), 0.0)
    callee.finish(first)
    second = callee.accept(PEER, call("1"), 1.0)
    assert not callee.finish(first)
    assert callee.find(PEER, "1") is second
    with pytest.raises(Busy):
        callee.accept(PEER, call("2"), 1.0)
    assert callee.finish(second)


@pytest.mark.parametrize(
    ("asked", "deadline"), [(None, 70.0), (50.0, 50.0), (71.0, 70.0), (1e18, 70.0)]
)
def test_no_call_waits_longer_than_the_limit(asked: float | None, deadline: float) -> None:
    callee = Callee(limit_s=60.0)
    assert callee.accept(PEER, call("1", deadline=asked), 10.0).deadline == deadline


def test_a_call_begins_before_its_deadline_or_never() -> None:
    callee = Callee()
    early = callee.accept(PEER, call("1", deadline=10.0), 0.0)
    assert early.state == "queued"
    assert early.begin(9.999)
    assert early.state == "running"
    late = callee.accept(PEER, call("2", deadline=10.0), 0.0)
    assert not late.begin(10.0)
    assert late.state == "queued"


def test_calls_that_wait_beyond_their_deadline_are_overdue_and_running_ones_are_not() -> None:
    callee = Callee()
    running = callee.accept(PEER, call("1", deadline=10.0), 0.0)
    waiting = callee.accept(PEER, call("2", deadline=10.0), 0.0)
    callee.accept(PEER, call("3", deadline=20.0), 0.0)
    running.begin(1.0)
    assert callee.overdue(9.999) == []
    assert callee.overdue(10.0) == [waiting]
    assert callee.overdue(10.0) == [], "each is told once"
    assert callee.finish(waiting)


def test_a_short_call_gives_no_sign_of_life() -> None:
    callee = Callee()
    opened = callee.accept(PEER, call("1"), 0.0)
    assert callee.signs(FIRST_SIGN_S - 0.001) == []
    callee.finish(opened)
    assert callee.signs(FIRST_SIGN_S) == []


def test_a_call_that_lasts_gives_a_sign_of_life_at_once_and_then_one_an_interval() -> None:
    callee = Callee()
    opened = callee.accept(PEER, call("1"), 0.0)
    assert callee.next_deadline() == FIRST_SIGN_S
    assert callee.signs(FIRST_SIGN_S) == [(opened, Alive(id="1", state="queued"))]
    assert callee.signs(FIRST_SIGN_S) == []
    opened.begin(0.5)
    assert callee.next_deadline() == FIRST_SIGN_S + SIGN_INTERVAL_S
    [(_, alive)] = callee.signs(FIRST_SIGN_S + SIGN_INTERVAL_S)
    assert alive == Alive(id="1", state="running")


def test_signs_come_several_times_before_a_caller_gives_up() -> None:
    assert FIRST_SIGN_S + 3 * SIGN_INTERVAL_S < SILENCE_S


def test_the_callee_wants_to_be_called_at_the_deadline_of_a_call_that_waits() -> None:
    callee = Callee()
    assert callee.next_deadline() is None
    opened = callee.accept(PEER, call("1", deadline=0.02), 0.0)
    assert callee.next_deadline() == 0.02
    opened.begin(0.01)
    assert callee.overdue(0.02) == [], "it runs"
    assert callee.next_deadline() == FIRST_SIGN_S
    callee.finish(opened)
    assert callee.next_deadline() is None
