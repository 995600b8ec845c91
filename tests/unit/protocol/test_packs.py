"""Several short messages in one frame: what goes in comes out, and nothing else does."""

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from labmesh.errors import ProtocolError, TooLarge
from labmesh.protocol.codec import Codec
from labmesh.protocol.messages import Call, Done, Message
from labmesh.protocol.packs import (
    MAX_MEMBER_BYTES,
    MAX_PACK,
    MAX_PACK_BYTES,
    fits,
    is_pack,
    pack,
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
@settings(deadline=None, max_examples=100)
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


def test_a_message_in_json_does_not_fit():
    assert fits(header(Done(id="1")))
    assert not fits(header(Done(id="1"), json=True))


@given(frame=st.binary(max_size=60))
@example(frame=b"")
@settings(deadline=None, max_examples=100)
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
@settings(deadline=None, max_examples=100)
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
@settings(deadline=None, max_examples=100)
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
