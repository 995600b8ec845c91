"""Bad input: whatever arrives, one class of error with words for a person, and nothing else."""

import gzip
import marshal
import math
import pickle
import struct

import msgspec
import numpy as np
import pytest

from labmesh.errors import ProtocolError, TooLarge, UnsupportedVersion
from labmesh.protocol.codec import Codec, Limits, decode_value
from labmesh.protocol.messages import (
    DIRECTORY_REQUESTS,
    INGEST_REQUESTS,
    RELAY_REQUESTS,
    REPLIES,
    Call,
    Ping,
    Result,
)
from labmesh.protocol.vetting import vet

pack = msgspec.msgpack.encode
Ext = msgspec.msgpack.Ext

PING = {"type": "ping", "id": "17"}
CALL = {"type": "call", "id": "17", "method": "m"}
#: A call whose list of arguments follows.
CALL_ARGS = b"\x84" + pack(CALL)[1:] + pack("args")


@pytest.fixture
def relay() -> Codec:
    return Codec(RELAY_REQUESTS)


def refusal(codec: Codec, *frames: bytes) -> ProtocolError:
    before = [bytes(frame) for frame in frames]
    with pytest.raises(ProtocolError) as refused:
        codec.decode(frames)
    assert [bytes(frame) for frame in frames] == before
    assert 0 < len(str(refused.value)) < 400
    # The codec is none the worse for it.
    assert codec.decode(codec.encode(Ping(id="1"))).message == Ping(id="1")
    return refused.value


def both(message: object) -> list[bytes]:
    return [pack(message), msgspec.json.encode(message)]


# ── frames ──────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("count", [9, 64, 65, 1_000, 100_000])
def test_frames_that_nothing_refers_to(relay, count):
    for header in both(PING):
        error = refusal(relay, header, *[b""] * (count - 1))
        assert error.code == 400
        assert error.detail["id"] == "17"


def test_no_frame_and_empty_frames(relay):
    refusal(relay)
    refusal(relay, b"")
    refusal(relay, b"", pack(PING))


def test_a_buffer_is_referred_to_exactly_once(relay):
    header, first, second = relay.encode(
        Call(id="17", method="m", args=[bytes(5000), np.zeros(999)])
    )
    assert "missing, or referred to twice" in str(refusal(relay, header, first))
    assert "does not refer to" in str(refusal(relay, header, first, second, b""))
    twice = CALL_ARGS + b"\x92" + 2 * pack(Ext(4, pack(0)))
    assert "twice" in str(refusal(relay, twice, bytes(5000)))
    negative = CALL_ARGS + b"\x91" + pack(Ext(4, pack(-1)))
    assert "missing" in str(refusal(relay, negative, bytes(5000)))


def test_a_body_is_not_a_value_as_well():
    ingest = Codec(INGEST_REQUESTS)
    start = {"type": "upload_start", "id": "17", "dataset_id": "d", "session": "s" * 8}
    header = pack(start | {"meta": {"a": Ext(4, pack(0))}})
    assert ingest.decode([header, bytes(5)]).message.meta == {"a": bytes(5)}
    chunk = {"type": "upload_chunk", "id": "17", "dataset_id": "d", "session": "s" * 8, "offset": 0}
    refusal(ingest, pack(chunk))


# ── encodings ───────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "header",
    [
        b"\xff\xfe",
        '{"type":"ping","id":"1"}'.encode("utf-16"),
        '{"type":"ping","id":"1"}'.encode("utf-16-le"),
        b'\xef\xbb\xbf{"type":"ping","id":"1"}',
        b' {"type":"ping","id":"1"}',
        b"null",
        b"3",
        b'"x"',
        b"[]",
        b"true",
        b"\xc0",
        b"\x93\x01\x02\x03",
        b"GET / HTTP/1.1\r\n",
        b"\x16\x03\x01\x02\x00\x01",
        b"!!python/object/apply:os.system ['true']",
        gzip.compress(b"{}", mtime=0),
        marshal.dumps({"type": "ping", "id": "1"}),
        *(pickle.dumps(PING, protocol) for protocol in range(pickle.HIGHEST_PROTOCOL + 1)),
    ],
)
def test_what_is_no_object_is_refused_by_its_first_bytes(relay, header):
    error = refusal(relay, header)
    assert error.code == 400
    if header[0] not in b"{\x80":
        assert "object expected" in str(error)


@pytest.mark.parametrize(
    "header",
    [
        b'{"type":"ping","id":"\xff"}',
        b'{"type":"ping","id":"1","unknown":"\xff"}',
        b'{"type":"call","id":"1","method":"m","args":["\\ud800"]}',
        b'{"type":"call","id":"1","method":"m","args":["\\ud800 x"]}',
        b'{"type":"call","id":"1","method":"m","args":["\\udc00"]}',
        b"\x82\xa4type\xa4ping\xa2id\xa1\xff",
        CALL_ARGS + b"\x91\xa3\xed\xa0\x80",
    ],
)
def test_text_that_is_no_unicode(relay, header):
    assert "invalid unicode" in str(refusal(relay, header))


@pytest.mark.parametrize(
    "header",
    [
        b"{",
        b'{"type":"ping","id":"1"',
        b'{"type":"ping","id":"1"}x',
        b'{"type":"ping","id":"1"}{"type":"ping","id":"1"}',
        b'{"type":"ping","id":"1",}',
        b"{'type':'ping','id':'1'}",
        b'{"type":"ping","id":"1\x00"}',
        pack(PING)[:-1],
        pack(PING) + b"\x00",
        pack(PING) + pack(PING),
        b"\x80",
        b"\xdf\xff\xff\xff\xff",
        b"\xde\xff\xff",
    ],
)
def test_truncated_and_trailing_bytes(relay, header):
    assert refusal(relay, header).code == 400


@pytest.mark.parametrize(
    "args",
    [
        b"\xdd\xff\xff\xff\xff",
        b"\x91\xc6\xff\xff\xff\xff",
        b"\x91\xdb\xff\xff\xff\xff",
        b"\x91\xdf\xff\xff\xff\xff",
        b"\x91\xc9\xff\xff\xff\xff\x01",
        b"\x91\xc1",
        b"\x91\x81\x80\x02",
        b"\x91\x81\x91\x01\x02",
        b"\x91\x81\xc4\x01a\x02",
        b"\x91\x81\xd4\x01\x00\x02",
        b"\x91\x81" + pack(Ext(1, bytes(16))) + b"\x02",
        b"\x91\x81" + pack(Ext(3, pack(("|u1", (1,), b"a")))) + b"\x02",
        b"\x91\x81\xd6\xff\0\0\0\0\x02",
        b"\x91\xd4\xff\0",
        b"\x91\xc7\x0c\xff\x7f\xff\xff\xff" + bytes(8),
        b"\x91\xc7\x0c\xff\0\0\0\0" + b"\x7f" * 8,
        b"\x91\xd4\x63\x00",
        b"\x91\xd4\xfe\x00",
        b"\x91\xd4\x01\x00",
        b"\x91\xd4\x02\x00",
        b"\x91\xd4\x03\xc1",
        b"\x91\xd4\x04\xa0",
        b"\x91\xd4\x05\x01",
        b"\x91" + pack(Ext(2, struct.pack(">q", 2**62))),
        b"\x91" + pack(Ext(4, pack(True))),
        b"\x91" + pack(Ext(3, pack(("<f8", 1, bytes(8))))),
        b"\x91" + pack(Ext(3, pack(("<f8", [1.0], bytes(8))))),
        b"\x91" + pack(Ext(3, pack((8, [1], bytes(8))))),
        b"\x91" + pack(Ext(3, pack(("<f8", [1], bytes(8), "F")))),
        b"\x91" + pack(Ext(3, pack(("<f8", [1], 0)))),
        b"\x91" + pack(Ext(5, b"\x92\xa3<f8" + b"\x91" * 5000 + b"\x00")),
        b"\x91" + pack(Ext(5, b"\x92\xa3<f8" + b"\x91" * 100 + b"\x00")),
        b"\x91" + pack(Ext(5, b"\x92\xa3<f8" + b"\xdd\xff\xff\xff\xff")),
    ],
    ids=lambda args: args[:12].hex(),
)
def test_msgpack_that_lies(relay, args):
    assert refusal(relay, CALL_ARGS + args).code == 400


# ── depth and size ──────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("depth", [33, 900, 50_000])
@pytest.mark.parametrize(
    ("opening", "closing"),
    [(b"[", b"]"), (b'{"a":', b"}"), (b'[{"$map":[[1,', b"]]}]")],
    ids=["lists", "objects", "maps"],
)
def test_json_that_is_too_deep(relay, depth, opening, closing):
    deep = opening * depth + b"1" + closing * depth
    error = refusal(relay, b'{"type":"call","id":"17","method":"m","args":[' + deep + b"]}")
    assert (error.code, "too deep" in str(error)) == (400, True)
    assert error.detail["json"]
    refusal(relay, deep)


@pytest.mark.parametrize("depth", [33, 900, 100_000])
@pytest.mark.parametrize("opening", [b"\x91", b"\x81\x01", b"\x92\x01"], ids=bytes.hex)
def test_msgpack_that_is_too_deep(relay, depth, opening):
    error = refusal(relay, CALL_ARGS + b"\x91" + opening * depth + b"\x01")
    assert "too deep" in str(error)
    refusal(relay, opening * depth + b"\x01")


def test_depth_in_fields_that_are_skipped_does_no_harm(relay):
    for header in both(PING | {"unknown": [[[]]]}):
        assert relay.decode([header]).message.id == "17"
    refusal(relay, b"\x83" + pack(PING)[1:] + pack("x") + b"\x91" * 100_000 + b"\x01")


@pytest.mark.parametrize(
    "value",
    [
        {str(number): 0 for number in range(10_001)},
        dict.fromkeys(range(10_001), 0),
        {"x" * (2**20 + 1): 0},
        "x" * (2**20 + 1),
        [0.5, [[]] * 2**17],
    ],
    ids=lambda value: str(value)[:12],
)
def test_values_over_a_limit(relay, value):
    for header in both(CALL | {"args": [value]}):
        if len(header) <= Limits().max_header_bytes:
            error = refusal(relay, header)
            assert (error.code, error.detail["id"]) == (413, "17")


def test_a_header_over_the_limit_is_refused_unread(relay):
    for header in both(CALL | {"args": ["x" * 10_000_000]}):
        error = refusal(relay, header)
        assert isinstance(error, TooLarge)
        assert error.detail == {"json": header[0] == ord("{")}


def colliding_keys(count: int) -> list[complex]:
    """Complex numbers that all have one hash: it is the real part + 1000003 times the imaginary."""
    return [complex(1_000_003 * (count - number), number) for number in range(count)]


@pytest.mark.parametrize("wrap", ["{}", "[{}]", "doubled"])
def test_keys_of_one_hash_are_refused_before_they_are_hashed(relay, wrap):
    keys = colliding_keys(9_000)
    assert len({hash(key) for key in keys}) == 1
    pairs = b"".join(pack(Ext(1, struct.pack(">dd", key.real, key.imag))) + b"\0" for key in keys)
    bomb = b"\xde" + len(keys).to_bytes(2, "big") + pairs
    if wrap == "[{}]":
        bomb = b"\x93\x01\x81\xa1a" + bomb + b"\x02"
    if wrap == "doubled":
        # Of a key that comes twice the last one wins, but the first one is decoded as well.
        bomb = b"\x82\xa1a" + bomb + b"\xa1a\x01"
    # A dict takes over a second to hold them; none is made.
    with pytest.raises(ProtocolError, match="neither text nor a number"):
        vet(CALL_ARGS + b"\x91" + bomb, Limits())
    error = refusal(relay, CALL_ARGS + b"\x91" + bomb)
    assert "neither text nor a number" in str(error)
    assert error.detail["id"] == "17"
    with pytest.raises(ProtocolError, match="neither text nor a number"):
        decode_value(bomb)
    with pytest.raises(ProtocolError):
        relay.decode([b"\x82" + pack({"type": "ping"})[1:] + pack("id") + bomb])


@pytest.mark.parametrize(
    "value",
    [
        {str(number): number for number in range(9_000)},
        {number: str(number) for number in range(9_000)},
        {-number / 7: None for number in range(9_000)},
        [0.1] * 10_000 + [0xDEDE],
        [float.fromhex("0x1.dededededep0")] * 10_000,
        [[0xDEDE, "x", None] * 300] * 10,
        [["x" * 2000, b"\xde" * 3000, {"a": [1j] * 300}] * 10],
        ["\xde" * 2000] * 10,
        {"a": {"b": {"c": "\xde" * 20_000}}},
        [1] * 60_000 + [0xDEDE],
        [1] * 70_000 + [0xDEDE],
    ],
    ids=lambda value: str(value)[:16],
)
def test_large_values_that_are_good_pass(value):
    caller = Codec(REPLIES)
    assert caller.decode(caller.encode(Result(id="1", value=value))).message.value == value


def test_a_large_header_is_held_to_its_limits_before_it_is_decoded(relay):
    wide = {str(number): 0 for number in range(10_001)}
    assert refusal(relay, pack(CALL | {"args": [wide]})).code == 413
    text = pack("\xde" * 10_000)
    deep = CALL_ARGS + b"\x92\xcd\xde\xde" * 60 + text
    assert "too deep" in str(refusal(relay, deep))


# ── control fields ──────────────────────────────────────────────────────────────────────────────


def test_of_a_key_that_comes_twice_the_last_one_wins(relay):
    assert relay.decode([b'{"type":"ping","id":"1","id":"2"}']).message.id == "2"
    assert relay.decode([b"\x83" + pack(PING)[1:] + pack("id") + pack("2")]).message.id == "2"
    header = b'{"type":"call","id":"1","method":"m","kwargs":{"a":1,"a":2}}'
    assert relay.decode([header]).message.kwargs == {"a": 2}


def test_a_key_that_comes_twice_must_be_valid_twice(relay):
    refusal(relay, b'{"type":"ping","id":5,"id":"2"}')
    refusal(relay, b"\x83\xa4type\xa4ping\xa2id\x05\xa2id\xa12")


@pytest.mark.parametrize(
    "header",
    [
        b'{"type":"ping","id":"1","type":"call"}',
        b'{"type":"call","type":"ping","id":"1"}',
        b"\x83\xa4type\xa4ping\xa2id\xa11\xa4type\xa4call",
        b"\x83\xa4type\xa4call\xa4type\xa4ping\xa2id\xa11",
    ],
)
def test_two_types_are_refused(relay, header):
    assert refusal(relay, header).code == 400


def test_the_same_type_twice_is_one_type(relay):
    assert relay.decode([b'{"type":"ping","id":"1","type":"ping"}']).message == Ping(id="1")


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999", "1" * 10_000])
def test_numbers_that_are_not_json(relay, number):
    refusal(relay, b'{"type":"call","id":"1","method":"m","args":[%s]}' % number.encode())
    refusal(relay, b'{"type":"ping","id":"1","deadline":%s}' % number.encode())


@pytest.mark.parametrize("deadline", [math.nan, math.inf, -math.inf, "5", True, [], {}, b""])
def test_a_deadline_is_a_finite_number(relay, deadline):
    for header in both(PING | {"deadline": deadline}):
        # msgspec writes NaN as null, which would be no deadline.
        refusal(relay, header.replace(b":null", b':{"$float":"nan"}'))


@pytest.mark.parametrize("offset", [1.5, 1.0, True, "1", None, -1, 2**53 + 1, 2**64 - 1])
def test_control_numbers_are_exact(offset):
    ingest = Codec(INGEST_REQUESTS)
    chunk = {"type": "upload_chunk", "id": "17", "dataset_id": "d", "session": "s" * 8}
    for header in both(chunk | {"offset": offset}):
        error = refusal(ingest, header, b"")
        assert "`$.offset`" in str(error)
        assert error.detail == {"id": "17", "json": header[0] == ord("{")}


def test_an_integer_that_no_other_message_could_carry(relay):
    directory = Codec(DIRECTORY_REQUESTS)
    node = {"node_id": "n", "kind": "relay", "epoch": "e", "endpoints": {}, "pid": 2**64}
    hello = msgspec.json.encode({"type": "hello", "id": "17", "node": node})
    assert "integer" in str(refusal(directory, hello))


def test_an_id_that_is_none_is_refused_with_the_rule_in_words():
    directory = Codec(DIRECTORY_REQUESTS)
    hostile = ("", " ", "../x", "a/b", "a\0b", "\uff41", "\u202ea", "a" * 129, ".", "..", "-a")
    for node_id in hostile:
        bye = {"type": "goodbye", "id": "17", "node_id": node_id, "node_epoch": "e"}
        for header in both(bye):
            error = refusal(directory, header)
            assert error.detail["id"] == "17"
            if len(node_id) < 129:
                assert "beginning with a letter or digit" in str(error)
                assert "`$.node_id`" in str(error)


@pytest.mark.parametrize("version", [0, 2, 99, -1, 2**64 - 1])
def test_another_version_is_refused_with_the_supported_one(relay, version):
    for header in both(PING | {"version": version}):
        error = refusal(relay, header)
        assert isinstance(error, UnsupportedVersion)
        assert "supported: 1" in str(error)
        assert error.detail["id"] == "17"


@pytest.mark.parametrize(
    "version", ["1", 1.0, True, None, [1], {"major": 1}, b"1", "x" * 5000, int("1" * 4000)]
)
def test_a_version_of_another_type_is_another_version(relay, version):
    headers = [msgspec.json.encode(PING | {"version": version})]
    if version != int("1" * 4000):
        headers.append(pack(PING | {"version": version}))
    for header in headers:
        assert isinstance(refusal(relay, header), UnsupportedVersion)


def test_the_version_explains_all_other_differences(relay):
    for message in (
        {"type": "teleport", "id": "17", "version": 2},
        {"type": "call", "id": "17", "version": 2, "method": 5},
        {"type": "call", "id": "17", "version": 2, "method": "m", "args": [[[[[]]]] * 40]},
    ):
        for header in both(message):
            assert isinstance(refusal(relay, header), UnsupportedVersion)
    header = b"\x85" + pack(CALL | {"version": 2})[1:] + pack("args") + pack([Ext(99, b"")])
    assert isinstance(refusal(relay, header), UnsupportedVersion)


def test_a_reply_has_no_version():
    caller = Codec(REPLIES)
    header = msgspec.json.encode({"type": "done", "id": "1", "version": 99})
    assert caller.decode([header]).message.id == "1"
    with pytest.raises(ProtocolError) as refused:
        caller.decode([msgspec.json.encode({"type": "done", "id": 5, "version": 99})])
    assert not isinstance(refused.value, UnsupportedVersion)


@pytest.mark.parametrize("tag", ["", "teleport", "x" * 100_000, None, 5, ["ping"], {}, True])
def test_an_unknown_type_is_answered_with_the_known_ones(relay, tag):
    for header in both({"type": tag, "id": "17"}):
        error = refusal(relay, header)
        known = ", ".join(str(kind.__struct_config__.tag) for kind in RELAY_REQUESTS)
        assert known.startswith("ping, get_status, call, ")
        assert f"; this socket takes: {known}" in str(error)
        assert error.detail["id"] == "17"


def test_a_type_that_is_missing(relay):
    for header in both({"id": "17"}):
        assert "no type" in str(refusal(relay, header))


def test_a_socket_of_one_type_wants_that_type():
    only = Codec([Ping])
    for header in both({"id": "17"}) + both({"type": "", "id": "17"}):
        assert "this socket takes: ping" in str(refusal(only, header))


@pytest.mark.parametrize("call_id", ["", None, 5, {}, [], True, b"17", "x" * 65, "x" * 1_000_000])
def test_an_id_that_cannot_be_read_is_not_answered_to(relay, call_id):
    for header in both({"type": "ping", "id": call_id}):
        if call_id == b"17" and header[0] == ord("{"):
            continue
        assert "id" not in refusal(relay, header).detail


def test_an_id_is_read_where_the_rest_is_wrong(relay):
    for call_id in ("x", "x" * 64, "\U0001f600" * 64, "a\0b"):
        for header in both({"type": "call", "id": call_id}):
            error = refusal(relay, header)
            assert error.detail == {"id": call_id, "json": header[0] == ord("{")}
    assert "method" in str(error)


def test_a_missing_id(relay):
    for header in both({"type": "ping"}):
        assert "id" not in refusal(relay, header).detail


def test_the_cause_is_kept(relay):
    assert isinstance(refusal(relay, b'{"type":"ping"}').__cause__, msgspec.ValidationError)
    assert refusal(relay, CALL_ARGS + b"\x91\xd4\x63\x00").__cause__ is None


def test_memory_that_cannot_be_had_is_an_error_like_others(relay, monkeypatch):
    def read(header):
        raise MemoryError("8 EiB")

    monkeypatch.setattr(relay, "_read_json", read)
    with pytest.raises(ProtocolError, match="8 EiB"):
        relay.decode([b'{"type":"ping","id":"1"}'])
