"""What a batch asks for and what became of it, as plain lists: there and back, and hostile ones."""

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.lab_values import same, texts, values

from labmesh.errors import (
    BadArguments,
    Busy,
    Cancelled,
    DriverError,
    LabmeshError,
    OutcomeUnknown,
    ProtocolError,
    TooLarge,
    error_from_wire,
)
from labmesh.protocol.batches import (
    BatchEntry,
    Outcome,
    read_entries,
    read_outcomes,
    write_entries,
    write_outcomes,
)
from labmesh.protocol.codec import Codec
from labmesh.protocol.messages import MAX_BATCH, Batch, BatchResult

entries = st.builds(
    BatchEntry,
    method=st.text(max_size=20),
    args=st.lists(values, max_size=2),
    kwargs=st.dictionaries(texts, values, max_size=2),
    access=st.sampled_from(["call", "get", "set"]),
)


def sent(message: Batch | BatchResult, *, json: bool) -> Batch | BatchResult:
    codec = Codec([type(message)])
    return codec.decode([bytes(each) for each in codec.encode(message, json=json)]).message


# ── what is asked ───────────────────────────────────────────────────────────────────────────────


@given(batch=st.lists(entries, max_size=3), json=st.booleans())
@settings(deadline=None, max_examples=50)
def test_a_batch_arrives_as_it_was_asked(batch, json):
    received = read_entries(sent(Batch(id="1", calls=write_entries(batch)), json=json).calls)
    assert len(received) == len(batch)
    for asked, got in zip(batch, received, strict=True):
        assert (got.method, got.access) == (asked.method, asked.access)
        assert same(asked.args, got.args)
        assert same(asked.kwargs, got.kwargs)


def test_a_large_array_of_a_batch_travels_without_a_copy():
    wave = np.arange(1024.0)
    batch = Batch(id="1", calls=write_entries([BatchEntry("upload", [wave])]))
    _, buffer = Codec([Batch]).encode(batch)
    assert np.shares_memory(np.frombuffer(buffer), wave)


def test_what_is_left_out_at_the_end_of_an_entry_has_its_default():
    assert read_entries([["off"], ["set_voltage", [2.5]], ["ramp", [], {"to": 3}]]) == [
        BatchEntry("off"),
        BatchEntry("set_voltage", [2.5]),
        BatchEntry("ramp", [], {"to": 3}),
    ]


def test_entries_with_defaults_share_nothing():
    first, second = read_entries([["off"], ["off"]])
    assert first.args is not second.args
    assert first.kwargs is not second.kwargs


def test_a_batch_may_be_empty():
    assert read_entries(write_entries([])) == []


@pytest.mark.parametrize("count", [MAX_BATCH + 1, 100_000])
def test_a_batch_has_a_limit_on_both_sides(count):
    assert len(read_entries([["off"]] * MAX_BATCH)) == MAX_BATCH
    with pytest.raises(
        TooLarge, match=f"{count} calls; the limit is 256: send several"
    ) as received:
        read_entries([["off"]] * count)
    assert received.value.detail == {"limit": MAX_BATCH}
    with pytest.raises(TooLarge, match="the limit is 256"):
        write_entries([BatchEntry("off")] * count)


def test_a_batch_over_the_limit_is_refused_before_its_calls_are_decoded():
    header = msgspec.msgpack.encode({"type": "batch", "id": "1", "calls": [["off"]] * 100_000})
    # Cut off behind the beginning of the list, whose length is known by then.
    for received in (header, header[:100]):
        with pytest.raises(ProtocolError, match="length <= 256"):
            Codec([Batch]).decode([received])
    with pytest.raises(ProtocolError, match="length <= 256"):
        Codec([BatchResult]).decode(
            Codec(()).encode(BatchResult(id="1", outcomes=[[1]] * (MAX_BATCH + 1)))
        )


@pytest.mark.parametrize(
    ("entry", "kind", "problem"),
    [
        (None, ProtocolError, "is nothing, not [method, args, kwargs, access]"),
        ("off", ProtocolError, "is a str, not [method"),
        ({"method": "off"}, ProtocolError, "is a dict, not [method"),
        (3, ProtocolError, "is a int, not"),
        ([], ProtocolError, "is a list of 0, not"),
        (["off", [], {}, "call", 5], ProtocolError, "is a list of 5, not"),
        ([None], ProtocolError, "names a method by nothing; it must be text"),
        ([3], ProtocolError, "names a method by a int"),
        ([b"off"], ProtocolError, "names a method by a bytes"),
        ([["off"]], ProtocolError, "names a method by a list of 1"),
        (["x" * 257], ProtocolError, "of 257 characters; the limit is 256"),
        (["off", None], BadArguments, "has nothing as its args; they must be a list"),
        (["off", {"a": 1}], BadArguments, "has a dict as its args"),
        (["off", "abc"], BadArguments, "has a str as its args"),
        (["off", [], [1]], BadArguments, "has a list of 1 as its kwargs; they must be a map"),
        (["off", [], None], BadArguments, "has nothing as its kwargs"),
        (["off", [], {1: 2}], BadArguments, "has a key in its kwargs that is no text"),
        (["off", [], {"a": 1, None: 2}], BadArguments, "has a key in its kwargs"),
        (["off", [], {}, "delete"], ProtocolError, "none of: call, get, set"),
        (["off", [], {}, ""], ProtocolError, "none of: call, get, set"),
        (["off", [], {}, None], ProtocolError, "none of: call, get, set"),
        (["off", [], {}, ["get"]], ProtocolError, "none of: call, get, set"),
    ],
    ids=str,
)
def test_an_entry_that_is_none_is_refused_by_its_number(entry, kind, problem):
    with pytest.raises(kind) as refused:
        read_entries([["on"], entry, ["off"]])
    assert type(refused.value) is kind
    assert str(refused.value).startswith("call 2 of this batch ")
    assert problem in str(refused.value)
    assert str(refused.value).endswith("; nothing of it was run")
    assert refused.value.detail == {"index": 1}
    assert refused.value.executed is False


@given(calls=st.lists(values | st.lists(values, max_size=5), max_size=3))
def test_any_values_are_entries_or_refused_in_a_short_sentence(calls):
    received, refusal = None, ""
    try:
        received = read_entries(calls)
    except ProtocolError as exc:
        refusal = str(exc)
    assert len(refusal) < 200
    if received is not None:
        assert [each.method for each in received] == [each[0] for each in calls]


# ── what became of it ───────────────────────────────────────────────────────────────────────────


def burnt() -> LabmeshError:
    return error_from_wire("driver", "it burns", {"exception_type": "ValueError", "method": "on"})


@pytest.mark.parametrize("json", [False, True], ids=["MessagePack", "JSON"])
def test_outcomes_arrive_as_they_were(json):
    trace = np.arange(1000.0)
    became = [Outcome(2.5), Outcome(None), Outcome(trace), Outcome(error=burnt())]
    answer = sent(BatchResult(id="1", outcomes=write_outcomes(became)), json=json)
    value, nothing, array, failed = read_outcomes(answer.outcomes, 4)
    assert value == Outcome(2.5)
    assert nothing == Outcome(None, None)
    assert same(array.value, trace)
    assert isinstance(failed.error, DriverError)
    assert isinstance(failed.error, ValueError)
    assert (str(failed.error), failed.error.method) == ("it burns", "on")


@given(results=st.lists(values, max_size=3), json=st.booleans())
@settings(deadline=None, max_examples=50)
def test_any_value_can_be_a_result(results, json):
    written = write_outcomes([Outcome(each) for each in results])
    answer = sent(BatchResult(id="1", outcomes=written), json=json)
    received = read_outcomes(answer.outcomes, len(results))
    assert same([each.value for each in received], results)
    assert all(each.error is None for each in received)


def test_a_list_that_looks_like_an_error_is_a_value():
    looks_like = ["driver", "it burns", {}]
    assert read_outcomes(write_outcomes([Outcome(looks_like)]), 1) == [Outcome(looks_like)]


def test_what_is_missing_did_not_run():
    (failed,) = read_outcomes(write_outcomes([Outcome(error=Busy("full", limit=3))]), 3)
    assert type(failed.error) is Busy
    assert failed.error.detail == {"limit": 3}
    assert read_outcomes([], 3) == []


def test_the_text_of_an_error_is_cut():
    ((_, text, _),) = write_outcomes([Outcome(error=Cancelled("x" * 100_000))])
    assert text == "x" * 2000


def test_an_error_of_a_later_version_is_an_error_all_the_same():
    (failed,) = read_outcomes([["quantum_decoherence", "too warm", {}]], 1)
    assert type(failed.error) is LabmeshError


def test_more_outcomes_than_calls_tell_nothing():
    with pytest.raises(OutcomeUnknown, match="relay Inst-0 answered a batch of 1 calls with 2"):
        read_outcomes([[1], [2]], 1, "relay Inst-0")


@pytest.mark.parametrize(
    "outcome",
    [
        None, 5, "ok", {}, [], [1, 2], [1, 2, 3], ["driver", "text"], ["driver", "text", []],
        ["driver", "text", None], ["driver", 5, {}], [5, "text", {}], ["", "text", {}],
        ["x" * 65, "text", {}], ["driver", "x" * 65_537, {}], ["driver", "text", {1: 2}],
        ["driver", "text", {}, 4], [[1], [2]],
    ],
    ids=lambda outcome: f"{outcome!s:.30}",
)  # fmt: skip
def test_an_outcome_that_is_none_tells_nothing(outcome):
    with pytest.raises(
        OutcomeUnknown, match=r"answered call 2 of a batch with .*which is neither"
    ) as no:
        read_outcomes([[1], outcome], 2)
    assert no.value.detail == {"index": 1}
    assert len(str(no.value)) < 300
    assert no.value.executed is None


@given(outcomes=st.lists(values | st.lists(values, max_size=4), max_size=3))
def test_any_values_are_outcomes_or_tell_nothing(outcomes):
    try:
        received = read_outcomes(outcomes, 3)
    except OutcomeUnknown:
        return
    assert len(received) == len(outcomes)
