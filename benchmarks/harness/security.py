"""What security costs: the same programs, plain and encrypted, labmesh beside raw pyzmq."""

from __future__ import annotations

import statistics
from typing import Literal

from harness.candidates import SOURCES, Candidate, Measurement
from harness.rounds import Results
from harness.suite import Pace, Suite
from harness.targets import Verdict, at_most, share

__all__ = ["SECURITY"]

_RAW, _CURVE = "raw", "raw-curve"
_OPEN, _PASSWORD, _KEYS = "labmesh-open", "labmesh-password", "labmesh-keys"
_AUDIT = "labmesh-audit"
_UPLOAD_BYTES = 128_000_000


def _raw(program: str, servers: tuple[str, ...]) -> list[Candidate]:
    """Raw pyzmq, plain and encrypted; the second has roles of its own."""
    return [
        Candidate(_RAW, "raw pyzmq, plain", program, "here", servers=servers),
        Candidate(
            _CURVE,
            "raw pyzmq, CURVE",
            program,
            "here",
            servers=tuple(f"{each}-curve" for each in servers),
            client="ask-curve",
        ),
    ]


def _labmesh(
    program: str, servers: tuple[str, ...], client: str = "ask", *, by_role: bool = False
) -> list[Candidate]:
    """labmesh in its three modes.

    :param by_role: the program (of events) sets the mode up itself, as its roles say.
    """

    def candidate(
        name: str, title: str, security: Literal["open", "password", "keys", "audit"]
    ) -> Candidate:
        ending = f"-{security}" if by_role else ""
        return Candidate(
            name,
            title,
            program,
            "here",
            servers=tuple(f"{each}{ending}" for each in servers),
            client=f"{client}{ending}",
            sources=SOURCES,
            security=security,
        )

    rows = [
        candidate(_OPEN, "labmesh, open", "open"),
        candidate(_PASSWORD, "labmesh, password", "password"),
        candidate(_KEYS, "labmesh, keys, no journal", "keys"),
    ]
    # An event that is admitted makes no line.
    return rows if by_role else [*rows, candidate(_AUDIT, "labmesh, keys, journal", "audit")]


_LATENCY = Measurement(
    "latency", "round trip", {"measure": "latency"}, "p50", "µs", (("p99", "p99 µs"),)
)
_IN_FLIGHT = Measurement(
    "in_flight", "64 in flight", {"measure": "in_flight", "width": 64}, "per_s", "/s"
)
_ARRAY = Measurement(
    "array_8mb", "8 MB array", {"measure": "array", "bytes": 8_000_000}, "p50", "ms"
)
_UPLOAD = Measurement(
    "upload", "upload 128 MB", {"measure": "upload", "bytes": _UPLOAD_BYTES}, "mb_per_s", "MB/s"
)
_EVENTS = Measurement("events", "events", {"measure": "rate", "subscribers": 1}, "per_s", "/s")


def _no_dearer(results: Results, measurement: str) -> Verdict:
    """By keys, labmesh loses at most a tenth more than raw pyzmq loses by CURVE."""
    found = results.measurement(measurement)
    target = f"{found.title}: keys cost labmesh at most a tenth more than CURVE costs raw pyzmq"
    names = (_KEYS, _OPEN, _CURVE, _RAW)
    figures = [results.main_figures(each, measurement) for each in names]
    if not all(figures):
        return Verdict(target, None, None, None)
    by_round = sorted(
        (keys / plain) / (curve / raw) for keys, plain, curve, raw in zip(*figures, strict=True)
    )
    keys, plain, curve, raw = (statistics.median(each) for each in figures)
    ratio = (keys / plain) / (curve / raw)
    met = ratio >= 0.9 if found.more_is_better else ratio <= 1.1
    return Verdict(target, ratio, met, "raw-curve over raw", (by_round[0], by_round[-1]))


def _verdicts(results: Results) -> list[Verdict]:
    """What security may cost, as ratios of one run."""
    return [
        *(
            _no_dearer(results, each.name)
            for each in results.suite.measurements
            if each is not _LATENCY
        ),
        # A call that is not encrypted passes no thread of libzmq: it is no measure for one that is.
        at_most(results, _LATENCY.name, _KEYS, _CURVE, 2.0),
        # To know whom one talks to, and to ask what he may do, costs little beside encrypting it.
        at_most(results, _LATENCY.name, _KEYS, _PASSWORD, 1.2),
        share(results, _IN_FLIGHT.name, _KEYS, _PASSWORD, 0.85),
        share(results, _EVENTS.name, _KEYS, _PASSWORD, 0.8),
    ]


def _part(
    candidates: list[Candidate], measurements: tuple[Measurement, ...], full: Pace, quick: Pace
) -> Suite:
    return Suite(
        script="security.py",
        subject="What security costs",
        candidates=candidates,
        measurements=measurements,
        base=_RAW,
        ours=(_OPEN,),
        verdicts=_verdicts,
        full=full,
        quick=quick,
    )


_CALLS = _part(
    [*_raw("on_pyzmq.py", ("serve",)), *_labmesh("on_labmesh.py", ("broker", "serve"), "ask-both")],
    (_LATENCY, _IN_FLIGHT, _ARRAY),
    Pace(rounds=9, seconds=0.3, warm_up_s=0.2),
    Pace(rounds=1, seconds=0.1, warm_up_s=0.05),
)
# A dataset takes as long as it takes: each measurement is one of them.
_TRANSFERS = _part(
    [*_raw("move_raw.py", ("serve",)), *_labmesh("move_labmesh.py", ("broker", "serve"))],
    (_UPLOAD,),
    Pace(rounds=5, seconds=0.0, warm_up_s=0.0),
    Pace(rounds=1, seconds=0.0, warm_up_s=0.0),
)
_PUBLISHING = _part(
    [
        *_raw("events_zmq.py", ("broker", "publish")),
        *_labmesh("events_broker.py", ("broker", "publish"), by_role=True),
    ],
    (_EVENTS,),
    Pace(rounds=5, seconds=0.5, warm_up_s=0.2),
    Pace(rounds=1, seconds=0.1, warm_up_s=0.1),
)

SECURITY = Suite(
    script="security.py",
    subject="What security costs",
    candidates=_CALLS.candidates,
    measurements=(*_CALLS.measurements, *_TRANSFERS.measurements, *_PUBLISHING.measurements),
    base=_RAW,
    ours=(_OPEN,),
    verdicts=_verdicts,
    full=_CALLS.full,
    quick=_CALLS.quick,
    parts=(_CALLS, _TRANSFERS, _PUBLISHING),
)
