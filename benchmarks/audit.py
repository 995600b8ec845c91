"""What the audit journal costs a call that writes: the same calls with and without it, in turns.

    python benchmarks/audit.py --rounds 12 --calls 1500

Docs: docs/decisions/0027-a-journal-whose-lines-hold-each-other.md
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

from harness.candidates import SOURCES
from harness.programs import PEERS, Program

import labmesh

_START_S = 60.0
_KINDS = ("without", "with")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it; the exit code."""
    options = _parser().parse_args(arguments)
    seconds: dict[str, list[float]] = {kind: [] for kind in _KINDS}
    cpu_s: dict[str, float] = dict.fromkeys(_KINDS, 0.0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with ExitStack() as opened:
            meshes = {kind: _mesh(opened, kind, folder) for kind in _KINDS}
            for turn in range(options.rounds):
                for kind in _KINDS if turn % 2 else reversed(_KINDS):
                    relay, supply = meshes[kind]
                    before = relay.cpu_s() or 0.0
                    seconds[kind] += _measured(supply, options.calls)
                    cpu_s[kind] += (relay.cpu_s() or 0.0) - before
        lines = sum(len(each.read_bytes().splitlines()) for each in folder.glob("*.jsonl"))
    count = options.rounds * options.calls
    for kind in _KINDS:
        print(
            f"{kind:8} journal: median {1e6 * statistics.median(seconds[kind]):6.1f} us a call, "
            f"p99 {1e6 * statistics.quantiles(seconds[kind], n=100)[98]:6.1f} us, "
            f"relay's CPU {1e6 * cpu_s[kind] / count:6.1f} us a call"
        )
    print(
        f"{count} calls each; {lines} lines were written, none lost" if lines >= count else "LOST"
    )
    return 0 if lines >= count else 1


def _mesh(opened: ExitStack, kind: str, folder: Path) -> tuple[Program, Any]:
    """A mesh of its own: its relay, and a proxy of that."""
    environ = {**os.environ, "PYTHONPATH": str(SOURCES), "LMH_SECURITY": "open"}
    server = [sys.executable, str(PEERS / "on_labmesh.py")]
    broker = opened.enter_context(closing(Program([*server, "broker"], environ)))
    place = broker.started(_START_S)["address"]
    environ["LMH_AUDIT_DIR"] = str(folder) if kind == "with" else "off"
    relay = opened.enter_context(closing(Program([*server, "serve", place], environ)))
    relay.started(_START_S)
    mesh = opened.enter_context(labmesh.connect(place.split()[0]))
    return relay, mesh["psu-1"]


def _measured(supply: Any, calls: int) -> list[float]:
    took = []
    for number in range(calls):
        began = time.perf_counter()
        supply.set_voltage(number / 1000)
        took.append(time.perf_counter() - began)
    return took


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=12, help="turns of each")
    parser.add_argument("--calls", type=int, default=1500, help="calls in a turn")
    return parser


if __name__ == "__main__":
    sys.exit(main())
