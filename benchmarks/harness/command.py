"""The command line that every benchmark has."""

from __future__ import annotations

import argparse
import json
import signal
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import FrameType

from harness.candidates import Candidate, Measurement, chosen, with_baseline
from harness.environments import Environments, default_folder
from harness.profiling import prepare, summary, wrappers
from harness.programs import Programs
from harness.report import document, text
from harness.rounds import Results, Start, run
from harness.suite import Pace, Suite

__all__ = ["main"]


def main(suite: Suite, arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; the exit code."""
    parser = _parser(suite)
    options = parser.parse_args(arguments)
    if options.list:
        print("\n".join(f"{each.name:<18} {each.title}" for each in suite.candidates))
        return 0
    try:
        candidates = chosen(suite.candidates, options.only)
        if options.profile is not None:
            prepare(options.profile)
    except (ValueError, OSError) as exc:
        parser.error(str(exc))
    if options.baseline is not None:
        candidates = with_baseline(candidates, options.baseline)
    measurements = list(suite.measurements)
    if options.measure is not None:
        every = [*suite.measurements, *suite.on_demand]
        measurements = [each for each in every if each.name in options.measure]
    pace = _pace(suite, options)
    environments = Environments(options.env)

    def start(candidate: Candidate) -> Programs:
        wrapper = {} if options.profile is None else wrappers(candidate, options.profile)
        return Programs(candidate, environments.python(candidate), wrapper)

    # Also where Ctrl-C is switched off by default, as behind a & of a shell.
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, _interrupt)
    try:
        results = _run_parts(suite, candidates, measurements, options, start)
    except KeyboardInterrupt:
        print("interrupted: all processes were ended, there are no results", file=sys.stderr)
        return 130
    print(text(results, pace))
    if options.profile is not None:
        print("\nMeasured under py-spy, which slows things down: the figures above are of no use.")
        print(summary(results, options.profile))
    if options.json is not None:
        options.json.write_text(json.dumps(document(results, pace), indent=1), encoding="utf-8")
    return 0 if results.rounds else 1


def _pace(suite: Suite, options: argparse.Namespace) -> Pace:
    usual = suite.quick if options.quick else suite.full
    return replace(
        usual,
        rounds=options.rounds or usual.rounds,
        seconds=options.seconds or usual.seconds,
    )


def _run_parts(
    suite: Suite,
    candidates: Sequence[Candidate],
    measurements: Sequence[Measurement],
    options: argparse.Namespace,
    start: Start,
) -> Results:
    """Run a suite, or those of its parts of which something is to be measured."""
    if not suite.parts:
        return run(suite, candidates, measurements, _pace(suite, options), start)
    results = Results(suite, candidates, measurements)
    names = {each.name for each in candidates}
    for part in suite.parts:
        wanted = [each for each in measurements if each in part.measurements]
        if wanted:
            its_own = list(part.candidates)
            if options.baseline is not None:
                its_own = with_baseline(its_own, options.baseline)
            its_own = [each for each in its_own if each.name in names]
            results.add(run(part, its_own, wanted, _pace(part, options), start))
    return results


def _parser(suite: Suite) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=f"{suite.subject}, beside raw pyzmq and other systems.",
        epilog="docs/benchmarks.md says how to read the tables.",
    )
    parser.add_argument("--only", metavar="NAME,...", help="measure these candidates alone")
    parser.add_argument("--list", action="store_true", help="list the candidates, and end")
    parser.add_argument(
        "--measure",
        action="append",
        choices=[each.name for each in (*suite.measurements, *suite.on_demand)],
        help="measure this alone (may be repeated)",
    )
    parser.add_argument("--rounds", type=int, metavar="N", help=f"rounds ({suite.full.rounds})")
    parser.add_argument(
        "--seconds",
        type=float,
        metavar="S",
        help=f"of each measurement in each round ({suite.full.seconds:g})",
    )
    parser.add_argument("--quick", action="store_true", help="two short rounds: does it run?")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything to this file")
    parser.add_argument(
        "--env",
        type=Path,
        metavar="FOLDER",
        default=default_folder(),
        help="where the peers are installed (default: %(default)s)",
    )
    parser.add_argument(
        "--profile",
        type=Path,
        metavar="FOLDER",
        help="run servers and clients under py-spy, write stacks there, print what took the time",
    )
    parser.add_argument(
        "--baseline",
        type=Path,
        metavar="SRC",
        help="measure labmesh from these sources too, such as those of an earlier commit",
    )
    return parser


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    """Both end it in the same way: with all its processes."""
    raise KeyboardInterrupt
