"""A program at a terminal of its own: what it shows, and what is typed into it."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

import pytest
from tests.support.processes import environment

_COLUMNS = "100"


class Terminal:
    """A Python program whose stdout and stderr are a terminal; use it as a context manager.

    :param arguments: what follows the interpreter on the command line.
    :param piped: its stdin is a pipe (:attr:`stdin`), not the terminal.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        *,
        cwd: Path,
        environ: Mapping[str, str] | None = None,
        piped: bool = False,
    ) -> None:
        self._command = [sys.executable, *arguments]
        self._cwd = cwd
        self._environ = environment({"TERM": "xterm", "COLUMNS": _COLUMNS, **(environ or {})})
        self._piped = piped
        self._changed = threading.Condition()
        self.text = ""

    def __enter__(self) -> Self:
        self._near, far = pty.openpty()
        self._process = subprocess.Popen(
            self._command,
            cwd=self._cwd,
            env=self._environ,
            stdin=subprocess.PIPE if self._piped else far,
            stdout=far,
            stderr=far,
            start_new_session=True,
        )
        os.close(far)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        if self._process.stdin is not None:
            self._process.stdin.close()
        self._reader.join()
        os.close(self._near)

    def shows(self, pattern: str) -> bool:
        """Is this on the screen, or was it?"""
        with self._changed:
            return re.search(pattern, self.text) is not None

    def wait_for(self, pattern: str, timeout: float) -> None:
        """Wait until this is shown; fails the test at the timeout."""
        deadline = time.monotonic() + timeout
        with self._changed:
            while re.search(pattern, self.text) is None:
                left_s = deadline - time.monotonic()
                if left_s <= 0:
                    pytest.fail(f"no {pattern!r} within {timeout:g} s:\n{self.text}")
                self._changed.wait(left_s)

    def type(self, line: str) -> None:
        """Type a line and press return."""
        os.write(self._near, line.encode() + b"\n")

    def feed(self, piece: bytes) -> None:
        """Write into its pipe."""
        assert self._process.stdin is not None
        self._process.stdin.write(piece)
        self._process.stdin.flush()

    def end_of_input(self) -> None:
        """Close its pipe."""
        assert self._process.stdin is not None
        self._process.stdin.close()

    def wait_end(self, timeout: float) -> int:
        """Its exit code; fails the test if it does not end in time."""
        try:
            code = self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            pytest.fail(f"it did not end within {timeout:g} s:\n{self.text}")
        self._reader.join()
        return code

    def _read(self) -> None:
        while True:
            try:
                piece = os.read(self._near, 65_536)
            except OSError:  # Linux says so when the program has ended
                return
            if not piece:
                return
            with self._changed:
                self.text += piece.decode("utf-8", "replace")
                self._changed.notify_all()
