"""What goes into a dataset and comes out of it: sources, sinks, and the kinds of content."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import io
import json
import os
import secrets
import sys
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator
from concurrent.futures import Executor
from pathlib import Path
from typing import IO, Any, Protocol, TypeAlias, cast

__all__ = [
    "Content",
    "FileSink",
    "MemorySink",
    "Sink",
    "Source",
    "open_source",
    "packed",
    "unpacked",
]

Piece: TypeAlias = bytes | bytearray | memoryview
#: What can be uploaded: bytes, a path, a binary file, or pieces of bytes as they come.
Content: TypeAlias = (
    Piece | str | os.PathLike[str] | IO[bytes] | Iterable[Piece] | AsyncIterable[Piece]
)


#: Not None, which an iterator may yield by mistake: that is a TypeError, not the end.
_END = object()


# ── sources ─────────────────────────────────────────────────────────────────────────────────────


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


# ── sinks ───────────────────────────────────────────────────────────────────────────────────────


class Sink(Protocol):
    """Where a download goes. Its methods block: they are called off the loop, one at a time."""

    def write(self, piece: Piece) -> None:
        """Append."""

    def digest(self) -> str:
        """The SHA-256 of all that was written."""

    def keep(self) -> None:
        """All is there and right: make it durable, under its final name."""

    def discard(self) -> None:
        """Leave nothing behind; harmless after :meth:`keep`."""


class MemorySink:
    """A download into memory."""

    def __init__(self) -> None:
        self._content = bytearray()
        self._kept = False

    def write(self, piece: Piece) -> None:
        self._content += piece

    def digest(self) -> str:
        return hashlib.sha256(self._content).hexdigest()

    def keep(self) -> None:
        self._kept = True

    def discard(self) -> None:
        if not self._kept:
            self._content = bytearray()

    @property
    def content(self) -> bytes:
        """What was downloaded."""
        return bytes(self._content)


class FileSink:
    """A download into a file, which appears under its name whole, or not at all."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
        self._file = self._part.open("xb")
        self._sha256 = hashlib.sha256()

    def write(self, piece: Piece) -> None:
        self._file.write(piece)
        self._sha256.update(piece)

    def digest(self) -> str:
        return self._sha256.hexdigest()

    def keep(self) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        self._part.replace(self.path)
        _sync_folder(self.path.parent)

    def discard(self) -> None:
        with contextlib.suppress(OSError):  # what is left in its buffer is not wanted
            self._file.close()
        with contextlib.suppress(FileNotFoundError):
            self._part.unlink()


def _sync_folder(folder: Path) -> None:
    if sys.platform == "win32":  # a folder cannot be opened there
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# ── kinds ───────────────────────────────────────────────────────────────────────────────────────


def packed(value: Any) -> tuple[Content, str]:
    """A value as what is stored, and its kind.

    numpy arrays become ``npy``, text ``text``, numbers, dicts and lists ``json``; bytes, paths
    (:class:`os.PathLike`), files and iterators are ``bytes``. Text is text here, not a path.
    """
    numpy = sys.modules.get("numpy")
    if numpy is not None and isinstance(value, numpy.ndarray):
        file = io.BytesIO()
        numpy.save(file, value, allow_pickle=False)
        return file.getbuffer(), "npy"
    if isinstance(value, str):
        return value.encode(), "text"
    if isinstance(value, dict | list | tuple | int | float):
        try:
            return json.dumps(value, ensure_ascii=False).encode(), "json"
        except TypeError as exc:
            raise TypeError(
                f"this {type(value).__name__} cannot be stored as JSON: {exc}; store arrays as "
                "datasets of their own, and make the rest numbers, text, lists and dicts"
            ) from exc
    return value, "bytes"


def unpacked(content: bytes, kind: str) -> Any:
    """:func:`packed` the other way; an unknown kind comes back as bytes.

    :raises ImportError: an array, and numpy is not installed (``pip install labmesh[data]``).
    """
    if kind == "npy":
        try:
            import numpy
        except ImportError as exc:
            raise ImportError("this dataset is an array: pip install labmesh[data]") from exc
        return numpy.load(io.BytesIO(content), allow_pickle=False)
    if kind == "text":
        return content.decode()
    if kind == "json":
        return json.loads(content)
    return content


async def _off_loop(executor: Executor, function: Any, *arguments: Any) -> Any:
    return await asyncio.get_running_loop().run_in_executor(executor, function, *arguments)
