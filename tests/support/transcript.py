"""A document whose commands are typed, each at its machine, and whose transcript is what came.

The blocks of ``docs/howto-laboratory.md`` that are ``console`` stand behind a mark::

    <!-- keys | kim@lab-pc -->                       its commands, one after the other; all end well
    <!-- keys | ana@office | refused -->             they end with code 4
    <!-- keys | kim@lab-pc | runs on: Ctrl-C -->     its one command goes on; shown until this line
    <!-- keys | kim@lab-pc | later in invite: key is -->
                                                     what that command has printed since then

The first word is the part of the document: each begins with machines on which nobody has typed
anything yet. Lines that begin with ``$`` are typed, the others are what is printed. ::

    python -m tests.support.transcript               writes the document's transcript anew
    python -m tests.support.transcript keys open     that of these parts

Both need root and Linux (namespaces). What differs from run to run (codes, fingerprints, times,
readings) does not count where the document is compared.
"""

from __future__ import annotations

import re
import shlex
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Self

from tests.support.namespaces import Host, Lab
from tests.support.processes import Process
from tests.support.readme import ROOT

__all__ = ["HOSTS", "Block", "Laboratory", "Person", "blocks_of", "comparable", "rewrite"]

DOCUMENT = ROOT / "docs" / "howto-laboratory.md"
#: The machines of the document, in the order of their addresses: 10.231.0.1 and so on.
HOSTS = ("lab-pc", "store", "bench-1", "bench-2", "office", "outsider")

_LIMIT_S = 30.0
_REFUSED = 4
_BLOCK = re.compile(
    r"^<!-- (?P<part>\w+) \| (?P<user>\w+)@(?P<host>[\w-]+)(?: \| (?P<how>[^\n]+))? -->\n"
    r"```console\n(?P<text>.*?)^```$",
    re.M | re.S,
)
_CODE = re.compile(r"\b(?:[0-9A-HJKMNP-TV-Z]{4}-){6}[0-9A-HJKMNP-TV-Z]{4}\b")
#: What differs from run to run; what is compared in its place.
_DIFFERS = (
    (_CODE, "CODE"),
    (re.compile(r"^\w+(-\w+){5}$", re.M), "SIX-WORDS"),
    (re.compile(r"\b[0-9a-f]{16}\b"), "FINGERPRINT"),
    (re.compile(r"(?<!sha256 )\b[0-9a-f]{64}\b"), "HASH"),
    (re.compile(r"\b20\d\d-\d\d-\d\d\b"), "DATE"),
    (re.compile(r"\b\d\d:\d\d:\d\d([.,]\d+)?\b"), "TIME"),
    (re.compile(r"\b\d+(\.\d+)? (ms|s|min)\b"), "DURATION"),
    (re.compile(r"(?<=[a-z]=)-?\d[\d.]*(e-\d+)?\b"), "NUMBER"),
    (re.compile(r"^-?\d+\.\d+$", re.M), "NUMBER"),
    (re.compile(r"\b\d+(\.\d+)? [kM]?B/s"), "SPEED"),
    (re.compile(r"\(\d+\)"), "(PID)"),
    (re.compile(r"[ \t]+"), " "),
)


@dataclass(frozen=True)
class Block:
    """One block of the document; ``how`` is what its mark says after the machine."""

    part: str
    user: str
    host: str
    how: str
    text: str

    @property
    def commands(self) -> list[str]:
        """What is typed."""
        return [line[2:] for line in self.text.splitlines() if line.startswith("$ ")]

    @property
    def until(self) -> str:
        """Of a command that runs on: the line until which its output is shown, as a pattern."""
        return self.how.partition(": ")[2]

    @property
    def later_in(self) -> str:
        """A word of the command whose further output is shown; empty: of none."""
        found = re.match(r"later in (\S+): ", self.how)
        return found[1] if found else ""


def blocks_of(part: str) -> list[Block]:
    """The blocks of a part of the document, in order."""
    return [each for each in _blocks(DOCUMENT.read_text(encoding="utf-8")) if each.part == part]


def _blocks(text: str) -> list[Block]:
    return [_block(each) for each in _BLOCK.finditer(text)]


def _block(found: re.Match[str]) -> Block:
    return Block(found["part"], found["user"], found["host"], found["how"] or "", found["text"])


def comparable(text: str) -> str:
    """The text without what differs from run to run."""
    for pattern, word in _DIFFERS:
        text = pattern.sub(word, text)
    return text.strip()


@dataclass
class Person:
    """Somebody at a machine: a home folder, variables, and commands that run."""

    host: Host
    home: Path
    environ: dict[str, str]
    running: list[Running] = field(default_factory=list)


@dataclass
class Running:
    """A command that goes on: what was typed, and how many of its lines were shown."""

    typed: str
    process: Process
    shown: int = 0

    def shown_until(self, pattern: str) -> str:
        """Its further output up to a line with this pattern, which it waits for."""
        self.process.wait_for(pattern, _LIMIT_S, after=self.shown)
        lines = [each.text for each in self.process.lines]
        first = next(n for n in range(self.shown, len(lines)) if re.search(pattern, lines[n]))
        text = "\n".join(lines[self.shown : first + 1])
        self.shown = first + 1
        return text


class Laboratory:
    """The machines of the document, with nothing on them; a context manager.

    Skips the test where namespaces cannot be made.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.hosts = Lab(HOSTS)
        self._people: dict[tuple[str, str], Person] = {}
        self._code = ""

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            stack.enter_context(self.hosts)
            for name in HOSTS:
                # As most computers have one; by it 'keys invite' finds out its own address.
                self.hosts[name].run("ip", "route", "add", "default", "dev", "eth0")
            commands = self.folder / "bin"
            commands.mkdir()
            (commands / "labmesh").write_text(
                f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m labmesh "$@"\n'
            )
            (commands / "labmesh").chmod(0o755)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def person(self, user: str, host: str) -> Person:
        """Whoever is called so at this machine."""
        if (user, host) not in self._people:
            home = self.folder / host / user
            home.mkdir(parents=True)
            own = {"HOME": str(home), "LOGNAME": user, "USER": user}
            # Below that folder, not where whoever runs this has theirs.
            own |= dict.fromkeys(("XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_STATE_HOME"), "")
            own["PATH"] = f"{self.folder / 'bin'}:/usr/local/bin:/usr/bin:/bin"
            self._people[user, host] = Person(self.hosts[host], home, own)
        return self._people[user, host]

    def type(self, person: Person, line: str) -> Process:
        """Start a command; what it prints is in one stream."""
        return person.host.type(line, cwd=person.home, environ=person.environ)

    def tails(self, *processes: Process) -> str:
        """The last lines of these commands and of those that run on."""
        running = [each.process for person in self._people.values() for each in person.running]
        return "\n".join(each.tail() for each in (*running, *processes))

    def run(self, block: Block) -> Block:
        """Do what a block says; the block with what was printed now.

        Fails the test when a command ends otherwise than the mark says.
        """
        person = self.person(block.user, block.host)
        if block.later_in:
            meant = [each for each in person.running if block.later_in in each.typed.split()]
            return replace(block, text=self._told(meant[-1].shown_until(block.until)))
        text = ""
        for typed in block.commands:
            line = _CODE.sub(self._code, typed)
            text += f"$ {line}\n" + self._typed(person, line, block)
        self._code = next(iter(_CODE.findall(text)), self._code)
        return replace(block, text=text)

    def _typed(self, person: Person, line: str, block: Block) -> str:
        if line.startswith("export "):
            name, _, value = shlex.split(line)[1].partition("=")
            person.environ[name] = value
            return ""
        process = self.type(person, line)
        if block.until:
            person.running.append(Running(line, process))
            return self._told(person.running[-1].shown_until(block.until))
        expected = _REFUSED if block.how == "refused" else 0
        assert process.wait_end(_LIMIT_S) == expected, self.tails(process)
        return self._told(process.output)

    def _told(self, text: str) -> str:
        """With homes where homes are, and tables as wide as they are then."""
        told = re.sub(rf"{re.escape(str(self.folder))}/[\w-]+/", "/home/", text)
        return f"{told if told == text else _aligned(told)}\n" if text else ""


def _aligned(text: str) -> str:
    """The text, with the columns of its table as wide as they must be; no cell is empty."""
    lines = text.splitlines()
    first = next((n for n, line in enumerate(lines) if line.startswith("KIND ")), len(lines))
    rows = [re.split(" {2,}", line) for line in lines[first:]]
    size = next((n for n, row in enumerate(rows) if len(row) != len(rows[0])), len(rows))
    widths = [max(map(len, column)) for column in zip(*rows[:size], strict=True)]
    padded = (
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows[:size]
    )
    return "\n".join([*lines[:first], *padded, *lines[first + size :]])


def rewrite(parts: Sequence[str]) -> None:
    """Write the transcript of these parts anew, as far as each block can be run."""
    for part in parts:
        with tempfile.TemporaryDirectory() as folder, Laboratory(Path(folder)) as laboratory:
            for number, block in enumerate(blocks_of(part)):
                _write(part, number, laboratory.run(block).text)


def _write(part: str, number: int, printed: str) -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    found = [each for each in _BLOCK.finditer(text) if each["part"] == part][number]
    start, end = found.span("text")
    DOCUMENT.write_text(text[:start] + printed + text[end:], encoding="utf-8")


if __name__ == "__main__":
    given = sys.argv[1:]
    rewrite(given or sorted({each.part for each in _blocks(DOCUMENT.read_text(encoding="utf-8"))}))
