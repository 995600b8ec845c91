"""What is uploaded: bytes, files and streams, read piece by piece."""

from __future__ import annotations

import asyncio
import io
import os
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator
from concurrent.futures import Executor
from typing import IO, Any, Protocol, TypeAlias, cast

__all__ = ["Content", "JoinedFile", "Piece", "Source", "open_source"]

Piece: TypeAlias = bytes | bytearray | memoryview
#: What can be uploaded: bytes, a path, a binary file, or pieces of bytes as they come.
Content: TypeAlias = (
    Piece | str | os.PathLike[str] | IO[bytes] | Iterable[Piece] | AsyncIterable[Piece]
)


#: Not None, which an iterator may yield by mistake: that is a TypeError, not the end.
_END = object()


class Source(Protocol):
    """Bytes in order. Reading happens off the loop, one read at a time."""

    #: bytes; None: not known before its end
    size: int | None
    seekable: bool

    async def read(self, size: int) -> Piece:
        """At most ``size`` bytes, at least one; none at the end."""

    async def seek(self, offset: int) -> None:
        """Go on from ``offset``, where :attr:`seekable`."""

    def close(self) -> None:
        """Close what this source has opened itself."""


class _Memory:
    seekable = True

    def __init__(self, content: Piece) -> None:
        self._view = memoryview(content).cast("B")
        self._position = 0
        self.size: int | None = len(self._view)

    async def read(self, size: int) -> Piece:
        piece = self._view[self._position : self._position + size]
        self._position += len(piece)
        return piece

    async def seek(self, offset: int) -> None:
        self._position = offset

    def close(self) -> None:
        self._view.release()


class _File:
    def __init__(self, file: IO[bytes], executor: Executor, *, own: bool) -> None:
        self._file = file
        self._executor = executor
        self._own = own
        self.seekable = file.seekable()
        self._start = file.tell() if self.seekable else 0
        self.size = self._measure() if self.seekable else None

    def _measure(self) -> int:
        end = self._file.seek(0, io.SEEK_END)
        self._file.seek(self._start)
        return end - self._start

    async def read(self, size: int) -> Piece:
        piece: bytes = await _off_loop(self._executor, self._file.read, size)
        return piece

    async def seek(self, offset: int) -> None:
        await _off_loop(self._executor, self._file.seek, self._start + offset)

    def close(self) -> None:
        if self._own:
            self._file.close()


class _Stream:
    """Pieces of any length, as they come."""

    seekable = False

    def __init__(self, pieces: Iterator[Piece] | AsyncIterator[Piece], executor: Executor) -> None:
        self.size: int | None = None
        self._pieces = pieces
        self._executor = executor
        self._rest = memoryview(b"")

    async def read(self, size: int) -> Piece:
        while not self._rest:
            piece = await self._next()
            if piece is _END:
                return b""
            if not isinstance(piece, bytes | bytearray | memoryview):
                raise TypeError(f"an upload takes pieces of bytes, not {type(piece).__name__}")
            # A copy: whoever yields may fill the same buffer again.
            self._rest = memoryview(bytes(piece))
        piece, self._rest = self._rest[:size], self._rest[size:]
        return piece

    async def _next(self) -> object:
        if isinstance(self._pieces, AsyncIterator):
            return await anext(self._pieces, _END)
        return await _off_loop(self._executor, next, self._pieces, _END)

    async def seek(self, offset: int) -> None:
        raise io.UnsupportedOperation("an iterator cannot go back")

    def close(self) -> None:
        """It belongs to the caller."""


class JoinedFile(io.RawIOBase):
    """Several buffers, read as one file without joining them in memory."""

    def __init__(self, *buffers: Piece) -> None:
        self._views = [memoryview(each).cast("B") for each in buffers]
        self._size = sum(map(len, self._views))
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = start + offset
        return self._position

    def readinto(self, buffer: Any) -> int:
        target = memoryview(buffer).cast("B")
        filled, begin = 0, 0
        for view in self._views:
            piece = view[max(0, self._position - begin) :][: len(target) - filled]
            target[filled : filled + len(piece)] = piece
            filled += len(piece)
            self._position += len(piece)
            begin += len(view)
        return filled


async def open_source(content: Content, executor: Executor) -> Source:
    """Open what is to be uploaded; blocking work goes to ``executor``.

    :raises OSError: a file that cannot be opened.
    :raises TypeError: something else than bytes, a path, a binary file or an iterable of bytes.
    """
    if isinstance(content, bytes | bytearray | memoryview):
        return _Memory(content)
    if isinstance(content, str | os.PathLike):
        file = await _off_loop(executor, open, content, "rb")
        return _File(file, executor, own=True)
    if isinstance(content, AsyncIterable):
        return _Stream(aiter(content), executor)
    if hasattr(content, "read"):
        file = cast("IO[bytes]", content)
        if isinstance(file.read(0), str):
            raise TypeError("the file is open as text; open it with mode 'rb'")
        return _File(file, executor, own=False)
    if isinstance(content, Iterable):
        return _Stream(iter(content), executor)
    raise TypeError(
        f"cannot upload {type(content).__name__}: give bytes, a path, a binary file, an (async) "
        "iterator of bytes; or, to a bank's put(), a numpy array, text, a number, a dict or a list"
    )


async def _off_loop(executor: Executor, function: Any, *arguments: Any) -> Any:
    return await asyncio.get_running_loop().run_in_executor(executor, function, *arguments)
