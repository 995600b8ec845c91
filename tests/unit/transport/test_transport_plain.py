"""The short way of calls and results of numbers gives what the codec gives, or leaves it to it."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from labmesh.protocol.codec import Codec
from labmesh.protocol.messages import Alive, Call, Failure, Result
from labmesh.transport.plain import decode_plain, encode_plain

NUMBERS = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats()
VALUES = st.recursive(
    NUMBERS | st.text(max_size=50) | st.binary(max_size=50),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=6,
)


def same(one: Any, other: Any) -> bool:
    """Equal, also where NaN is."""
    return repr(one) == repr(other)


def call_with(args: list[Any], **kwargs: Any) -> Call:
    return Call(id="7", target="Inst-0", epoch="e", method="set_voltage", args=args, kwargs=kwargs)


@given(st.lists(NUMBERS, max_size=5))
def test_a_call_of_numbers_has_the_frames_that_the_codec_makes(args: list[Any]) -> None:
    call = call_with(args)
    assert encode_plain(call) == Codec(()).encode(call)


@pytest.mark.parametrize(
    "call",
    [
        call_with([1], ramp=2),
        call_with(["text"]),
        call_with([[1]]),
        call_with([1] * 65),
        call_with([2**64]),
        call_with([1], **{"\ud800": 1}),
        Call(id="7", method="\ud800"),
    ],
    ids=["keyword", "text", "list", "many", "large integer", "bad keyword", "bad name"],
)
def test_any_other_call_is_left_to_the_codec(call: Call) -> None:
    assert encode_plain(call) is None


@given(VALUES)
def test_a_result_is_read_as_the_codec_reads_it_or_not_at_all(value: Any) -> None:
    codec = Codec((Result,))
    frames = codec.encode(Result(id="7", value=value))
    plain = decode_plain(frames[0])
    assert (plain is not None) == (type(value) in (type(None), bool, int, float, str))
    if plain is not None:
        assert same(plain, codec.decode(frames).message)


RESULT = msgspec.msgpack.encode({"type": "result", "id": "7"})
BEGINNING = b"\x83" + RESULT[1:] + b"\xa5value"


@pytest.mark.parametrize(
    "header",
    [
        b"",
        b"\x83",
        b'{"type": "result", "id": "7"}',
        memoryview(RESULT),
        msgspec.msgpack.encode({"id": "7", "type": "result", "value": 1}),
        msgspec.msgpack.encode({"type": "result", "id": 7}),
        msgspec.msgpack.encode({"type": "result", "id": "7" * 1000}),
        msgspec.msgpack.encode(Alive(id="7", state="running")),
        msgspec.msgpack.encode(Failure(id="7", code=500, name="driver", text="no")),
        RESULT + b"\x00",
        BEGINNING,
        BEGINNING + b"\xa2\xff\xfe",
        BEGINNING + b"\x91" * 4000 + b"\x01",
        BEGINNING + b"\x91" * 3000 + b"\x01",
        BEGINNING + b"\xd4\x01\x00",
    ],
)
def test_what_is_no_plain_result_is_left_to_the_codec(header: bytes) -> None:
    assert decode_plain(header) is None
