"""Where the time goes: servers and clients under py-spy, and the functions that it found most.

Only threads that hold the interpreter's lock are counted: what waits, for a socket or for another
thread, costs nothing. Processes are not paused for a sample, which would slow them down many times;
so a few samples are blurred.
"""

from __future__ import annotations

import shutil
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

from harness.candidates import Candidate
from harness.rounds import Results

__all__ = ["prepare", "summary", "wrappers"]

_SAMPLES_PER_S = 500
#: Frames of a program that is still starting.
_IMPORTING = "<frozen importlib"
_LISTED = 15


def prepare(folder: Path) -> None:
    """Make the folder, and look for py-spy.

    :raises FileNotFoundError: there is no py-spy.
    """
    if _py_spy() is None:
        raise FileNotFoundError("--profile needs py-spy: pip install py-spy")
    folder.mkdir(parents=True, exist_ok=True)


def wrappers(candidate: Candidate, folder: Path) -> dict[str, list[str]]:
    """What stands in front of the commands of a candidate's roles: py-spy, for all but brokers."""
    return {
        role: [
            _py_spy() or "py-spy",
            *("record", "--format", "raw", "--threads", "--function", "--gil", "--nonblocking"),
            *("--rate", str(_SAMPLES_PER_S), "--output", str(_path(candidate, role, folder))),
            "--",
        ]
        for role in (candidate.servers[-1], candidate.client)
    }


def summary(results: Results, folder: Path) -> str:
    """By process and thread: in which functions it was found most often; imports do not count.

    A sample counts for the innermost function (`self`), and for all that had called it (`all`).
    """
    parts: list[str] = []
    for candidate in results.candidates:
        for role in (candidate.servers[-1], candidate.client):
            path = _path(candidate, role, folder)
            if candidate.name in results.rounds and path.exists():
                parts.append(f"\n{candidate.name}, {role} ({path})")
                parts.extend(_process(path))
    return "\n".join(parts)


def _process(path: Path) -> Iterator[str]:
    own: defaultdict[str, Counter[str]] = defaultdict(Counter)
    whole: defaultdict[str, Counter[str]] = defaultdict(Counter)
    total = 0
    for line in path.read_text(encoding="utf-8").splitlines():
        stack, _, times = line.rpartition(" ")
        if _IMPORTING in stack:
            continue
        thread, *frames = stack.split(";")
        total += int(times)
        if frames:
            own[thread][frames[-1]] += int(times)
            whole[thread].update(dict.fromkeys(set(frames), int(times)))
    for thread, found in sorted(own.items(), key=lambda each: -each[1].total()):
        if found.total() < total / 50:
            continue
        yield f"  {thread}: {found.total() / total:.0%} of the samples of this process"
        for function, count in found.most_common(_LISTED):
            all_in = whole[thread][function]
            yield f"    {count / total:6.1%} self {all_in / total:6.1%} all  {function}"


def _path(candidate: Candidate, role: str, folder: Path) -> Path:
    return folder / f"{candidate.name}-{role}.txt"


def _py_spy() -> str | None:
    """Beside this Python, or on the path."""
    return shutil.which("py-spy", path=str(Path(sys.executable).parent)) or shutil.which("py-spy")
