"""What commands print: data on stdout, talk on stderr; for people, or as JSON for programs."""

from __future__ import annotations

import io
import os
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pprint import pformat
from typing import IO, Any

from rich.console import Console
from rich.text import Text

from labmesh.protocol.codec import Limits, encode_value

__all__ = ["Output", "PipedConsole", "age", "one_line", "printable", "shown_value", "size"]

#: What is printed was received already: only its decoder's limits hold.
_NO_LIMITS = Limits(
    max_header_bytes=2**40,
    max_value_bytes=2**40,
    max_text_bytes=2**40,
    max_keys=2**31,
    max_containers=2**31,
)
#: A pipe has no width; wide enough never to fold a cell.
_PIPE_COLUMNS = 10_000
_PROGRESS_AFTER_S = 1.0

_CONTROLS = {
    code: f"\\x{code:02x}" for code in (*range(0x20), *range(0x7F, 0xA0)) if chr(code) not in "\n\t"
} | {
    code: f"\\u{code:04x}"
    for code in (0x2028, 0x2029, *range(0x202A, 0x202F), *range(0x2066, 0x206A))
}


class Output:
    """Prints for one command.

    :param json: for programs: only :meth:`record` prints on stdout.
    :param quiet: no talk on stderr but errors.
    """

    def __init__(self, *, json: bool = False, quiet: bool = False) -> None:
        self.json = json
        self._quiet = quiet
        self._stdout = _console(sys.stdout)
        self._stderr = _console(sys.stderr)

    # ── data, on stdout ─────────────────────────────────────────────────────────────────────────

    def record(self, value: object) -> None:
        """One value as one line of JSON. What JSON lacks is written as on the wire."""
        self._write(encode_value(value, json=True, limits=_NO_LIMITS).decode())

    def line(self, text: str = "", style: str | None = None) -> None:
        """A line for people; nothing with ``--json``."""
        if not self.json:
            self._print(self._stdout, printable(text), style)

    def text(self, text: str) -> None:
        """Lines as they are; nothing with ``--json``."""
        if not self.json:
            self._write(text.rstrip("\n"))

    def table(self, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
        """A table for people; nothing with ``--json``."""
        if self.json:
            return
        from rich.table import Table

        table = Table(box=None, pad_edge=False, header_style="bold", show_edge=False)
        for column in columns:
            table.add_column(column, overflow="fold")
        for row in rows:
            table.add_row(*(Text(one_line(cell)) for cell in row))
        with self._stdout.capture() as captured:
            self._stdout.print(table)
        for line in captured.get().splitlines():
            self._write(line.rstrip())

    def _write(self, line: str) -> None:
        # Each line at once: whoever reads a pipe waits for it.
        print(line, flush=True)

    # ── talk, on stderr ─────────────────────────────────────────────────────────────────────────

    def say(self, text: str, style: str | None = None) -> None:
        """Something by the way, for people; nothing with ``--json`` or ``--quiet``."""
        if not self._quiet and not self.json:
            self._print(self._stderr, printable(text), style)

    def trouble(self, text: str) -> None:
        """Something that went wrong; always printed."""
        self._print(self._stderr, printable(text), None)

    def error(self, text: str, advice: str, *, exit_code: int, **facts: Any) -> None:
        """Why the command ends, and what to try; with ``--json`` one object on stderr."""
        if self.json:
            told = {"error": {"text": text, "try": advice, "exit_code": exit_code, **facts}}
            line = encode_value(told, json=True, limits=_NO_LIMITS).decode()
            print(line, file=sys.stderr, flush=True)
            return
        message = Text.assemble(("error: ", "bold red"), printable(text))
        message.append(f"\n  try: {advice}")
        self._stderr.print(message, soft_wrap=True, highlight=False)

    @contextmanager
    def progress(self, what: str) -> Iterator[TransferProgress]:
        """A bar for a transfer that takes longer than a second, on a terminal only."""
        shows = self._stderr.is_terminal and not self._quiet and not self.json
        transfer = TransferProgress(self._stderr if shows else None, what)
        try:
            yield transfer
        finally:
            transfer.close()

    def _print(self, console: Console, text: str, style: str | None) -> None:
        console.print(Text(text, style or ""), soft_wrap=True, highlight=False)
        console.file.flush()


class TransferProgress:
    """Callable as ``progress(done_bytes, size_or_None)``.

    :param console: None: nothing is shown.
    :param after_s: seconds that a transfer may take without a bar.
    """

    def __init__(
        self, console: Console | None, what: str, *, after_s: float = _PROGRESS_AFTER_S
    ) -> None:
        self._console = console
        self._after_s = after_s
        self._what = one_line(what)
        self._began = time.monotonic()
        self._bar: Any = None
        self._task: Any = None
        #: bytes that it began with: what an earlier attempt had left is not of this one's speed
        self.first = 0
        self._called = False

    @property
    def elapsed_s(self) -> float:
        """Seconds since the transfer began."""
        return time.monotonic() - self._began

    def __call__(self, done: int, total: int | None) -> None:
        if not self._called:
            self._called, self.first = True, done
        if self._console is None or self.elapsed_s < self._after_s:
            return
        if self._bar is None:
            self._bar = self._start(self._console)
            self._task = self._bar.add_task(self._what, total=total, completed=self.first)
        self._bar.update(self._task, completed=done, total=total)

    def close(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.stop()

    def _start(self, console: Console) -> Any:
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
            TransferSpeedColumn,
        )

        bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            console=console,
            transient=True,
        )
        bar.start()
        return bar


class PipedConsole(Console):
    """A console that leaves it to its caller what a closed pipe means."""

    def on_broken_pipe(self) -> None:
        # Instead of an exit of its own with code 1: this is no failure, and others want to close.
        raise BrokenPipeError


def _console(stream: IO[str]) -> Console:
    """A console that is coloured on a terminal only, and not where NO_COLOR is set."""
    on_terminal = stream.isatty()
    return PipedConsole(
        file=stream,
        force_terminal=on_terminal,
        no_color=True if os.environ.get("NO_COLOR") else None,
        width=None if on_terminal else _PIPE_COLUMNS,
        markup=False,
        emoji=False,
        highlight=False,
    )


def never_fail_to_encode() -> None:
    """What a terminal's encoding lacks is escaped, instead of ending the program."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


# ── wording ─────────────────────────────────────────────────────────────────────────────────────


def printable(text: str) -> str:
    """The text with control characters escaped: what others sent must not steer a terminal."""
    return text.translate(_CONTROLS)


def one_line(text: str) -> str:
    """:func:`printable`, on one line."""
    return printable(" ".join(text.split()))


def shown_value(value: object) -> str:
    """A value as people read it: text as it is, the rest as Python writes it."""
    if isinstance(value, str):
        return printable(value)
    return printable(pformat(value, sort_dicts=False, width=100))


def shown_state(state: object) -> str:
    """A state on one line: ``voltage=2.5 output=True``."""
    if not isinstance(state, dict):
        return one_line(_brief(state))
    return one_line(" ".join(f"{name}={_brief(value)}" for name, value in state.items()))


def _brief(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    shape = getattr(value, "shape", None)
    if isinstance(shape, tuple) and shape:
        return f"<{getattr(value, 'dtype', 'array')} {'x'.join(map(str, shape))}>"
    if isinstance(value, bytes):
        return f"<{len(value)} bytes>"
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def size(count: int | None) -> str:
    """Bytes as people say them: ``5.0 MB``."""
    if count is None:
        return "?"
    amount, unit = float(count), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if amount < 1000:
            break
        amount, unit = amount / 1000, larger
    return f"{count} B" if unit == "B" else f"{amount:.1f} {unit}"


def age(seconds: float | None) -> str:
    """A duration as people say it: ``3.2 s``, ``5 min``, ``2 h``, ``3 d``."""
    if seconds is None:
        return "never"
    if seconds < 0.0995:
        return f"{max(0.0, seconds) * 1000:.0f} ms"
    for limit, unit_s, unit in ((60, 1, "s"), (3600, 60, "min"), (172_800, 3600, "h")):
        if seconds < limit:
            amount = seconds / unit_s
            return (
                f"{amount:.1f} {unit}"
                if amount < 9.95 and unit != "min"
                else f"{amount:.0f} {unit}"
            )
    return f"{seconds / 86_400:.0f} d"
