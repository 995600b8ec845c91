"""Every request ends once, by its deadline."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from labmesh.errors import (
    LabmeshError,
    LinkLost,
    NoAnswer,
    NotSent,
    OutcomeUnknown,
)
from labmesh.protocol.caller import LAST_WORD_S, SILENCE_S, Caller, ClockOffset
from labmesh.protocol.messages import Alive, Call, Done, Result

RELAY = "relay Inst-0 at tcp://10.0.0.3:5801"
PEER, OTHER = b"\x00peer", b"\x00other"


def call(call_id: str = "1", *, deadline: float | None = None, method: str = "ramp") -> Call:
    return Call(id=call_id, method=method, deadline=deadline)


# ── the clock of the other side ─────────────────────────────────────────────────────────────────


def test_before_the_first_pong_no_deadline_can_be_translated() -> None:
    offset = ClockOffset()
    assert offset.translate(10.0) is None
    offset.learn(clock=500.0, received=100.0)
    assert offset.translate(110.0) == 510.0
    offset.forget()
    assert offset.translate(110.0) is None


def test_the_fastest_way_back_that_was_seen_gives_the_offset() -> None:
    offset = ClockOffset()
    offset.learn(clock=500.0, received=100.5)
    offset.learn(clock=501.0, received=101.1)
    offset.learn(clock=502.0, received=109.0)
    assert offset.translate(0.0) == pytest.approx(399.9)


_instants = st.integers(min_value=0, max_value=10**9)
_delays = st.integers(min_value=0, max_value=10**6)


@settings(deadline=None, max_examples=100)
@given(
    ahead=st.integers(min_value=-(10**9), max_value=10**9),
    pongs=st.lists(st.tuples(_instants, _delays), min_size=1, max_size=20),
    deadline=_instants,
)
def test_a_deadline_is_never_translated_to_a_later_time_than_it_is(
    ahead: int, pongs: list[tuple[int, int]], deadline: int
) -> None:
    """Whole ticks, so that the comparison is exact. ``ahead``: their clock minus ours."""
    offset = ClockOffset()
    for written, delay in pongs:
        offset.learn(clock=written + ahead, received=written + delay)
    translated = offset.translate(deadline)
    assert translated is not None
    truth = deadline + ahead
    assert truth - min(delay for _, delay in pongs) == translated <= truth


# ── the caller ──────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def caller() -> Caller:
    return Caller(RELAY)


def ended(caller: Caller, errors: list[tuple[str, LabmeshError]]) -> LabmeshError:
    """The one error that there is; its request is no longer open."""
    [(request_id, error)] = errors
    assert caller.withdraw(request_id) is None
    return error


def test_a_reply_ends_its_request_once(caller: Caller) -> None:
    caller.open("1", deadline=10.0, now=0.0)
    caller.sent("1", 0.0)
    assert len(caller) == 1
    assert caller.heard(Done(id="1"), 1.0)
    assert len(caller) == 0
    assert not caller.heard(Done(id="1"), 1.1)


def test_a_reply_to_no_request_is_ignored(caller: Caller) -> None:
    caller.open("1", deadline=10.0, now=0.0)
    assert not caller.heard(Done(id="2"), 1.0)
    assert not caller.heard(Alive(id="2", state="running"), 1.0)
    assert len(caller) == 1


def test_a_withdrawn_request_is_told_as_it_stood(caller: Caller) -> None:
    caller.open("1", deadline=10.0, now=0.0, method="ramp")
    caller.sent("1", 1.0)
    caller.heard(Alive(id="1", state="queued"), 2.0)
    opened = caller.withdraw("1")
    assert opened is not None
    assert (opened.sent, opened.state, opened.method) == (True, "queued", "ramp")
    assert caller.withdraw("1") is None
    assert not caller.heard(Done(id="1"), 3.0)


def test_sending_what_is_no_longer_open_changes_nothing(caller: Caller) -> None:
    caller.sent("1", 0.0)
    assert len(caller) == 0
    assert caller.next_deadline() is None


def test_a_request_that_never_left_ends_as_not_sent_at_its_deadline(caller: Caller) -> None:
    caller.open("1", deadline=10.0, now=0.0, method="ramp")
    assert caller.next_deadline() == 10.0
    assert caller.expire(9.999) == []
    error = ended(caller, caller.expire(10.0))
    assert isinstance(error, NotSent)
    assert RELAY in str(error)
    assert error.executed is False


def test_a_question_without_an_answer_ends_at_its_deadline(caller: Caller) -> None:
    caller.open("1", deadline=100.0, now=0.0)
    caller.sent("1", 0.0)
    assert caller.next_deadline() == 100.0, "silence ends calls only"
    error = ended(caller, caller.expire(100.0))
    assert type(error) is NoAnswer
    assert error.retryable


def test_a_call_of_which_nothing_is_heard_ends_long_before_its_deadline(caller: Caller) -> None:
    caller.open("1", deadline=600.0, now=0.0, method="ramp")
    assert caller.next_deadline() == 600.0, "silence begins when it was sent"
    caller.sent("1", 1.0)
    assert caller.next_deadline() == 1.0 + SILENCE_S
    assert caller.expire(1.0 + SILENCE_S - 0.001) == []
    error = ended(caller, caller.expire(1.0 + SILENCE_S))
    assert isinstance(error, OutcomeUnknown)
    assert "fell silent while ramp was on its way" in str(error)
    assert error.detail == {"call": "1", "state": ""}


def test_signs_of_life_keep_a_call_open_up_to_its_deadline(caller: Caller) -> None:
    caller.open("1", deadline=60.0, now=0.0, method="ramp")
    caller.sent("1", 0.0)
    for second in range(1, 60):
        assert caller.expire(float(second)) == []
        caller.heard(Alive(id="1", state="running"), float(second))
    error = ended(caller, caller.expire(60.0))
    assert isinstance(error, OutcomeUnknown)
    assert "ramp on" in str(error)
    assert "was running at its deadline" in str(error)
    assert error.detail["state"] == "running"


def test_the_error_tells_how_far_the_call_had_come(caller: Caller) -> None:
    caller.open("1", deadline=600.0, now=0.0, method="ramp")
    caller.sent("1", 0.0)
    caller.heard(Alive(id="1", state="queued"), 1.0)
    error = ended(caller, caller.expire(1.0 + SILENCE_S))
    assert "fell silent while ramp was waiting in the queue" in str(error)


@pytest.mark.parametrize("heard", [[], ["queued"]])
def test_a_call_that_may_still_wait_is_granted_the_last_word_of_its_callee(
    caller: Caller, heard: list[Any]
) -> None:
    """The callee refuses it at its deadline, and only that tells that it did not run."""
    caller.open("1", deadline=2.0, now=0.0, method="ramp")
    assert caller.next_deadline() == 2.0, "it was not sent"
    caller.sent("1", 0.0)
    for state in heard:
        caller.heard(Alive(id="1", state=state), 1.0)
    assert caller.next_deadline() == 2.0 + LAST_WORD_S
    assert caller.expire(2.0) == []
    assert isinstance(ended(caller, caller.expire(2.0 + LAST_WORD_S)), OutcomeUnknown)


def test_how_long_silence_may_last_can_be_set() -> None:
    caller = Caller(RELAY, silence_s=1.0)
    caller.open("1", deadline=600.0, now=0.0, method="ramp")
    caller.sent("1", 0.0)
    assert caller.next_deadline() == 1.0


def test_a_break_ends_what_was_sent_and_leaves_what_was_not(caller: Caller) -> None:
    caller.open("asked", deadline=10.0, now=0.0)
    caller.open("called", deadline=10.0, now=0.0, method="ramp")
    caller.open("running", deadline=10.0, now=0.0, method="set_output")
    caller.open("waiting", deadline=10.0, now=0.0, method="ramp")
    for each in ("asked", "called", "running"):
        caller.sent(each, 0.0)
    caller.heard(Alive(id="running", state="running"), 0.5)

    errors = dict(caller.lost())

    assert set(errors) == {"asked", "called", "running"}
    assert type(errors["asked"]) is LinkLost
    assert errors["asked"].retryable
    assert isinstance(errors["called"], OutcomeUnknown)
    assert "ramp was on its way" in str(errors["called"])
    assert "set_output was running" in str(errors["running"])
    assert not errors["running"].retryable
    assert len(caller) == 1
    assert caller.lost() == []
    assert isinstance(ended(caller, caller.expire(10.0)), NotSent)


def test_the_next_deadline_is_the_earliest(caller: Caller) -> None:
    assert caller.next_deadline() is None
    caller.open("1", deadline=10.0, now=0.0)
    caller.open("2", deadline=600.0, now=0.0, method="ramp")
    assert caller.next_deadline() == 10.0
    caller.sent("2", 0.0)
    assert caller.next_deadline() == SILENCE_S


_moves = st.lists(
    st.tuples(
        st.sampled_from(["open", "call", "sent", "alive", "reply", "lost", "withdraw", "expire"]),
        st.integers(0, 4),
        st.floats(0.0, 3.0),
    ),
    max_size=60,
)


@settings(deadline=None, max_examples=100)
@given(_moves)
def test_whatever_happens_each_request_ends_once_and_none_outlives_its_deadline_by_more_than_a_word(
    moves: list[tuple[str, int, float]],
) -> None:
    caller, now, opened = Caller(RELAY), 0.0, 0
    deadlines: dict[str, float] = {}

    def end(request_id: str) -> None:
        del deadlines[request_id]  # KeyError: it had ended before

    for move, which, step_s in moves:
        now += step_s
        if move in ("open", "call"):
            opened += 1
            deadlines[str(opened)] = now + which
            method = "ramp" if move == "call" else ""
            caller.open(str(opened), deadline=now + which, now=now, method=method)
        named = str(opened - which)
        if move == "sent":
            caller.sent(named, now)
        elif move == "alive":
            assert not caller.heard(Alive(id=named, state="running"), now)
        elif move == "reply" and caller.heard(Result(id=named), now):
            end(named)
        elif move == "lost":
            for request_id, _ in caller.lost():
                end(request_id)
        elif move == "withdraw" and caller.withdraw(named) is not None:
            end(named)
        elif move == "expire":
            for request_id, _ in caller.expire(now):
                end(request_id)
            assert all(deadline + LAST_WORD_S > now for deadline in deadlines.values())
        assert len(caller) == len(deadlines)
        due = caller.next_deadline()
        assert (due is None) == (not deadlines)
        assert due is None or due <= min(deadlines.values()) + LAST_WORD_S
