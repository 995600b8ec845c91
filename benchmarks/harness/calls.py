"""Calls: the candidates, what is measured of them, and what labmesh has to reach."""

from __future__ import annotations

from dataclasses import replace

from harness.candidates import SOURCES, Candidate, Measurement
from harness.rounds import Results
from harness.suite import Suite
from harness.targets import Verdict, ahead, at_most, share

__all__ = ["CALLS"]

_RAW, _RAW_MULTIPART = "raw", "raw-multipart"
_OLD = "labmesh-dev0"
_MESH = ("broker", "serve")

_BLOCKING = Candidate(
    "labmesh-blocking",
    "labmesh, blocking client",
    "on_labmesh.py",
    "here",
    servers=_MESH,
    sources=SOURCES,
)
_ASYNC = replace(_BLOCKING, name="labmesh-async", title="labmesh, async client", client="ask-async")
#: What ``pip install 'labmesh[speed]'`` brings.
_UVLOOP = replace(
    _ASYNC, name="labmesh-uvloop", title="labmesh, async client, uvloop", client="ask-uvloop"
)

_CANDIDATES = (
    Candidate(_RAW, "raw pyzmq", "on_pyzmq.py", "here"),
    Candidate(
        _RAW_MULTIPART,
        "raw pyzmq, multipart",
        "on_pyzmq.py",
        "here",
        servers=("serve-multipart",),
    ),
    _BLOCKING,
    _ASYNC,
    _UVLOOP,
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
    Candidate(_OLD, "labmesh 0.0.0.dev0", "on_dev0.py", "dev0", ("labmesh", "numpy"), _MESH),
)

_MEASUREMENTS = (
    Measurement("latency", "round trip", {"measure": "latency"}, "p50", "µs", (("p99", "p99 µs"),)),
    Measurement("in_flight", "64 in flight", {"measure": "in_flight", "width": 64}, "per_s", "/s"),
    Measurement("array_1mb", "1 MB array", {"measure": "array", "bytes": 1_000_000}, "p50", "ms"),
    Measurement("array_8mb", "8 MB array", {"measure": "array", "bytes": 8_000_000}, "p50", "ms"),
)


def _verdicts(results: Results) -> list[Verdict]:
    """Every target of the call path, with the ratio that was measured."""
    peers = [each.name for each in results.candidates if each.is_peer]
    # What does not leave the machine's memory is no measure for what goes through sockets.
    over_tcp = [each.name for each in results.candidates if each.is_peer and each.over_tcp]
    return [
        at_most(results, "latency", _BLOCKING.name, _RAW, 2.0),
        ahead(results, "latency", _BLOCKING.name, "pyro5", ["pyro5"], 1.0),
        ahead(results, "latency", _BLOCKING.name, _OLD, [_OLD], 3.0),
        at_most(results, "latency", _ASYNC.name, _RAW, 3.0),
        share(results, "in_flight", _ASYNC.name, _RAW, 0.40),
        share(results, "in_flight", _ASYNC.name, _RAW_MULTIPART, 0.40),
        ahead(results, "in_flight", _ASYNC.name, _OLD, [_OLD], 8.0),
        ahead(results, "in_flight", _ASYNC.name, "every peer", peers, 1.0),
        share(results, "in_flight", _UVLOOP.name, _RAW_MULTIPART, 0.40),
        ahead(results, "in_flight", _UVLOOP.name, _OLD, [_OLD], 8.0),
        ahead(results, "array_8mb", _BLOCKING.name, "every peer over TCP", over_tcp, 1.8),
        ahead(results, "array_8mb", _ASYNC.name, "every peer over TCP", over_tcp, 1.8),
    ]


CALLS = Suite(
    script="rpc.py",
    subject="How fast calls are",
    candidates=_CANDIDATES,
    measurements=_MEASUREMENTS,
    base=_RAW,
    ours=(_BLOCKING.name, _ASYNC.name, _UVLOOP.name),
    verdicts=_verdicts,
)
