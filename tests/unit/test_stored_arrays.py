"""Slices of stored arrays: what they need, and that it is what numpy would give."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from labmesh.content import arrays
from labmesh.content.arrays import npy_header, npy_header_bytes, selection, spans
from labmesh.datasets.arrays import StoredArray, open_array
from labmesh.protocol.messages import DatasetId, DatasetRecord


def saved(array: Any) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


class Served:
    """A file, served by the range; it counts."""

    def __init__(self, content: bytes) -> None:
        self.content = content
        self.ranges: list[tuple[int, int]] = []

    @property
    def fetched(self) -> int:
        """Bytes behind the header's request."""
        return sum(size for _, size in self.ranges[1:])

    async def fetch(self, offset: int, size: int) -> memoryview:
        assert 0 <= offset <= offset + size <= len(self.content)
        self.ranges.append((offset, size))
        return memoryview(self.content)[offset : offset + size]

    async def open(self) -> StoredArray:
        record = DatasetRecord(
            dataset_id=DatasetId("a"), size=len(self.content), sha256="0" * 64, bank_id="b"
        )
        return await open_array(record, self.fetch)


@st.composite
def indexed(draw: st.DrawFn) -> tuple[Any, Any]:
    """An array of any order, and an index that it takes."""
    shape = draw(st.lists(st.integers(0, 6), max_size=4).map(tuple))
    array = np.arange(int(np.prod(shape)), dtype=draw(st.sampled_from(["<f8", ">i2", "c16"])))
    array = np.asarray(array.reshape(shape), order=draw(st.sampled_from("CF")))
    limits = st.none() | st.integers(-8, 8)
    entries: list[Any] = []
    for length in shape[: draw(st.integers(0, len(shape)))]:
        step = draw(st.none() | st.sampled_from([-3, -2, -1, 1, 2, 5]))
        entry: Any = slice(draw(limits), draw(limits), step)
        if length and draw(st.booleans()):
            entry = draw(st.integers(-length, length - 1))
        entries.append(entry)
    if draw(st.booleans()):
        entries.insert(draw(st.integers(0, len(entries))), ...)
    return array, tuple(entries)


@given(indexed(), st.sampled_from([(2**16, 2**22), (0, 2**22), (0, 24), (40, 64)]))
async def test_an_index_gives_what_numpy_gives(case: Any, limits: tuple[int, int]) -> None:
    array, index = case
    gap, span = arrays.GAP_BYTES, arrays.SPAN_BYTES
    arrays.GAP_BYTES, arrays.SPAN_BYTES = limits
    try:
        stored = await Served(saved(array)).open()
        try:
            wanted = array[index]
        except IndexError:  # behind '...' an entry is for another axis than it was made for
            with pytest.raises(IndexError):
                await stored.read(index)
            return
        got = await stored.read(index)
    finally:
        arrays.GAP_BYTES, arrays.SPAN_BYTES = gap, span
    assert (stored.shape, stored.dtype, stored.ndim) == (array.shape, array.dtype, array.ndim)
    assert (stored.size, stored.nbytes) == (array.size, array.nbytes)
    assert np.shape(got) == np.shape(wanted)
    assert type(got) is type(wanted) or np.ndim(wanted) == 0
    np.testing.assert_array_equal(got, wanted)


@pytest.mark.parametrize(
    ("order", "index", "most"),
    [
        ("C", np.s_[100:110], 10 * 8 * 10_000),
        ("C", np.s_[7], 8 * 10_000),
        ("C", np.s_[7, 5000], 8),
        ("C", np.s_[:3, 10:20], 3 * 80),
        ("C", np.s_[::300, 0], 4 * 8),
        ("C", np.s_[5:2:-1, -1], 3 * 8),
        ("F", np.s_[:, 3], 8 * 1000),
        ("F", np.s_[0, :4], 4 * 8 * 1000),
        ("C", np.s_[0:0], 0),
    ],
)
async def test_only_the_bytes_that_a_slice_needs_are_fetched(
    order: Any, index: Any, most: int
) -> None:
    array = np.asarray(np.arange(1e7).reshape(1000, 10_000), order=order)
    served = Served(saved(array))
    stored = await served.open()
    np.testing.assert_array_equal(await stored.read(index), array[index])
    assert served.fetched <= most
    assert served.ranges[0] == (0, arrays.HEADER_BYTES)


async def test_a_large_part_is_fetched_by_ranges_of_4_mib() -> None:
    array = np.arange(3e6)
    served = Served(saved(array))
    stored = await served.open()
    np.testing.assert_array_equal(await stored[...], array)
    assert [size for _, size in served.ranges[1:]] == [2**22, 2**22, 2**22, 2**22, 2**22, 3_028_480]
    assert "shape=(3000000,) dtype=float64" in repr(stored)


@pytest.mark.parametrize(
    ("index", "text"),
    [
        (10, "index 10 is out of bounds for axis 0 of size 3"),
        ((0, 0, 0), "too many indices: 3 for 2 dimensions"),
        ((..., ...), "one '...' at most"),
        ([1, 2], "whole numbers, slices and '...', not list"),
        (True, "not bool"),
        (None, "not NoneType"),
        (1.5, "not float"),
    ],
)
async def test_what_cannot_be_an_index_is_said(index: Any, text: str) -> None:
    stored = await Served(saved(np.zeros((3, 4)))).open()
    with pytest.raises(IndexError, match=text):
        await stored.read(index)


async def test_structured_unicode_and_empty_types() -> None:
    for array in (
        np.array([(1, "µ"), (2, "Ω")], dtype=[("a", "<i4"), ("µ", "<U3")]),
        np.array(["", ""], dtype="<U0"),
        np.array(4.5),
        np.array(["2026-01-31"], dtype="M8[D]"),
    ):
        stored = await Served(saved(array)).open()
        np.testing.assert_array_equal(await stored.read(), array)


async def test_a_long_header_is_fetched_whole() -> None:
    array = np.zeros(2, dtype=[(f"field number {number}", "f8") for number in range(200)])
    served = Served(saved(array))
    stored = await served.open()
    assert stored.dtype == array.dtype
    assert served.ranges[1] == (0, npy_header_bytes(served.content))


_GOOD = saved(np.arange(4))


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"", "empty"),
        (b"\x93NUMPY", "not a .npy file"),
        (b"plain text that is long enough", "not a .npy file"),
        (b"\x93NUMPY\x07\x00" + _GOOD[8:], "not a .npy file"),
        (b"\x93NUMPY\x02\x00\xff\xff\xff\x7f" + _GOOD[12:], "header of this .npy file takes"),
        (_GOOD.replace(b"'shape'", b"'shop' "), "damaged"),
        (_GOOD.replace(b"(4,)", b"(-4)"), "makes no sense"),
        (_GOOD.replace(b"(4,)", b"[99]"), "makes no sense"),
        (_GOOD.replace(b"(4,)", b"(9,)"), "shorter than its header says"),
        (_GOOD.replace(b"<i8", b"<q9"), "no dtype"),
        (_GOOD[:100], "damaged|shorter|header"),
        (_GOOD.replace(b"False", b"[0]*9"), "damaged"),
        (saved(np.array([{}], dtype=object)), "Python objects"),
    ],
)
async def test_a_file_that_is_no_array_of_values_is_refused(content: bytes, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        await Served(content).open()


async def test_an_error_of_the_bank_ends_the_other_requests() -> None:
    served = Served(saved(np.arange(3e6)))
    stored = await served.open()

    async def broken(offset: int, size: int) -> memoryview:
        if len(served.ranges) > 2:
            raise ConnectionError("the bank is gone")
        return await served.fetch(offset, size)

    stored._fetch = broken
    with pytest.raises(ConnectionError, match="gone"):
        await stored.read()


def test_the_spans_of_a_column_are_as_many_as_its_rows_only_where_that_saves() -> None:
    axes = selection((100, 1000), np.s_[:, 0])
    (whole,) = spans((100, 1000), 8, axes)
    assert (whole.offset, whole.size) == (0, 99 * 8000 + 8)
    wide = selection((100, 100_000), np.s_[:, 0])
    assert [each.size for each in spans((100, 100_000), 8, wide)] == [8] * 100


def test_a_header_of_numpy_itself_is_read() -> None:
    header = npy_header(saved(np.asfortranarray(np.zeros((2, 3), "<f4"))))
    assert header == ("<f4", (2, 3), True, 128)
