"""What is printed, and what is written as JSON."""

from __future__ import annotations

import os
import platform
import subprocess
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from harness.candidates import Candidate, Measurement
from harness.rounds import Results
from harness.suite import Pace

__all__ = ["document", "machine", "table", "text"]


def text(results: Results, pace: Pace) -> str:
    """The tables and the targets, for people."""
    rows = [each for each in results.candidates if each.name in results.rounds]
    parts = [
        f"Medians of {pace.rounds} rounds. {_machine_line()}",
        table(_headings(results.measurements), [_absolute(each, results) for each in rows]),
    ]
    suite = results.suite
    if suite.base in results.rounds:
        parts.append(f"As ratios to {suite.base} (times: less is better; /s: more is better)")
        parts.append(_ratios(rows, results, [suite.base]))
    if any(each in results.rounds for each in suite.ours):
        parts.append("As ratios to labmesh (in each column, to the better one of its clients)")
        parts.append(_ratios(rows, results, suite.ours))
    parts.append("Targets\n" + "\n".join(f"  {each}" for each in results.suite.verdicts(results)))
    if results.failures:
        left_out = [f"  {name}: {reason}" for name, reason in results.failures.items()]
        parts.append("Left out\n" + "\n".join(left_out))
    return "\n\n".join(parts)


def document(results: Results, pace: Pace) -> dict[str, Any]:
    """Everything: figures, rounds, versions, machine."""
    return {
        "made_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "machine": machine(),
        "pace": asdict(pace),
        "versions": results.versions,
        "medians": {
            candidate: {
                measurement: {key: results.figure(candidate, measurement, key) for key in rounds[0]}
                for measurement, rounds in measured.items()
            }
            for candidate, measured in results.rounds.items()
        },
        "targets": [asdict(each) for each in results.suite.verdicts(results)],
        "left_out": results.failures,
        "rounds": results.rounds,
    }


# ── tables ──────────────────────────────────────────────────────────────────────────────────────


def _headings(measurements: Sequence[Measurement]) -> list[str]:
    titles = [""]
    for each in measurements:
        titles.append(f"{each.title} {each.unit}")
        titles.extend(heading for _, heading in each.beside)
    return titles


def _absolute(candidate: Candidate, results: Results) -> list[str]:
    cells = [candidate.title]
    for each in results.measurements:
        cells.append(_number(results.figure(candidate.name, each.name, each.figure)))
        for key, _ in each.beside:
            cells.append(_number(results.figure(candidate.name, each.name, key)))
    return cells


def _ratios(rows: Sequence[Candidate], results: Results, bases: Sequence[str]) -> str:
    lines = [
        [row.title, *(_ratio(row.name, each, results, bases) for each in results.measurements)]
        for row in rows
    ]
    return table(["", *(f"{each.title} x" for each in results.measurements)], lines)


def _ratio(name: str, measurement: Measurement, results: Results, bases: Sequence[str]) -> str:
    figure = results.main_figure(name, measurement.name)
    found = [
        base for each in bases if (base := results.main_figure(each, measurement.name)) is not None
    ]
    if figure is None or not found:
        return "-"
    base = max(found) if measurement.more_is_better else min(found)
    return f"{figure / base:.2f}"


def _number(figure: float | None) -> str:
    if figure is None:
        return "-"
    return f"{figure:,.0f}" if figure >= 20 else f"{figure:.2f}"


def table(headings: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    rows = [headings, *lines]
    widths = [max(len(row[column]) for row in rows) for column in range(len(headings))]
    return "\n".join(
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows
    )


# ── the machine ─────────────────────────────────────────────────────────────────────────────────


def machine() -> dict[str, Any]:
    return {
        "python": platform.python_version(),
        "system": platform.platform(),
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "commit": _commit(),
    }


def _machine_line() -> str:
    found = machine()
    return f"{found['cores']} cores ({found['cpu']}), Python {found['python']}, loopback TCP."


def _cpu() -> str:
    listing = Path("/proc/cpuinfo")
    if listing.exists():
        for line in listing.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _commit() -> str | None:
    """The commit of these sources, with a + if something was changed since; None without git."""
    command = ["git", "describe", "--always", "--dirty=+"]
    try:
        said = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True)
    except OSError:
        return None
    return said.stdout.strip() or None
