"""What is measured, and what about it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

__all__ = [
    "CANDIDATES",
    "MEASUREMENTS",
    "RAW",
    "RAW_MULTIPART",
    "Candidate",
    "Measurement",
    "chosen",
    "with_baseline",
]

RAW, RAW_MULTIPART = "raw", "raw-multipart"
_MESH = ("broker", "serve")
_SOURCES = Path(__file__).parents[2] / "src"


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
    figure: Literal["p50", "per_s"]
    unit: str

    @property
    def more_is_better(self) -> bool:
        """A rate; the others are times."""
        return self.figure == "per_s"


_BLOCKING = Candidate(
    "labmesh-blocking",
    "labmesh, blocking client",
    "on_labmesh.py",
    "here",
    servers=_MESH,
    sources=_SOURCES,
)
_ASYNC = replace(_BLOCKING, name="labmesh-async", title="labmesh, async client", client="ask-async")

CANDIDATES: Sequence[Candidate] = (
    Candidate(RAW, "raw pyzmq (the limit)", "on_pyzmq.py", "here"),
    Candidate(
        RAW_MULTIPART,
        "raw pyzmq, multipart",
        "on_pyzmq.py",
        "here",
        servers=("serve-multipart",),
    ),
    _BLOCKING,
    _ASYNC,
    Candidate("pyro5", "Pyro5, msgpack", "on_pyro5.py", "peers", ("Pyro5", "msgpack", "numpy")),
    Candidate("zenoh", "zenoh, queryable", "on_zenoh.py", "peers", ("eclipse-zenoh", "numpy")),
    Candidate(
        "zenoh-shm",
        "zenoh, shared memory",
        "on_zenoh.py",
        "peers",
        ("eclipse-zenoh", "numpy"),
        ("serve-shm",),
        "ask-shm",
        over_tcp=False,
    ),
    Candidate("rpyc", "RPyC", "on_rpyc.py", "peers", ("rpyc", "numpy")),
    Candidate(
        "pyleco", "PyLECO", "on_pyleco.py", "peers", ("pyleco", "numpy"), ("coordinate", "serve")
    ),
    Candidate("grpc", "gRPC, asyncio", "on_grpc.py", "peers", ("grpcio", "numpy")),
    Candidate(
        "labmesh-dev0", "labmesh 0.0.0.dev0", "on_dev0.py", "dev0", ("labmesh", "numpy"), _MESH
    ),
)

MEASUREMENTS: Sequence[Measurement] = (
    Measurement("latency", "round trip", {"measure": "latency"}, "p50", "µs"),
    Measurement("in_flight", "64 in flight", {"measure": "in_flight", "width": 64}, "per_s", "/s"),
    Measurement("array_1mb", "1 MB array", {"measure": "array", "bytes": 1_000_000}, "p50", "ms"),
    Measurement("array_8mb", "8 MB array", {"measure": "array", "bytes": 8_000_000}, "p50", "ms"),
)


def chosen(names: str | None) -> list[Candidate]:
    """The candidates with these names (between commas; None: all), in the order of the table.

    :raises ValueError: there is no candidate of such a name.
    """
    if names is None:
        return list(CANDIDATES)
    wanted = {each.strip() for each in names.split(",")}
    if unknown := wanted - {each.name for each in CANDIDATES}:
        raise ValueError(f"no such candidate: {', '.join(sorted(unknown))} (see --list)")
    return [each for each in CANDIDATES if each.name in wanted]


def with_baseline(candidates: Sequence[Candidate], sources: Path) -> list[Candidate]:
    """The same, and labmesh once more from other sources, named ``baseline-…``."""
    baseline = [
        replace(
            each,
            name=each.name.replace("labmesh", "baseline"),
            title=each.title.replace("labmesh", "baseline"),
            sources=sources,
        )
        for each in (_BLOCKING, _ASYNC)
    ]
    return [*candidates, *baseline]
