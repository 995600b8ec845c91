"""Messages to frames and back: layout, no copies, what travels where, events."""

import inspect
import math
import typing
import weakref

import msgspec
import numpy as np
import pytest
from tests.support.lab_values import same

from labmesh.errors import ProtocolError, TooLarge
from labmesh.protocol import messages
from labmesh.protocol.codec import (
    ArrayData,
    Codec,
    Limits,
    decode_event,
    decode_stamp,
    decode_value,
    encode_event,
    encode_stamp,
    encode_value,
)
from labmesh.protocol.messages import (
    INGEST_REQUESTS,
    RELAY_REQUESTS,
    REPLIES,
    RETRIEVE_REQUESTS,
    Call,
    Committed,
    Condition,
    DatasetPage,
    DatasetRecord,
    Done,
    Event,
    Failure,
    Fetched,
    Hello,
    LastEvent,
    LastEvents,
    Message,
    MethodInfo,
    NodeList,
    NodeRecord,
    Ping,
    Pong,
    PresenceChange,
    Result,
    SearchDatasets,
    Stamp,
    Status,
    UploadChunk,
    UploadStart,
    ValueInfo,
    ValueLimits,
)

encodings = pytest.mark.parametrize("json", [False, True], ids=["MessagePack", "JSON"])

MESSAGES = [
    kind
    for kind in vars(messages).values()
    if inspect.isclass(kind)
    and issubclass(kind, Message)
    and kind.__struct_config__.tag not in (None, kind.__name__)
]
SHA256 = "0" * 64
PSU = NodeRecord(
    node_id="Inst-0", kind="relay", epoch="e1", endpoints={"rpc": "tcp://10.0.0.5:5850"}
)
SCAN = DatasetRecord(
    dataset_id="scan-1",
    size=3,
    sha256=SHA256,
    bank_id="bank-0",
    meta={"T": math.nan, "when": (1, 2j), "trace": np.arange(3)},
)


VOLTS = ValueLimits(unit="V", lowest=0.0, highest=30.0, choices=["0.0", "'off'"])
GET_STATE = MethodInfo(
    name="get_state", read_only=True, idempotent=True, timeout_s=2.5, limits={"return": VOLTS}
)
ALICE = messages.Grant(name="alice", role="viewer", key="0" * 40, relays=("psu-*",), not_after=2.5)
VOLTAGE = ValueInfo(name="voltage", type="float", settable=True, limits=VOLTS)


@pytest.fixture
def relay() -> Codec:
    """The codec of a relay's ROUTER socket."""
    return Codec(RELAY_REQUESTS)


@pytest.fixture
def caller() -> Codec:
    """The codec of a caller's DEALER socket."""
    return Codec(REPLIES)


def example(kind: type[Message]) -> Message:
    """A message of this type with a value in every field."""
    made: dict[type, object] = {
        str: "a" * 8,
        int: 1,
        float: 2.5,
        bool: True,
        bytes: b"\xff\0",
        NodeRecord: PSU,
        DatasetRecord: SCAN,
        list[NodeRecord]: [PSU],
        list[DatasetRecord]: [SCAN, SCAN],
        list[LastEvent]: [LastEvent(topic="state.Inst-0", header=b"\x80", payload=b"\xc0")],
        list[messages.MethodInfo]: [GET_STATE],
        list[messages.ValueInfo]: [VOLTAGE],
        list[str]: ["good", "cold"],
        list[messages.Condition]: [messages.Condition(field="meta.T", op="<", value=0.05)],
        list[messages.Annotation]: [messages.Annotation(time=2.5, add_tags=["good"])],
        tuple[messages.Grant, ...]: (ALICE,),
        tuple[str, ...]: ("0" * 40,),
        list[messages.TrashEntry]: [messages.TrashEntry(record=SCAN, deleted=1.5, purge=2.5)],
        list[typing.Any]: [1, {"$a": math.inf}],
        dict[str, typing.Any]: {"$value": [None, b"\0"], "b": np.float32(0.5)},
        typing.Any: [1j, {2: "two"}],
    }
    fields = {}
    for field in msgspec.structs.fields(kind):
        declared = plain(field.type)
        choices = typing.get_args(declared)
        if typing.get_origin(declared) is typing.Literal:
            fields[field.name] = choices[0]
        elif type(None) in choices:
            fields[field.name] = 3 if field.name == "size" else 2.5
        else:
            fields[field.name] = made[declared]
    if "sha256" in fields:
        fields["sha256"] = SHA256
    return kind(**fields)


def plain(declared: typing.Any) -> typing.Any:
    """A type without its limits and new names, also those of the items of a list."""
    while typing.get_origin(declared) is typing.Annotated:
        declared = typing.get_args(declared)[0]
    if typing.get_origin(declared) is list:
        return list[plain(typing.get_args(declared)[0])]
    if typing.get_origin(declared) is tuple:
        return tuple[plain(typing.get_args(declared)[0]), ...]
    return getattr(declared, "__supertype__", declared)


def same_message(sent: msgspec.Struct, received: msgspec.Struct) -> bool:
    sent_fields, got_fields = msgspec.structs.asdict(sent), msgspec.structs.asdict(received)
    return type(sent) is type(received) and all(
        same_field(value, got_fields[name]) for name, value in sent_fields.items()
    )


def same_field(sent: object, received: object) -> bool:
    if isinstance(sent, msgspec.Struct):
        return same_message(sent, received)
    if isinstance(sent, list) and sent and isinstance(sent[0], msgspec.Struct):
        return all(map(same_message, sent, received))
    if isinstance(sent, tuple) and isinstance(received, tuple):  # by its declaration
        return sent == received
    return same(as_received(sent), received)


def as_received(value: object) -> object:
    if isinstance(value, dict):
        return {key: as_received(each) for key, each in value.items()}
    return list(value) if isinstance(value, tuple) else value


@encodings
@pytest.mark.parametrize("kind", MESSAGES, ids=lambda kind: kind.__name__)
def test_every_message_arrives_as_it_was_sent(kind, json):
    sent = example(kind)
    body = b"bytes" if kind.has_body else None
    codec = Codec([kind])
    frames = codec.encode(sent, body, json=json)
    decoded = codec.decode(frames)
    assert same_message(sent, decoded.message)
    assert decoded.json is json
    assert decoded.body == body


@encodings
def test_a_header_says_its_encoding_by_its_first_byte(relay, json):
    (header,) = relay.encode(Ping(id="1"), json=json)
    assert (header[0] == ord("{")) is json
    assert relay.decode([header]).json is json


def test_a_json_call_by_hand_is_understood(relay):
    header = b'{"type":"call","id":"1","method":"set_voltage","kwargs":{"value":2.5},"new":[1]}'
    assert relay.decode([header]).message == Call(
        id="1", method="set_voltage", kwargs={"value": 2.5}
    )


def test_unknown_fields_are_skipped_since_versions_mix(relay):
    header = msgspec.msgpack.encode({"type": "ping", "id": "1", "colour": {"deep": [[1]]}})
    assert relay.decode([header]).message == Ping(id="1")


@pytest.mark.parametrize("wrap", [bytes, bytearray, memoryview])
def test_frames_may_be_any_buffers(relay, wrap):
    frames = relay.encode(Call(id="1", method="m", args=[b"x" * 5000, np.zeros(600)]))
    args = relay.decode([wrap(bytes(frame)) for frame in frames]).message.args
    assert args[0] == b"x" * 5000
    assert same(np.zeros(600), args[1])


# ── buffers ─────────────────────────────────────────────────────────────────────────────────────


def test_an_array_travels_without_a_copy(caller):
    trace = np.arange(1024.0).reshape(32, 32)
    header, buffer = caller.encode(Result(id="1", value=trace))
    assert len(header) < 100
    assert np.shares_memory(np.frombuffer(buffer), trace)
    wire = bytes(buffer)
    received = caller.decode([header, wire]).message.value
    assert same(trace, received)
    assert np.shares_memory(received, np.frombuffer(wire))


@pytest.mark.parametrize("receiver_keeps", [False, True])
def test_a_codec_keeps_no_array_alive(caller, receiver_keeps):
    trace = np.zeros(1024)
    sent = weakref.ref(trace)
    frames = caller.encode(Result(id="1", value=trace))
    received = caller.decode(frames) if receiver_keeps else None
    del trace, frames
    assert (sent() is None) is not receiver_keeps
    del received
    assert sent() is None


def test_large_bytes_travel_as_themselves(relay):
    block = b"x" * 4096
    header, buffer = relay.encode(Call(id="1", method="m", kwargs={"block": block}))
    assert buffer is block
    assert relay.decode([header, buffer]).message.kwargs["block"] is block


@pytest.mark.parametrize("value", [bytes(4095), np.zeros(511), np.zeros(4095, "u1")])
def test_what_is_small_stays_in_the_header(caller, value):
    frames = caller.encode(Result(id="1", value=value))
    assert len(frames) == 1
    assert same(value, caller.decode(frames).message.value)


@pytest.mark.parametrize(
    "value",
    [
        np.arange(2048, dtype=">i2"),
        np.arange(4096.0)[::2],
        np.asfortranarray(np.arange(1024.0).reshape(2, 512)),
        np.zeros(600, "M8[ns]"),
        np.full(600, "µV"),
        np.ones(5000, bool),
        ArrayData("<f8", (512,), memoryview(bytes(4096))),
        bytearray(5000),
        memoryview(bytes(5000)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_each_large_buffer_gets_a_frame(caller, value):
    frames = caller.encode(Result(id="1", value=[value]))
    assert len(frames) == 2
    received = caller.decode([bytes(frame) for frame in frames]).message.value[0]
    if isinstance(value, np.ndarray):
        assert np.array_equal(value, received)
        assert received.dtype == value.dtype
    else:
        assert bytes(received) == bytes(getattr(value, "buffer", value))


def test_arrays_beyond_the_last_frame_stay_in_the_header(caller):
    traces = [np.full(512, number) for number in range(70)]
    frames = caller.encode(Result(id="1", value=traces))
    assert len(frames) == 64
    assert all(map(same, traces, caller.decode(frames).message.value))


@pytest.mark.parametrize(
    "message",
    [
        Status(
            id="1", node_id="n", kind="relay", epoch="e", uptime_s=1.5, facts={"a": np.zeros(999)}
        ),
        Failure(id="1", code=500, name="driver", detail={"a": bytes(5000)}),
        Committed(id="1", record=msgspec.structs.replace(SCAN, meta={"a": np.zeros(999)})),
    ],
    ids=lambda message: type(message).__name__,
)
def test_other_fields_have_no_frames_of_their_own(caller, message):
    frames = caller.encode(message)
    assert len(frames) == 1
    assert same_message(message, caller.decode(frames).message)


def test_json_has_no_frames_for_values(caller):
    frames = caller.encode(Result(id="1", value=np.zeros(999)), json=True)
    assert len(frames) == 1
    assert same(np.zeros(999), caller.decode(frames).message.value)


def test_a_body_is_not_copied():
    ingest, body = Codec(INGEST_REQUESTS), bytearray(b"chunk")
    chunk = UploadChunk(id="1", dataset_id="d", session="s" * 8, offset=0)
    header, sent = ingest.encode(chunk, body)
    assert sent is body
    received = ingest.decode([header, sent]).body
    assert received.obj is body


@encodings
def test_a_body_is_one_frame_no_more_and_no_less(caller, json):
    header, body = caller.encode(Fetched(id="1", offset=0), b"", json=json)
    assert caller.decode([header, body]).body == b""
    for frames in ([header], [header, body, body]):
        with pytest.raises(ProtocolError, match="one frame of bytes"):
            caller.decode(frames)


def test_a_body_goes_with_the_messages_that_have_one(caller):
    with pytest.raises(ProtocolError, match="Fetched needs a body"):
        caller.encode(Fetched(id="1", offset=0))
    with pytest.raises(ProtocolError, match="Done takes no body"):
        caller.encode(Done(id="1"), b"")


def test_nothing_is_left_of_an_earlier_message(relay):
    with pytest.raises(ProtocolError, match="type set"):
        relay.encode(Call(id="1", method="m", args=[np.zeros(999), set()]))
    assert len(relay.encode(Call(id="2", method="m", args=[np.zeros(999)]))) == 2
    assert len(relay.encode(Ping(id="3"))) == 1


# ── what a sender hears ─────────────────────────────────────────────────────────────────────────


def test_a_message_that_changes_nothing_is_not_copied_and_the_callers_values_stay(relay):
    args = [(1, 2), {"a": np.zeros(999)}]
    call = Call(id="1", method="m", args=args)
    relay.encode(call)
    relay.encode(call, json=True)
    assert call.args is args
    assert isinstance(args[0], tuple)
    assert isinstance(args[1]["a"], np.ndarray)


@encodings
@pytest.mark.parametrize(
    ("message", "words"),
    [
        (Call(id="1", method="m", args=[{1, 2}]), "type set"),
        (Call(id="1", method="m", kwargs={1: 2}), "must be text"),
        (Result(id="1", value="\ud800"), "invalid unicode"),
        (Failure(id="1", code=500, name="driver", text="\udc00"), "invalid unicode"),
        (Result(id="1", value=2**64), "integer"),
        (Ping(id="1", deadline=math.nan), "finite"),
        (Ping(id="1", deadline=math.inf), "finite"),
        (Ping(id="1", deadline="soon"), "cannot be encoded"),
        (Pong(id="1", node_id="n", epoch="e", clock=2**70), "integer"),
        (Ping(id=...), "cannot be encoded"),
        (
            NodeList(id="1", broker_epoch="e", nodes=[msgspec.structs.replace(PSU, pid=2**70)]),
            "int",
        ),
    ],
    ids=str,
)
def test_a_sender_hears_what_cannot_be_sent(caller, message, words, json):
    with pytest.raises(ProtocolError, match=words):
        caller.encode(message, json=json)


@encodings
def test_a_header_over_the_limit_is_refused_at_the_sender(caller, json):
    with pytest.raises(TooLarge, match="send numpy arrays or bytes instead"):
        caller.encode(Result(id="1", value=[1 / 7] * 130_000), json=json)


@encodings
def test_the_largest_text_fits(caller, json):
    text = "x" * 2**20
    frames = caller.encode(Result(id="1", value=text), json=json)
    assert caller.decode(frames).message.value == text
    with pytest.raises(TooLarge, match="1048577 characters"):
        caller.encode(Result(id="1", value=text + "x"), json=json)


def test_a_list_of_a_hundred_thousand_numbers_fits(caller):
    numbers = [number / 7 for number in range(100_000)]
    assert caller.decode(caller.encode(Result(id="1", value=numbers))).message.value == numbers


def test_limits_are_those_of_the_socket():
    small = Codec(RELAY_REQUESTS, limits=Limits(max_header_bytes=64, max_frames=2))
    with pytest.raises(TooLarge, match="the limit is 64"):
        small.encode(Call(id="1", method="m" * 64))
    frames = small.encode(Call(id="1", method="m", args=[bytes(4096)]))
    assert small.decode(frames).message.args == [bytes(4096)]
    with pytest.raises(ProtocolError, match="3 frames; the limit is 2"):
        small.decode([*frames, b""])


# ── events ──────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("struct", "encode", "decode"),
    [
        (Event(publisher="Inst-0", epoch="e", sequence=3, time=1.5), encode_event, decode_event),
        (Stamp(broker="b", time=1.5, by="relay:Inst-0"), encode_stamp, decode_stamp),
    ],
    ids=lambda value: getattr(value, "__name__", type(value).__name__),
)
def test_the_frames_of_an_event_arrive_as_they_were_sent(struct, encode, decode):
    assert decode(encode(struct)) == struct
    assert decode(memoryview(msgspec.json.encode(struct))) == struct
    for frame in (b"", b"\x80", b"{}", b"x", b"\x81", b"{", bytes(2**21)):
        with pytest.raises(ProtocolError):
            decode(frame)


def test_an_event_of_no_time_is_refused():
    event = Event(publisher="Inst-0", epoch="e", sequence=3, time=math.nan)
    with pytest.raises(ProtocolError, match="finite") as refused:
        decode_event(encode_event(event))
    assert refused.value.__cause__ is None


def test_a_change_of_presence_is_sent_as_a_value():
    change = PresenceChange(node=PSU, change="left", reason="goodbye")
    told = decode_value(encode_value(change))
    assert told["reason"] == "goodbye"
    assert msgspec.convert(told, PresenceChange) == change


def test_last_events_hold_their_frames_as_bytes(caller):
    event = LastEvent(topic="state.Inst-0", header=bytes(range(256)), payload=b"\xff")
    sent = LastEvents(id="1", events=[event])
    assert caller.decode(caller.encode(sent, json=True)).message == sent


def test_records_in_messages_keep_their_facts():
    bank = Codec(REPLIES)
    page = DatasetPage(id="1", records=[SCAN, msgspec.structs.replace(SCAN, meta={})])
    for json in (False, True):
        received = bank.decode(bank.encode(page, json=json)).message
        assert same_message(page, received)


def test_a_codec_takes_any_message_for_sending_but_only_its_own_for_reading(relay):
    start = UploadStart(id="1", dataset_id="d", session="s" * 8)
    with pytest.raises(ProtocolError, match="unknown message type 'upload_start'"):
        relay.decode(relay.encode(start))
    assert Codec([Hello]).decode(relay.encode(Hello(id="1", node=PSU))).message.node == PSU


@encodings
@pytest.mark.parametrize("value", ["A1", 4, 4.5, True, None])
def test_the_value_of_a_condition_may_be_text_number_or_nothing(json: bool, value: object) -> None:
    codec = Codec(RETRIEVE_REQUESTS)
    search = SearchDatasets(id="c1", where=[Condition(field="meta.t", value=value)])
    assert codec.decode(codec.encode(search, json=json))[0] == search


def test_a_condition_compares_with_finite_numbers() -> None:
    search = SearchDatasets(id="c1", where=[Condition(field="meta.t", value=math.inf)])
    with pytest.raises(ProtocolError, match="finite number"):
        Codec(RETRIEVE_REQUESTS).encode(search)
