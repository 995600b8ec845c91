"""What a driver returns, as it leaves the relay: whole, as it was, copied where it must be."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from labmesh.errors import DriverError, LabmeshError, Locked
from labmesh.instruments.exposure import BoundCall
from labmesh.instruments.jobs import Interrupted, Outcome
from labmesh.protocol.batches import Outcome as Read
from labmesh.protocol.batches import read_outcomes
from labmesh.protocol.codec import Buffer, Codec
from labmesh.protocol.messages import BatchResult, Item, Result
from labmesh.protocol.open_call import OpenCall, Owner
from labmesh.serving.served import Served, ServedBatch, ServedCall, ServedStream, kept_value
from labmesh.transport.answering import Origin

READER = Codec((Result, BatchResult, Item))


class Runner:
    """A thread that has no event loop and no other work."""

    def __init__(self) -> None:
        self.pauses = 0

    def settle(self, value: Any, job: Any) -> Any:
        return value

    def pause(self) -> None:
        self.pauses += 1

    def rest(self, timeout_s: float) -> bool:
        self.pauses += 1
        return False


class Desk:
    """Takes what calls say, while somebody is there to hear it."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.said: list[list[Buffer]] = []
        self.ended: list[Outcome] = []
        self.is_heard = True
        self.refusal: LabmeshError | None = None

    def end(self, opened: OpenCall, outcome: Outcome) -> None:
        self.ended.append(outcome)

    def say(self, opened: OpenCall, frames: list[Buffer]) -> bool:
        if self.is_heard:
            self.said.append(frames)
        return self.is_heard

    def check_write(self, owner: Owner, fence: int, now: float) -> None:
        if self.refusal is not None:
            raise self.refusal


def opened_at(
    desk: Desk,
    job: Any,
    *,
    json: bool = False,
    read_only: bool = False,
    deadline: float = math.inf,
) -> Any:
    """The job of an open call."""
    origin = Origin(b"\0peer", False, json, "1")
    owner = ("alice", "token")
    opened = OpenCall(owner, origin, "1", "measure", deadline, False, 0.0)
    job.open_at(desk, opened, 0, read_only)
    return job


def bound(function: Callable[..., Any], **facts: Any) -> BoundCall:
    return BoundCall(function.__name__, function, (), {}, **facts)


def answer_of(job: Any) -> list[Buffer]:
    """What goes out when it has run; the driver uses its buffers again at once."""
    frames: list[Buffer] = job.prepare(job.execute(Runner()))
    return frames


def value_of(frames: list[Buffer]) -> Any:
    return READER.decode(frames).message.value  # type: ignore[attr-defined]


def address(buffer: Any) -> int:
    """Where it lies in memory."""
    return int(np.frombuffer(buffer, np.uint8).__array_interface__["data"][0])


class Scope:
    """A driver with a buffer of its own."""

    def __init__(self) -> None:
        self.buffer = np.zeros(10_000)
        self.history: list[int] = []
        self.fresh_at: list[int] = []

    def own(self) -> Any:
        self.buffer += 1.0
        return self.buffer

    def fresh(self) -> Any:
        fresh = np.full(10_000, float(len(self.fresh_at)))
        self.fresh_at.append(address(fresh))
        return fresh

    def fresh_pair(self) -> Any:
        return {"x": self.fresh(), "y": 1.5}

    def append(self) -> list[int]:
        self.history.append(len(self.history))
        return self.history

    def number(self) -> int:
        return 7

    def unsendable(self) -> Any:
        return {1, threading.Lock()}

    def long_list(self) -> list[float]:
        return [0.123456789] * 40_000

    def longer_list(self) -> list[float]:
        return [0.123456789] * 60_000

    def fail(self) -> None:
        raise OSError("the probe is not connected")


# ── one call ────────────────────────────────────────────────────────────────────────────────────


def test_a_buffer_that_the_driver_keeps_is_copied_before_its_method_can_run_again() -> None:
    scope = Scope()
    frames = answer_of(opened_at(Desk(), ServedCall(bound(scope.own))))
    scope.own()
    assert np.array_equal(value_of(frames), np.ones(10_000))


@pytest.mark.parametrize("method", ["fresh", "fresh_pair"])
def test_a_buffer_that_nobody_else_has_is_sent_without_a_copy(method: str) -> None:
    scope = Scope()
    frames = answer_of(opened_at(Desk(), ServedCall(bound(getattr(scope, method)))))
    assert [address(each) for each in frames[1:]] == scope.fresh_at


@pytest.mark.parametrize("method", ["own", "fresh", "number", "append"])
def test_a_client_that_speaks_json_gets_the_same(method: str) -> None:
    json = answer_of(opened_at(Desk(), ServedCall(bound(getattr(Scope(), method))), json=True))
    packed = answer_of(opened_at(Desk(), ServedCall(bound(getattr(Scope(), method)))))
    assert len(json) == 1
    assert np.array_equal(value_of(json), value_of(packed))


def test_a_call_begins_before_its_deadline_or_never() -> None:
    job = opened_at(Desk(), ServedCall(bound(Scope().number)), deadline=10.0)
    error = job.refusal(10.0)
    assert error is not None
    assert "waited in the queue until its deadline passed" in str(error)
    assert error.executed is False
    assert job.opened.state == "queued"
    assert job.refusal(9.999) is None
    assert (job.opened.state, job.opened.since) == ("running", 9.999)


def test_a_lease_is_asked_for_right_before_a_call_that_writes() -> None:
    desk = Desk()
    desk.refusal = Locked("somebody else holds the lease")
    writes = opened_at(desk, ServedCall(bound(Scope().number)))
    reads = opened_at(desk, ServedCall(bound(Scope().number)), read_only=True)
    assert writes.refusal(1.0) is desk.refusal
    assert writes.opened.state == "queued"
    assert reads.refusal(1.0) is None


def test_what_was_kept_is_read_again() -> None:
    scope = Scope()
    job = opened_at(Desk(), ServedCall(bound(scope.append)))
    job.opened.reply = answer_of(job)
    assert kept_value(job.opened) == [0]
    batch = batch_of(scope.number, scope.append)
    batch.opened.reply = answer_of(batch)
    assert kept_value(batch.opened) == [[7], [[0, 1]]]


def test_whose_a_call_is() -> None:
    job: Served = opened_at(Desk(), ServedCall(bound(Scope().number)))
    assert job.client == ("alice", "token")


# ── batches ─────────────────────────────────────────────────────────────────────────────────────


def batch_of(
    *functions: Callable[[], Any], keep_going: bool = False, json: bool = False
) -> ServedBatch:
    entries = [bound(each) for each in functions]
    batch = ServedBatch(entries, keep_going=keep_going, relay_id="Inst-0")
    return opened_at(Desk(), batch, json=json)  # type: ignore[no-any-return]


def outcomes_of(frames: list[Buffer]) -> list[Read]:
    message = READER.decode(frames).message
    assert isinstance(message, BatchResult)
    return read_outcomes(message.outcomes, 256)


@pytest.mark.parametrize("json", [False, True])
def test_each_result_of_a_batch_is_what_it_was_when_its_call_ended(json: bool) -> None:
    scope = Scope()
    methods = [scope.own, scope.append, scope.number, scope.own, scope.append]
    first, history, seven, second, longer = outcomes_of(answer_of(batch_of(*methods, json=json)))
    assert first.value[0] == 1.0
    assert second.value[0] == 2.0
    assert (history.value, longer.value, seven.value) == ([0], [0, 1], 7)


def test_what_nobody_else_has_is_not_copied_in_a_batch_either() -> None:
    scope = Scope()
    frames = answer_of(batch_of(scope.fresh, scope.fresh_pair))
    assert [address(each) for each in frames[1:]] == scope.fresh_at


def test_a_result_that_cannot_be_sent_is_an_error_of_its_own_call_alone() -> None:
    scope = Scope()
    batch = batch_of(scope.number, scope.unsendable, scope.number, keep_going=True)
    first, unsendable, last = outcomes_of(answer_of(batch))
    assert (first.value, last.value) == (7, 7)
    error = unsendable.error
    assert isinstance(error, DriverError)
    assert "unsendable ran, but its result (set) cannot be sent" in str(error)
    assert (error.method, error.relay_id, error.executed) == ("unsendable", "Inst-0", True)


def test_behind_a_result_that_cannot_be_sent_nothing_runs_unless_the_batch_goes_on() -> None:
    scope = Scope()
    first, error = outcomes_of(answer_of(batch_of(scope.number, scope.unsendable, scope.append)))
    assert (first.value, error.error is None) == (7, False)
    assert scope.history == []


@pytest.mark.parametrize("json", [False, True])
def test_results_that_are_too_large_together_cost_the_largest_of_them(json: bool) -> None:
    scope = Scope()
    methods = [scope.number, scope.long_list, scope.longer_list, scope.long_list, scope.fail]
    seven, long, longer, last, failed = outcomes_of(
        answer_of(batch_of(*methods, keep_going=True, json=json))
    )
    assert seven.value == 7
    assert longer.error is not None
    assert "longer_list ran, but its result (list) cannot be sent: " in str(longer.error)
    assert long.value == last.value == [0.123456789] * 40_000
    assert isinstance(failed.error, OSError)


def test_a_result_that_is_too_large_as_text_costs_itself_alone() -> None:
    scope = Scope()

    def waveform() -> Any:
        return np.zeros(400_000)

    [seven, large] = outcomes_of(answer_of(batch_of(scope.number, waveform, json=True)))
    assert seven.value == 7
    assert large.error is not None
    assert "waveform ran, but its result" in str(large.error)


def test_more_arrays_than_a_message_has_frames_are_sent_while_there_is_room() -> None:
    def point() -> Any:
        return np.ones(1000)

    outcomes = outcomes_of(answer_of(batch_of(*[point] * 256)))
    assert len(outcomes) == 256
    errors = [each.error for each in outcomes if each.error is not None]
    assert all("point ran, but its result" in str(each) for each in errors)
    whole = [each.value for each in outcomes if each.error is None]
    assert len(whole) > 100
    assert all(np.array_equal(each, np.ones(1000)) for each in whole)


# ── streams ─────────────────────────────────────────────────────────────────────────────────────


def stream_of(desk: Desk, function: Callable[[], Any], credit: int = 16) -> ServedStream:
    return opened_at(desk, ServedStream(bound(function, yields=True), credit))  # type: ignore[no-any-return]


def test_items_are_counted_and_each_is_what_it_was_when_it_was_yielded() -> None:
    desk, scope = Desk(), Scope()

    def scan() -> Any:
        for _ in range(3):
            yield scope.own()

    stream = stream_of(desk, scan)
    assert stream.execute(Runner()) is None
    items = [READER.decode(each).message for each in desk.said]
    assert [each.index for each in items] == [0, 1, 2]  # type: ignore[attr-defined]
    assert [each.value[0] for each in items] == [1.0, 2.0, 3.0]  # type: ignore[attr-defined]


def test_an_item_that_cannot_be_sent_ends_the_stream() -> None:
    def scan() -> Any:
        yield 1
        yield threading.Lock()

    desk = Desk()
    with pytest.raises(LabmeshError, match="lock"):
        stream_of(desk, scan).execute(Runner())
    assert len(desk.said) == 1


@pytest.mark.parametrize(
    "why", ["its caller took it back", "the lease that it ran under has ended"]
)
def test_a_stream_that_is_ended_says_why(why: str) -> None:
    desk = Desk()

    def scan() -> Any:
        yield 1
        stream.interrupt(why)
        yield 2

    stream = stream_of(desk, scan)
    with pytest.raises(Interrupted) as caught:
        stream.execute(Runner())
    assert str(caught.value) == why
    assert len(desk.said) == 1


def test_a_stream_whose_caller_does_not_take_it_ends() -> None:
    desk = Desk()
    desk.is_heard = False
    with pytest.raises(Interrupted, match=r"^its caller is gone$"):
        stream_of(desk, lambda: iter_of(1)).execute(Runner())


def test_a_stream_that_waits_for_its_caller_ends_when_he_is_gone() -> None:
    desk = Desk()
    stream = stream_of(desk, lambda: iter_of(3), credit=1)

    class Leaving(Runner):
        """He leaves while it waits."""

        def rest(self, timeout_s: float) -> bool:
            stream.reader_is_gone()
            return True

    with pytest.raises(Interrupted, match=r"^its caller is gone$"):
        stream.execute(Leaving())
    assert len(desk.said) == 1


def test_a_stream_goes_on_when_its_caller_has_room_again() -> None:
    desk = Desk()
    stream = stream_of(desk, lambda: iter_of(3), credit=1)

    class Granting(Runner):
        """Its caller asks for more while it waits, which another thread reads."""

        def rest(self, timeout_s: float) -> bool:
            stream.grant(1)
            return False

    stream.execute(Granting())
    assert len(desk.said) == 3


def iter_of(count: int) -> Any:
    yield from range(count)


def test_a_call_is_done_to_its_end_when_its_caller_is_gone() -> None:
    desk = Desk()
    job = opened_at(desk, ServedCall(bound(Scope().number)))
    job.reader_is_gone()
    assert not job.is_set
    job.done(Outcome(answer_of(job)))
    assert value_of(desk.ended[0].value) == 7
