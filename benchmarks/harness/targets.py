"""What labmesh has to reach, as ratios between figures of one run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from harness.candidates import MEASUREMENTS, RAW, RAW_MULTIPART
from harness.rounds import Results

__all__ = ["Verdict", "verdicts"]

_BLOCKING, _ASYNC = "labmesh-blocking", "labmesh-async"
_OLD = "labmesh-dev0"
_MORE_IS_BETTER = {each.name: each.more_is_better for each in MEASUREMENTS}


@dataclass(frozen=True)
class Verdict:
    """One target, and whether it was reached. None: not everything it needs was measured."""

    target: str
    ratio: float | None
    met: bool | None
    #: whom it was compared with
    rival: str | None
    #: the least and the greatest ratio of the rounds
    span: tuple[float, float] | None = None

    def __str__(self) -> str:
        if self.ratio is None or self.span is None:
            return f"not measured  {self.target}"
        word = "met" if self.met else "not met"
        least, greatest = self.span
        rounds = f"rounds: {least:.2f} to {greatest:.2f}"
        return f"{word:<13} {self.target}: {self.ratio:.2f} ({self.rival}; {rounds})"


def verdicts(results: Results) -> list[Verdict]:
    """Every target of the call path, with the ratio that was measured."""
    peers = [each.name for each in results.candidates if each.is_peer]
    # What does not leave the machine's memory is no measure for what goes through sockets.
    over_tcp = [each.name for each in results.candidates if each.is_peer and each.over_tcp]
    return [
        _at_most(results, "latency", _BLOCKING, 2.0),
        _ahead(results, "latency", _BLOCKING, "pyro5", ["pyro5"], 1.0),
        _ahead(results, "latency", _BLOCKING, _OLD, [_OLD], 3.0),
        _at_most(results, "latency", _ASYNC, 3.0),
        _share(results, "in_flight", _ASYNC, RAW, 0.40),
        _share(results, "in_flight", _ASYNC, RAW_MULTIPART, 0.40),
        _ahead(results, "in_flight", _ASYNC, _OLD, [_OLD], 8.0),
        _ahead(results, "in_flight", _ASYNC, "every peer", peers, 1.0),
        _ahead(results, "array_8mb", _BLOCKING, "every peer over TCP", over_tcp, 1.8),
        _ahead(results, "array_8mb", _ASYNC, "every peer over TCP", over_tcp, 1.8),
    ]


def _at_most(results: Results, measurement: str, ours: str, limit: float) -> Verdict:
    target = f"{_title(measurement)}, {ours}: at most {limit:g} x {RAW}"
    return _verdict(results, measurement, (ours, RAW), RAW, target, lambda ratio: ratio <= limit)


def _share(results: Results, measurement: str, ours: str, rival: str, limit: float) -> Verdict:
    target = f"{_title(measurement)}, {ours}: at least {limit:g} of {rival}"
    parts = (ours, rival)
    return _verdict(results, measurement, parts, rival, target, lambda ratio: ratio >= limit)


def _ahead(
    results: Results,
    measurement: str,
    ours: str,
    whom: str,
    rivals: Sequence[str],
    factor: float,
) -> Verdict:
    how = f"at least {factor:g} x as fast as" if factor != 1 else "ahead of"
    target = f"{_title(measurement)}, {ours}: {how} {whom}"
    figures = {
        each: figure
        for each in rivals
        if (figure := results.main_figure(each, measurement)) is not None
    }
    if not figures:
        return Verdict(target, None, None, None)
    best = max if _MORE_IS_BETTER[measurement] else min
    rival = best(figures, key=lambda each: figures[each])
    test: Callable[[float], bool] = (
        (lambda ratio: ratio > 1) if factor == 1 else (lambda ratio: ratio >= factor)
    )
    # Either way, more than 1 means that labmesh is ahead.
    parts = (ours, rival) if _MORE_IS_BETTER[measurement] else (rival, ours)
    return _verdict(results, measurement, parts, rival, target, test)


def _verdict(
    results: Results,
    measurement: str,
    parts: tuple[str, str],
    rival: str,
    target: str,
    test: Callable[[float], bool],
) -> Verdict:
    over, under = parts
    upper = results.main_figure(over, measurement)
    lower = results.main_figure(under, measurement)
    if upper is None or lower is None:
        return Verdict(target, None, None, None)
    pairs = zip(
        results.main_figures(over, measurement),
        results.main_figures(under, measurement),
        strict=True,
    )
    by_round = sorted(above / below for above, below in pairs)
    ratio = upper / lower
    return Verdict(target, ratio, test(ratio), rival, (by_round[0], by_round[-1]))


def _title(measurement: str) -> str:
    return next(each.title for each in MEASUREMENTS if each.name == measurement)
