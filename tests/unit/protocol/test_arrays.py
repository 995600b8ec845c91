"""Arrays: what is shared, what is checked, and what arrives where numpy is not installed."""

import math
import struct

import msgspec
import numpy as np
import pytest
from tests.support.lab_values import same

from labmesh.errors import ProtocolError
from labmesh.protocol import arrays
from labmesh.protocol.arrays import ArrayData, flat_view, pack_array, unpack_array, unpack_scalar
from labmesh.protocol.codec import decode_value, encode_value


@pytest.fixture
def without_numpy(monkeypatch):
    """The same process as if numpy were not installed."""
    monkeypatch.setattr(arrays, "_import_numpy", lambda: None)


def test_a_contiguous_array_is_not_copied():
    sent = np.arange(12.0).reshape(3, 4)
    packed = pack_array(sent)
    received = unpack_array(packed)
    assert np.shares_memory(sent, received)
    assert same(sent, received)


def test_a_mapped_file_is_an_array(tmp_path):
    mapped = np.memmap(tmp_path / "trace.bin", dtype="<i2", mode="w+", shape=(3,))
    mapped[:] = [1, 2, 3]
    assert unpack_array(pack_array(mapped)).tolist() == [1, 2, 3]


def test_an_array_over_read_only_memory_is_read_only():
    assert not unpack_array(ArrayData("|u1", (2,), b"ab")).flags.writeable
    assert unpack_array(ArrayData("|u1", (2,), bytearray(b"ab"))).flags.writeable


@pytest.mark.parametrize(
    "dtype",
    ["|O", "O", "|V8", "<f16", "<c32", "<f8\n", "", "f8", "=f8", "<b1", "|i8", "<i3", "|S0", "<U0",
     "<M8[1s/3]", "<M8[parsec]", "<M8[0s]", "<M8[9999999999s]", "[('a', '<f8')]", "<f8,<i4",
     "|S99999999999", "|T16", "<f8" * 10_000],
)  # fmt: skip
def test_an_element_type_that_is_not_on_the_list_never_reaches_numpy(dtype, monkeypatch):
    monkeypatch.setattr(arrays, "_import_numpy", lambda: pytest.fail("numpy was asked"))
    with pytest.raises(ProtocolError, match="cannot be sent; allowed are bool, int") as refused:
        decode_value(msgpack_array(dtype, [1], bytes(8)))
    assert len(str(refused.value)) < 300


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ([-1], "negative"),
        ([-1, -8], "negative"),
        ([2], "has 16 bytes, but its buffer has 8"),
        ([0], "has 0 bytes"),
        ([2**62, 4], "out of range"),
        ([2**32, 2**32], "out of range"),
        ([2**62, 2**62, 0], "out of range"),
        ([1] * 33, "33 dimensions; at most 32"),
    ],
)
def test_a_shape_that_does_not_fit_never_reaches_numpy(shape, words, monkeypatch):
    monkeypatch.setattr(arrays, "_import_numpy", lambda: pytest.fail("numpy was asked"))
    with pytest.raises(ProtocolError, match=words):
        decode_value(msgpack_array("<f8", shape, bytes(8)))


def msgpack_array(dtype: object, shape: object, content: object) -> bytes:
    return msgpack_ext(3, [dtype, shape, content])


def msgpack_ext(code: int, content: object) -> bytes:
    return msgspec.msgpack.encode(msgspec.msgpack.Ext(code, msgspec.msgpack.encode(content)))


@pytest.mark.parametrize("code_point", [0x110000, 0xD800, 0xDFFF, 0xFFFFFFFF])
@pytest.mark.parametrize("order", "<>")
def test_text_that_is_no_unicode_is_refused_before_it_is_touched(code_point, order):
    content = struct.pack(f"{order}I", code_point)
    with pytest.raises(ProtocolError, match="invalid unicode"):
        decode_value(msgpack_array(f"{order}U1", [1], content))


def test_a_bool_that_is_neither_is_refused():
    with pytest.raises(ProtocolError, match="neither 0 nor 1"):
        decode_value(msgpack_array("|b1", [2], b"\x01\x02"))


def test_a_time_of_no_unit_is_not_a_time():
    with pytest.raises(ProtocolError, match="without a unit"):
        decode_value(msgpack_array("<M8", [1], bytes(8)))
    assert same(np.datetime64("NaT"), decode_value(encode_value(np.datetime64("NaT"))))


@pytest.mark.parametrize(
    "content",
    [
        [],
        ["<f8"],
        ["<f8", 1.5, 2.5, 3.5],
        ["<f8", None],
        ["<f8", "1.5"],
        ["<f8", [1.5]],
        ["<f8", {}],
        ["<f4", 1e300],
        ["<f2", 1e300],
        ["|i1", 128],
        ["|u1", -1],
        ["<i4", True],
        ["<i4", 1.5],
        ["|b1", 1],
        ["<c16", 1.5],
        ["<f8", 1.5, 2.5],
        ["|S5", "a"],
        ["<U5", "a"],
        ["S", "a"],
        ["U", 5],
        ["|O", 1],
        [8, 1],
        {"dtype": "<f8"},
    ],
)
def test_a_scalar_that_is_not_of_its_type_is_refused(content):
    with pytest.raises(ProtocolError):
        decode_value(msgpack_ext(5, content))


def test_a_whole_number_is_good_for_a_scalar_float():
    assert same(np.float64(3), decode_value(msgpack_ext(5, ["<f8", 3])))
    assert same(np.complex128(1 - 2j), decode_value(msgpack_ext(5, ["<c16", 1, -2])))


@pytest.mark.parametrize(
    ("packed", "value"),
    [
        (np.float64(2.5), 2.5),
        (np.float32(2.5), 2.5),
        (np.int16(-3), -3),
        (np.uint64(2**64 - 1), 2**64 - 1),
        (np.bool_(True), True),
        (np.complex64(1 + 2j), 1 + 2j),
        (np.str_("mV"), "mV"),
        (np.bytes_(b"ab"), b"ab"),
        (np.datetime64(5, "s"), ArrayData("<M8[s]", (), struct.pack("<q", 5))),
        (np.timedelta64(-5, "ms"), ArrayData("<m8[ms]", (), struct.pack("<q", -5))),
    ],
)
@pytest.mark.parametrize("json", [False, True])
def test_without_numpy_a_scalar_is_a_plain_number(packed, value, json, without_numpy):
    assert same(value, decode_value(encode_value(packed, json=json), json=json))


@pytest.mark.parametrize("json", [False, True])
def test_without_numpy_an_array_is_described_and_can_be_passed_on(json, without_numpy):
    sent = np.array([[1.5, math.nan]])
    received = decode_value(encode_value(sent, json=json), json=json)
    assert isinstance(received, ArrayData)
    assert (received.dtype, received.shape) == ("<f8", (1, 2))
    assert bytes(received.buffer) == sent.tobytes()
    passed_on = encode_value(received, json=json)
    assert passed_on == encode_value(sent, json=json)


def test_numpy_is_missing_where_it_cannot_be_imported(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "numpy", None)
    assert unpack_scalar("<f8", 2.5) == 2.5
    assert encode_value(2.5) == encode_value(2.5)
    assert isinstance(unpack_array(ArrayData("<f8", (1,), bytes(8))), ArrayData)


def test_a_description_of_an_array_is_checked_when_it_is_made():
    with pytest.raises(ProtocolError, match="has 8 bytes, but its buffer has 3"):
        ArrayData("<f8", (1,), b"abc")


def test_bytes_of_other_memory_are_taken_in_order():
    numbers = memoryview(np.array([[1, 2], [3, 4]], dtype="<i2"))
    assert bytes(flat_view(numbers)) == b"\1\0\2\0\3\0\4\0"
    assert bytes(flat_view(memoryview(b"abcd")[::2])) == b"ac"
    row = b"abcd"
    assert flat_view(row).obj is row
