"""Processes of a mesh: started, watched line by line, killed, stopped, and gone at the end."""

from __future__ import annotations

import os
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Self, TypeVar

import pytest

import labmesh

T = TypeVar("T")

#: The folder of the specification's programs and their labmesh.toml.
SPECIFICATION = "LABMESH_SPECIFICATION"

_PROGRAMS = Path(__file__).parent / "programs"
_SOURCES = Path(labmesh.__file__).parents[1]
_TAIL_LINES = 40
# The loop's, the I/O thread's and the reaper thread's.
_POLLERS = 3
_LOOK_AGAIN_S = 0.02
# Below the range from which systems take the local ports of outgoing connections: a program that
# connects again and again to a port inside it can, on one machine, end up connected to itself.
_PORTS = range(15_000, 32_000)
#: Given out by now: some are taken only later, and two tests at a time must not have the same.
_given: set[int] = set()


@dataclass(frozen=True)
class Line:
    """One line of output: when it came (monotonic seconds), from which stream, its text."""

    time: float
    stream: str
    text: str


class Process:
    """A Python program in a process of its own; use it as a context manager.

    :param arguments: what follows the interpreter on the command line.
    :param cwd: the folder that it runs in.
    :param environ: variables on top of this process's, which are passed on without ``LMH_*``.
    """

    def __init__(
        self,
        arguments: Sequence[str | os.PathLike[str]],
        *,
        cwd: str | os.PathLike[str],
        environ: Mapping[str, str] | None = None,
    ) -> None:
        self._command = [sys.executable, *(os.fspath(each) for each in arguments)]
        self.name = " ".join(
            [Path(self._command[1]).name, *(each[:60] for each in self._command[2:4])]
        )
        self._cwd = cwd
        self._environ = environment(environ)
        self._changed = threading.Condition()
        self._open_streams = 2
        self.lines: list[Line] = []
        self.started_at = 0.0

    def __enter__(self) -> Self:
        self.started_at = time.monotonic()
        self._popen = subprocess.Popen(
            self._command,
            cwd=self._cwd,
            env=self._environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            errors="replace",
        )
        assert self._popen.stdout is not None
        assert self._popen.stderr is not None
        self._readers = [
            threading.Thread(target=self._read, args=each, daemon=True)
            for each in ((self._popen.stdout, "out"), (self._popen.stderr, "err"))
        ]
        for each in self._readers:
            each.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._popen.poll() is None:
            self._popen.kill()
        self._popen.wait()
        for each in self._readers:
            each.join()

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._popen.pid

    @property
    def exit_code(self) -> int | None:
        """As of subprocess: negative for a signal, None while it runs."""
        return self._popen.poll()

    @property
    def output(self) -> str:
        """What it wrote to stdout so far."""
        return self._written("out")

    @property
    def errors(self) -> str:
        """What it wrote to stderr so far."""
        return self._written("err")

    def _written(self, stream: str) -> str:
        return "\n".join(each.text for each in list(self.lines) if each.stream == stream)

    def tail(self) -> str:
        """Its last lines, for people."""
        lines = list(self.lines)
        shown = [
            f"  {each.time - self.started_at:7.3f} {each.stream} {each.text}"
            for each in lines[-_TAIL_LINES:]
        ]
        head = f"── {self.name} (pid {self.pid}, exit {self.exit_code}, {len(lines)} lines)"
        return "\n".join([head, *shown])

    def wait_for(self, pattern: str, timeout: float, *, after: int = 0) -> re.Match[str]:
        """The first line from number ``after`` on in which the pattern is found.

        Fails the test at the timeout, or when the program ends without such a line.
        """
        return self._wait(
            lambda: next(
                (
                    found
                    for each in self.lines[after:]
                    if (found := re.search(pattern, each.text)) is not None
                ),
                None,
            ),
            timeout,
            f"no line with {pattern!r}",
        )

    def wait_until(self, enough: Callable[[list[Line]], bool], timeout: float, what: str) -> None:
        """Wait until the lines so far are ``enough``; fails as :meth:`wait_for` does."""
        self._wait(lambda: enough(self.lines) or None, timeout, what)

    def wait_end(self, timeout: float) -> int:
        """Its exit code; fails the test if it does not end in time."""
        try:
            code = self._popen.wait(timeout)
        except subprocess.TimeoutExpired:
            pytest.fail(f"{self.name} did not end within {timeout:g} s\n{self.tail()}")
        for each in self._readers:
            each.join()
        return code

    def wait_begun(self, timeout: float) -> None:
        """Wait until its event loop and the threads of its ZeroMQ context run.

        Each of those polls an epoll descriptor. Systems without ``/proc`` cannot tell; there it
        returns at once.
        """
        if not Path("/proc/self/fd").is_dir():
            return
        deadline = time.monotonic() + timeout
        while _pollers(self.pid) < _POLLERS:
            if self.exit_code is not None or time.monotonic() > deadline:
                pytest.fail(f"{self.name} did not begin within {timeout:g} s\n{self.tail()}")
            with self._changed:
                self._changed.wait(_LOOK_AGAIN_S)

    def kill9(self) -> None:
        """End it as a crash does, and wait until it is gone."""
        self._popen.kill()
        self._popen.wait()

    def terminate(self) -> None:
        """Ask it to end (SIGTERM)."""
        self._popen.terminate()

    def interrupt(self) -> None:
        """What Ctrl-C does (SIGINT)."""
        self._popen.send_signal(signal.SIGINT)

    def stop(self) -> None:
        """Freeze it (SIGSTOP)."""
        self._popen.send_signal(signal.SIGSTOP)

    def cont(self) -> None:
        """Let it go on (SIGCONT)."""
        self._popen.send_signal(signal.SIGCONT)

    def _wait(self, look: Callable[[], T | None], timeout: float, what: str) -> T:
        deadline = time.monotonic() + timeout
        with self._changed:
            while (found := look()) is None:
                left_s = deadline - time.monotonic()
                if self._open_streams == 0 or left_s <= 0:
                    why = "before it ended" if self._open_streams == 0 else f"in {timeout:g} s"
                    pytest.fail(f"{self.name}: {what} {why}\n{self.tail()}")
                self._changed.wait(left_s)
        return found

    def _read(self, stream: IO[str], name: str) -> None:
        with stream:
            for text in stream:
                with self._changed:
                    self.lines.append(Line(time.monotonic(), name, text.rstrip("\n")))
                    self._changed.notify_all()
        with self._changed:
            self._open_streams -= 1
            self._changed.notify_all()


#: How a test starts a process that ends with it: the arguments of :class:`Process`.
Start = Callable[..., Process]


def environment(more: Mapping[str, str] | None = None) -> dict[str, str]:
    """The variables of a child: no settings of labmesh but those in ``more``; output unbuffered."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("LMH_")}
    path = os.pathsep.join(filter(None, [str(_SOURCES), kept.get("PYTHONPATH")]))
    return {**kept, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1", **(more or {})}


def program(name: str) -> Path:
    """A program of this folder."""
    return _PROGRAMS / name


def specification_folder() -> Path:
    """Where the specification's programs are; skips the test when nobody says."""
    folder = os.environ.get(SPECIFICATION)
    if not folder:
        pytest.skip(f"{SPECIFICATION} does not name the folder of the specification's programs")
    return Path(folder).resolve(strict=True)


def specification_toml(into: Path) -> Path:
    """The specification's labmesh.toml, written into a folder with free ports in place of its own.

    Nothing else is changed.
    """
    text = (specification_folder() / "labmesh.toml").read_text(encoding="utf-8")
    named = sorted(set(re.findall(r'tcp://[^":]+:(\d+)"', text)))
    fresh = dict(zip(named, free_ports(len(named)), strict=True))
    path = into / "labmesh.toml"
    path.write_text(
        re.sub(r'(tcp://[^":]+:)(\d+)"', lambda found: f'{found[1]}{fresh[found[2]]}"', text),
        encoding="utf-8",
    )
    return path


def free_ports(count: int) -> list[int]:
    """So many ports of this machine that nobody listens at, and nobody here was given before."""
    # Each worker of pytest-xdist has ports of its own.
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    own = _PORTS[worker :: int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))]
    if len(_given) > len(own) // 2:
        _given.clear()
    ports: list[int] = []
    chance = random.SystemRandom()
    while len(ports) < count:
        port = chance.choice(own)
        if port not in _given and _is_free(port):
            _given.add(port)
            ports.append(port)
    return ports


def _is_free(port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        try:
            probe.bind(("", port))
        except OSError:
            return False
    return True


def _pollers(pid: int) -> int:
    """How many epoll descriptors a process has."""
    found = 0
    try:
        for each in Path(f"/proc/{pid}/fd").iterdir():
            found += os.readlink(each) == "anon_inode:[eventpoll]"
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        # It has just ended, or has just closed one.
        return 0
    return found
