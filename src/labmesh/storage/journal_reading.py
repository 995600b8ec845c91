"""Reading an audit journal: its files, their lines in order, and the lock of who writes."""

from __future__ import annotations

import json
import os
import re
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from labmesh.protocol.audit import Chain, Line, read_line
from labmesh.protocol.audit_check import Checker, Verdict

if sys.platform != "win32":
    import fcntl

__all__ = [
    "check_journal",
    "end_of_former",
    "entries_of",
    "head_beside",
    "journal_files",
    "lock_file",
]

_LOCK_S, _LOOK_AGAIN_S = 1.0, 0.01
_READ_BYTES = 2**20


def journal_files(path: Path) -> list[Path]:
    """The files of the journal ``NAME.jsonl``, the oldest first; those that there are."""
    of_it = re.compile(rf"{re.escape(path.stem)}@\d{{12}}\.jsonl")
    rotated = sorted(each for each in path.parent.glob("*@*.jsonl") if of_it.fullmatch(each.name))
    return [*rotated, *([path] if path.exists() else [])]


def head_beside(path: Path) -> str:
    """The hash in the ``.head`` of a journal; empty: there is none that can be read."""
    try:
        return str(json.loads(path.with_suffix(".head").read_text("ascii"))["hash"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def check_journal(files: Sequence[Path], checker: Checker) -> Verdict:
    """Look at all lines of these files, the oldest first.

    :raises OSError: one cannot be read.
    """
    for path in files:
        for row, (line, whole) in enumerate(_lines_of(path), 1):
            if whole:
                checker.take(line, path.name, row)
            else:
                checker.torn(line, path.name, row)
    return checker.end()


def entries_of(files: Sequence[Path]) -> Iterator[Line]:
    """The lines that can be read, in their order."""
    for path in files:
        for text, _ in _lines_of(path):
            line = read_line(text)
            if isinstance(line, Line):
                yield line


def _lines_of(path: Path) -> Iterator[tuple[bytes, bool]]:
    """Each line without its end, and whether it has one."""
    rest = b""
    with path.open("rb") as file:
        # Not what is being written at the moment: half a line is no damage then.
        with _shared_lock(path):
            left = os.fstat(file.fileno()).st_size
        while left and (piece := file.read(min(left, _READ_BYTES))):
            left -= len(piece)
            *lines, rest = (rest + piece).split(b"\n")
            yield from ((line, True) for line in lines)
    if rest:
        yield rest, False


def end_of_former(path: Path) -> Chain:
    """The end of the newest file that was put aside; a beginning, where there is none."""
    former = [each for each in journal_files(path) if each != path]
    if not former:
        return Chain()
    newest = deque(entries_of(former[-1:]), maxlen=1)
    return Chain(newest[0].n, newest[0].hash) if newest else Chain()


def lock_file(fd: int, *, is_shared: bool) -> None:
    """Wait until nobody else writes.

    :raises OSError: somebody does for too long.
    """
    if sys.platform == "win32":  # pragma: no cover - the tests run on Linux
        return
    how = fcntl.LOCK_SH if is_shared else fcntl.LOCK_EX
    until = time.monotonic() + _LOCK_S
    while True:
        try:
            fcntl.flock(fd, how | fcntl.LOCK_NB)
            return
        except BlockingIOError as exc:
            if time.monotonic() > until:
                raise OSError(exc.errno, "another process holds its lock") from exc
        time.sleep(_LOOK_AGAIN_S)


@contextmanager
def _shared_lock(path: Path) -> Iterator[None]:
    """While nobody writes, where that can be had: who reads need not have the right to write."""
    name = re.sub(r"@\d{12}$", "", path.stem)
    try:
        fd = os.open(path.with_name(f"{name}.lock"), os.O_RDONLY)
    except OSError:
        yield
        return
    try:
        with suppress(OSError):
            lock_file(fd, is_shared=True)
        yield
    finally:
        os.close(fd)
