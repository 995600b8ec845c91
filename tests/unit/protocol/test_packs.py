"""Several short messages in one frame: what goes in comes out, and nothing else does."""

import math
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from labmesh.errors import ProtocolError, TooLarge
from labmesh.protocol.codec import Codec
from labmesh.protocol.messages import (
    PROTOCOL_VERSION,
    RELAY_REQUESTS,
    REPLIES,
    Call,
    Cancel,
    Done,
    Failure,
    Message,
    Result,
)
from labmesh.protocol.packs import (
    MAX_MEMBER_BYTES,
    MAX_PACK,
    MAX_PACK_BYTES,
    PlainCall,
    all_fit,
    encode_result,
    fits,
    is_pack,
    pack,
    read_call,
    read_calls,
    read_results,
    unpack,
)

ONE = b"\x80"


def header(message: Message, *, json: bool = False) -> bytes:
    (only,) = Codec(()).encode(message, json=json)
    return bytes(only)


headers = st.dictionaries(
    st.text(max_size=8), st.none() | st.integers(-(2**63), 2**64 - 1) | st.text(max_size=30)
).map(msgspec.msgpack.encode)


@given(sent=st.lists(headers.filter(fits), min_size=2, max_size=20))
def test_messages_arrive_byte_for_byte_and_in_their_order(sent):
    frame = pack(sent)
    assert is_pack(frame)
    assert unpack(frame) == sent
    assert unpack(memoryview(frame)) == unpack(bytearray(frame)) == sent


@pytest.mark.parametrize("count", [2, 15, 16, 17, MAX_PACK])
def test_a_pack_has_room_for_so_many(count):
    sent = [header(Done(id=str(number))) for number in range(count)]
    assert unpack(pack(sent)) == sent


def test_the_largest_pack_is_within_the_limit():
    message = header(Call(id="1", method="m" * 200, args=["x" * 760]))
    largest = message + bytes(MAX_MEMBER_BYTES - len(message))
    assert fits(largest)
    assert not fits(largest + b"\0")
    assert len(pack([largest] * MAX_PACK)) <= MAX_PACK_BYTES


def test_one_message_alone_stays_as_it_is():
    message = header(Done(id="1"))
    assert pack([message]) is message
    assert not is_pack(message)


@given(
    each=st.lists(st.sampled_from([b"\x80", b"{}", b"\x80" + bytes(MAX_MEMBER_BYTES)]), min_size=1)
)
def test_they_all_fit_if_each_of_them_does(each):
    assert all_fit(each) == all(map(fits, each))


def test_a_pack_too_many_do_not_fit():
    assert all_fit([ONE] * MAX_PACK)
    assert not all_fit([ONE] * (MAX_PACK + 1))


def test_a_message_in_json_does_not_fit():
    assert fits(header(Done(id="1")))
    assert not fits(header(Done(id="1"), json=True))


@given(frame=st.binary(max_size=60))
@example(frame=b"")
def test_a_frame_is_a_pack_by_its_first_byte_as_no_header_begins(frame):
    known = is_pack(frame)
    assert known == (frame[:1] in {bytes([each]) for each in [*range(0x90, 0xA0), 0xDC]})
    if known:
        with pytest.raises(ProtocolError, match="object expected"):
            Codec((Done,)).decode([frame])


@given(
    lead=st.sampled_from([*(bytes([0x90 | each]) for each in range(16)), b"\xdc\0\x01", b"\xdc"]),
    rest=st.binary(max_size=60),
)
@example(lead=b"\xdc", rest=b"")
@example(lead=b"\xdc", rest=b"\0")
def test_any_bytes_are_headers_or_refused(lead, rest):
    frame, refusal, found = lead + rest, None, []
    try:
        found = unpack(frame)
    except ProtocolError as exc:
        refusal = str(exc)
    assert (refusal is None) is bool(found)
    assert len(refusal or "") < 400
    if found:
        assert frame.endswith(b"".join(found))
    assert all(each[:1] not in (b"{", b"") and not is_pack(each) for each in found)


@given(cut=st.integers(1, 200), sent=st.lists(headers, min_size=2, max_size=5))
def test_a_pack_that_is_cut_off_or_goes_on_is_refused(cut, sent):
    whole = pack(sent)
    for frame in (whole[: -min(cut, len(whole) - 1)], whole + b"\xc0"):
        with pytest.raises(ProtocolError, match="cannot be decoded"):
            unpack(frame)


@pytest.mark.parametrize(
    "member",
    [pack([ONE, ONE]), b"\x90", b"\xa0", b"\xc4\0", b"\xc0", b"\x01", b"{", b"\xcb" + bytes(8)],
    ids=["a pack", "an empty pack", "a text", "bytes", "nil", "1", "{", "a float"],
)
@pytest.mark.parametrize("place", [0, 1, 2])
def test_what_is_no_message_refuses_the_whole(member, place):
    members = [ONE, ONE]
    members.insert(place, member)
    with pytest.raises(ProtocolError, match=f"one in this begins with byte 0x{member[0]:02x}"):
        unpack(pack(members))


@pytest.mark.parametrize("frame", [b"\x90", b"\xdc\0\0"])
def test_a_pack_of_nothing_is_refused(frame):
    with pytest.raises(ProtocolError, match="empty list"):
        unpack(frame)


def test_an_empty_member_is_none():
    with pytest.raises(ProtocolError, match="cannot be decoded"):
        unpack(pack([b"", b""]))


@pytest.mark.parametrize(
    "frame",
    [
        pack([ONE] * (MAX_PACK + 1)),
        pack([ONE] * 257),
        b"\xdc\xff\xff",
        pack([msgspec.msgpack.encode({"x": "x" * (MAX_PACK_BYTES // 2)})] * 2),
        b"\xdc\0\x40" + b"\xc0" * 2**24,
    ],
    ids=["one too many", "257", "claims 65535", "too many bytes", "16 MiB of nil"],
)
def test_a_pack_over_the_limits_is_refused_before_it_is_taken_apart(frame):
    with pytest.raises(TooLarge, match=f"{MAX_PACK} messages and {MAX_PACK_BYTES} bytes"):
        unpack(frame)


@pytest.mark.parametrize(
    "frame",
    [b"\x91" * 60_000, b"\x91\x81\xa1x" + b"\x91" * 60_000, b"\x91" + b"\x81\xa1x" * 20_000],
    ids=["packs in packs", "lists in a message", "maps in a message"],
)
def test_nesting_without_an_end_is_refused(frame):
    with pytest.raises(ProtocolError):
        unpack(frame)


@pytest.mark.parametrize("lie", [b"\xdf\xff\xff\xff\xff", b"\x81\xdb\xff\xff\xff\xff", b"\xde\xff"])
def test_a_message_that_lies_about_its_length_is_refused(lie):
    with pytest.raises(ProtocolError, match="cannot be decoded"):
        unpack(b"\x92\x80" + lie)


# ── packs of plain messages are read in one go ──────────────────────────────────────────────────

SCALARS = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text()
VALUES = SCALARS | st.binary(max_size=9) | st.lists(SCALARS, max_size=2) | st.complex_numbers()
NUMBERS = st.none() | st.floats()

plain_calls = st.builds(
    Call,
    id=st.text(min_size=1, max_size=5),
    target=st.text(max_size=5),
    deadline=st.none() | st.floats(-1e9, 1e9),
    arrive_by=st.none() | st.floats(-1e9, 1e9),
    session=st.text(max_size=5),
    fence=st.integers(0, 2**53),
    credit=st.integers(0, 1024),
    access=st.sampled_from(["call", "get", "set"]),
    method=st.text(max_size=9),
    args=st.lists(SCALARS, max_size=3),
    kwargs=st.dictionaries(st.text(max_size=5), SCALARS, max_size=3),
)
any_calls = st.builds(
    Call,
    id=st.just("1"),
    deadline=NUMBERS,
    arrive_by=NUMBERS,
    method=st.just("move"),
    args=st.lists(VALUES, max_size=2),
)


def fields(message: Message) -> str:
    """What is in it, also where that is NaN."""
    return repr([getattr(message, name) for name in type(message).__struct_fields__])


def headers_of(messages: Sequence[Message]) -> list[bytes]:
    return [msgspec.msgpack.encode(each) for each in messages]


@given(sent=st.lists(plain_calls, min_size=2, max_size=4))
def test_plain_calls_are_read_as_they_were_sent(sent: list[Call]) -> None:
    found = read_calls(pack(headers_of(sent)))
    assert found is not None
    assert list(map(fields, found)) == list(map(fields, sent))
    for each, header in zip(sent, headers_of(sent), strict=True):
        alone = read_call(header)
        assert alone is not None
        assert fields(alone) == fields(each)


@given(sent=st.lists(any_calls, min_size=2, max_size=3))
@settings(deadline=None, max_examples=200)
def test_what_is_read_in_one_go_the_codec_would_have_read_alike(sent: list[Call]) -> None:
    codec = Codec(RELAY_REQUESTS)
    members = [
        bytes(codec.encode(each)[0])
        if _is_finite(each)
        else msgspec.msgpack.encode(msgspec.structs.replace(each, args=[]))
        for each in sent
    ]
    found = read_calls(pack(members))
    assert found is None or all(map(_is_finite, sent))
    for index, each in enumerate(found or ()):
        assert fields(each) == fields(codec.decode([members[index]]).message)
    for call, member in zip(sent, members, strict=True):
        alone = read_call(member)
        assert alone is None or _is_finite(call)
        assert alone is None or fields(alone) == fields(codec.decode([member]).message)


def _is_finite(call: Call) -> bool:
    return all(each is None or math.isfinite(each) for each in (call.deadline, call.arrive_by))


@given(values=st.lists(VALUES, min_size=2, max_size=4))
def test_plain_results_are_read_as_the_codec_reads_them(values: list[Any]) -> None:
    codec = Codec(REPLIES)
    members = [bytes(codec.encode(Result(id="7", value=each))[0]) for each in values]
    found = read_results(pack(members))
    is_plain = all(type(each) in (type(None), bool, int, float, str) for each in values)
    assert (found is not None) is is_plain
    for index, each in enumerate(found or ()):
        assert fields(each) == fields(codec.decode([members[index]]).message)


CALL = Call(id="1", method="move", args=[1])
RESULT = Result(id="1", value=1)


def odd(**changed: Any) -> bytes:
    return msgspec.msgpack.encode({"type": "call", "id": "1", "method": "move", **changed})


@pytest.mark.parametrize(
    "frame",
    [
        pack(headers_of([CALL, Cancel(id="2", call="1")])),
        pack(headers_of([CALL, RESULT])),
        pack([odd(), odd(type="")]),
        pack([odd(), msgspec.msgpack.encode({"id": "1", "method": "move"})]),
        pack([odd(), odd(version=2)]),
        pack([odd(), odd(deadline=math.nan)]),
        pack([odd(), odd(deadline=math.inf), odd(deadline=-math.inf)]),
        pack([odd(), odd(arrive_by=math.inf)]),
        pack([odd(), odd(id="")]),
        pack([odd(), odd(fence=-1)]),
        pack([odd(), odd(args=[[1]])]),
        pack([odd(), odd(args=[1] * 257)]),
        pack([odd(), odd(args=["x" * 1024])]),
        pack([odd(), odd(kwargs={1: 1})]),
        pack([odd(), odd(kwargs={str(each): each for each in range(257)})]),
        pack([odd()] * (MAX_PACK + 1)),
        pack([odd(other="x" * (MAX_PACK_BYTES // 2))] * 2),
        pack([odd(), odd()]) + b"\0",
        pack([odd(), odd()])[:-1],
        b"\x90",
        b"\xdc\0\0",
        b"\xdc",
    ],
)
def test_what_is_no_pack_of_plain_calls_is_looked_at_one_by_one(frame: bytes) -> None:
    assert read_calls(pack([odd(), odd()])) is not None
    assert read_calls(frame) is None


@pytest.mark.parametrize(
    "header",
    [
        odd(version=2),
        odd(deadline=math.nan),
        odd(arrive_by=math.inf),
        odd(deadline=math.inf, arrive_by=-math.inf),
        odd(id=""),
        odd(args=[[1]]),
        odd(kwargs={"x": {}}),
        odd(other="x" * MAX_MEMBER_BYTES),
        odd() + b"\0",
        odd()[:-1],
        memoryview(odd()),
        msgspec.json.encode(CALL),
        msgspec.msgpack.encode({"id": "1", "type": "call", "method": "move"}),
        pack([odd(), odd()]),
        *headers_of([Cancel(id="2", call="1"), RESULT]),
        b"\x83",
        b"",
    ],
)
def test_what_is_no_plain_call_alone_is_for_the_codec(header: bytes) -> None:
    assert read_call(odd()) is not None
    assert read_call(header) is None


@pytest.mark.parametrize(
    "frame",
    [
        pack(headers_of([RESULT, Failure(id="2", code=500, name="driver", text="no")])),
        pack(headers_of([RESULT, CALL])),
        pack(headers_of([RESULT, Result(id="2", value=[1])])),
        pack(headers_of([RESULT, Result(id="2", value="x" * 1024)])),
        pack([msgspec.msgpack.encode({"id": "1", "value": 1})] * 2),
        pack(headers_of([RESULT] * (MAX_PACK + 1))),
        pack([msgspec.msgpack.encode({"type": "result", "id": "1", "x": "x" * 40_000})] * 2),
        b"\x90",
        b"\xdc\0",
    ],
)
def test_what_is_no_pack_of_plain_results_is_looked_at_one_by_one(frame: bytes) -> None:
    assert read_results(pack(headers_of([RESULT, RESULT]))) is not None
    assert read_results(frame) is None


def test_a_plain_call_is_of_this_version() -> None:
    assert PlainCall(id="1", method="move").version == PROTOCOL_VERSION


@given(value=VALUES)
def test_a_plain_result_has_the_header_that_the_codec_makes(value: Any) -> None:
    header = encode_result("7", value)
    is_plain = type(value) in (type(None), bool, int, float, str)
    assert (header is not None) is is_plain
    if header is not None:
        assert [header] == Codec(()).encode(Result(id="7", value=value))


@pytest.mark.parametrize("value", [2**64, "\ud800", "x" * 1024])
def test_a_result_that_may_be_wrong_or_long_is_left_to_the_codec(value: Any) -> None:
    assert encode_result("7", value) is None
