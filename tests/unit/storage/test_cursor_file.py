from __future__ import annotations

import errno
from pathlib import Path

import msgspec
import pytest
from tests.support.file_faults import FaultyFileOps

from labmesh.errors import ConfigError, Conflict, StorageError
from labmesh.protocol.dataset_cursor import Place, SavedCursor
from labmesh.storage.cursor_file import CursorFile


def saved_at(path: Path, sequence: int) -> CursorFile:
    """An open file in which this place was saved."""
    file = CursorFile(path, begun=1.0)
    file.saved.reach("bank-0", Place(sequence=sequence))
    file.save(file.encoded())
    return file


def test_what_was_saved_is_there_for_the_next_one_and_for_one_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "new folder" / "cursor.json"
    file = saved_at(path, 7)
    assert file.is_new
    with pytest.raises(Conflict, match="in use by another program"):
        CursorFile(path, begun=2.0)
    file.close()
    file.close()
    before = path.read_bytes()
    file.save(b"what comes too late")
    assert path.read_bytes() == before
    again = CursorFile(path, begun=2.0)
    assert not again.is_new
    assert again.saved.begun == 1.0
    assert again.saved.places() == {"bank-0": Place(sequence=7)}
    again.close()


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "truncated"),
        (b'{"begun": 1.0, "banks": {"bank-0": {"don', "truncated"),
        (b"\xff\xfe", "invalid"),
        (b"[]", "Expected `object`"),
        (b'{"begun": 1.0, "banks": {}, "version": 2}', "of version 2, not 1"),
        (b'{"begun": 1.0, "more": 1}', "unknown field"),
    ],
)
def test_a_broken_one_is_refused_and_left_as_it_is(
    tmp_path: Path, content: bytes, why: str
) -> None:
    path = tmp_path / "cursor.json"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=f"is broken .*{why}"):
        CursorFile(path, begun=1.0)
    assert path.read_bytes() == content
    path.unlink()
    CursorFile(path, begun=1.0).close()


def test_where_no_file_can_be_is_said_so(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path, tmp_path / "file" / "cursor.json"):
        with pytest.raises(ConfigError, match="cannot be used"):
            CursorFile(path, begun=1.0)


def test_whatever_fails_while_it_is_saved_the_old_or_the_new_one_is_there(tmp_path: Path) -> None:
    path = tmp_path / "cursor.json"
    saved_at(path, 7).close()
    failures, number = 0, 0
    while True:
        ops = FaultyFileOps(write_bytes=50)
        file = CursorFile(path, begun=1.0, ops=ops)
        file.saved.banks["bank-0"].done = Place(sequence=8 + number)
        ops.faults[len(ops.done) + number] = errno.EIO
        before = path.read_bytes()
        try:
            file.save(file.encoded())
        except StorageError:
            failures += 1
        is_at_end = ops.failed is None
        ops.faults.clear()
        found = msgspec.json.decode(path.read_bytes(), type=SavedCursor)
        assert path.read_bytes() in (before, file.encoded())
        assert found.places()["bank-0"].sequence <= 8 + number
        file.save(file.encoded())  # the disk works again
        assert path.read_bytes() == file.encoded()
        file.close()
        if is_at_end:
            break
        number += 1
    assert failures >= 5  # open, each write, fsync, close, rename, fsync of the folder
