"""The processes of a candidate: started, asked line by line, and gone at the end."""

from __future__ import annotations

import json
import os
import queue
import subprocess
import tempfile
import threading
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import IO, Any, Self

from harness.candidates import Candidate
from harness.key_folder import KeysFailed, made_keys

__all__ = ["PEERS", "PeerFailed", "Program", "Programs"]

#: Where the programs are.
PEERS = Path(__file__).parents[1] / "peers"
_START_S = 60.0
_END_S = 10.0
_LAST_WORDS_S = 1.0


class PeerFailed(Exception):
    """A candidate did not start, ended, or does not answer; the text says why."""


class Program:
    """One process that writes lines of JSON, and ends when its stdin is closed.

    It has a session of its own: Ctrl-C reaches the benchmark alone, which then ends it.
    """

    def __init__(self, command: Sequence[str], environ: dict[str, str]) -> None:
        self.name = " ".join(Path(each).name for each in command[-3:])
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 -- closed by close()
        self._lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._start_bytes = 0
        self._popen = subprocess.Popen(
            command,
            env=environ,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def send(self, line: dict[str, Any]) -> None:
        """Write one line to its stdin."""
        assert self._popen.stdin is not None
        try:
            self._popen.stdin.write(json.dumps(line) + "\n")
            self._popen.stdin.flush()
        except OSError as exc:
            raise self._failed("has ended") from exc

    def receive(self, timeout_s: float) -> dict[str, Any]:
        """The next line of its stdout.

        :raises PeerFailed: there was none in time, or the process has ended.
        """
        try:
            line = self._lines.get(timeout=timeout_s)
        except queue.Empty:
            raise self._failed(f"did not answer for {timeout_s:g} s") from None
        if not line:
            raise self._failed("has ended")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def started(self, timeout_s: float) -> dict[str, Any]:
        """Its first line: it is ready."""
        line = self.receive(timeout_s)
        self._start_bytes = self._memory("VmRSS")
        return line

    def memory_mb(self) -> float | None:
        """MB that it has in memory; None where nobody knows."""
        return self._memory("VmRSS") / 1e6 or None

    def cpu_s(self) -> float | None:
        """Seconds of processor time that it has used; None where nobody knows."""
        try:
            stat = Path(f"/proc/{self._popen.pid}/stat").read_text(encoding="ascii")
        except OSError:
            return None
        # Its name, in brackets, may have spaces in it.
        fields = stat.rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def grown_mb(self) -> float | None:
        """MB that its peak is above what it had when it was ready; None where nobody knows."""
        peak = self._memory("VmHWM")
        return None if not peak or not self._start_bytes else (peak - self._start_bytes) / 1e6

    def _memory(self, field: str) -> int:
        """Bytes, as the system (Linux) counts them; 0 elsewhere, and for what has ended."""
        try:
            status = Path(f"/proc/{self._popen.pid}/status").read_text(encoding="ascii")
        except OSError:
            return 0
        found = [line.split()[1] for line in status.splitlines() if line.startswith(field)]
        return int(found[0]) * 1024 if found else 0

    def close(self) -> None:
        """End it, gently for 10 s."""
        assert self._popen.stdin is not None
        # It may have ended before it had read the last line.
        with suppress(BrokenPipeError):
            self._popen.stdin.close()
        try:
            self._popen.wait(_END_S)
        except subprocess.TimeoutExpired:
            self._popen.kill()
            self._popen.wait()
        self._reader.join()
        self._errors.close()

    def _read(self) -> None:
        assert self._popen.stdout is not None
        with self._popen.stdout as lines:
            for each in lines:
                # A profiler that it runs under talks on stdout, too.
                if each.startswith("{"):
                    self._lines.put(each)
        self._lines.put("")

    def last_words(self) -> str:
        """The last line that it wrote to stderr."""
        self._errors.seek(0)
        said = self._errors.read().decode(errors="replace").strip().splitlines()
        return said[-1] if said else ""

    def _failed(self, what: str) -> PeerFailed:
        # What it wrote before it ended is complete only after that.
        with suppress(subprocess.TimeoutExpired):
            self._popen.wait(_LAST_WORDS_S)
        return PeerFailed(f"{self.name} {what}: {self.last_words() or 'it said nothing'}")


class Programs:
    """The servers and the client of one candidate, connected; use it as a context manager.

    :param python: the interpreter of its environment.
    :param wrapper: what stands in front of a command, by the role that the command runs.
    """

    def __init__(
        self, candidate: Candidate, python: str, wrapper: dict[str, list[str]] | None = None
    ) -> None:
        self.candidate = candidate
        self._python = python
        self._wrapper = wrapper or {}
        self._running = ExitStack()
        self._servers: list[Program] = []
        #: of labmesh
        self._settings: dict[str, str] = {}
        #: of the distributions that the client uses
        self.versions: dict[str, str] = {}

    def __enter__(self) -> Self:
        with ExitStack() as running:
            self._start(running)
            self._running = running.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._running.close()

    def measure(self, order: dict[str, Any]) -> dict[str, float]:
        """Let the client measure; its figures.

        :raises PeerFailed: it broke down.
        """
        try:
            self._client.send(order)
            figures: dict[str, float] = self._client.receive(order["seconds"] + _START_S)
        except PeerFailed as exc:
            said = [
                f"{each.name}: {words}" for each in self._servers if (words := each.last_words())
            ]
            raise PeerFailed(" | ".join([str(exc), *said])) from exc
        return {**figures, **self._memory()}

    def _memory(self) -> dict[str, float]:
        """By how much each process has grown at most: the client, and the last server, which does
        the work.
        """
        roles = {"client_mb": self._client}
        if self._servers:
            roles["server_mb"] = self._servers[-1]
        found = {key: each.grown_mb() for key, each in roles.items()}
        return {key: grown for key, grown in found.items() if grown is not None}

    def _start(self, running: ExitStack) -> None:
        self._settings = self._secured(running)
        addresses: list[str] = []
        for role in self.candidate.servers:
            server = self._program(running, role, addresses[-1:])
            self._servers.append(server)
            addresses.append(server.started(_START_S)["address"])
        self._client = self._program(running, self.candidate.client, addresses[-1:])
        self.versions = self._client.started(_START_S)["versions"]

    def _program(self, running: ExitStack, role: str, arguments: list[str]) -> Program:
        script = str(PEERS / self.candidate.program)
        command = [*self._wrapper.get(role, []), self._python, script, role, *arguments]
        try:
            program = Program(command, self._environ())
        except OSError as exc:
            raise PeerFailed(f"{command[0]} cannot be run: {exc.strerror}") from exc
        running.callback(program.close)
        return program

    def _secured(self, running: ExitStack) -> dict[str, str]:
        """The settings by which the nodes of a labmesh are secured."""
        match self.candidate.security:
            case "open":
                return {}
            case "password":
                return {"LMH_NETWORK_PASSWORD": "the word of a benchmark"}
            case kind:
                folder = running.enter_context(tempfile.TemporaryDirectory(prefix="labmesh-keys-"))
                audit = str(Path(folder, "audit")) if kind == "audit" else "off"
                settings = {
                    "LMH_SECURITY": "keys",
                    "LMH_KEYS_DIR": str(Path(folder, "keys")),
                    "LMH_AUDIT_DIR": audit,
                }
                try:
                    made_keys(self._python, {**self._environ(), **settings})
                except KeysFailed as exc:
                    raise PeerFailed(str(exc)) from exc
                return settings

    def _environ(self) -> dict[str, str]:
        """No settings of labmesh but the candidate's; its sources only for what measures them."""
        environ = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith("LMH_") and name != "PYTHONPATH"
        }
        if self.candidate.sources is not None:
            environ["PYTHONPATH"] = str(self.candidate.sources)
        return {**environ, **self._settings}
