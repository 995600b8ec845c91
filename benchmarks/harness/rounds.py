"""Rounds: in each, every candidate is measured once, in an order that moves on."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from harness.candidates import Candidate, Measurement
from harness.programs import PeerFailed, Programs
from harness.suite import Pace, Suite

__all__ = ["Results", "Start", "run"]

#: What one measurement of one candidate gave in one round.
Figures = dict[str, float]
Start = Callable[[Candidate], Programs]


@dataclass
class Results:
    """What the rounds gave."""

    suite: Suite
    candidates: Sequence[Candidate]
    measurements: Sequence[Measurement]
    #: by candidate, by measurement: one entry a round
    rounds: dict[str, dict[str, list[Figures]]] = field(default_factory=dict)
    #: by candidate: why there are no (more) figures of it
    failures: dict[str, str] = field(default_factory=dict)
    #: by candidate
    versions: dict[str, dict[str, str]] = field(default_factory=dict)

    def measurement(self, name: str) -> Measurement:
        """The one of this name."""
        every = [*self.suite.measurements, *self.suite.on_demand]
        return next(each for each in every if each.name == name)

    def figure(self, candidate: str, measurement: str, key: str) -> float | None:
        """The median over the rounds, None if it was not measured."""
        rounds = self.rounds.get(candidate, {}).get(measurement, [])
        found = [each[key] for each in rounds if key in each]
        return statistics.median(found) if found else None

    def main_figure(self, candidate: str, measurement: str) -> float | None:
        """The median of the figure that is compared."""
        return self.figure(candidate, measurement, self.measurement(measurement).figure)

    def main_figures(self, candidate: str, measurement: str) -> list[float]:
        """The same, round by round."""
        rounds = self.rounds.get(candidate, {}).get(measurement, [])
        return [each[self.measurement(measurement).figure] for each in rounds]

    def keep(self, candidate: str, measurement: str, figures: Figures) -> None:
        """Add what a round gave."""
        self.rounds.setdefault(candidate, {}).setdefault(measurement, []).append(figures)

    def add(self, part: Results) -> None:
        """Take over what a part gave."""
        for name, measured in part.rounds.items():
            self.rounds.setdefault(name, {}).update(measured)
        self.failures.update(part.failures)
        for name, versions in part.versions.items():
            self.versions[name] = {**self.versions.get(name, {}), **versions}

    def drop(self, candidate: str, reason: str) -> None:
        """A candidate that failed is left out, with all its figures."""
        self.rounds.pop(candidate, None)
        self.failures[candidate] = reason
        print(f"{candidate}: left out: {reason}", file=sys.stderr)


def run(
    suite: Suite,
    candidates: Sequence[Candidate],
    measurements: Sequence[Measurement],
    pace: Pace,
    start: Start,
) -> Results:
    """Start all, measure round by round, end all. What breaks down is reported and left out."""
    results = Results(suite, candidates, measurements)
    with ExitStack() as running:
        all_programs = _start_all(candidates, start, running, results)
        for measurement in measurements:
            for programs in all_programs:
                _measure(programs, measurement, pace, results, keep=False)
        for number in range(pace.rounds):
            print(f"round {number + 1} of {pace.rounds}", file=sys.stderr)
            for measurement in measurements:
                for programs in _rotated(all_programs, number):
                    _measure(programs, measurement, pace, results)
    return results


def _start_all(
    candidates: Sequence[Candidate], start: Start, running: ExitStack, results: Results
) -> list[Programs]:
    started: list[Programs] = []
    for each in candidates:
        try:
            programs = running.enter_context(start(each))
        except PeerFailed as exc:
            results.drop(each.name, str(exc))
            continue
        started.append(programs)
        results.versions[each.name] = programs.versions
    return started


def _measure(
    programs: Programs,
    measurement: Measurement,
    pace: Pace,
    results: Results,
    *,
    keep: bool = True,
) -> None:
    name = programs.candidate.name
    if name in results.failures:
        return
    seconds = pace.seconds if keep else pace.warm_up_s
    order: dict[str, Any] = {**measurement.order, "seconds": seconds}
    if pace.count is not None and "count" in order:
        order["count"] = min(order["count"], pace.count)
    try:
        figures = programs.measure(order)
    except PeerFailed as exc:
        results.drop(name, f"{measurement.title}: {exc}")
        return
    if keep:
        results.keep(name, measurement.name, figures)


def _rotated(all_programs: Sequence[Programs], by: int) -> list[Programs]:
    at = by % max(1, len(all_programs))
    return [*all_programs[at:], *all_programs[:at]]
