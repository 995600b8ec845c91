"""What one broker carries: many relays that say their state, and clients that watch them.

    python benchmarks/scale.py --relays 100,250,500,1000 --seconds 10

docs/scale.md says what the columns are, and how to read them.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from harness.candidates import SOURCES
from harness.programs import PEERS, PeerFailed, Program
from harness.report import machine, table

_START_S = 60.0
_LOOK_S = 0.2
#: A row of the table: key, heading, how it is written.
_COLUMNS = (
    ("relays", "relays", "{:,.0f}"),
    ("in_per_s", "states/s in", "{:,.0f}"),
    ("out_per_s", "states/s out", "{:,.0f}"),
    ("lost", "lost", "{:,.0f}"),
    ("skipped", "skipped", "{:,.0f}"),
    ("p50_ms", "p50 ms", "{:.1f}"),
    ("p99_ms", "p99 ms", "{:.1f}"),
    ("cpu_percent", "broker CPU %", "{:.1f}"),
    ("cpu_us", "CPU us/message", "{:.1f}"),
    ("memory_mb", "broker MB", "{:.1f}"),
)
#: What the processor time for a message may grow by, from the least to the most relays.
_LINEAR = 1.25

Row = dict[str, float | None]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it; the exit code: 1 when something was lost."""
    options = _parser().parse_args(arguments)
    rows: list[Row] = []
    for count in options.relays:
        print(f"{count} relays", file=sys.stderr)
        try:
            rows.append(_measure(count, options))
        except PeerFailed as exc:
            print(f"{count} relays: {exc}", file=sys.stderr)
            return 1
    print(
        f"Each relay {options.rate:g} states a second for {options.seconds:g} s; one client "
        f"watches all relays, {options.clients} watch {options.each} each."
    )
    print(table([each for _, each, _ in _COLUMNS], map(_cells, rows)))
    print("\n".join(_verdicts(rows)))
    if options.json is not None:
        found = {"machine": machine(), "rate": options.rate, "seconds": options.seconds}
        options.json.write_text(json.dumps({**found, "rows": rows}, indent=1), encoding="utf-8")
    return 1 if any(each["lost"] for each in rows) else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="What one broker carries as relays and clients become more.",
        epilog="docs/scale.md says how to read the table.",
    )
    parser.add_argument(
        "--relays",
        type=lambda text: [int(each) for each in text.split(",")],
        default=[100, 250, 500, 1000],
        metavar="N,...",
        help="so many relays, one run after the other (100,250,500,1000)",
    )
    parser.add_argument("--rate", type=float, default=10.0, help="states a second and relay (10)")
    parser.add_argument("--seconds", type=float, default=10.0, help="of each run (10)")
    parser.add_argument("--clients", type=int, default=19, help="that watch some relays (19)")
    parser.add_argument(
        "--each", type=int, default=50, help="relays that each of them watches (50)"
    )
    parser.add_argument("--processes", type=int, default=2, help="in which the relays are (2)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything to this file")
    return parser


def _measure(count: int, options: argparse.Namespace) -> Row:
    with ExitStack() as running:

        def start(role: str, *arguments: str) -> Program:
            program = Program(
                [sys.executable, str(PEERS / "scale_nodes.py"), role, *arguments], _environ()
            )
            running.callback(program.close)
            return program

        broker = start("broker")
        address = broker.started(_START_S)["address"]
        shares = _shares(count, options.processes)
        relays = [start("relays", f"{address} {first} {some}") for first, some in shares]
        watchers = [start("watch-all", f"{address} {count}")]
        if options.clients:
            some = f"{options.clients} {min(options.each, count)}"
            watchers.append(start("watch-some", f"{address} {count} {some}"))
        for each in (*relays, *watchers):
            each.started(_START_S)
        _until_all_watch(relays, watchers)
        return _run(count, options, broker, relays, watchers)


def _shares(count: int, processes: int) -> list[tuple[int, int]]:
    """The first relay of each process, and how many it has."""
    bounds = [count * each // processes for each in range(processes + 1)]
    return [(first, last - first) for first, last in itertools.pairwise(bounds)]


def _environ() -> dict[str, str]:
    environ = {name: value for name, value in os.environ.items() if not name.startswith("LMH_")}
    return {**environ, "PYTHONPATH": str(SOURCES)}


def _ask(programs: Sequence[Program], order: dict[str, Any], seconds: float) -> list[Any]:
    """All of them at the same time."""
    for each in programs:
        each.send(order)
    return [each.receive(seconds) for each in programs]


def _until_all_watch(relays: Sequence[Program], watchers: Sequence[Program]) -> None:
    """Until every watcher hears every relay that it watches: what is lost from here on counts."""
    deadline = time.monotonic() + _START_S
    mark = 0
    while True:
        mark += 1
        _ask(relays, {"do": "mark", "mark": mark}, _START_S)
        time.sleep(_LOOK_S)
        seen = _ask(watchers, {"do": "look", "mark": mark}, _START_S)
        if all(each["ready"] for each in seen):
            return
        if time.monotonic() > deadline:
            raise PeerFailed("not every client hears every relay that it watches")


def _run(
    count: int,
    options: argparse.Namespace,
    broker: Program,
    relays: Sequence[Program],
    watchers: Sequence[Program],
) -> Row:
    cpu_s, began = broker.cpu_s(), time.monotonic()
    order = {"do": "publish", "rate": options.rate, "seconds": options.seconds}
    published = _ask(relays, order, 3 * options.seconds + _START_S)
    elapsed = time.monotonic() - began
    used_s = None if cpu_s is None else (broker.cpu_s() or 0.0) - cpu_s
    reports = _ask(watchers, {"do": "report", "each": published[0]["each"]}, _START_S)
    states = count * published[0]["each"]
    messages = states + sum(each["expected"] for each in reports)
    publishing_s = max(each["elapsed"] for each in published)
    return {
        "relays": count,
        "in_per_s": states / publishing_s,
        "out_per_s": sum(each["expected"] for each in reports) / publishing_s,
        "refused": sum(each["refused"] for each in published),
        "lost": sum(each["lost"] for each in reports),
        "skipped": sum(each["skipped"] for each in reports),
        "told": sum(each["told"] for each in reports),
        "disorder": sum(each["disorder"] for each in reports),
        "p50_ms": max(each["p50"] for each in reports),
        "p99_ms": max(each["p99"] for each in reports),
        "cpu_percent": None if used_s is None else 100 * used_s / elapsed,
        "cpu_us": None if used_s is None else 1e6 * used_s / messages,
        "memory_mb": broker.memory_mb(),
    }


def _cells(row: Row) -> list[str]:
    return [
        "-" if (figure := row[key]) is None else written.format(figure)
        for key, _, written in _COLUMNS
    ]


def _verdicts(rows: Sequence[Row]) -> list[str]:
    lost = sum(each["lost"] or 0 for each in rows)
    lines = [f"{'met' if not lost else 'not met'}  lost: {lost:,.0f}, wanted: 0"]
    first, last = rows[0]["cpu_us"], rows[-1]["cpu_us"]
    if len(rows) > 1 and first and last:
        growth = last / first
        word = "met" if growth <= _LINEAR else "not met"
        lines.append(
            f"{word}  processor time for a message, {rows[-1]['relays']:,.0f} relays to "
            f"{rows[0]['relays']:,.0f}: x {growth:.2f}, wanted: at most {_LINEAR:g} (linear)"
        )
    return lines


if __name__ == "__main__":
    sys.exit(main())
