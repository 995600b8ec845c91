"""Events: the candidates, what is measured of them, and what labmesh has to reach."""

from __future__ import annotations

from harness.candidates import SOURCES, Candidate, Measurement
from harness.rounds import Results
from harness.suite import Pace, Suite
from harness.targets import Verdict, ahead, share

__all__ = ["EVENTS"]

_LIMIT, _BROKER, _OURS, _OLD = "zmq-proxy", "labmesh-broker", "labmesh", "labmesh-dev0"
_CURVE, _PASSWORD = "zmq-proxy-curve", "labmesh-broker-password"
_FAN_OUT = (1, 8, 32)


def _roles(kind: str = "") -> tuple[str, ...]:
    return tuple(f"{each}{kind}" for each in ("broker", "publish"))


_CANDIDATES = (
    Candidate(_LIMIT, "zmq.proxy in C (the limit)", "events_zmq.py", "here", servers=_roles()),
    Candidate(
        "zmq-proxy-bare",
        "zmq.proxy, topic and payload",
        "events_zmq.py",
        "here",
        servers=_roles("-bare"),
        client="ask-bare",
    ),
    Candidate(
        _BROKER,
        "labmesh broker, plain sockets",
        "events_broker.py",
        "here",
        servers=_roles(),
        sources=SOURCES,
    ),
    Candidate(_OURS, "labmesh", "events_labmesh.py", "here", servers=_roles(), sources=SOURCES),
    Candidate(
        _CURVE,
        "zmq.proxy, encrypted",
        "events_zmq.py",
        "here",
        servers=_roles("-curve"),
        client="ask-curve",
    ),
    Candidate(
        _PASSWORD,
        "labmesh broker, plain sockets, encrypted",
        "events_broker.py",
        "here",
        servers=_roles("-password"),
        client="ask-password",
        sources=SOURCES,
    ),
    Candidate("zenoh", "zenoh router", "events_zenoh.py", "peers", ("eclipse-zenoh",), _roles()),
    Candidate("nats", "NATS", "events_nats.py", "peers", ("nats-py",), _roles()),
    Candidate("mosquitto", "mosquitto", "events_mosquitto.py", "peers", ("paho-mqtt",), _roles()),
    Candidate(_OLD, "labmesh 0.0.0.dev0", "events_dev0.py", "dev0", ("labmesh",), _roles()),
)


def _rate(subscribers: int) -> Measurement:
    noun = "subscriber" if subscribers == 1 else "subscribers"
    return Measurement(
        f"rate_{subscribers}",
        f"{subscribers} {noun}",
        {"measure": "rate", "subscribers": subscribers},
        "per_s",
        "events/s",
    )


_MEASUREMENTS = (
    _rate(1),
    _rate(8),
    Measurement(
        "latency",
        "one way, 8 subscribers",
        {"measure": "latency", "subscribers": 8, "rate": 500},
        "p50",
        "p50 us",
        (("p99", "p99 us"),),
    ),
    _rate(32),
)
#: So many connections are rare, and take a while: only for those who ask.
_ON_DEMAND = (_rate(200),)


def _verdicts(results: Results) -> list[Verdict]:
    """Every target of the events, with the ratio that was measured."""
    rates = [f"rate_{each}" for each in _FAN_OUT]
    return [
        *(share(results, each, _BROKER, _LIMIT, 0.5) for each in rates),
        *(share(results, each, _PASSWORD, _CURVE, 0.5) for each in rates),
        *(ahead(results, each, _BROKER, _OLD, [_OLD], 10) for each in rates[:2]),
        *(
            ahead(results, each, _BROKER, rival, [rival], 1)
            for each in rates[1:]
            for rival in _PEERS
        ),
    ]


_PEERS = ("nats", "zenoh")

EVENTS = Suite(
    script="events.py",
    subject="How many events a second one broker carries",
    candidates=_CANDIDATES,
    measurements=_MEASUREMENTS,
    on_demand=_ON_DEMAND,
    base=_LIMIT,
    ours=(_BROKER, _OURS),
    verdicts=_verdicts,
    # Each measurement is a few trials of so many seconds. The warm-up finds where to begin.
    full=Pace(rounds=5, seconds=1.0, warm_up_s=0.2),
    quick=Pace(rounds=1, seconds=0.1, warm_up_s=0.1),
)
