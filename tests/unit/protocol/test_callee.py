"""A late call never begins, and a call of a session runs at most once."""

from __future__ import annotations

import math
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from labmesh.errors import (
    Busy,
    Cancelled,
    Conflict,
    Expired,
    LabmeshError,
    NotFound,
    OutcomeUnknown,
    ProtocolError,
    StaleEpoch,
)
from labmesh.protocol.callee import FIRST_SIGN_S, SIGN_INTERVAL_S, Callee, admit
from labmesh.protocol.caller import SILENCE_S
from labmesh.protocol.messages import Alive, Batch, Call, Invocation, Ping, Request
from labmesh.protocol.open_call import OpenCall, Owner, given_of
from labmesh.protocol.past_calls import Memory

#: Connections, and sessions.
PEER, OTHER = b"\x00peer", b"\x00other"
ONE, TWO, THREE = ("alice", "token-1"), ("alice", "token-2"), ("alice", "token-3")


def call(
    call_id: str = "1",
    *,
    deadline: float | None = None,
    method: str = "ramp",
    session: str = "",
    **given: Any,
) -> Call:
    return Call(id=call_id, method=method, deadline=deadline, session=session, **given)


def of_session(call_id: int, *, method: str = "ramp", **given: Any) -> Call:
    return call(str(call_id), method=method, session="token", **given)


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


def test_a_late_call_of_a_session_is_let_through_for_it_may_have_come_before() -> None:
    late = Call(id="1", method="ramp", session="token", deadline=9.0)
    admit(late, node_id="Inst-0", epoch="e1", now=10.0)
    with pytest.raises(ProtocolError, match="finite"):
        admit(msgspec.structs.replace(late, deadline=math.nan), node_id="I", epoch="e", now=10.0)
    with pytest.raises(Expired):
        admit(msgspec.structs.replace(late, session=""), node_id="I", epoch="e", now=10.0)


def test_a_refused_target_is_quoted_no_longer_than_an_id() -> None:
    with pytest.raises(NotFound) as caught:
        admit(ask(target="x" * 500), node_id="Inst-0", epoch="e1", now=0.0)
    assert "x" * 128 in str(caught.value)
    assert "x" * 129 not in str(caught.value)


# ── calls of a connection ───────────────────────────────────────────────────────────────────────


def taken(
    callee: Callee,
    request: Invocation,
    owner: Owner = PEER,
    now: float = 0.0,
    *,
    origin: object = "here",
) -> OpenCall:
    """A new call, accepted as a relay does it."""
    method = request.method if isinstance(request, Call) else "batch"
    assert callee.find_repeated(owner, request, method, origin, now) is None
    opened = opened_for(callee, request, owner, now, origin=origin)
    callee.accept(opened)
    return opened


def opened_for(
    callee: Callee, request: Invocation, owner: Owner, now: float, *, origin: object = "here"
) -> OpenCall:
    """What is to be accepted."""
    method = request.method if isinstance(request, Call) else "batch"
    return OpenCall(
        owner,
        origin,
        request.id,
        method,
        deadline=callee.deadline_of(request.deadline, now),
        kept=bool(request.session),
        accepted_at=now,
        given=given_of(request),
    )


def repeated(
    callee: Callee, request: Call, owner: Owner = ONE, now: float = 0.0, *, origin: object = "here"
) -> OpenCall | None:
    return callee.find_repeated(owner, request, request.method, origin, now)


def ended(callee: Callee, call_id: int, owner: Owner = ONE, now: float = 0.0) -> OpenCall:
    """A call of a session that has run."""
    opened = taken(callee, of_session(call_id), owner, now)
    callee.finish(opened, "returned", [b"reply"], now)
    return opened


def test_a_call_has_come_while_it_is_open_or_remembered() -> None:
    callee = Callee()
    opened = OpenCall(ONE, PEER, "1", "ramp", math.inf, True, 0.0)
    assert not callee.has_come(ONE, "1")
    callee.accept(opened)
    assert callee.has_come(ONE, "1")
    assert not callee.has_come(TWO, "1")
    callee.finish(opened, "returned", [b"reply"], 1.0)
    assert callee.has_come(ONE, "1")


def test_a_call_is_found_while_it_is_open_and_by_its_own_connection_only() -> None:
    callee = Callee()
    opened = taken(callee, call("1"))
    assert callee.find(PEER, "1") is opened
    with pytest.raises(NotFound, match="no call 1 is open"):
        callee.find(OTHER, "1")
    assert callee.finish(opened, "returned", [b"reply"], 1.0)
    with pytest.raises(NotFound):
        callee.find(PEER, "1")


def test_the_ids_of_two_connections_do_not_meet() -> None:
    callee = Callee()
    taken(callee, call("1"))
    taken(callee, call("1"), OTHER)
    with pytest.raises(Conflict, match="already open"):
        repeated(callee, call("1"), PEER)
    assert len(callee) == 2


def test_without_a_session_an_id_is_free_again_when_its_call_has_ended() -> None:
    callee = Callee()
    first = taken(callee, call("any id"))
    callee.finish(first, "returned", [b"reply"], 1.0)
    second = taken(callee, call("any id"), now=2.0)
    assert not callee.finish(first, "returned", [b"reply"], 3.0)
    assert callee.find(PEER, "any id") is second
    assert callee.remembered == 0


def test_a_client_has_a_limit_of_open_calls_and_others_are_not_affected() -> None:
    callee = Callee(max_open=2)
    first = taken(callee, call("1"))
    taken(callee, call("2"))
    with pytest.raises(Busy, match="2 calls of this client"):
        taken(callee, call("3"))
    taken(callee, call("3"), OTHER)
    callee.finish(first, "returned", None, 0.0)
    taken(callee, call("3"))
    assert len(callee) == 3


def test_a_call_ends_once() -> None:
    callee = Callee()
    opened = taken(callee, of_session(1), ONE)
    assert callee.finish(opened, "returned", [b"first"], 1.0)
    assert not callee.finish(opened, "raised", [b"second"], 2.0)
    assert (opened.ended, opened.reply, opened.ended_at) == ("returned", [b"first"], 1.0)
    assert len(callee) == 0


def test_a_call_tells_how_it_stands_and_since_when() -> None:
    callee = Callee()
    opened = taken(callee, call("1"), now=1.0)
    assert (opened.state, opened.since) == ("queued", 1.0)
    opened.begun_at = 2.0
    assert (opened.state, opened.since) == ("running", 2.0)
    callee.finish(opened, "raised", None, 3.0)
    assert (opened.state, opened.since) == ("raised", 3.0)


@pytest.mark.parametrize(
    ("asked", "deadline"), [(None, 70.0), (50.0, 50.0), (71.0, 70.0), (1e18, 70.0)]
)
def test_no_call_waits_longer_than_the_limit(asked: float | None, deadline: float) -> None:
    assert Callee(limit_s=60.0).deadline_of(asked, 10.0) == deadline


@pytest.mark.parametrize("asked", [-1.0, 9.9, 10.0])
def test_a_call_whose_deadline_has_passed_is_not_taken(asked: float) -> None:
    with pytest.raises(Expired, match="passed on the way; it was not run"):
        Callee().deadline_of(asked, 10.0)


# ── calls of a session ──────────────────────────────────────────────────────────────────────────


def test_a_call_that_comes_again_is_the_same_one_and_its_replies_go_where_it_came_from() -> None:
    callee = Callee()
    opened = taken(callee, of_session(1), ONE, origin="old connection")
    assert repeated(callee, of_session(1), origin="new connection") is opened
    assert opened.origin == "new connection"
    assert len(callee) == 1


def test_a_call_that_comes_again_after_its_end_has_its_reply() -> None:
    callee = Callee()
    opened = ended(callee, 1)
    found = repeated(callee, of_session(1), now=Memory().seconds)
    assert found is opened
    assert found.reply == [b"reply"]


def test_a_session_is_its_user_and_its_token() -> None:
    callee = Callee()
    ended(callee, 1, ("alice", "token-1"))
    taken(callee, of_session(1), ("bob", "token-1"))
    taken(callee, of_session(1), ("alice", "token-2"))
    assert len(callee) == 2


@pytest.mark.parametrize("has_ended", [True, False])
def test_an_id_does_not_name_two_calls(has_ended: bool) -> None:
    callee = Callee()
    opened = ended(callee, 1) if has_ended else taken(callee, of_session(1), ONE, origin="here")
    with pytest.raises(Conflict, match="call 1 was ramp; a new call needs a new id"):
        repeated(callee, of_session(1, method="stop"), origin="elsewhere")
    with pytest.raises(Conflict):
        callee.find_repeated(ONE, Batch(id="1", session="token-1", calls=[]), "batch", "e", 0.0)
    assert opened.origin == "here"


def test_of_a_batch_the_parameters_are_not_compared() -> None:
    callee = Callee()
    first = Batch(id="1", session="token-1", calls=[["ramp", [1.5]]])
    second = Batch(id="1", session="token-1", calls=[["ramp", [2.5]]])
    opened = taken(callee, first, ONE)
    assert callee.find_repeated(ONE, second, "batch", "there", 0.0) is opened


ARRAY = memoryview(b"an array")


@pytest.mark.parametrize(
    ("first", "second", "is_other"),
    [
        ({"args": [1.5, "A"]}, {"args": [1.5, "A"]}, False),
        ({"args": [1.5]}, {"args": [2.5]}, True),
        ({"args": [1.5]}, {}, True),
        ({"kwargs": {"value": 1.5}}, {"kwargs": {"value": 1.5}}, False),
        ({"kwargs": {"value": 1.5}}, {"kwargs": {"limit": 1.5}}, True),
        ({"args": [1.5]}, {"args": [1.5], "access": "set"}, True),
        ({"args": [1.5]}, {"args": [[1.5]]}, True),
        ({"args": ["x", 1, "k"]}, {"args": ["x"], "kwargs": {"k": 1}}, True),
        # Python has one and the same hash for these.
        ({"args": [-1]}, {"args": [-2]}, True),
        ({"args": [-1.0]}, {"args": [-2.0]}, True),
        ({"kwargs": {"value": -1}}, {"kwargs": {"value": -2}}, True),
        # What is not compared: what is not equal to itself, and what is long.
        ({"args": [math.nan]}, {"args": [math.nan]}, False),
        ({"args": [[1.5]]}, {"args": [[2.5]]}, False),
        ({"args": [ARRAY]}, {"args": [ARRAY]}, False),
    ],
)
def test_an_id_does_not_name_calls_with_different_parameters(
    first: dict[str, Any], second: dict[str, Any], is_other: bool
) -> None:
    callee = Callee()
    opened = taken(callee, of_session(1, **first), ONE, origin="here")
    if is_other:
        with pytest.raises(Conflict, match="ramp with other parameters; a new call needs a new id"):
            repeated(callee, of_session(1, **second), origin="elsewhere")
        assert opened.origin == "here"
    else:
        assert repeated(callee, of_session(1, **second), origin="elsewhere") is opened


@pytest.mark.parametrize(
    "call_id",
    ["0", "007", "00", "-1", "+1", "1.0", " 1", "1_0", "١", "²", "x", "1" * 20],  # noqa: RUF001
)
def test_the_ids_of_a_session_are_numbers_that_are_written_in_one_way(call_id: str) -> None:
    callee = Callee()
    with pytest.raises(ProtocolError, match="decimal numbers from 1 on"):
        repeated(callee, call(call_id, session="token-1"))
    with pytest.raises(ProtocolError, match="decimal numbers from 1 on"):
        callee.look_up(ONE, call_id, 0.0, 0.0)
    assert repeated(callee, call("1" * 19, session="token-1")) is None


def test_a_call_that_was_refused_does_not_run_when_it_comes_again() -> None:
    callee = Callee()
    callee.refused(ONE, "1", 0.0)
    with pytest.raises(Cancelled, match="call 1 was given up; it did not run and will not"):
        repeated(callee, of_session(1))
    assert repeated(callee, of_session(2)) is None


def test_a_call_that_was_taken_and_then_refused_is_known_as_one_that_did_not_run() -> None:
    callee = Callee()
    opened = taken(callee, of_session(1), ONE)
    callee.finish(opened, "not_run", None, 0.0)
    callee.refused(ONE, "1", 0.0)
    assert repeated(callee, of_session(1)) is opened
    assert opened.state == "not_run"


def test_large_replies_are_not_kept_but_it_is_known_that_their_calls_ran() -> None:
    callee = Callee(memory=Memory(size_of_reply=10))
    for call_id, reply in ((1, [b"12345", b"67890"]), (2, [b"12345", b"678901"])):
        callee.finish(taken(callee, of_session(call_id), ONE), "returned", reply, 0.0)
    first, second = (repeated(callee, of_session(each)) for each in (1, 2))
    assert first is not None
    assert first.reply == [b"12345", b"67890"]
    assert second is not None
    assert (second.state, second.reply) == ("returned", None)


# ── what is forgotten ───────────────────────────────────────────────────────────────────────────


def assert_forgotten(callee: Callee, call_id: int, owner: Owner = ONE, now: float = 0.0) -> None:
    """It is not known whether it ran, so it does not run."""
    with pytest.raises(OutcomeUnknown, match="too long ago"):
        repeated(callee, of_session(call_id), owner, now)
    with pytest.raises(OutcomeUnknown, match="too long ago"):
        callee.look_up(owner, str(call_id), 0.0, now)


def test_calls_are_forgotten_after_a_while() -> None:
    callee = Callee(memory=Memory(seconds=600.0))
    ended(callee, 1, now=0.0)
    ended(callee, 2, now=300.0)
    taken(callee, of_session(3), ONE, 600.0)
    assert callee.remembered == 2
    taken(callee, of_session(4), ONE, 600.1)
    assert callee.remembered == 1
    assert_forgotten(callee, 1, now=600.1)
    assert repeated(callee, of_session(2), now=600.1) is not None
    taken(callee, of_session(5), ONE, 900.1)
    assert callee.remembered == 0
    # Nothing is left to forget, and what comes then is remembered for as long.
    ended(callee, 6, now=2000.0)
    taken(callee, of_session(7), ONE, 2600.0)
    assert callee.remembered == 1


def test_the_oldest_calls_are_forgotten_when_there_are_too_many() -> None:
    callee = Callee(memory=Memory(calls=3))
    for call_id in (1, 2):
        ended(callee, call_id, ONE)
        ended(callee, call_id, TWO)
    assert callee.remembered == 3
    assert_forgotten(callee, 1, ONE)
    assert repeated(callee, of_session(1), TWO) is not None


def test_the_oldest_calls_are_forgotten_when_their_replies_are_too_large() -> None:
    callee = Callee(memory=Memory(size=10))
    for call_id, owner in ((1, ONE), (1, TWO), (2, ONE)):
        ended(callee, call_id, owner)
    assert callee.remembered == 2
    assert_forgotten(callee, 1, ONE)


def test_calls_without_a_kept_reply_take_no_room_among_the_replies() -> None:
    callee = Callee(memory=Memory(size=10))
    for call_id in range(1, 6):
        callee.finish(taken(callee, of_session(call_id), ONE), "returned", None, 0.0)
    for call_id in (6, 7):
        ended(callee, call_id)
    assert callee.remembered == 7
    ended(callee, 8)
    assert callee.remembered == 2, "the oldest go first, until there is room"


@pytest.mark.parametrize("memory", [Memory(calls_of_one=2), Memory(size_of_one=10)])
def test_a_busy_session_does_not_make_others_forgotten(memory: Memory) -> None:
    callee = Callee(memory=memory)
    ended(callee, 1, TWO)
    for call_id in range(1, 6):
        ended(callee, call_id, ONE)
    assert callee.remembered == 3
    assert_forgotten(callee, 3, ONE)
    assert repeated(callee, of_session(4), ONE) is not None
    assert repeated(callee, of_session(1), TWO) is not None


def test_a_session_has_never_fewer_calls_remembered_than_was_promised() -> None:
    callee = Callee(memory=Memory(calls_of_one=256))
    for call_id in range(1, 1000):
        ended(callee, call_id)
        assert min(call_id, 256) <= callee.remembered <= 256 + 2


def test_an_id_below_one_that_was_forgotten_is_used_even_if_it_never_came() -> None:
    callee = Callee(memory=Memory(calls_of_one=1))
    open_still = taken(callee, of_session(2), ONE)
    ended(callee, 5)
    ended(callee, 6)
    for call_id in (1, 3, 4, 5):
        assert_forgotten(callee, call_id)
    assert repeated(callee, of_session(2)) is open_still
    assert repeated(callee, of_session(7)) is None
    callee.finish(open_still, "returned", None, 0.0)
    assert_forgotten(callee, 6)
    ended(callee, 7)
    assert_forgotten(callee, 2)


def test_the_ids_of_a_session_stay_used_when_nothing_else_of_it_is_known() -> None:
    callee = Callee(memory=Memory(seconds=600.0))
    ended(callee, 4, now=0.0)
    taken(callee, of_session(1), TWO, 601.0)
    assert callee.remembered == 0
    assert_forgotten(callee, 4, now=601.0)
    ended(callee, 5, now=602.0)
    assert_forgotten(callee, 4, now=602.0)


def test_ids_that_never_run_stay_so_when_that_is_forgotten() -> None:
    callee = Callee(memory=Memory(seconds=600.0))
    assert callee.look_up(ONE, "3", 0.0, 0.0) is None
    callee.refused(ONE, "4", 300.0)
    assert callee.withdrawn == 2
    taken(callee, of_session(1), TWO, 600.1)
    assert callee.withdrawn == 1
    assert_forgotten(callee, 3, now=600.1)
    with pytest.raises(Cancelled):
        repeated(callee, of_session(4), now=600.1)
    taken(callee, of_session(2), TWO, 900.1)
    assert callee.withdrawn == 0
    assert_forgotten(callee, 4, now=900.1)


def test_a_session_with_many_refused_calls_does_not_make_those_of_others_forgotten() -> None:
    callee = Callee(memory=Memory(withdrawn_of_one=2))
    callee.refused(TWO, "1", 0.0)
    for call_id in range(1, 6):
        callee.refused(ONE, str(call_id), 0.0)
    assert callee.withdrawn == 3
    with pytest.raises(Cancelled):
        repeated(callee, of_session(1), TWO)
    assert_forgotten(callee, 3, ONE)
    for call_id in (4, 5):
        with pytest.raises(Cancelled):
            repeated(callee, of_session(call_id), ONE)


def test_the_oldest_refusals_are_forgotten_when_there_are_too_many() -> None:
    callee = Callee(memory=Memory(withdrawn=2))
    for owner in (ONE, TWO, THREE):
        callee.refused(owner, "1", 0.0)
    assert callee.withdrawn == 2
    assert_forgotten(callee, 1, ONE)
    with pytest.raises(Cancelled):
        repeated(callee, of_session(1), TWO)


def test_who_asks_again_about_a_call_that_never_came_makes_it_no_second_entry() -> None:
    callee = Callee(memory=Memory(withdrawn_of_one=2, seconds=600.0))
    for now in (0.0, 1.0, 500.0):
        assert callee.look_up(ONE, "3", 0.0, now) is None
    assert callee.withdrawn == 1
    taken(callee, of_session(1), TWO, 700.0)
    with pytest.raises(Cancelled):
        repeated(callee, of_session(3), now=700.0)


def test_there_is_a_limit_of_sessions_that_are_known_by_a_number_alone() -> None:
    callee = Callee(memory=Memory(seconds=10.0, sessions=2))
    for number in range(4):
        ended(callee, 1, ("alice", f"token-{number}"), now=float(number))
    taken(callee, of_session(1), ("bob", "token-0"), 100.0)
    assert callee.sessions == 2
    # What is not even counted as used is not said to have never come.
    with pytest.raises(OutcomeUnknown, match="too long ago"):
        callee.look_up(("alice", "token-0"), "1", 99.0, 100.0)
    with pytest.raises(OutcomeUnknown, match="too long ago"):
        callee.look_up(("alice", "token-9"), "1", 99.0, 100.0)
    assert callee.look_up(("alice", "token-9"), "1", 50.0, 100.0) is None


def test_many_short_sessions_leave_little_behind() -> None:
    memory = Memory(calls=100, withdrawn=100, sessions=100)
    callee = Callee(memory=memory)
    for number in range(1000):
        ended(callee, 1, ("alice", f"token-{number}"))
        callee.refused(("alice", f"token-{number}"), "2", 0.0)
        peer = str(number).encode()
        callee.finish(taken(callee, call("1"), peer), "returned", None, 0.0)
    assert len(callee) == 0
    assert callee.remembered <= 100
    assert callee.withdrawn <= 100
    assert callee.sessions <= 300


# ── what became of a call ───────────────────────────────────────────────────────────────────────


def test_who_asks_about_a_call_that_is_known_gets_it() -> None:
    callee = Callee()
    opened = taken(callee, of_session(1), ONE)
    assert callee.look_up(ONE, "1", 0.0, 1.0) is opened
    callee.finish(opened, "raised", [b"reply"], 2.0)
    assert callee.look_up(ONE, "1", 0.0, 3.0) is opened


def test_a_call_that_never_came_does_not_run_after_that_was_said() -> None:
    callee = Callee()
    assert callee.look_up(ONE, "1", 1.0, 10.0) is None
    with pytest.raises(Cancelled, match="did not run and will not"):
        repeated(callee, of_session(1), now=10.0)
    assert callee.look_up(ONE, "1", 1.0, 11.0) is None


def test_of_calls_before_its_start_a_callee_knows_nothing() -> None:
    callee = Callee(began_at=100.0)
    with pytest.raises(OutcomeUnknown, match="before this relay was started"):
        callee.look_up(ONE, "1", 10.1, 110.0)
    assert callee.look_up(ONE, "1", 10.0, 110.0) is None


def test_without_a_session_nobody_knows_what_became_of_a_call_that_is_not_open() -> None:
    callee = Callee()
    opened = taken(callee, call("1"))
    assert callee.look_up(PEER, "1", 0.0, 0.0, kept=False) is opened
    callee.finish(opened, "returned", None, 1.0)
    with pytest.raises(OutcomeUnknown, match="names no session"):
        callee.look_up(PEER, "1", 0.0, 2.0, kept=False)
    assert callee.withdrawn == 0


# ── time ────────────────────────────────────────────────────────────────────────────────────────


def test_calls_that_wait_beyond_their_deadline_are_overdue_and_running_ones_are_not() -> None:
    callee = Callee()
    running = taken(callee, call("1", deadline=10.0))
    waiting = taken(callee, call("2", deadline=10.0))
    taken(callee, call("3", deadline=20.0))
    running.begun_at = 1.0
    assert callee.overdue(9.999) == []
    assert callee.overdue(10.0) == [waiting]
    assert callee.overdue(10.0) == [], "each is told once"
    assert callee.finish(waiting, "not_run", None, 10.0)


def test_a_deadline_that_comes_before_the_first_sign_of_life_is_seen() -> None:
    callee = Callee()
    opened = taken(callee, call("1", deadline=0.02))
    assert callee.next_deadline() == 0.02
    assert callee.overdue(0.02) == [opened]


def test_a_short_call_gives_no_sign_of_life_and_leaves_nothing_to_do() -> None:
    callee = Callee()
    opened = taken(callee, call("1"))
    assert callee.signs(FIRST_SIGN_S - 0.001) == []
    callee.finish(opened, "returned", None, 0.01)
    assert callee.signs(FIRST_SIGN_S) == []
    assert callee.next_deadline() is None


def test_a_call_that_lasts_gives_a_sign_of_life_at_once_and_then_one_an_interval() -> None:
    callee = Callee()
    opened = taken(callee, call("1"))
    assert callee.next_deadline() == FIRST_SIGN_S
    assert callee.signs(FIRST_SIGN_S) == [(opened, Alive(id="1", state="queued"))]
    assert callee.signs(FIRST_SIGN_S) == []
    opened.begun_at = 0.5
    assert callee.next_deadline() == FIRST_SIGN_S + SIGN_INTERVAL_S
    [(_, alive)] = callee.signs(FIRST_SIGN_S + SIGN_INTERVAL_S)
    assert alive == Alive(id="1", state="running")
    callee.finish(opened, "returned", None, 2.0)
    assert callee.signs(10.0) == []
    assert callee.next_deadline() is None


def test_the_end_of_one_call_that_lasts_leaves_the_signs_of_others() -> None:
    callee = Callee()
    first, second = taken(callee, call("1")), taken(callee, call("2"))
    callee.signs(FIRST_SIGN_S)
    third = taken(callee, call("3"), now=1.0)
    callee.finish(first, "returned", None, 1.0)
    callee.finish(third, "returned", None, 1.01)
    assert [each for each, _ in callee.signs(5.0)] == [second]


def test_signs_come_several_times_before_a_caller_gives_up() -> None:
    assert FIRST_SIGN_S + 3 * SIGN_INTERVAL_S < SILENCE_S


def test_the_callee_wants_to_be_called_at_the_deadline_of_a_call_that_waits() -> None:
    callee = Callee()
    assert callee.next_deadline() is None
    opened = taken(callee, call("1", deadline=0.02))
    opened.begun_at = 0.01
    assert callee.overdue(0.02) == [], "it runs"
    assert callee.next_deadline() == FIRST_SIGN_S
    callee.finish(opened, "returned", None, 0.03)
    assert callee.next_deadline() is None


# ── several at once ─────────────────────────────────────────────────────────────────────────────


def three_ended_one_given_up() -> Callee:
    """Of session ONE: 11 is forgotten, 12 and 14 are remembered, 16 will never run, 17 is open."""
    callee = Callee(max_open=4, memory=Memory(calls_of_one=2))
    for call_id in (11, 12, 14):
        ended(callee, call_id)
    callee.refused(ONE, "16", 0.0)
    taken(callee, of_session(17), ONE)
    return callee


def test_calls_that_are_all_new_are_accepted_together() -> None:
    callee = three_ended_one_given_up()
    requests = [of_session(each) for each in (13, 19, 18)]
    assert callee.are_new(ONE, requests)
    calls = [opened_for(callee, each, ONE, 1.0) for each in requests]
    callee.accept_all(ONE, calls, 1.0)
    assert [repeated(callee, each) for each in requests] == calls
    assert len(callee) == 4
    with pytest.raises(Busy, match="4 calls"):
        callee.accept_all(ONE, [opened_for(callee, of_session(20), ONE, 1.0)], 1.0)
    assert len(callee) == 4


@pytest.mark.parametrize(
    "call_ids",
    [
        pytest.param(["12", "18"], id="one ended and is remembered"),
        pytest.param(["11", "18"], id="one is forgotten"),
        pytest.param(["16", "18"], id="one will never run"),
        pytest.param(["18", "17"], id="one is open"),
        pytest.param(["18", "18"], id="twice the same"),
        pytest.param(["99", "100"], id="of different lengths"),
        pytest.param(["18", "19", "20", "21"], id="too many"),
        pytest.param(["18", "-9"], id="a negative number"),
        pytest.param(["18", "1٣"], id="digits of another script"),
        pytest.param(["18", "09"], id="a zero in front"),
        pytest.param(["18", "1²"], id="a digit that is no decimal"),
        pytest.param(["1" * 20, "2" * 20], id="too long"),
        pytest.param(["", ""], id="none at all"),
    ],
)
def test_calls_that_need_a_closer_look_are_not_called_new(call_ids: list[str]) -> None:
    callee = three_ended_one_given_up()
    requests = [call(each, session="token") for each in call_ids]
    assert not callee.are_new(ONE, requests)
    assert not callee.are_new(ONE, requests[::-1])


def test_nor_are_those_of_several_sessions_of_none_or_of_one_that_is_not_known() -> None:
    callee = three_ended_one_given_up()
    one, another = of_session(18), call("19", session="another")
    assert not callee.are_new(ONE, [one, another])
    assert not callee.are_new(ONE, [call("18"), call("19")])
    assert not callee.are_new(TWO, [of_session(18), of_session(19)])


# ── at most once, whatever happens ──────────────────────────────────────────────────────────────

IDS = st.integers(1, 12).map(str)
OWNERS = st.sampled_from([ONE, TWO])
STEPS = st.one_of(
    st.tuples(st.just("send"), OWNERS, IDS, st.sampled_from(["run", "refuse", "fill"])),
    st.tuples(st.just("send together"), OWNERS, IDS, st.lists(IDS, max_size=3)),
    st.tuples(st.just("end"), OWNERS, IDS, st.sampled_from([None, 0, 3, 9])),
    st.tuples(st.just("look up"), OWNERS, IDS, st.floats(0.0, 100.0)),
    st.tuples(st.just("wait"), OWNERS, IDS, st.floats(0.0, 40.0)),
)
MEMORIES = st.builds(
    Memory,
    seconds=st.just(30.0),
    calls=st.integers(1, 5),
    calls_of_one=st.integers(1, 4),
    size=st.integers(1, 20),
    size_of_one=st.integers(1, 15),
    size_of_reply=st.just(8),
    withdrawn=st.integers(1, 4),
    withdrawn_of_one=st.integers(1, 3),
    sessions=st.just(10),
)


def answer_to(callee: Callee, call_id: str, owner: Owner, now: float) -> object:
    """What a call that is sent gets: the same one once more, an error, or None: it is new."""
    try:
        return repeated(callee, of_session(int(call_id)), owner, now)
    except (OutcomeUnknown, Cancelled) as refusal:
        return refusal


@given(MEMORIES, st.lists(STEPS, max_size=60))
def test_no_call_of_a_session_is_accepted_twice_or_after_it_was_given_up(
    memory: Memory, history: list[tuple[str, Owner, str, Any]]
) -> None:
    callee = Callee(max_open=3, memory=memory)
    accepted: set[tuple[Owner, str]] = set()
    given_up: set[tuple[Owner, str]] = set()
    still_open: dict[tuple[Owner, str], OpenCall] = {}
    now = 0.0
    for step, owner, call_id, how in history:
        key = (owner, call_id)
        if step == "wait":
            now += how
        elif step == "end" and key in still_open:
            reply = None if how is None else [b"x" * how]
            assert callee.finish(still_open.pop(key), "returned", reply, now)
        elif step == "look up":
            try:
                known = callee.look_up(owner, call_id, how, now)
            except OutcomeUnknown:
                continue
            assert known is not None or key not in accepted, "it was accepted, and so it came"
            if known is None:
                given_up.add(key)
        elif step == "send together":
            requests = [of_session(int(each)) for each in [call_id, *how]]
            if not callee.are_new(owner, requests):
                continue
            keys = [(owner, each.id) for each in requests]
            assert all(answer_to(callee, each, owner, now) is None for _, each in keys)
            assert len({*keys}) == len(keys)
            assert not accepted.intersection(keys)
            assert not given_up.intersection(keys)
            calls = [opened_for(callee, each, owner, now) for each in requests]
            callee.accept_all(owner, calls, now)
            still_open.update(zip(keys, calls, strict=True))
            accepted.update(keys)
        elif step == "send":
            answer = answer_to(callee, call_id, owner, now)
            if isinstance(answer, LabmeshError):
                assert key not in still_open
                told_not_run = answer.executed is False
                assert not (told_not_run and key in accepted), "who is told so is told the truth"
                continue
            assert (answer is not None) == (key in accepted)
            if answer is not None:
                continue
            assert key not in given_up
            if how == "refuse":
                callee.refused(owner, call_id, now)
                given_up.add(key)
                continue
            try:
                still_open[key] = taken(callee, of_session(int(call_id)), owner, now)
                accepted.add(key)
            except Busy:
                callee.refused(owner, call_id, now)
                given_up.add(key)
        assert callee.remembered <= memory.calls
        assert callee.withdrawn <= memory.withdrawn
        assert len(callee) == len(still_open)
