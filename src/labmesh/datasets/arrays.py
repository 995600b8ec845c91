"""A stored array, of which only those parts are fetched that are asked for."""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from labmesh.content import array_dtype
from labmesh.content.arrays import (
    HEADER_BYTES,
    Axis,
    Index,
    NpyHeader,
    Span,
    npy_header,
    npy_header_bytes,
    selection,
    spans,
)
from labmesh.protocol.messages import DatasetRecord

__all__ = ["FetchBytes", "StoredArray", "open_array"]

#: ``await fetch(offset, size)`` gives these bytes of the dataset.
FetchBytes = Callable[[int, int], Awaitable[memoryview]]

#: Requests under way at a time.
_WINDOW = 4


async def open_array(record: DatasetRecord, fetch: FetchBytes) -> StoredArray:
    """Read the header of a dataset of kind ``npy``.

    :raises ValueError: it is no array of plain values.
    :raises ImportError: numpy is not installed.
    """
    if not record.size:
        raise ValueError(f"dataset {record.dataset_id} is empty: it is no .npy file")
    beginning = await fetch(0, min(HEADER_BYTES, record.size))
    wanted = npy_header_bytes(beginning)
    if len(beginning) < wanted <= record.size:
        beginning = await fetch(0, wanted)
    header = npy_header(beginning)
    dtype = array_dtype(header.descr)
    if header.offset + math.prod(header.shape) * dtype.itemsize > record.size:
        raise ValueError(f"dataset {record.dataset_id} is shorter than its header says")
    return StoredArray(record, header, dtype, fetch)


class StoredArray:
    """An array in a bank: ``await array.read((slice(0, 10), 3))`` moves only what that needs.

    It takes what numpy's basic indexing takes: whole numbers, slices with any step, ``...``. Pieces
    that lie close together are fetched in one range with what is between them. The bank has checked
    what it sends against the digests of its pieces.
    """

    def __init__(
        self, record: DatasetRecord, header: NpyHeader, dtype: Any, fetch: FetchBytes
    ) -> None:
        self.record = record
        self._header = header
        self._dtype = dtype
        self._fetch = fetch

    @property
    def shape(self) -> tuple[int, ...]:
        """Its length along each axis."""
        return self._header.shape

    @property
    def dtype(self) -> Any:
        """The numpy dtype of its elements."""
        return self._dtype

    @property
    def ndim(self) -> int:
        """The number of its axes."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """The number of its elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """The bytes of all its elements."""
        return self.size * int(self._dtype.itemsize)

    def __getitem__(self, index: Index) -> Awaitable[Any]:
        return self.read(index)

    async def read(self, index: Index = ...) -> Any:
        """A part of it, as a numpy array; one element is a numpy scalar.

        :raises IndexError: out of range, or an index of another kind.
        :raises ConnectionError: the bank was lost.
        """
        axes = selection(self.shape, index)
        shape, stored = self.shape, axes
        if self._header.fortran_order:  # in the file the last axis is the outermost
            shape, stored = shape[::-1], axes[::-1]
        result = await self._read(shape or (1,), stored or [Axis(0, 1, 1, False, True)])
        result = result[tuple(slice(None, None, -1 if each.reverse else 1) for each in stored)]
        if self._header.fortran_order:
            result = result.transpose()
        if not axes:
            return result[0]
        return result[tuple(0 if each.drop else slice(None) for each in axes)]

    async def _read(self, shape: Sequence[int], axes: Sequence[Axis]) -> Any:
        import numpy

        result = numpy.empty([each.length for each in axes], self._dtype)
        if not result.nbytes:
            return result
        under_way: deque[tuple[Span, asyncio.Future[memoryview]]] = deque()
        try:
            for span in spans(shape, self._dtype.itemsize, axes):
                work = self._fetch(self._header.offset + span.offset, span.size)
                under_way.append((span, asyncio.ensure_future(work)))
                if len(under_way) >= _WINDOW:
                    await self._take(result, axes, shape, under_way)
            while under_way:
                await self._take(result, axes, shape, under_way)
        finally:
            for _, task in under_way:
                task.cancel()
            await asyncio.gather(*(task for _, task in under_way), return_exceptions=True)
        return result

    async def _take(
        self,
        result: Any,
        axes: Sequence[Axis],
        shape: Sequence[int],
        under_way: deque[tuple[Span, asyncio.Future[memoryview]]],
    ) -> None:
        import numpy

        span, task = under_way[0]
        piece = await task
        under_way.popleft()
        inner = axes[len(span.outer) :]
        lengths = [span.length, *(each.length for each in inner[1:])]
        strides = [
            each.step * self._dtype.itemsize * math.prod(shape[len(span.outer) + number + 1 :])
            for number, each in enumerate(inner)
        ]
        block = numpy.ndarray(lengths, self._dtype, piece, strides=strides)
        result[(*span.outer, slice(span.first, span.first + span.length))] = block

    def __repr__(self) -> str:
        return (
            f"<StoredArray {self.record.dataset_id}  shape={self.shape} dtype={self._dtype} "
            f"{self.nbytes} bytes>"
        )
