"""Names of exported files, kinds of files, and parts that a download continues."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import sys
from pathlib import Path, PurePosixPath, PureWindowsPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from labmesh.content import FileSink, kind_of_file, suffix_of
from labmesh.content.sinks import KEPT_BYTES, part_path
from labmesh.datasets.names import file_name, folder_name

CONTENT = os.urandom(KEPT_BYTES + 1000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()


# ── names ───────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("name", "kind", "made"),
    [
        ("scan-42", "npy", "scan-42.npy"),
        ("scan.npy", "npy", "scan.npy"),
        ("scan.NPY", "npy", "scan.NPY"),
        ("grid", "netcdf-array", "grid.nc"),
        ("table.csv", "bytes", "table.csv"),
        ("a.tar.gz", "bytes", "a.tar.gz"),
        ("", "text", "id-1.txt"),
        ("../../etc/passwd", "bytes", "passwd"),
        ("..\\..\\boot.ini", "bytes", "boot.ini"),
        ("/etc/", "bytes", "id-1"),
        ("..", "bytes", "id-1"),
        (".bashrc", "bytes", "bashrc"),
        ("C:evil.txt", "bytes", "C_evil.txt"),
        ("file.txt:stream", "bytes", "file.txt_stream"),
        ("con.txt", "bytes", "id-1"),
        ("NUL", "json", "id-1.json"),
        ("record.json", "json", "_record.json"),
        ("Record", "json", "_Record.json"),
        ("two\nlines\x1b[2J", "bytes", "two_lines_[2J"),
        ("T sweep µ 4 K ", "text", "T sweep µ 4 K.txt"),
        ("trailing. . ", "bytes", "trailing"),
        ("\ud800", "bytes", "_"),
    ],
)
def test_a_name_becomes_that_of_a_file_in_its_folder(name: str, kind: str, made: str) -> None:
    assert file_name(name, kind, "id-1") == made


@given(st.text(max_size=300), st.sampled_from(["npy", "bytes", "text", "of-another-version"]))
def test_no_name_leaves_the_folder(name: str, kind: str) -> None:
    made = file_name(name, kind, "id-1")
    assert PurePosixPath(made).name == PureWindowsPath(made).name == made
    assert not PureWindowsPath(made).is_reserved()
    assert made[0] != "."
    assert 1 <= len(made.encode()) <= 180
    assert made.isprintable() or not made.isascii()
    assert made.lower() != "record.json"


def test_a_folder_has_the_id_unless_a_file_has_it() -> None:
    assert [folder_name(each) for each in ("scan-42", "SHA256SUMS", "readme.txt")] == [
        "scan-42",
        "SHA256SUMS_",
        "readme.txt_",
    ]


# ── kinds of files ──────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("name", "content", "kind"),
    [
        ("a.npy", b"\x93NUMPY\x01\x00", "npy"),
        ("a.npy", b"no array", "bytes"),
        ("A.NC", b"\x89HDF\r\n\x1a\n...", "netcdf"),
        ("a.nc", b"CDF\x01 of 1990", "bytes"),
        ("a.parquet", b"PAR1...", "parquet"),
        ("a.txt", "µ".encode() * 10, "text"),
        ("a.txt", "µ".encode()[:1], "bytes"),
        ("a.txt", b"\xff\xfe", "bytes"),
        ("a.json", b'{"a": [1]}', "json"),
        ("a.json", b"{", "bytes"),
        ("a.json", b"[" * 100_000, "bytes"),
        ("a.csv", b"1,2", "bytes"),
        ("a", b"", "bytes"),
    ],
)
def test_the_kind_of_a_file(name: str, content: bytes, kind: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    assert kind_of_file(tmp_path / name) == kind


@pytest.mark.parametrize(
    ("kind", "name", "suffix"),
    [
        ("npy", "scan", ".npy"),
        ("parquet-series", "s", ".parquet"),
        ("bytes", "a.csv", ".csv"),
        ("bytes", "a.b c", ""),
        ("bytes", "a.toolongforasuffix", ""),
        ("bytes", "..\\a.d\\b", ""),
        ("bytes", "a.", ""),
    ],
)
def test_the_suffix_of_a_dataset(kind: str, name: str, suffix: str) -> None:
    assert suffix_of(kind, name) == suffix


# ── parts of downloads ──────────────────────────────────────────────────────────────────────────

posix = pytest.mark.skipif(sys.platform == "win32", reason="parts have random names there")


def opened(path: Path) -> FileSink:
    return FileSink(path, sha256=SHA256, size=len(CONTENT))


@posix
def test_what_a_killed_download_left_is_continued(tmp_path: Path) -> None:
    path = tmp_path / "scan.bin"
    part = part_path(path, SHA256)
    assert part is not None
    part.write_bytes(CONTENT[:5000])
    sink = opened(path)
    assert sink.offset == 5000
    sink.write(CONTENT[5000:])
    assert sink.digest() == SHA256
    assert not path.exists()
    sink.keep()
    sink.discard()
    assert path.read_bytes() == CONTENT
    assert os.listdir(tmp_path) == ["scan.bin"]


@posix
@pytest.mark.parametrize(("size", "left"), [(KEPT_BYTES - 1, 0), (KEPT_BYTES, KEPT_BYTES)])
def test_after_an_error_a_large_part_stays_and_a_small_one_goes(
    size: int, left: int, tmp_path: Path
) -> None:
    sink = opened(tmp_path / "scan.bin")
    sink.write(CONTENT[:size])
    sink.discard()
    sink.discard()
    again = opened(tmp_path / "scan.bin")
    assert again.offset == left
    again.discard()


@posix
def test_a_part_whose_digest_is_wrong_is_not_kept(tmp_path: Path) -> None:
    sink = opened(tmp_path / "scan.bin")
    sink.write(bytes(len(CONTENT)))
    assert sink.digest() != SHA256
    sink.discard()
    assert os.listdir(tmp_path) == []


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_part_that_cannot_be_synced_is_not_kept(tmp_path: Path) -> None:
    sink = opened(tmp_path / "scan.bin")
    sink.write(CONTENT)
    sink.write(b"buffered")
    full = os.open("/dev/full", os.O_WRONLY)
    os.dup2(full, sink._file.fileno())
    os.close(full)
    with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
        sink.keep()
    sink.discard()
    assert os.listdir(tmp_path) == []


@posix
def test_a_sync_that_failed_on_the_way_is_not_forgotten(tmp_path: Path) -> None:
    sink = opened(tmp_path / "scan.bin")
    sink.settle()
    sink.write(CONTENT)
    number, kept = sink._file.fileno(), os.dup(sink._file.fileno())
    reading, writing = os.pipe()
    os.dup2(writing, number)  # a pipe cannot be synced
    sink.settle()
    os.dup2(kept, number)
    for each in (kept, reading, writing):
        os.close(each)
    with pytest.raises(OSError, match=os.strerror(errno.EINVAL)):
        sink.keep()
    sink.discard()
    sink.settle()
    assert os.listdir(tmp_path) == []


@posix
def test_a_part_that_turns_out_wrong_is_begun_again(tmp_path: Path) -> None:
    path = tmp_path / "scan.bin"
    sink = opened(path)
    sink.write(bytes(len(CONTENT)))
    sink.digest()
    sink.restart()
    assert sink.offset == 0
    sink.write(CONTENT)
    assert sink.digest() == SHA256
    sink.keep()
    assert path.read_bytes() == CONTENT


@posix
def test_a_part_that_is_longer_than_the_dataset_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "scan.bin"
    part = part_path(path, SHA256)
    assert part is not None
    part.write_bytes(CONTENT + b"more")
    sink = opened(path)
    assert (sink.offset, part.stat().st_size) == (0, 0)
    sink.discard()


@posix
def test_a_second_writer_takes_a_part_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "scan.bin"
    first, second = opened(path), opened(path)
    assert first.part == part_path(path, SHA256) != second.part
    second.write(CONTENT)
    second.keep()
    first.write(CONTENT)
    first.keep()
    assert path.read_bytes() == CONTENT
    assert os.listdir(tmp_path) == ["scan.bin"]
    # What has its final name is no part any more, whoever held a lock on it.
    third = opened(path)
    third.discard()
    assert path.read_bytes() == CONTENT


@posix
@pytest.mark.parametrize("link", [False, True])
def test_a_pipe_or_device_is_not_replaced(link: bool, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    path = tmp_path / "link" if link else pipe
    if link:
        path.symlink_to(pipe)
    with pytest.raises(FileExistsError, match="give another name"):
        opened(path)
    assert stat.S_ISFIFO(path.stat().st_mode)
    assert not list(tmp_path.glob(".*"))


@posix
@pytest.mark.parametrize("trap", ["symlink", "hard link", "folder", "read-only"])
def test_what_somebody_else_has_put_in_its_place_is_not_touched(trap: str, tmp_path: Path) -> None:
    path, precious = tmp_path / "here" / "scan.bin", tmp_path / "precious"
    path.parent.mkdir()
    precious.write_bytes(b"precious")
    part = part_path(path, SHA256)
    assert part is not None
    if trap == "symlink":
        part.symlink_to(precious)
    elif trap == "hard link":
        part.hardlink_to(precious)
    elif trap == "folder":
        part.mkdir()
    else:
        part.write_bytes(b"")
        part.chmod(stat.S_IRUSR)
        if os.geteuid() == 0:
            pytest.skip("root may write everywhere")
    sink = opened(path)
    assert sink.part != part
    sink.write(CONTENT)
    sink.keep()
    assert path.read_bytes() == CONTENT
    assert precious.read_bytes() == b"precious"


def test_a_long_name_has_a_part_as_well(tmp_path: Path) -> None:
    path = tmp_path / ("µ" * 127)
    sink = FileSink(path, sha256=hashlib.sha256(b"x").hexdigest(), size=1)
    sink.write(b"x")
    sink.keep()
    assert path.read_bytes() == b"x"
