"""Who is measured, and what about it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

__all__ = ["SOURCES", "Candidate", "Measurement", "chosen", "with_baseline"]

#: Of the labmesh that is measured.
SOURCES = Path(__file__).parents[2] / "src"


@dataclass(frozen=True)
class Candidate:
    """A client and the servers that it needs."""

    name: str
    title: str
    #: the file in ``benchmarks/peers``
    program: str
    #: the Python that runs it: this one, that of the peers, or that of the old labmesh
    home: Literal["here", "peers", "dev0"]
    #: the distributions that have to be installed there
    needs: tuple[str, ...] = ()
    #: the servers, in the order of their start; each gets the address of the one before
    servers: tuple[str, ...] = ("serve",)
    client: str = "ask"
    #: everything that it sends goes through the loopback
    over_tcp: bool = True
    #: the folder that labmesh is imported from; None: what is installed
    sources: Path | None = None
    #: of a labmesh: how its nodes are secured; *audit* is *keys* with the audit journal
    security: Literal["open", "password", "keys", "audit"] = "open"

    @property
    def is_peer(self) -> bool:
        """It is somebody else's system (neither the limit nor any labmesh)."""
        return self.home == "peers"


@dataclass(frozen=True)
class Measurement:
    """One thing that clients are told to measure, and the figure of it that is compared."""

    name: str
    title: str
    order: dict[str, str | int]
    figure: Literal["p50", "per_s", "mb_per_s"]
    unit: str
    #: others that are printed beside it: their names and headings
    beside: tuple[tuple[str, str], ...] = ()

    @property
    def more_is_better(self) -> bool:
        """A rate; the others are times."""
        return self.figure != "p50"


def chosen(candidates: Sequence[Candidate], names: str | None) -> list[Candidate]:
    """The candidates with these names (between commas; None: all), in the order of the table.

    :raises ValueError: there is no candidate of such a name.
    """
    if names is None:
        return list(candidates)
    wanted = {each.strip() for each in names.split(",")}
    if unknown := wanted - {each.name for each in candidates}:
        raise ValueError(f"no such candidate: {', '.join(sorted(unknown))} (see --list)")
    return [each for each in candidates if each.name in wanted]


def with_baseline(candidates: Sequence[Candidate], sources: Path) -> list[Candidate]:
    """The same, and every labmesh of this checkout once more from other sources, ``baseline-…``."""
    baseline = [
        replace(
            each,
            name=each.name.replace("labmesh", "baseline"),
            title=each.title.replace("labmesh", "baseline"),
            sources=sources,
        )
        for each in candidates
        if each.sources is not None
    ]
    return [*candidates, *baseline]
