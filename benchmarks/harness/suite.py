"""One benchmark: who is compared, in what, and what labmesh has to reach."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.candidates import Candidate, Measurement

if TYPE_CHECKING:
    from harness.rounds import Results
    from harness.targets import Verdict

__all__ = ["Pace", "Suite"]


@dataclass(frozen=True)
class Pace:
    """How long and how often is measured."""

    rounds: int
    #: of each measurement of each candidate in each round
    seconds: float
    warm_up_s: float
    #: at most so many where a measurement says how many; None: as it says
    count: int | None = None


@dataclass(frozen=True)
class Suite:
    """What one script of ``benchmarks/`` runs."""

    script: str
    #: as in "How fast calls are"
    subject: str
    candidates: Sequence[Candidate]
    measurements: Sequence[Measurement]
    #: the candidate that sets the limit
    base: str
    #: those of labmesh
    ours: Sequence[str]
    verdicts: Callable[[Results], list[Verdict]]
    # Many short rounds: what else the machine does then hits all candidates alike.
    full: Pace = Pace(rounds=11, seconds=0.5, warm_up_s=0.3)
    quick: Pace = Pace(rounds=2, seconds=0.1, warm_up_s=0.05)
    #: what is measured only when it is asked for by name
    on_demand: Sequence[Measurement] = ()
    #: what is measured one after the other, each with programs of its own for the same candidates;
    #: together their measurements are those of this suite
    parts: Sequence[Suite] = ()
