"""What callers were told, what a driver ran, and what the two together must never show.

A driver under test writes a line into a :class:`Journal` when it begins a call; the callers' side
is a :class:`History`. Both use this machine's monotonic clock, which all its processes share.
"""

from __future__ import annotations

import math
import os
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Self

from labmesh.errors import DriverError, LabmeshError, OutcomeUnknown

__all__ = ["Execution", "History", "Journal", "Lag", "Operation", "conclude", "note", "twice"]

#: How late after its deadline a call may end.
OVERRUN_S = 0.1

Told = Literal["open", "result", "driver error", "not run", "unknown", "something else"]


@dataclass
class Operation:
    """One call, as its caller sees it."""

    tag: str
    began_at: float
    deadline: float
    ended_at: float = math.inf
    told: Told = "open"
    error: str = ""
    text: str = ""
    value: Any = None

    @property
    def overrun_s(self) -> float:
        """How long after its deadline it ended."""
        return self.ended_at - self.deadline


@dataclass(frozen=True)
class Execution:
    """One call, as the driver saw it."""

    tag: str
    at: float
    pid: int


# ── the driver's side ───────────────────────────────────────────────────────────────────────────


def note(descriptor: int, tag: str) -> None:
    """Write down that a driver begins a call. The line outlives the process, whatever ends it."""
    os.write(descriptor, f"{tag} {time.monotonic()!r} {os.getpid()}\n".encode())


class Journal:
    """The file with what a driver ran; it lies outside of the process that is made to fail."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.touch()
        self._executions: list[Execution] = []
        self._offset = 0

    def open(self) -> int:
        """A descriptor for :func:`note`, for a driver in this process."""
        return os.open(self.path, os.O_WRONLY | os.O_APPEND)

    @property
    def executions(self) -> list[Execution]:
        """All so far."""
        with self.path.open("rb") as file:
            file.seek(self._offset)
            for line in file:
                if not line.endswith(b"\n"):
                    break
                self._offset += len(line)
                tag, at, pid = line.decode().split()
                self._executions.append(Execution(tag, float(at), int(pid)))
        return self._executions

    def count(self, prefix: str) -> int:
        """How many executions have tags that begin so."""
        return sum(each.tag.startswith(prefix) for each in self.executions)


# ── the callers' side ───────────────────────────────────────────────────────────────────────────


class History:
    """The calls of a test; in any thread."""

    def __init__(self, operations: Iterable[Operation] = ()) -> None:
        self.operations = list(operations)

    def begin(self, tag: str, timeout: float) -> Operation:
        """A call begins now."""
        now = time.monotonic()
        operation = Operation(tag, now, now + timeout)
        self.operations.append(operation)
        return operation

    async def watch(self, tag: str, work: Awaitable[Any], timeout: float) -> Operation:
        """Await a call that is to end within ``timeout`` seconds, and note what came of it."""
        operation = self.begin(tag, timeout)
        try:
            _returned(operation, await work)
        except Exception as exc:  # whatever a caller gets is what is looked at
            _raised(operation, exc)
        return operation

    def run(self, tag: str, call: Callable[[], Any], timeout: float) -> Operation:
        """The same for a call that blocks."""
        operation = self.begin(tag, timeout)
        try:
            _returned(operation, call())
        except Exception as exc:  # as above
            _raised(operation, exc)
        return operation

    def told(self) -> dict[str, int]:
        """How many calls ended in which way."""
        return dict(Counter(each.told for each in self.operations))

    def worst_overrun_s(self) -> float:
        """The largest of :attr:`Operation.overrun_s`."""
        return max(each.overrun_s for each in self.operations)

    def as_dicts(self) -> list[dict[str, Any]]:
        """For another process; what ``Operation(**each)`` takes."""
        return [asdict(each) for each in self.operations]

    # ── checks: each gives what violates it ─────────────────────────────────────────────────────

    def not_told(self) -> list[Operation]:
        """Calls that did not end as a result, an error of the driver, not run, or unknown."""
        return [each for each in self.operations if each.told in ("open", "something else")]

    def overrun(self, slack_s: float) -> list[Operation]:
        """Calls that ended more than 100 ms after their deadline, and what the machine added."""
        return [each for each in self.operations if each.overrun_s > OVERRUN_S + slack_s]

    def late(self, executions: Iterable[Execution]) -> list[Execution]:
        """What began after its caller's deadline."""
        deadlines = {each.tag: each.deadline for each in self.operations}
        return [each for each in executions if each.at > deadlines.get(each.tag, math.inf)]

    def falsely_told(self, executions: Iterable[Execution]) -> list[Operation]:
        """Calls that ran and whose callers were told that they did not, or the other way round."""
        ran = {each.tag for each in executions}
        return [
            each
            for each in self.operations
            if (each.told == "not run" and each.tag in ran)
            or (each.told in ("result", "driver error") and each.tag not in ran)
        ]


def twice(executions: Iterable[Execution], harmless: Collection[str] = ()) -> list[str]:
    """Tags that were run more than once, those apart that say that this is harmless."""
    counts = Counter(each.tag for each in executions)
    return [tag for tag, count in counts.items() if count > 1 and tag not in harmless]


def _returned(operation: Operation, value: Any) -> None:
    operation.ended_at = time.monotonic()
    operation.told, operation.value = "result", value


def _raised(operation: Operation, exc: Exception) -> None:
    operation.ended_at = time.monotonic()
    operation.error, operation.text = type(exc).__name__, str(exc)
    if isinstance(exc, DriverError):
        operation.told = "driver error"
    elif isinstance(exc, OutcomeUnknown):
        operation.told = "unknown"
    elif isinstance(exc, LabmeshError) and exc.executed is False:
        operation.told = "not run"
    else:
        operation.told = "something else"


# ── the machine, and the result ─────────────────────────────────────────────────────────────────


class Lag:
    """How late this machine wakes a thread while the block runs, at worst; a context manager.

    What is promised in milliseconds is promised on a machine that has time. This says how much of
    what was measured is the machine's.
    """

    _PAUSE_S = 0.005

    def __init__(self) -> None:
        self.worst_s = 0.0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._measure, name="lag")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _measure(self) -> None:
        while True:
            began = time.monotonic()
            if self._ended.wait(self._PAUSE_S):
                return
            self.worst_s = max(self.worst_s, time.monotonic() - began - self._PAUSE_S)


def conclude(
    row: str,
    faults: object,
    operations: int,
    violations: Mapping[str, Collection[Any]],
    figures: str,
) -> None:
    """Print the line of a test, and fail it if anything was violated.

    :param violations: what must not be → where it was.
    """
    total = sum(map(len, violations.values()))
    print(f"{row}: {faults} / {operations} operations / {total} violations / {figures}")
    found = {
        what: [*[*each][:5], f"... {len(each)} in all"] for what, each in violations.items() if each
    }
    assert not found, found
