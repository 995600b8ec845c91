"""Every request ends once, by its deadline."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from labmesh.errors import (
    LabmeshError,
    LinkLost,
    NoAnswer,
    NotSent,
    OutcomeUnknown,
    StaleEpoch,
)
from labmesh.protocol.caller import (
    LAST_WORD_S,
    RESUME_S,
    SILENCE_S,
    Caller,
    ClockOffset,
    OpenRequest,
    given_up_at,
    limit_of,
)
from labmesh.protocol.messages import Alive, Done, Failure, Item, Result

RELAY = "relay Inst-0 at tcp://10.0.0.3:5801"


# ── the clock of the other side ─────────────────────────────────────────────────────────────────


def test_before_the_first_pong_no_deadline_can_be_translated() -> None:
    offset = ClockOffset()
    assert offset.translate(10.0) is None
    offset.learn(clock=500.0, received=100.0)
    assert offset.translate(110.0) == 510.0
    assert offset.translate(math.inf) is None
    offset.forget()
    assert offset.translate(110.0) is None


@pytest.mark.parametrize("deadline", [100.5, 100.0 + SILENCE_S, 110.0, math.inf])
def test_the_times_of_a_call_are_those_that_are_translated_one_by_one(deadline: float) -> None:
    offset, now = ClockOffset(), 100.0
    assert offset.times_of(deadline, now) == (None, None)
    offset.learn(clock=500.0, received=100.0)
    given_up = given_up_at(deadline, now)
    arrive_by = None if given_up is None else offset.translate(given_up)
    assert offset.times_of(deadline, now) == (offset.translate(deadline), arrive_by)


def test_the_fastest_way_back_that_was_seen_gives_the_offset() -> None:
    offset = ClockOffset()
    offset.learn(clock=500.0, received=100.5)
    offset.learn(clock=501.0, received=101.1)
    offset.learn(clock=502.0, received=109.0)
    assert offset.translate(0.0) == pytest.approx(399.9)


_instants = st.integers(min_value=0, max_value=10**9)
_delays = st.integers(min_value=0, max_value=10**6)


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
def caller() -> Caller[OpenRequest]:
    return Caller(RELAY, relay="Inst-0", session="s1")


def question(caller: Caller[OpenRequest], request_id: str, deadline: float) -> OpenRequest:
    request = OpenRequest(request_id, deadline)
    caller.open(request)
    return request


def call(
    caller: Caller[OpenRequest],
    request_id: str = "1",
    deadline: float = 600.0,
    *,
    method: str = "ramp",
    sent_at: float | None = 0.0,
    streams: bool = False,
) -> OpenRequest:
    """A call, sent to the incarnation e1 unless ``sent_at`` is None."""
    request = OpenRequest(request_id, deadline, method, not streams)
    caller.open(request)
    if sent_at is not None:
        caller.sent(request, sent_at, "e1")
    return request


def ended(
    caller: Caller[OpenRequest], errors: list[tuple[OpenRequest, LabmeshError]]
) -> LabmeshError:
    """The one error that there is; its request is no longer open."""
    [(request, error)] = errors
    assert not caller.withdraw(request)
    return error


def test_a_reply_ends_its_request_once(caller: Caller[OpenRequest]) -> None:
    request = question(caller, "1", 10.0)
    caller.sent(request, 0.0, "e1")
    assert len(caller) == 1
    assert caller.busy
    assert caller.get("1") is request
    assert caller.heard(Done(id="1"), 1.0) is request
    assert len(caller) == 0
    assert not caller.busy
    assert caller.heard(Done(id="1"), 1.1) is None


def test_who_knows_that_a_reply_is_the_last_one_need_not_show_it(
    caller: Caller[OpenRequest],
) -> None:
    request = question(caller, "1", 10.0)
    assert caller.answered("2") is None
    assert caller.answered("1") is request
    assert caller.answered("1") is None
    assert len(caller) == 0


def test_a_reply_to_no_request_is_ignored(caller: Caller[OpenRequest]) -> None:
    question(caller, "1", 10.0)
    for reply in (Done(id="2"), Alive(id="2", state="running"), Item(id="2", index=0)):
        assert caller.heard(reply, 1.0) is None
    assert len(caller) == 1


def test_a_withdrawn_request_is_as_it_stood(caller: Caller[OpenRequest]) -> None:
    request = call(caller, deadline=10.0, sent_at=None)
    assert not request.sent
    caller.sent(request, 1.0, "e1")
    caller.heard(Alive(id="1", state="queued"), 2.0)
    assert caller.withdraw(request)
    assert (request.sent, request.sent_at, request.state) == (True, 1.0, "queued")
    assert not caller.withdraw(request)
    assert caller.heard(Done(id="1"), 3.0) is None
    assert caller.next_deadline() is None


def test_a_request_that_never_left_ends_as_not_sent_at_its_deadline(
    caller: Caller[OpenRequest],
) -> None:
    call(caller, deadline=10.0, sent_at=None)
    assert caller.next_deadline() == 10.0
    assert caller.expire(9.999) == []
    error = ended(caller, caller.expire(10.0))
    assert isinstance(error, NotSent)
    assert RELAY in str(error)
    assert error.executed is False


def test_a_question_without_an_answer_ends_at_its_deadline(caller: Caller[OpenRequest]) -> None:
    caller.sent(question(caller, "1", 100.0), 0.0, "e1")
    assert caller.next_deadline() == 100.0, "silence ends calls only"
    error = ended(caller, caller.expire(100.0))
    assert type(error) is NoAnswer
    assert error.retryable


def test_what_has_no_deadline_and_is_not_sent_waits_for_ever(caller: Caller[OpenRequest]) -> None:
    question(caller, "1", math.inf)
    assert caller.next_deadline() is None
    assert caller.expire(1e9) == []


def test_a_call_of_which_nothing_is_heard_ends_long_before_its_deadline(
    caller: Caller[OpenRequest],
) -> None:
    request = call(caller, sent_at=None)
    assert caller.next_deadline() == 600.0, "silence begins when it was sent"
    caller.sent(request, 1.0, "e1")
    assert caller.next_deadline() == 1.0 + SILENCE_S
    assert caller.expire(1.0 + SILENCE_S - 0.001) == []
    error = ended(caller, caller.expire(1.0 + SILENCE_S))
    assert isinstance(error, OutcomeUnknown)
    assert "fell silent while ramp was on its way" in str(error)
    assert error.detail == {"call": "1", "session": "s1", "relay": "Inst-0", "state": ""}


def test_an_unknown_outcome_says_how_to_find_out(caller: Caller[OpenRequest]) -> None:
    error = caller.unknown(call(caller, "17"), "it went wrong")
    assert str(error).startswith("it went wrong: it may have run")
    assert 'call_status("17")' in str(error)
    stream = caller.unknown(call(caller, "18", streams=True), "it went wrong")
    assert "call_status" not in str(stream), "its relay keeps no answer of it"


def test_signs_of_life_keep_a_call_open_up_to_its_deadline(caller: Caller[OpenRequest]) -> None:
    call(caller, deadline=60.0)
    for second in range(1, 60):
        assert caller.expire(float(second)) == []
        caller.heard(Alive(id="1", state="running"), float(second))
    error = ended(caller, caller.expire(60.0))
    assert isinstance(error, OutcomeUnknown)
    assert "ramp on" in str(error)
    assert "was running at its deadline" in str(error)
    assert error.detail["state"] == "running"


def test_items_are_signs_of_life(caller: Caller[OpenRequest]) -> None:
    call(caller, streams=True)
    assert caller.heard(Item(id="1", index=0), 3.0) is None
    assert caller.expire(3.0 + SILENCE_S - 0.001) == []
    error = ended(caller, caller.expire(3.0 + SILENCE_S))
    assert "fell silent while ramp was running" in str(error)


def test_the_error_tells_how_far_the_call_had_come(caller: Caller[OpenRequest]) -> None:
    call(caller)
    caller.heard(Alive(id="1", state="queued"), 1.0)
    error = ended(caller, caller.expire(1.0 + SILENCE_S))
    assert "fell silent while ramp was waiting in the queue" in str(error)


@pytest.mark.parametrize("heard", [[], ["queued"]])
def test_a_call_that_may_still_wait_is_granted_the_last_word_of_its_callee(
    caller: Caller[OpenRequest], heard: list[Any]
) -> None:
    """The callee refuses it at its deadline, and only that tells that it did not run."""
    call(caller, deadline=2.0)
    for state in heard:
        caller.heard(Alive(id="1", state=state), 1.0)
    assert caller.expire(2.0) == []
    assert caller.next_deadline() == 2.0 + LAST_WORD_S
    assert isinstance(ended(caller, caller.expire(2.0 + LAST_WORD_S)), OutcomeUnknown)


def test_how_long_silence_may_last_can_be_set() -> None:
    caller = Caller[OpenRequest](RELAY, silence_s=1.0)
    call(caller)
    assert caller.next_deadline() == 1.0


def test_requests_are_looked_at_together_and_as_seldom_as_possible(
    caller: Caller[OpenRequest],
) -> None:
    assert caller.next_deadline() is None
    question(caller, "1", 10.0)
    request = call(caller, "2", sent_at=None)
    assert caller.next_deadline() == 10.0
    caller.sent(request, 0.0, "e1")
    assert caller.next_deadline() == SILENCE_S
    caller.heard(Alive(id="2", state="running"), 3.0)
    assert caller.next_deadline() == SILENCE_S, "a sign of life costs nothing"
    assert caller.expire(SILENCE_S) == []
    assert caller.next_deadline() == 3.0 + SILENCE_S


STALE = StaleEpoch("restarted")


def refuse(caller: Caller[OpenRequest], request: OpenRequest) -> LabmeshError | None:
    """What becomes of a request whose target answers that it was restarted."""
    reply = Failure(id=request.id, code=STALE.code, name=STALE.name)
    assert caller.heard(reply, request.heard_at) is request
    return caller.refused(request, STALE)


# ── breaks ──────────────────────────────────────────────────────────────────────────────────────


def test_a_break_ends_questions_and_streams_and_leaves_calls_and_what_was_not_sent(
    caller: Caller[OpenRequest],
) -> None:
    caller.sent(question(caller, "asked", 10.0), 0.0, "e1")
    call(caller, "called")
    call(caller, "scan", method="scan", streams=True)
    call(caller, "waiting", sent_at=None)

    errors = {request.id: error for request, error in caller.broken(1.0)}

    assert set(errors) == {"asked", "scan"}
    for error in errors.values():
        assert type(error) is LinkLost
        assert error.retryable
    assert "in the middle of scan" in str(errors["scan"])
    assert len(caller) == 2
    assert caller.broken(1.5) == []


def test_a_call_waits_a_while_for_the_link_to_be_up_again(caller: Caller[OpenRequest]) -> None:
    call(caller)
    caller.heard(Alive(id="1", state="running"), 0.5)
    caller.broken(1.0)
    caller.broken(2.0)
    assert caller.next_deadline() == 1.0 + RESUME_S, "a second break gives no more time"
    assert caller.expire(1.0 + RESUME_S - 0.001) == []
    error = ended(caller, caller.expire(1.0 + RESUME_S))
    assert isinstance(error, OutcomeUnknown)
    assert "broke while ramp was running, and was not up again within 2 s" in str(error)
    assert not error.retryable


@pytest.mark.parametrize(
    ("deadline", "broken_at", "ends_at", "says"),
    [
        (2.0, 1.0, 2.0 + LAST_WORD_S, "at its deadline"),
        (600.0, 3.0, SILENCE_S, "fell silent"),
        (600.0, 1.0, 3.0, "was not up again"),
    ],
)
def test_a_broken_call_ends_at_the_earliest_of_what_may_end_it(
    caller: Caller[OpenRequest], deadline: float, broken_at: float, ends_at: float, says: str
) -> None:
    call(caller, deadline=deadline)
    caller.broken(broken_at)
    assert caller.expire(ends_at - 0.001) == []
    assert says in str(ended(caller, caller.expire(ends_at)))


def test_calls_are_sent_again_to_the_same_incarnation(caller: Caller[OpenRequest]) -> None:
    first, second = call(caller, "1"), call(caller, "2")
    untouched = call(caller, "3", sent_at=None)
    caller.broken(1.0)
    assert caller.restored("e1", 2.0) == ([first, second], [])
    for request in (first, second):
        caller.sent(request, 2.0, "e1")
        assert request.sendings == 2
        assert request.sent_at == 0.0, "of its first sending"
    assert not untouched.sent
    assert caller.restored("e1", 2.0) == ([], [])
    assert caller.next_deadline() is not None
    assert caller.expire(2.0 + SILENCE_S - 0.001) == []


def test_a_call_is_never_sent_again_to_another_incarnation(caller: Caller[OpenRequest]) -> None:
    call(caller)
    caller.heard(Alive(id="1", state="queued"), 0.5)
    caller.broken(1.0)
    again, errors = caller.restored("e2", 1.5)
    assert again == []
    error = ended(caller, errors)
    assert isinstance(error, OutcomeUnknown)
    assert "was restarted while ramp was waiting in the queue" in str(error)


def test_what_was_refused_at_its_first_sending_did_not_run_and_is_sent_anew(
    caller: Caller[OpenRequest],
) -> None:
    request = call(caller)
    assert refuse(caller, request) is None
    assert caller.get("1") is request
    assert not request.sent
    assert caller.broken(1.0) == []
    assert caller.restored("e2", 1.5) == ([], []), "it waits to be sent like a new one"
    caller.sent(request, 2.0, "e2")
    assert (request.epoch, request.sent_at, request.sendings) == ("e2", 2.0, 1)


def test_what_is_refused_again_and_again_ends_with_the_refusal(
    caller: Caller[OpenRequest],
) -> None:
    request = call(caller, sent_at=None)
    answers = []
    for _ in range(4):
        caller.sent(request, 0.0, "e1")
        answers.append(refuse(caller, request))
    assert answers == [None, None, None, STALE]
    assert STALE.executed is False
    assert not caller.busy


def test_what_was_sent_before_may_have_run_although_it_is_refused_now(
    caller: Caller[OpenRequest],
) -> None:
    request = call(caller)
    caller.broken(1.0)
    caller.restored("e1", 1.5)
    caller.sent(request, 1.5, "e1")
    error = refuse(caller, request)
    assert isinstance(error, OutcomeUnknown)
    assert "was restarted while ramp" in str(error)
    assert not caller.busy


def test_a_call_that_another_socket_sent_is_taken_over(caller: Caller[OpenRequest]) -> None:
    request = OpenRequest("1", 600.0, "ramp", True)
    caller.taken_over(request, 10.0, "e1")
    assert caller.next_deadline() == 10.0 + RESUME_S
    assert caller.restored("e1", 11.0) == ([request], [])
    late = OpenRequest("2", 600.0, "ramp", True)
    caller.taken_over(late, 12.0, "e1")
    assert isinstance(ended(caller, caller.restored("e2", 12.0)[1]), OutcomeUnknown)


def test_what_another_socket_heard_last_counts_for_a_call_that_is_taken_over(
    caller: Caller[OpenRequest],
) -> None:
    request = OpenRequest("1", 600.0, "ramp", True)
    caller.taken_over(request, 10.0, "e1")
    caller.restored("e1", 10.0)
    caller.silent_since(request, 8.5)
    assert caller.next_deadline() == 10.0 + RESUME_S
    assert caller.expire(12.4) == []
    assert "fell silent" in str(ended(caller, caller.expire(8.5 + SILENCE_S)))


def test_closing_ends_everything_as_far_as_it_is_known(caller: Caller[OpenRequest]) -> None:
    caller.sent(question(caller, "asked", 10.0), 0.0, "e1")
    call(caller, "called")
    call(caller, "scan", streams=True)
    call(caller, "waiting", sent_at=None)
    errors = {request.id: type(error) for request, error in caller.close()}
    assert errors == {
        "asked": LinkLost,
        "called": OutcomeUnknown,
        "scan": LinkLost,
        "waiting": NotSent,
    }
    assert not caller.busy


# ── whatever happens ────────────────────────────────────────────────────────────────────────────

_moves = st.lists(
    st.tuples(
        st.sampled_from(
            [
                *("open", "call", "stream", "send", "send", "alive", "item", "reply", "stale"),
                *("broken", "restored", "restarted", "withdraw", "expire", "take over"),
            ]
        ),
        st.integers(0, 4),
        st.floats(0.0, 3.0),
    ),
    max_size=80,
)


class History:
    """One caller, and what is known of its requests from outside."""

    def __init__(self) -> None:
        self.caller = Caller[OpenRequest](RELAY)
        self.now = 0.0
        self.epoch = 1
        self.up = True
        self.requests: dict[str, OpenRequest] = {}
        #: of the requests that are open
        self.heard_at: dict[str, float] = {}
        self.broken_at: dict[str, float] = {}
        #: incarnations that a request may have run in
        self.reached: dict[str, set[int]] = {}

    def open(self, deadline: float, method: str, resumable: bool) -> OpenRequest:
        # Those that have ended count, too: an id that comes twice would have the history of both.
        request = OpenRequest(str(len(self.reached) + 1), deadline, method, resumable)
        self.requests[request.id] = request
        self.reached[request.id] = set()
        return request

    def end(self, request: OpenRequest, error: LabmeshError | None = None) -> None:
        """It has not ended before, and its error claims no more than is known."""
        del self.requests[request.id]
        reached = self.reached[request.id]
        if error is not None and error.executed is False:
            assert not reached, "it may have run"
        if error is not None and request.method and request.resumable and reached:
            assert isinstance(error, OutcomeUnknown)

    def end_all(self, errors: list[tuple[OpenRequest, LabmeshError]]) -> None:
        for request, error in errors:
            self.end(request, error)

    def send(self, request: OpenRequest) -> None:
        reached = self.reached[request.id]
        assert not reached or reached == {self.epoch}, "it may have run in another incarnation"
        reached.add(self.epoch)
        self.heard_at[request.id] = self.now
        self.caller.sent(request, self.now, f"e{self.epoch}")

    def latest_end(self, request: OpenRequest) -> float:
        latest = request.deadline + LAST_WORD_S
        if request.method and self.reached[request.id]:
            latest = min(latest, self.heard_at[request.id] + SILENCE_S)
            if request.id in self.broken_at:
                latest = min(latest, self.broken_at[request.id] + RESUME_S)
        return latest


@given(_moves)
def test_whatever_happens_each_request_ends_once_in_time_and_reaches_one_incarnation(
    moves: list[tuple[str, int, float]],
) -> None:
    history = History()
    for move in moves:
        _play(history, *move)
        assert len(history.caller) == len(history.requests)
        due = history.caller.next_deadline()
        assert (due is None) == (not history.requests)
        for request in history.requests.values():
            assert due is not None
            assert due <= history.latest_end(request) + 0.01
    history.end_all(history.caller.close())
    assert not history.requests


def _play(history: History, move: str, which: int, step_s: float) -> None:
    caller = history.caller
    history.now += step_s
    named = history.requests.get(str(len(history.reached) - which))
    match move:
        case "open" | "call" | "stream":
            method = "" if move == "open" else "ramp"
            caller.open(history.open(history.now + which, method, move == "call"))
        case "take over":
            request = history.open(history.now + which, "ramp", True)
            history.reached[request.id].add(history.epoch)
            history.heard_at[request.id] = history.broken_at[request.id] = history.now
            caller.taken_over(request, history.now, f"e{history.epoch}")
        case "send" if named is not None and history.up and not history.reached[named.id]:
            history.send(named)
        case "alive" | "item" if named is not None and history.reached[named.id]:
            history.heard_at[named.id] = history.now
            sign = Alive(id=named.id, state="running") if move == "alive" else None
            assert caller.heard(sign or Item(id=named.id, index=0), history.now) is None
        case "reply" if named is not None:
            assert caller.heard(Result(id=named.id), history.now) is named
            history.end(named)
        case "stale" if named is not None and history.reached[named.id]:
            if named.sendings == 1:
                history.reached[named.id].clear()
                history.broken_at.pop(named.id, None)
            error = refuse(caller, named)
            if error is not None:
                history.end(named, error)
        case "broken":
            history.up = False
            history.end_all(caller.broken(history.now))
            for each in history.requests.values():
                if history.reached[each.id]:
                    history.broken_at.setdefault(each.id, history.now)
        case "restored" | "restarted":
            history.epoch += move == "restarted"
            history.up = True
            again, errors = caller.restored(f"e{history.epoch}", history.now)
            history.end_all(errors)
            for each in again:
                history.broken_at.pop(each.id)
                history.send(each)
        case "withdraw" if named is not None:
            assert caller.withdraw(named)
            history.end(named)
        case "expire":
            history.end_all(caller.expire(history.now))
            for each in history.requests.values():
                assert history.latest_end(each) > history.now


def test_silence_ends_a_call_before_a_deadline_that_is_far_away_and_no_other() -> None:
    assert given_up_at(deadline=100.0 + 2 * SILENCE_S, now=100.0) == 100.0 + SILENCE_S
    assert given_up_at(deadline=math.inf, now=100.0) == 100.0 + SILENCE_S
    assert given_up_at(deadline=100.0 + SILENCE_S, now=100.0) is None


def test_a_timeout_is_a_number_of_seconds() -> None:
    assert limit_of(None, 600.0) == 600.0
    assert limit_of(5, 600.0) == 5
    with pytest.raises(TypeError, match="a number of seconds, or None; not '5'"):
        limit_of("5", 600.0)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="not NaN"):
        limit_of(math.nan, 600.0)
