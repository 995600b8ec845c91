"""Users' values through both encodings: what arrives, and what is refused and how."""

import dataclasses
import enum
import math
from collections import OrderedDict, defaultdict, namedtuple
from datetime import UTC, date, datetime, timedelta, timezone, tzinfo
from decimal import Decimal
from fractions import Fraction
from uuid import UUID

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from tests.support.lab_values import same, values, zoned_moments

from labmesh.errors import ProtocolError, TooLarge
from labmesh.protocol.codec import Limits, decode_value, encode_value
from labmesh.protocol.msgpack_values import PackedLeaves
from labmesh.protocol.values import Checking

encodings = pytest.mark.parametrize("json", [False, True], ids=["MessagePack", "JSON"])


def through(value: object, *, json: bool) -> object:
    return decode_value(encode_value(value, json=json), json=json)


def nested(depth: int) -> list:
    value: list = []
    for _ in range(depth - 1):
        value = [value]
    return value


@encodings
@given(value=values)
def test_a_value_arrives_as_it_was_sent(value, json):
    assert same(value, through(value, json=json))


@encodings
@given(moment=zoned_moments)
@settings(deadline=None, max_examples=50)
def test_a_time_with_a_zone_arrives_as_the_same_instant_in_utc(moment, json):
    received = through(moment, json=json)
    assert received == moment
    assert received.tzinfo is UTC


class Colour(enum.Enum):
    RED = "red"


class Range(enum.IntEnum):
    MILLIVOLT = 3


class Gain(enum.Enum):
    HALF = 0.5


@dataclasses.dataclass
class Reading:
    volts: float
    trace: object = None
    missing: int = dataclasses.field(init=False)


class Point(msgspec.Struct):
    x: float
    label: str = msgspec.field(default="", name="name")
    unset: int | msgspec.UnsetType = msgspec.UNSET


class Tagged(msgspec.Struct, tag="volt"):
    x: int


class Row(msgspec.Struct, array_like=True):
    x: int
    y: int


class TaggedRow(msgspec.Struct, array_like=True, tag="row"):
    x: int


class Text(str):
    def __str__(self) -> str:
        return "something else"


class Count(int):
    pass


class Volt(float):
    pass


class Octets(bytes):
    pass


Pair = namedtuple("Pair", "x y")


@encodings
@pytest.mark.parametrize(
    ("sent", "arrives"),
    [
        ((1, (2.5, "x")), [1, [2.5, "x"]]),
        (Pair(1, 2), [1, 2]),
        (bytearray(b"ab"), b"ab"),
        (memoryview(b"abcd")[::2], b"ac"),
        (Octets(b"ab"), b"ab"),
        (Colour.RED, "red"),
        (Range.MILLIVOLT, 3),
        (Gain.HALF, 0.5),
        ({Colour.RED: Range.MILLIVOLT, Text("b"): 1, Count(5): 2}, {"red": 3, "b": 1, 5: 2}),
        (Reading(2.5, (1, 2)), {"volts": 2.5, "trace": [1, 2]}),
        (Point(1.5), {"x": 1.5, "name": ""}),
        (Tagged(3), {"type": "volt", "x": 3}),
        (Row(1, 2), [1, 2]),
        (TaggedRow(1), ["row", 1]),
        (Text("mV"), "mV"),
        (Count(3), 3),
        (Volt(2.5), 2.5),
        (Volt(math.inf), math.inf),
        (OrderedDict(a=1), {"a": 1}),
        (defaultdict(list, a=[]), {"a": []}),
        (np.array([1, 2])[::2], np.array([1])),
        (np.arange(6).reshape(2, 3).T, np.arange(6).reshape(2, 3).T.copy()),
        (np.asfortranarray(np.eye(3)), np.eye(3)),
        (np.array(2.5), np.array(2.5)),
        (np.zeros((0, 3)), np.zeros((0, 3))),
        (
            datetime(2026, 1, 2, tzinfo=timezone(timedelta(hours=2))),
            datetime(2026, 1, 1, 22, tzinfo=UTC),
        ),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_resembles_a_plain_value_arrives_as_that(sent, arrives, json):
    assert same(arrives, through(sent, json=json))


@encodings
@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({1, 2}, "type set .* convert it to sorted"),
        (frozenset(), "type frozenset"),
        (
            object(),
            "type object cannot be sent: convert it to one of these. Allowed are None, bool",
        ),
        ((each for each in ()), "type generator .* list"),
        (range(3), "type range"),
        (Decimal("1.5"), r"type decimal.Decimal .* float\(...\) or str"),
        (Fraction(1, 3), "type fractions.Fraction"),
        (date(2026, 1, 2), "type datetime.date .* a datetime, or text"),
        (timedelta(seconds=1), "type datetime.timedelta .* seconds"),
        (UUID(int=1), "type uuid.UUID"),
        (Reading, "type type"),
        (msgspec.Raw(b"\x01"), "type msgspec.Raw"),
        (msgspec.msgpack.Ext(1, b""), "Ext"),
        (lambda: None, "type function"),
        ({(1, 2): 3}, "key of type tuple"),
        ({1j: 3}, "key of type complex"),
        ({"red": 1, Colour.RED: 2}, "two keys"),
        (2**64, r"below -2\*\*63 or above 2\*\*64 - 1"),
        (-(2**63) - 1, "integer"),
        ({2**70: 1}, "integer"),
        ("\ud800", "invalid unicode"),
        (np.str_("\ud800"), "invalid unicode"),
        (np.array([1, "a"], dtype=object), "dtype '|O'"),
        (np.zeros(2, dtype="f8,i4"), "cannot be sent"),
        (np.zeros(2, dtype="V8"), "cannot be sent"),
        (np.longdouble(1), "cannot be sent"),
        (np.ma.masked_array([1.0], mask=[True]), "numpy.ma.*mask"),
        (np.array(["\ud800"]), "invalid unicode"),
        (np.frombuffer(b"\x02", "?"), "neither 0 nor 1"),
        (np.zeros((1,) * 33), "33 dimensions"),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, str) else value[:20],
)
def test_what_cannot_travel_is_refused_in_words(value, words, json):
    with pytest.raises(ProtocolError, match=words):
        encode_value({"reading": [value]}, json=json)


def test_a_refusal_names_the_python_type_for_programs():
    with pytest.raises(ProtocolError) as refused:
        encode_value(UUID(int=1))
    assert refused.value.detail == {"python_type": "uuid.UUID"}


class NoZone(tzinfo):
    """A zone that does not know its offset."""

    def utcoffset(self, moment):
        return None


@encodings
def test_a_zone_of_unknown_offset_is_no_zone(json):
    received = through(datetime(2026, 1, 2, tzinfo=NoZone()), json=json)
    assert same(datetime(2026, 1, 2), received)


@encodings
def test_a_time_outside_of_the_years_of_python_is_refused(json):
    early = datetime(1, 1, 1, tzinfo=timezone(timedelta(hours=14)))
    with pytest.raises(ProtocolError, match="years 1 to 9999"):
        encode_value(early, json=json)


@encodings
def test_a_value_that_contains_itself_is_refused_at_once(json):
    loop: list = []
    loop += [loop, loop]
    with pytest.raises(ProtocolError, match="too deep"):
        encode_value(loop, json=json)


@encodings
def test_depth_counts_the_outermost_container(json):
    assert through(nested(32), json=json) == nested(32)
    with pytest.raises(ProtocolError, match="too deep"):
        encode_value(nested(33), json=json)
    deep = encode_value(nested(33), json=json, limits=Limits(max_depth=40))
    with pytest.raises(ProtocolError, match="too deep"):
        decode_value(deep, json=json)


SMALL = Limits(max_keys=3, max_text_bytes=8, max_containers=4, max_value_bytes=200)


@encodings
@pytest.mark.parametrize(
    ("value", "fits"),
    [
        ({"a": 1, "b": 2, "c": 3}, True),
        ({"a": 1, "b": 2, "c": 3, "d": 4}, False),
        ({1: 1, 2: 2, 3: 3, 4: 4}, False),
        ("12345678", True),
        ("123456789", False),
        ("µµµµ", True),
        ("µµµµµ", False),
        ([1.5, "123456789"], False),
        (["1", []], True),
        ({"123456789": 1}, False),
        ([[], [], []], True),
        ([[], [], [], []], False),
        ([{}, {}, {}, {}], False),
        (bytes(120), True),
        (bytes(250), False),
    ],
)
def test_limits_hold_on_both_sides(value, fits, json):
    if fits:
        encoded = encode_value(value, json=json, limits=SMALL)
        assert decode_value(encoded, json=json, limits=SMALL) == value
        return
    with pytest.raises(TooLarge):
        encode_value(value, json=json, limits=SMALL)
    encoded = encode_value(value, json=json)
    with pytest.raises(TooLarge):
        decode_value(encoded, json=json, limits=SMALL)


@pytest.mark.parametrize("length", [10, 1000])
def test_long_and_short_lists_are_held_to_the_same_limits(length):
    plain = encode_value([0.5] * length)
    assert decode_value(plain, limits=Limits()) == [0.5] * length
    with pytest.raises(TooLarge):
        decode_value(encode_value([0.5] * length + ["123456789"]), limits=Limits(max_text_bytes=8))
    with pytest.raises(ProtocolError, match="too deep"):
        decode_value(encode_value([0.5] * length + [[]]), limits=Limits(max_depth=1))


def test_msgpack_has_numbers_of_its_own():
    assert same(2.5, PackedLeaves().number(2.5))


def test_checked_values_come_back_themselves():
    value = {"a": [1, {"b": "text"}]}
    assert Checking(Limits()).any(value) is value


def test_a_value_that_is_json_is_told_by_its_first_byte():
    assert decode_value(b'{"volts":2.5}') == {"volts": 2.5}
    assert encode_value(123) == b"{"
    assert decode_value(b"{") == 123


@pytest.mark.parametrize(
    "frame", [b"", b"\xc1", b"\x01\x01", b"{}x", b"\x91", b'{"a":NaN}', b"\x81\x91\x01\x02"]
)
def test_a_frame_that_is_no_value_is_refused(frame):
    with pytest.raises(ProtocolError):
        decode_value(frame)


def test_an_encoded_value_keeps_nothing_of_pickle(tmp_path):
    class Canary:
        def __reduce__(self):
            return open, (str(tmp_path / "canary"), "w")

    with pytest.raises(ProtocolError, match="Canary"):
        encode_value(Canary())
    import pickle

    class Exported:
        def __reduce__(self):
            return (exec, (f"open({str(tmp_path / 'canary')!r}, 'w')",))

    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        with pytest.raises(ProtocolError):
            decode_value(pickle.dumps(Exported(), protocol))
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize(
    "text",
    [
        '{"$float": "NaN"}',
        '{"$float": 1}',
        '{"$float": ["nan"]}',
        '{"$complex": [1]}',
        '{"$complex": 1}',
        '{"$complex": [1, {"$bytes": ""}]}',
        '{"$complex": [1, {}]}',
        '{"$complex": [1, {"$float": "nan", "b": 1}]}',
        '{"$bytes": "&"}',
        '{"$bytes": 3}',
        '{"$datetime": "yesterday"}',
        '{"$datetime": 5}',
        '{"$datetime": "0001-01-01T00:00:00+14:00"}',
        '{"$array": {"dtype": "|O", "shape": [1], "base64": "AAAAAAAAAAA="}}',
        '{"$array": {"dtype": "<f8", "shape": [2], "base64": "AAAAAAAAAAA="}}',
        '{"$array": {"dtype": "<f8", "shape": [1.0], "base64": "AAAAAAAAAAA="}}',
        '{"$array": 1}',
        '{"$scalar": {"dtype": "<i4", "value": 1.5}}',
        '{"$scalar": {"dtype": "<i4", "value": [1]}}',
        '{"$scalar": {"dtype": "<i4", "value": {"$array": 1}}}',
        '{"$map": {"a": 1}}',
        '{"$map": [[1]]}',
        '{"$map": [[[1], 2]]}',
        '{"$map": [[{"$complex": [1, 2]}, 2]]}',
        '{"$bytes": "", "b": 1}',
        '{"$unknown": 1}',
        '{"a": 1, "$b": 2}',
        '{"a": 18446744073709551616}',
        '{"a": ' + "1" * 4000 + "}",
        '{"a": ' + "1" * 10_000 + "}",
        '{"a": "\\ud800"}',
    ],
)
def test_a_malformed_tag_in_json_is_refused(text):
    with pytest.raises(ProtocolError):
        decode_value(text.encode())


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('{"$complex": [1, -2]}', 1 - 2j),
        ('{"$complex": [1, {"$float": "inf"}]}', complex(1, math.inf)),
        ('{"$datetime": "2026-01-31T12:00:00.5Z"}', datetime(2026, 1, 31, 12, 0, 0, 500000, UTC)),
        ('{"$datetime": "2026-01-31"}', datetime(2026, 1, 31)),
        ('{"$scalar": {"dtype": "<f8", "value": 3}}', np.float64(3)),
        (
            '{"$array": {"dtype": "<i2", "shape": [2], "base64": "AQACAA=="}}',
            np.array([1, 2], "i2"),
        ),
        ('{"$map": [["$a", 1], [2, 3]]}', {"$a": 1, 2: 3}),
        ('{"a": -0.0, "b": 1, "b": 2}', {"a": -0.0, "b": 2}),
    ],
)
def test_json_by_hand_is_read(text, value):
    assert same(value, decode_value(text.encode()))
