"""Short plain messages take a short way through the codec; it must lead to the same place."""

import math
import re
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import inspect as types
from msgspec.msgpack import Ext
from tests.support.lab_values import same, texts, values

from labmesh.errors import ProtocolError, TooLarge
from labmesh.protocol.codec import Codec, Limits, encode_value
from labmesh.protocol.messages import (
    DIRECTORY_REQUESTS,
    INGEST_REQUESTS,
    RELAY_REQUESTS,
    REPLIES,
    RETRIEVE_REQUESTS,
    Batch,
    Call,
    Done,
    Failure,
    Message,
    Ping,
    Result,
    Status,
)
from labmesh.protocol.open_fields import is_plain

EVERYTHING = tuple(
    dict.fromkeys(
        DIRECTORY_REQUESTS + RELAY_REQUESTS + INGEST_REQUESTS + RETRIEVE_REQUESTS + REPLIES
    )
)


def the_long_way(**limits: int) -> Codec:
    """A codec that looks at every message as a whole."""
    codec = Codec(EVERYTHING, limits=Limits(**limits))
    codec._trusts_plain = False
    return codec


SHORT, LONG = Codec(EVERYTHING), the_long_way()


def encoded(codec: Codec, message: Message) -> list[bytes] | list[object]:
    """The frames, or what its sender is told."""
    body = b"body" if message.has_body else None
    try:
        return [bytes(frame) for frame in codec.encode(message, body)]
    except ProtocolError as exc:
        return [type(exc), str(exc)]


def decoded(codec: Codec, frames: list[bytes]) -> list[Any]:
    """The message in a form that can be compared, or what its sender is told."""
    try:
        got = codec.decode(frames)
    except ProtocolError as exc:
        return [type(exc), str(exc), exc.detail]
    return [type(got.message), plain(got.message), bytes(got.body or b""), got.json]


def plain(value: Any) -> Any:
    if isinstance(value, msgspec.Struct):
        return {name: plain(getattr(value, name)) for name in value.__struct_fields__}
    if isinstance(value, list):
        return [plain(each) for each in value]
    return value


def assert_decoded_alike(frames: list[bytes]) -> None:
    short, long = decoded(SHORT, frames), decoded(LONG, frames)
    assert same(short, long), (short, long)


def fields_of(kind: type[msgspec.Struct], odd: bool) -> st.SearchStrategy[dict[str, Any]]:
    """The fields of a struct as they may stand on the wire; odd: right or wrong."""
    declared = types.type_info(kind)
    assert isinstance(declared, types.StructType)
    required = {f.name: value_of(f.type, odd) for f in declared.fields if f.required}
    optional = {f.name: value_of(f.type, odd) for f in declared.fields if not f.required}
    optional["unknown"] = values
    return st.fixed_dictionaries(required, optional=optional)


#: In place of what a field should have.
ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**64 - 1),
    st.sampled_from([math.nan, math.inf, -math.inf, 1.0, -0.0, "", "x" * 1024, "x" * 1023]),
    st.sampled_from([Ext(1, b"x"), Ext(99, b""), Ext(4, b"\0"), b"x", [], {}, [[]], {1: 2}]),
)


def value_of(declared: types.Type, odd: bool) -> st.SearchStrategy[Any]:
    return _value_of(declared) | ODD if odd else _value_of(declared)


def _value_of(declared: types.Type) -> st.SearchStrategy[Any]:
    match declared:
        case types.StrType(pattern=str() as pattern):
            # Ids, keys in Z85, digests.
            fitting = ("a", "0" * 40, "0" * 64)
            return st.just(next(each for each in fitting if re.search(pattern, each)))
        case types.StrType(min_length=least, max_length=most):
            return st.text(min_size=least or 0, max_size=min(most or 20, 64))
        case types.IntType(ge=least, le=most):
            lowest = -(2**63) if least is None else int(least)
            return st.integers(lowest, 2**64 - 1 if most is None else int(most))
        case types.FloatType():
            return st.floats(0.125, 1.0) | st.floats(0, 60) | st.just(1)
        case types.BoolType():
            return st.booleans()
        case types.BytesType():
            return st.binary(max_size=8)
        case types.AnyType():
            return values
        case types.ListType(item_type=types.AnyType()):
            return st.lists(st.none() | st.integers(0, 9) | texts, max_size=4) | st.lists(
                values, max_size=3
            )
        case types.ListType(item_type=each):
            return st.lists(_value_of(each), max_size=2)
        case types.VarTupleType(item_type=each):
            return st.lists(_value_of(each), max_size=2).map(tuple)
        case types.DictType(value_type=each):
            return st.dictionaries(texts, _value_of(each), max_size=3)
        case types.LiteralType(values=choices):
            return st.sampled_from(sorted(choices))
        case types.UnionType(types=choices):
            return st.one_of(*map(_value_of, choices))
        case types.NoneType():
            return st.none()
        case types.StructType(cls=kind):
            return fields_of(kind, odd=False)
    raise AssertionError(f"no values for {declared}")


def wire(kind: type[msgspec.Struct], pairs: list[tuple[str, Any]]) -> bytes:
    """A header with these fields, in this order, also twice."""
    pairs = [("type", kind.__struct_config__.tag), *pairs]
    content = b"".join(on_wire(each) for pair in pairs for each in pair)
    return b"\xde" + len(pairs).to_bytes(2, "big") + content


def on_wire(value: Any) -> bytes:
    try:
        return encode_value(value)
    except ProtocolError:
        return msgspec.msgpack.encode(value)


@st.composite
def headers(draw: st.DrawFn) -> tuple[type[Message], bytes]:
    """A header of any type, with fields as they are declared or not, and some of them twice."""
    kind, odd = draw(st.sampled_from(EVERYTHING)), draw(st.booleans())
    pairs = list(draw(fields_of(kind, odd)).items())
    if odd:
        more = [*pairs, ("type", "ping"), ("id", "2")]
        pairs += [more[place % len(more)] for place in draw(st.lists(st.integers(0, 30)))]
    return kind, wire(kind, pairs)


@given(header=headers())
def test_each_type_is_read_and_written_alike(header):
    kind, first = header
    frames = [first, *([b"body"] if kind.has_body else [])]
    assert_decoded_alike(frames)
    try:
        message = LONG.decode(frames).message
    except ProtocolError:
        return
    assert encoded(SHORT, message) == encoded(LONG, message)


#: Also with surrogates in them, which are no text that can be sent.
names = st.text(st.characters(), max_size=3)
#: What may be put into a message to be sent, by who does not know what can be.
anything = st.one_of(
    values,
    names,
    st.sampled_from([2**64, -(2**63) - 1, {1}, b"x" * 5000, "x" * 1024, "\ud800", (1, "a"), "ab"]),
    st.tuples(values),
    st.dictionaries(names | st.integers(0, 3), values, max_size=3),
)


@given(
    fields=st.fixed_dictionaries(
        {},
        optional={
            "args": st.lists(anything, max_size=3),
            "kwargs": st.dictionaries(names | st.integers(0, 3), anything, max_size=3),
            "deadline": st.floats() | st.integers() | anything,
            "fence": anything,
        },
    )
)
def test_whatever_a_sender_puts_into_a_call_is_sent_or_refused_alike(fields):
    call = Call(id="1", method="m", **fields)
    assert encoded(SHORT, call) == encoded(LONG, call)


@given(message=st.builds(Result, id=st.just("1"), value=anything))
def test_whatever_a_method_returns_is_sent_or_refused_alike(message):
    assert encoded(SHORT, message) == encoded(LONG, message)


@pytest.mark.parametrize(
    "message",
    [
        Ping(id="1", deadline=math.nan),
        Ping(id="1", deadline=-math.inf),
        Ping(id="1", deadline=True),
        Ping(id="1", deadline="soon"),
        Ping(id="1", deadline=2**64),
        Ping(id="1", version=2**64),
        Failure(id="1", code=math.nan, name="driver"),
        Failure(id="1", code=None, name="driver"),
        Result(id="1", value=2**64 - 1),
        Result(id="1", value=2**64),
        Result(id="1", value=-(2**63) - 1),
        Result(id="1", value="\ud800"),
        Result(id="1", value="x" * 2**20),
        Result(id="1", value="x" * (2**20 + 1)),
        Call(id="1", method="\ud800"),
        Call(id="1", method="m", args=5),
        Call(id="1", method="m", args="abc"),
        Call(id="1", method="m", args=(1, "a")),
        Call(id="1", method="m", args=None),
        Call(id="1", method="m", args=[math.nan, -0.0, "x" * 1024]),
        Call(id="1", method="m", args=["\udfff"]),
        Call(id="1", method="m", args=list(range(300))),
        Call(id="1", method="m", kwargs=[("a", 1)]),
        Call(id="1", method="m", kwargs={1: 2}),
        Call(id="1", method="m", kwargs={"\ud800": 2}),
        Call(id="1", method="m", kwargs={"x" * 1024: 2}),
        Call(id="1", method="m", kwargs={"a": "x" * 1024, "b": True}),
        Call(id="1", method="m", kwargs={f"k{each}": each for each in range(10_001)}),
        Status(id="1", node_id="n", kind="relay", epoch="e", uptime_s=1.5, facts={"": None}),
        Batch(id="1", calls=[["m"], ["n", [1], {}]]),
    ],
    ids=lambda message: f"{message!r:.60}",
)
def test_the_short_way_out_refuses_and_sends_the_same(message):
    assert encoded(SHORT, message) == encoded(LONG, message)


CALL = [("id", "7"), ("method", "m")]


@pytest.mark.parametrize(
    ("kind", "pairs"),
    [
        (Ping, [("id", "7"), ("deadline", math.nan)]),
        (Ping, [("id", "7"), ("deadline", math.inf)]),
        (Ping, [("id", "7"), ("deadline", 3)]),
        (Ping, [("id", "7"), ("deadline", 2**64 - 1)]),
        (Ping, [("id", "7"), ("version", 2)]),
        (Ping, [("id", "7"), ("version", 2), ("version", 1)]),
        (Ping, [("id", "6"), ("id", "7")]),
        (Ping, [("id", "7"), ("type", "ping")]),
        (Ping, [("id", "7"), ("type", "call")]),
        (Ping, [("id", "7"), ("later", {1: [2]})]),
        (Done, [("id", ""), ("type", "done")]),
        (Result, [("id", "7"), ("value", 2**64 - 1)]),
        (Result, [("id", "7"), ("value", "x" * 1023)]),
        (Result, [("id", "7"), ("value", "x" * 1024)]),
        (Result, [("id", "7"), ("value", "x" * 4096)]),
        (Result, [("id", "7"), ("value", Ext(99, b""))]),
        (Result, [("id", "7"), ("value", Ext(4, b"\0"))]),
        (Result, [("id", "7"), ("value", {(): 1})]),
        (Call, [*CALL, ("kwargs", {1: 2})]),
        (Call, [*CALL, ("kwargs", {"a": [1]})]),
        (Call, [*CALL, ("args", [[[1]]])]),
        (Call, [*CALL, ("args", [0] * 257)]),
        (Call, [*CALL, ("args", [math.nan, None, True, "a"])]),
    ],
    ids=lambda each: re.sub(r" object at 0x\w+", "", str(each)),
)
def test_the_short_way_in_refuses_and_takes_the_same(kind, pairs):
    assert_decoded_alike([wire(kind, pairs)])


@pytest.mark.parametrize(
    "header",
    [
        b"",
        b"{",
        b"\x80",
        b"\x90",
        b"\xc1",
        b'{"type":"ping","id":"7"}',
        b"\x82\xa4type\xa4ping\xa2id\xa3\xed\xa0\x80",
        b"\x82\xa4type\xa4ping\xa2id\xa1\xff",
        b"\x82\xa4type\xa4ping\xa2id\xa17\xc0",
    ],
    ids=repr,
)
def test_what_is_no_message_is_refused_alike(header):
    assert_decoded_alike([header])


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"max_header_bytes": 40}, Call(id="1", method="m" * 60)),
        ({"max_text_bytes": 10}, Call(id="1", method="m", args=["x" * 11])),
        ({"max_keys": 1}, Call(id="1", method="m", kwargs={"a": 1, "b": 2})),
    ],
    ids=["header", "text", "keys"],
)
def test_smaller_limits_hold_for_short_messages_too(limits, message):
    codec = Codec(EVERYTHING, limits=Limits(**limits))
    with pytest.raises(TooLarge):
        codec.encode(message)
    with pytest.raises(TooLarge):
        codec.decode(LONG.encode(message))


@pytest.mark.parametrize(
    ("message", "answer"),
    [
        (Call(id="1", method="m", args=[1, 2.5, None, "text"], kwargs={"a": True}), True),
        (Result(id="1", value="x" * 1023), True),
        (Done(id="1"), True),
        (Call(id="1", method="m", args=[0] * 256), True),
        (Call(id="1", method="m", args=[0] * 257), False),
        (Call(id="1", method="m", args=[[]]), False),
        (Result(id="1", value=1j), False),
    ],
    ids=lambda value: f"{value!r:.60}",
)
def test_most_messages_are_plain(message, answer):
    assert is_plain(message) is answer
