"""Whether an audit journal is whole: where a line was changed, removed, inserted, or cut off.

What the lines alone cannot show: that somebody cut off the end of a journal, or wrote all of it
anew from some line on. For that, a hash of a line is kept elsewhere and given here.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import msgspec
from msgspec import Struct

from labmesh.protocol.audit import BEGINNING, Line, hash_of, read_line

__all__ = ["Checker", "Fault", "Verdict"]

Kind = Literal["changed", "removed", "inserted", "beginning", "torn", "cut"]


class Fault(Struct, frozen=True):
    """What is wrong, and where: ``row`` counts the lines of a file from 1 (0: none of them)."""

    kind: Kind
    file: str
    row: int
    text: str


class Verdict(Struct, frozen=True):
    """What became of a check."""

    #: the number and hash of the last line that is whole; 0: there is none
    n: int
    hash: str
    #: lines that were looked at
    lines: int
    faults: tuple[Fault, ...]
    #: what is no fault, and worth knowing
    notes: tuple[str, ...]


class Checker:
    """Looks at the lines of one journal, the oldest first.

    :param whole: it begins with line 1; otherwise it may begin anywhere.
    :param heads: hashes that were kept elsewhere; each must be that of a line.
    """

    def __init__(self, *, whole: bool = True, heads: Iterable[str] = ()) -> None:
        self._whole = whole
        self._missing = dict.fromkeys(heads)
        self._found: dict[str, int] = {}
        self._lines = 0
        self._n = 0
        self._hash = ""
        #: of the last line as it is, whole or not
        self._before = ""
        self._last_good: tuple[int, str] = (0, BEGINNING)
        #: a line that is not whole: a fault, unless the next one explains it
        self._pending: Fault | None = None
        self._faults: list[Fault] = []
        self._notes: list[str] = []

    def take(self, line: bytes, file: str, row: int) -> None:
        """The next line, without its line end."""
        self._lines += 1
        read = read_line(line)
        if isinstance(read, str):
            self._broken(Fault("changed", file, row, read))
            self._before = hash_of(line)
            return
        self._whole_line(read, file, row)

    def torn(self, piece: bytes, file: str, row: int) -> None:
        """What stands at the very end, without a line end."""
        self._lines += 1
        self._broken(
            Fault(
                "torn",
                file,
                row,
                f"the last line is not whole ({len(piece)} bytes): the node was killed while it "
                "wrote, or somebody cut it; the next start of the node notes it",
            )
        )

    def end(self) -> Verdict:
        """That was all."""
        self._settle()
        for head in self._missing:
            self._fault(
                "cut",
                "",
                0,
                f"no line has the hash {head}: the end was cut off behind line {self._n}, or the "
                "journal was written anew",
            )
        self._notes += [f"line {n} has the hash {head}" for head, n in self._found.items()]
        return Verdict(self._n, self._hash, self._lines, tuple(self._faults), tuple(self._notes))

    # ── parts ───────────────────────────────────────────────────────────────────────────────────

    def _whole_line(self, line: Line, file: str, row: int) -> None:
        explained = self._explains(line)
        if explained:
            self._notes.append(f"{file}:{row}: {explained}")
            self._pending = None
        else:
            was_broken = self._pending is not None
            self._settle()
            self._check_place(line, file, row, was_broken=was_broken)
        self._n, self._hash = line.n, line.hash
        self._before = line.hash
        self._last_good = line.n, line.hash
        if line.hash in self._missing:
            del self._missing[line.hash]
            self._found[line.hash] = line.n

    def _explains(self, line: Line) -> str:
        """Whether this line says that the one before was torn by a crash; that is no fault."""
        if self._pending is None or line.prev != self._before or line.entry.method != "torn":
            return ""
        n, good = self._last_good
        if line.n != n + 2 or _after(line) != good:
            return ""
        return "the line before was not whole when the node started again, and it was kept as it is"

    def _check_place(self, line: Line, file: str, row: int, *, was_broken: bool) -> None:
        n, good = self._last_good
        if not n and not (was_broken and self._whole):
            if was_broken or (line.n == 1 and line.prev == BEGINNING):
                return
            text = f"it begins with line {line.n}, behind others that are not here"
            if self._whole:
                self._fault("beginning", file, row, text)
            else:
                self._notes.append(f"{file}: {text}")
            return
        expected = n + 1 + was_broken
        if line.n > expected:
            first = n + 1
            self._fault(
                "removed", file, row, f"before it, lines {first} to {line.n - 1} are missing"
            )
        elif line.n < expected and not was_broken:
            self._fault(
                "inserted",
                file,
                row,
                f"it is line {line.n} again, behind line {n}: it was put here",
            )
        elif not was_broken and line.prev != good:
            self._fault(
                "changed",
                file,
                row,
                f"it does not follow from line {n}: that one was changed after it was written, or "
                "this one was put here",
            )

    def _broken(self, fault: Fault) -> None:
        self._settle()
        self._pending = fault

    def _settle(self) -> None:
        if self._pending is not None:
            self._faults.append(self._pending)
            self._pending = None

    def _fault(self, kind: Kind, file: str, row: int, text: str) -> None:
        self._faults.append(Fault(kind, file, row, text))


def _after(line: Line) -> str:
    """The hash of the last whole line, as a line about a torn one says it."""
    try:
        told = msgspec.json.decode(line.entry.parameters, type=dict[str, object])
    except msgspec.MsgspecError:
        return ""
    return str(told.get("after", ""))
