"""What labmesh has to reach, as ratios between figures of one run."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from harness.rounds import Results

__all__ = ["Verdict", "ahead", "at_least", "at_most", "below", "share", "usual_share"]


@dataclass(frozen=True)
class Verdict:
    """One target, and whether it was reached. None: not everything it needs was measured."""

    target: str
    #: a ratio, or the figure itself where nobody is compared
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
        found = rounds if self.rival is None else f"{self.rival}; {rounds}"
        return f"{word:<13} {self.target}: {self.ratio:.2f} ({found})"


def at_most(results: Results, measurement: str, ours: str, base: str, limit: float) -> Verdict:
    """A time of ``ours`` is at most ``limit`` times that of ``base``."""
    target = f"{results.measurement(measurement).title}, {ours}: at most {limit:g} x {base}"
    parts = (ours, base)
    return _verdict(results, measurement, parts, base, target, lambda ratio: ratio <= limit)


def share(results: Results, measurement: str, ours: str, rival: str, limit: float) -> Verdict:
    """A rate of ``ours`` is at least ``limit`` of that of ``rival``."""
    target = f"{results.measurement(measurement).title}, {ours}: at least {limit:g} of {rival}"
    parts = (ours, rival)
    return _verdict(results, measurement, parts, rival, target, lambda ratio: ratio >= limit)


def usual_share(results: Results, measurement: str, ours: str, rival: str, limit: float) -> Verdict:
    """The same of the median of the ratios of the rounds: for what drifts from round to round."""
    found = share(results, measurement, ours, rival, limit)
    if found.ratio is None:
        return found
    mine = results.main_figures(ours, measurement)
    theirs = results.main_figures(rival, measurement)
    ratio = statistics.median(above / below for above, below in zip(mine, theirs, strict=True))
    target = found.target.replace("at least", "in the median round at least")
    return replace(found, target=target, ratio=ratio, met=ratio >= limit)


def at_least(results: Results, measurement: str, ours: str, floor: float) -> Verdict:
    """The figure of ``ours`` itself is not under ``floor``."""
    found = results.measurement(measurement)
    target = f"{found.title}, {ours}: at least {floor:g} {found.unit}"
    return _figure(results, (measurement, ours, found.figure), target, lambda it: it >= floor)


def below(results: Results, measurement: str, ours: str, key: str, limit: float) -> Verdict:
    """A figure that stands beside is under ``limit``."""
    found = results.measurement(measurement)
    heading = dict(found.beside)[key]
    target = f"{found.title}, {ours}: {heading} under {limit:g}"
    return _figure(results, (measurement, ours, key), target, lambda it: it < limit)


def ahead(
    results: Results,
    measurement: str,
    ours: str,
    whom: str,
    rivals: Sequence[str],
    factor: float,
) -> Verdict:
    """``ours`` is ``factor`` times as fast as the best of ``rivals``, or faster."""
    how = f"at least {factor:g} x as fast as" if factor != 1 else "ahead of"
    target = f"{results.measurement(measurement).title}, {ours}: {how} {whom}"
    figures = {
        each: figure
        for each in rivals
        if (figure := results.main_figure(each, measurement)) is not None
    }
    if not figures:
        return Verdict(target, None, None, None)
    best = max if results.measurement(measurement).more_is_better else min
    rival = best(figures, key=lambda each: figures[each])
    test: Callable[[float], bool] = (
        (lambda ratio: ratio > 1) if factor == 1 else (lambda ratio: ratio >= factor)
    )
    # Either way, more than 1 means that labmesh is ahead.
    parts = (ours, rival) if results.measurement(measurement).more_is_better else (rival, ours)
    return _verdict(results, measurement, parts, rival, target, test)


def _figure(
    results: Results, place: tuple[str, str, str], target: str, test: Callable[[float], bool]
) -> Verdict:
    measurement, ours, key = place
    figure = results.figure(ours, measurement, key)
    if figure is None:
        return Verdict(target, None, None, None)
    by_round = sorted(each[key] for each in results.rounds[ours][measurement])
    return Verdict(target, figure, test(figure), None, (by_round[0], by_round[-1]))


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
