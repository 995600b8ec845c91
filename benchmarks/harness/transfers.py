"""Datasets: the candidates, what is measured of them, and what labmesh has to reach."""

from __future__ import annotations

from harness.candidates import SOURCES, Candidate, Measurement
from harness.rounds import Results
from harness.suite import Pace, Suite
from harness.targets import Verdict, ahead, at_least, below, usual_share

__all__ = ["TRANSFERS"]

_RAW, _OURS, _OLD = "raw", "labmesh", "labmesh-dev0"
_LARGE = 256_000_000
_MEMORY = (("client_mb", "client MB"), ("server_mb", "server MB"))
#: What stands beside each figure of a large dataset: also what the machine itself wrote and synced
#: a moment before.
_BESIDE = (*_MEMORY, ("disk_mb_per_s", "disk MB/s"), ("sync_ms", "sync ms"))

_CANDIDATES = (
    Candidate(_RAW, "raw pyzmq, same work (the limit)", "move_raw.py", "here"),
    Candidate(
        _OURS,
        "labmesh",
        "move_labmesh.py",
        "here",
        servers=("broker", "serve"),
        sources=SOURCES,
    ),
    Candidate("cp", "cp, sync, sha256sum", "move_cp.py", "here", servers=(), over_tcp=False),
    Candidate("nats", "NATS object store", "move_nats.py", "peers", ("nats-py",)),
    Candidate(
        _OLD, "labmesh 0.0.0.dev0", "move_dev0.py", "dev0", ("labmesh",), ("broker", "serve")
    ),
)

_MEASUREMENTS = (
    Measurement(
        "upload",
        "upload 256 MB",
        {"measure": "upload", "bytes": _LARGE},
        "mb_per_s",
        "MB/s",
        _BESIDE,
    ),
    Measurement(
        "download",
        "download 256 MB",
        {"measure": "download", "bytes": _LARGE},
        "mb_per_s",
        "MB/s",
        _BESIDE,
    ),
    Measurement(
        "small",
        "1 kB datasets",
        {"measure": "small", "bytes": 1000, "count": 400, "width": 8},
        "per_s",
        "/s",
        (("syncs_per_s", "syncs/s of this machine"),),
    ),
)


def _verdicts(results: Results) -> list[Verdict]:
    """Every target of the transfers, with the ratio or the figure that was measured."""
    moved = ("upload", "download")
    return [
        *(usual_share(results, each, _OURS, _RAW, 0.9) for each in moved),
        # Each by itself: they do not do the same work, and a user wants to know whom it concerns.
        *(
            ahead(results, each, _OURS, peer, [peer], 1.0)
            for peer in ("nats", "cp", _OLD)
            for each in moved
        ),
        at_least(results, "small", _OURS, 200),
        *(
            below(results, measurement, _OURS, key, 100)
            for measurement in moved
            for key, _ in _MEMORY
        ),
    ]


TRANSFERS = Suite(
    script="transfer.py",
    subject="How fast datasets move",
    candidates=_CANDIDATES,
    measurements=_MEASUREMENTS,
    base=_RAW,
    ours=(_OURS,),
    verdicts=_verdicts,
    # A dataset takes as long as it takes: each measurement is one of them, or one lot of them.
    full=Pace(rounds=7, seconds=0.0, warm_up_s=0.0),
    quick=Pace(rounds=1, seconds=0.0, warm_up_s=0.0, count=50),
)
