"""Properties of the codec over generated messages and over damaged ones."""

from contextlib import suppress

from hypothesis import example, given
from hypothesis import strategies as st
from tests.support.lab_values import same, texts, values

from labmesh.errors import ProtocolError
from labmesh.protocol.codec import Codec, decode_event, decode_value, encode_event, encode_value
from labmesh.protocol.messages import (
    DIRECTORY_REQUESTS,
    INGEST_REQUESTS,
    RELAY_REQUESTS,
    REPLIES,
    RETRIEVE_REQUESTS,
    Batch,
    BatchResult,
    Call,
    CallState,
    Event,
    Failure,
    Item,
    Request,
    Result,
    UploadChunk,
)

EVERYTHING = tuple(
    dict.fromkeys(
        DIRECTORY_REQUESTS + RELAY_REQUESTS + INGEST_REQUESTS + RETRIEVE_REQUESTS + REPLIES
    )
)

#: What is quoted of a peer's message is cut, and each type is named once.
LONGEST_REFUSAL = 400 + sum(len(f"{kind.__struct_config__.tag}, ") for kind in EVERYTHING)

call_ids = st.text(min_size=1, max_size=64)
lists = st.lists(values, max_size=3)
dicts = st.dictionaries(texts, values, max_size=3)
calls = st.builds(
    Call,
    id=call_ids,
    method=st.text(max_size=20),
    args=lists,
    kwargs=dicts,
    deadline=st.none() | st.floats(allow_nan=False, allow_infinity=False),
)
batches = st.builds(Batch, id=call_ids, calls=lists, keep_going=st.booleans())
results = st.builds(Result, id=call_ids, value=values)
items = st.builds(Item, id=call_ids, index=st.integers(0, 2**53), value=values)
outcomes = st.builds(BatchResult, id=call_ids, outcomes=lists)
states = st.builds(CallState, id=call_ids, state=st.just("returned"), value=values, detail=dicts)
failures = st.builds(
    Failure, id=call_ids, code=st.integers(400, 599), name=st.just("driver"), detail=dicts
)
messages = calls | batches | results | items | outcomes | states | failures


@given(message=messages, json=st.booleans())
def test_a_message_arrives_as_it_was_sent(message, json):
    codec = Codec(EVERYTHING)
    frames = [bytes(frame) for frame in codec.encode(message, json=json)]
    received = codec.decode(frames).message
    assert type(received) is type(message)
    for field in message.__struct_fields__:
        assert same(getattr(message, field), getattr(received, field))


def decode(frames: list[bytearray]) -> None:
    """Decode what may be anything: a message or a refusal, and the frames stay as they are."""
    before = [bytes(frame) for frame in frames]
    codec = Codec(EVERYTHING)
    refusal, decoded = None, None
    try:
        decoded = codec.decode(frames)
    except ProtocolError as exc:
        refusal = exc
    assert [bytes(frame) for frame in frames] == before
    if decoded is None:
        assert 0 < len(str(refusal)) < LONGEST_REFUSAL
        return
    assert type(decoded.message) in EVERYTHING
    assert decoded.message.has_body == (decoded.body is not None)
    assert not isinstance(decoded.message, Request) or decoded.message.version == 1


@given(frames=st.lists(st.binary(max_size=60).map(bytearray), max_size=3))
@example(frames=[bytearray(b"\x80")])
def test_any_bytes_are_a_message_or_refused(frames):
    decode(frames)


@given(lead=st.sampled_from([b"\x80", b"\x81", b"\x8f", b"\xde", b'{"', b"{"]), rest=st.binary())
def test_any_bytes_that_begin_as_a_header_are_a_message_or_refused(lead, rest):
    decode([bytearray(lead + rest)])


@st.composite
def damaged(draw: st.DrawFn) -> list[bytearray]:
    """A message with some bytes changed, cut out or put in, and frames lost or repeated."""
    codec = Codec(EVERYTHING)
    message = draw(messages | st.builds(
        UploadChunk, id=call_ids, dataset_id=st.just("d"), session=st.just("s" * 8),
        offset=st.integers(0, 2**53),
    ))  # fmt: skip
    body = b"chunk" if message.has_body else None
    frames = [bytearray(frame) for frame in codec.encode(message, body, json=draw(st.booleans()))]
    for _ in range(draw(st.integers(1, 4))):
        header = frames[0]
        place = draw(st.integers(0, max(len(header) - 1, 0)))
        length = draw(st.integers(0, 3))
        header[place : place + length] = draw(st.binary(max_size=3))
    if draw(st.booleans()):
        frames = draw(st.lists(st.sampled_from(frames), max_size=4))
    return frames


@given(frames=damaged())
def test_a_damaged_message_is_a_message_or_refused(frames):
    decode(frames)


@given(value=values, place=st.integers(0, 200), byte=st.integers(0, 255), json=st.booleans())
def test_a_damaged_value_is_a_value_or_refused(value, place, byte, json):
    frame = bytearray(encode_value(value, json=json))
    frame[place % len(frame)] = byte
    before = bytes(frame)
    with suppress(ProtocolError):
        decode_value(frame, json=json)
    assert bytes(frame) == before


@given(frame=st.binary(max_size=40), place=st.integers(0, 60), byte=st.integers(0, 255))
def test_any_bytes_are_an_event_or_refused(frame, place, byte):
    valid = bytearray(encode_event(Event(publisher="Inst-0", epoch="e", sequence=1, time=1.5)))
    valid[place % len(valid)] = byte
    for each in (frame, bytes(valid)):
        with suppress(ProtocolError):
            assert isinstance(decode_event(each), Event)
