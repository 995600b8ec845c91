"""What goes into a dataset and comes out of it."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from labmesh.content import (
    Content,
    FileSink,
    MemorySink,
    Source,
    open_source,
    packed,
    unpacked,
)

CONTENT = bytes(range(256)) * 40


@pytest.fixture
def executor() -> Iterator[Executor]:
    with ThreadPoolExecutor(1, thread_name_prefix="source") as pool:
        yield pool


async def read_all(source: Source, size: int = 1000) -> list[bytes]:
    """Its pieces, read ``size`` bytes at a time."""
    pieces = []
    while piece := bytes(await source.read(size)):
        pieces.append(piece)
    return pieces


async def content_of(content: Content, executor: Executor) -> bytes:
    source = await open_source(content, executor)
    try:
        return b"".join(await read_all(source))
    finally:
        source.close()


# ── sources ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "content", [CONTENT, bytearray(CONTENT), memoryview(CONTENT), memoryview(CONTENT).cast("I")]
)
async def test_bytes_are_read_in_pieces_without_a_copy(content: Any, executor: Executor) -> None:
    source = await open_source(content, executor)
    assert source.seekable
    assert source.size == len(CONTENT)
    pieces = await read_all(source)
    assert b"".join(pieces) == CONTENT
    assert {len(each) for each in pieces[:-1]} == {1000}
    await source.seek(17)
    piece = await source.read(10)
    assert isinstance(piece, memoryview)
    assert piece == CONTENT[17:27]
    source.close()


async def test_bytes_with_gaps_between_them_are_refused(executor: Executor) -> None:
    with pytest.raises(TypeError, match="contiguous"):
        await open_source(memoryview(CONTENT)[::2], executor)


@pytest.mark.parametrize("spell", [str, Path])
async def test_a_path_is_opened_and_closed(spell: Any, tmp_path: Path, executor: Executor) -> None:
    path = tmp_path / "scan.bin"
    path.write_bytes(CONTENT)
    source = await open_source(spell(path), executor)
    assert (source.size, source.seekable) == (len(CONTENT), True)
    assert b"".join(await read_all(source)) == CONTENT
    await source.seek(10_000)
    assert b"".join(await read_all(source)) == CONTENT[10_000:]
    source.close()
    with pytest.raises(ValueError, match="closed file"):
        await source.read(1)


async def test_a_path_that_is_not_there_is_an_os_error(tmp_path: Path, executor: Executor) -> None:
    with pytest.raises(FileNotFoundError):
        await open_source(tmp_path / "missing", executor)
    with pytest.raises(IsADirectoryError):
        await open_source(tmp_path, executor)


async def test_an_open_file_is_read_from_where_it_stands_and_left_open(
    tmp_path: Path, executor: Executor
) -> None:
    path = tmp_path / "scan.bin"
    path.write_bytes(CONTENT)
    with path.open("rb") as file:
        file.seek(100)
        source = await open_source(file, executor)
        assert source.size == len(CONTENT) - 100
        assert b"".join(await read_all(source)) == CONTENT[100:]
        await source.seek(5)
        assert bytes(await source.read(3)) == CONTENT[105:108]
        source.close()
        assert not file.closed


async def test_a_pipe_is_read_to_its_end_without_a_size(executor: Executor) -> None:
    reading, writing = os.pipe()
    writer = threading.Thread(target=lambda: (os.write(writing, CONTENT), os.close(writing)))
    writer.start()
    with os.fdopen(reading, "rb") as file:
        source = await open_source(file, executor)
        assert (source.size, source.seekable) == (None, False)
        assert b"".join(await read_all(source)) == CONTENT
    writer.join()


@pytest.mark.parametrize("make", ["file", "StringIO"])
async def test_a_file_that_is_open_as_text_is_refused(
    make: str, tmp_path: Path, executor: Executor
) -> None:
    (tmp_path / "notes.txt").write_text("notes")
    text = (tmp_path / "notes.txt").open() if make == "file" else io.StringIO("notes")
    with text, pytest.raises(TypeError, match="mode 'rb'"):
        await open_source(text, executor)  # type: ignore[arg-type]


async def test_pieces_of_an_iterator_may_be_empty_or_huge(executor: Executor) -> None:
    pieces = [b"", CONTENT[:1], b"", b"", CONTENT[1:5000], bytearray(CONTENT[5000:]), b""]
    source = await open_source(iter(pieces), executor)
    assert (source.size, source.seekable) == (None, False)
    read = await read_all(source, size=700)
    assert b"".join(read) == CONTENT
    assert max(map(len, read)) == 700
    assert await source.read(1) == b""
    with pytest.raises(io.UnsupportedOperation, match="cannot go back"):
        await source.seek(0)
    source.close()


async def test_an_iterator_runs_off_the_loop_and_may_fill_one_buffer_again_and_again(
    executor: Executor,
) -> None:
    threads = set()

    def camera() -> Iterator[bytearray]:
        frame = bytearray(100)
        for number in range(5):
            threads.add(threading.current_thread().name)
            frame[:] = bytes([number]) * 100
            yield frame

    source = await open_source(camera(), executor)
    first, second = await source.read(100), await source.read(100)
    assert (bytes(first), bytes(second)) == (b"\0" * 100, b"\1" * 100)
    assert threads == {"source_0"}


async def test_an_async_iterator_is_awaited_on_the_loop(executor: Executor) -> None:
    async def stream() -> AsyncIterator[bytes]:
        assert threading.current_thread() is threading.main_thread()
        yield b""
        yield CONTENT[:3000]
        yield CONTENT[3000:]

    assert await content_of(stream(), executor) == CONTENT


async def test_an_iterable_without_pieces_is_an_empty_dataset(executor: Executor) -> None:
    assert await content_of([], executor) == b""
    assert await content_of(iter([b"", b""]), executor) == b""


@pytest.mark.parametrize("wrong", ["text", 7, None, [b"nested"]])
async def test_a_piece_that_is_not_bytes_is_refused_and_does_not_end_the_dataset(
    wrong: Any, executor: Executor
) -> None:
    async def stream() -> AsyncIterator[Any]:
        yield b"good"
        yield wrong

    for content in (iter([b"good", wrong]), stream()):
        source = await open_source(content, executor)
        assert bytes(await source.read(10)) == b"good"
        with pytest.raises(TypeError, match=f"not {type(wrong).__name__}"):
            await source.read(10)


@pytest.mark.parametrize("wrong", [3.5, None, object()])
async def test_what_is_no_content_is_refused_with_what_would_be(
    wrong: Any, executor: Executor
) -> None:
    with pytest.raises(TypeError, match=r"give bytes, a path, a binary file, an \(async"):
        await open_source(wrong, executor)


async def test_the_error_of_an_iterator_is_not_the_end(executor: Executor) -> None:
    def broken() -> Iterator[bytes]:
        yield b"good"
        raise RuntimeError("the camera was unplugged")

    source = await open_source(broken(), executor)
    await source.read(10)
    with pytest.raises(RuntimeError, match="unplugged"):
        await source.read(10)


# ── sinks ───────────────────────────────────────────────────────────────────────────────────────


def test_a_sink_in_memory_holds_what_was_written_unless_it_is_discarded() -> None:
    sink = MemorySink()
    sink.write(CONTENT[:100])
    sink.write(memoryview(CONTENT)[100:])
    assert sink.digest() == hashlib.sha256(CONTENT).hexdigest()
    assert sink.content == CONTENT
    sink.discard()
    assert sink.content == b""


def test_a_sink_in_memory_that_was_kept_cannot_be_discarded() -> None:
    sink = MemorySink()
    sink.write(CONTENT)
    sink.keep()
    sink.discard()
    assert sink.content == CONTENT


def test_a_file_appears_whole_under_its_name_when_it_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "scan.npy"
    sink = FileSink(path)
    sink.write(CONTENT[:100])
    sink.write(memoryview(CONTENT)[100:])
    assert not path.exists()
    assert sink.digest() == hashlib.sha256(CONTENT).hexdigest()
    sink.keep()
    sink.discard()
    assert path.read_bytes() == CONTENT
    assert os.listdir(tmp_path) == ["scan.npy"]


def test_a_file_that_is_discarded_leaves_nothing_and_the_old_one_in_place(tmp_path: Path) -> None:
    path = tmp_path / "scan.npy"
    path.write_bytes(b"old")
    sink = FileSink(path)
    sink.write(CONTENT)
    sink.discard()
    sink.discard()
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["scan.npy"]


def test_a_kept_file_takes_the_place_of_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "scan.npy"
    path.write_bytes(b"old")
    sink = FileSink(path)
    sink.keep()
    assert path.read_bytes() == b""


def test_two_downloads_into_one_name_do_not_meet(tmp_path: Path) -> None:
    path = tmp_path / "scan.npy"
    first, second = FileSink(path), FileSink(path)
    first.write(b"first")
    second.write(b"second")
    second.keep()
    first.discard()
    assert path.read_bytes() == b"second"
    assert os.listdir(tmp_path) == ["scan.npy"]


def test_a_folder_that_is_missing_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        FileSink(tmp_path / "missing" / "scan.npy")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_file_whose_last_bytes_find_no_room_is_removed_all_the_same(tmp_path: Path) -> None:
    sink = FileSink(tmp_path / "scan.npy")
    sink.write(b"buffered")
    full = os.open("/dev/full", os.O_WRONLY)
    os.dup2(full, sink._file.fileno())
    os.close(full)
    with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
        sink.keep()
    sink.discard()
    assert os.listdir(tmp_path) == []


# ── kinds ───────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (b"bytes", "bytes"),
        ("text, not a path: ä", "text"),
        ({"gain": 2, "unit": "µV"}, "json"),
        ([1, 2.5, None], "json"),
    ],
)
async def test_a_value_comes_back_as_it_was(value: Any, kind: str, executor: Executor) -> None:
    content, packed_kind, _ = packed(value)
    assert packed_kind == kind
    assert unpacked(await content_of(content, executor), kind) == value


@pytest.mark.parametrize("dtype", ["f8", ">i2", "c16", "?", "M8[ms]"])
async def test_an_array_comes_back_as_it_was(dtype: str, executor: Executor) -> None:
    array = np.arange(24).reshape(2, 3, 4).astype(dtype)
    content, kind, _ = packed(array[:, ::2])
    assert kind == "npy"
    read = unpacked(await content_of(content, executor), kind)
    assert read.dtype == array.dtype
    np.testing.assert_array_equal(read, array[:, ::2])


def test_an_array_does_not_lose_its_mask_or_unit_unsaid() -> None:
    class Quantity(np.ndarray):
        unit = "V"

    for array in (np.ma.masked_less(np.arange(3.0), 1), np.arange(3.0).view(Quantity)):
        with pytest.raises(ValueError, match="mask or unit"):
            packed(array)


def test_an_array_of_objects_is_not_pickled_on_either_side() -> None:
    with pytest.raises(ValueError, match="array of Python objects"):
        packed(np.array([{"a": 1}], dtype=object))
    file = io.BytesIO()
    np.save(file, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match="allow_pickle=False"):
        unpacked(file.getvalue(), "npy")


def test_a_path_is_content_and_an_unknown_kind_is_bytes(tmp_path: Path) -> None:
    assert packed(tmp_path) == (tmp_path, "bytes", None)
    assert unpacked(b"?", "of a later version") == b"?"


def test_json_is_utf_8() -> None:
    content, *_ = packed({"unit": "µV"})
    assert json.loads(bytes(content)) == {"unit": "µV"}  # type: ignore[arg-type]
    assert "µV".encode() in bytes(content)  # type: ignore[arg-type]


def test_without_numpy_an_array_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "numpy", None)
    assert packed(b"bytes") == (b"bytes", "bytes", None)
    with pytest.raises(ImportError, match=r"pip install 'labmesh\[data\]'"):
        unpacked(b"", "npy")


def test_what_json_cannot_hold_is_named() -> None:
    with pytest.raises(TypeError, match=r"cannot be stored as JSON.*arrays as datasets"):
        packed({"trace": object()})


@pytest.mark.parametrize("value", [2.5, 3, True, [1, 2], {"a": None}])
def test_numbers_lists_and_dicts_come_back_as_they_were(value: object) -> None:
    content, kind, _ = packed(value)
    assert kind == "json"
    assert unpacked(bytes(content), kind) == value  # type: ignore[arg-type]
