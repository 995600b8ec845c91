"""What a member of a network in mode *keys* may try with a key of its own, and what it must get."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import zmq
from tests.support.bad_case import BAD, request
from tests.support.bad_messages import REPLY_MS, code_of
from tests.support.keyed import keyed_socket

from labmesh.transport.key_pairs import KeyPair

__all__ = ["MemberCase", "attack_as", "member_cases"]

_FORBIDDEN = (403,)
_SESSION = {"session": "0123456789abcdef"}


@dataclass(frozen=True)
class MemberCase:
    """One message, and whose key it is sent with; ``codes`` as of a :class:`bad_case.Case`."""

    group: str
    name: str
    who: str
    frames: list[bytes]
    codes: tuple[int | None, ...]


def member_cases(role: str, endpoints: Mapping[str, str]) -> list[MemberCase]:
    """The part of the table for the socket of this role."""
    if role == "directory":
        return list(_directory(endpoints))
    return list({"relay": _relay, "ingest": _ingest, "retrieve": _retrieve}[role]())


def attack_as(
    endpoint: str, server_key: bytes, pairs: Mapping[str, KeyPair], cases: list[MemberCase]
) -> list[int | None]:
    """Send each over a connection of its own; the codes of the answers, None where none came."""
    codes = []
    for case in cases:
        with keyed_socket(zmq.DEALER, endpoint, pairs[case.who], server_key) as peer:
            peer.send_multipart(case.frames)
            codes.append(code_of(peer, REPLY_MS))
    return codes


def _node(node_id: str, kind: str = "relay", **fields: Any) -> dict[str, Any]:
    places = ("rpc",) if kind == "relay" else ("ingest", "retrieve")
    endpoints = {each: f"tcp://127.0.0.1:{number}" for number, each in enumerate(places, 1)}
    return {"node_id": node_id, "kind": kind, "epoch": "e1", "endpoints": endpoints, **fields}


def _directory(endpoints: Mapping[str, str]) -> Iterator[MemberCase]:
    for who in ("psu-2", "bank-1", "otto", "vera", "ada"):
        hello = request("hello", node=_node("psu-1"))
        yield MemberCase("I24", "hello for the id of another key", who, hello, _FORBIDDEN)
        fresh = request("hello", node=_node("psu-9"))
        yield MemberCase("I24", "hello for an id that nobody has", who, fresh, _FORBIDDEN)
    for name, node in (
        ("as a bank", _node("psu-2", "bank")),
        ("in other letters", _node("PSU-2")),
        ("for an id that begins with the own one", _node("psu-21")),
        ("with the key of another", _node("psu-1", server_key="0" * 40)),
    ):
        hello = request("hello", node=node)
        yield MemberCase("I24", f"hello {name}", "psu-2", hello, _FORBIDDEN)
    for what, code in (("relay", 409), ("directory", 400)):
        hello = request("hello", node=_node("psu-2", endpoints={"rpc": endpoints[what]}))
        yield MemberCase("I25", f"own id, the endpoint of the {what}", "psu-2", hello, (code,))
    for endpoint in BAD_ENDPOINTS:
        node = _node("psu-2", endpoints={"rpc": endpoint})
        hello = request("hello", node=node)
        yield MemberCase("I25", f"own id, endpoint {endpoint!r:.26}", "psu-2", hello, BAD)
    for group, kind in (("I26", "heartbeat"), ("I28", "goodbye")):
        for who in ("psu-2", "bank-1", "otto", "vera", "ada"):
            for node_id in ("psu-1", "bank-0", "nobody"):
                other = request(kind, node_id=node_id, node_epoch="e")
                yield MemberCase(group, f"{kind} for {node_id}", who, other, _FORBIDDEN)
    own = request("heartbeat", node_id="psu-2", node_epoch="e")
    yield MemberCase("I26", "heartbeat before a hello", "psu-2", own, (404,))
    for kind in ("__class__", "list_relay_ids", "call", "upload_start", 3, ["hello"], None):
        yield MemberCase("I27", f"request {kind!r}", "vera", request(kind), BAD)  # type: ignore[arg-type]
    extra = request("list_nodes", extra=1, user="client:ada", role="admin")
    yield MemberCase("I27", "a list with fields that nobody knows", "vera", extra, (0,))
    for who, code in (("vera", 403), ("otto", 403), ("ada", 0)):
        listed = request("watch_access", known_version="x")
        yield MemberCase("I27", "the allow-list", who, listed, (code,))


BAD_ENDPOINTS: tuple[Any, ...] = (
    "file:///etc/passwd",
    "inproc://zeromq.zap.01",
    "ipc:///tmp/x",
    "tcp://*:1",
    "tcp://0.0.0.0:1",
    "tcp://127.0.0.1:0",
    "tcp://127.0.0.1:65536",
    "tcp://127.0.0.1:-1",
    "tcp://127.0.0.1:x",
    "tcp://127.0.0.1",
    "tcp://a\nb:1",
    "tcp://user:pass@host:1",
    "tcp://" + "h" * 10_000 + ":1",
    "tcp://169.254.169.254:80",
    "",
    None,
    3,
)


def _relay() -> Iterator[MemberCase]:
    read = request("call", method="counted")
    write = request("call", method="set_voltage", args=[1.0])
    batch = request("batch", calls=[["counted"], ["set_voltage", [1.0]]])
    for who in ("psu-1", "psu-2", "bank-0", "bank-1", "broker"):
        for name, frames in (("reads", read), ("writes", write), ("batch", batch)):
            yield MemberCase("I43", f"key of a node {name}", who, frames, _FORBIDDEN)
        for kind in ("cancel", "get_call"):
            asked = request(kind, call="1", **_SESSION)
            yield MemberCase("I43", f"key of a node, {kind}", who, asked, _FORBIDDEN)
    for name, frames in (
        ("writes", write),
        ("batch that ends with a write", batch),
        ("takes a stream", request("call", method="numbers", credit=4)),
        ("takes a lease", request("acquire", **_SESSION)),
        ("renews one", request("renew", fence=1, **_SESSION)),
        ("gives one back", request("release", fence=1, **_SESSION)),
        ("breaks one", request("break_lease", by="ada")),
    ):
        yield MemberCase("I43", f"viewer {name}", "vera", frames, _FORBIDDEN)
    yield MemberCase("I43", "viewer reads", "vera", read, (0,))
    yield MemberCase("I42", "operator breaks a lease", "otto", request("break_lease"), _FORBIDDEN)
    yield MemberCase("I43", "of other relays only, reads", "rita", read, _FORBIDDEN)
    yield MemberCase("I43", "of other relays only, writes", "rita", write, _FORBIDDEN)
    lease = request("acquire", **_SESSION)
    yield MemberCase("I43", "of other relays only, a lease", "rita", lease, _FORBIDDEN)
    yield MemberCase("I43", "a method that this key may not call", "dora", write, _FORBIDDEN)
    yield MemberCase("I43", "the same in a batch", "dora", batch, _FORBIDDEN)
    yield MemberCase("I43", "another method", "dora", read, (0,))
    for method in PRIVATE:
        named = request("call", method=method)
        # What is private is to nobody anything else than what is not there: no oracle.
        for who in ("otto", "vera"):
            yield MemberCase("I39", f"method {method!r:.26}", who, named, (404,))
    for method in (3, None, ["set_voltage"], "x" * 10_000):
        named = request("call", method=method)
        yield MemberCase("I39", f"method {method!r:.26}", "otto", named, BAD)
    for kwargs in ({"self": 1}, {"__class__": 1}, {"value": 1, "extra": 2}, {}):
        wrong = request("call", method="set_voltage", kwargs=kwargs)
        yield MemberCase("I40", f"keywords {kwargs}", "otto", wrong, BAD)
        yield MemberCase("I40", f"keywords {kwargs}", "vera", wrong, _FORBIDDEN)
    for deadline, code in ((-1, 408), (0.0, 408), (float("nan"), 400), ("5", 400)):
        timed = request("call", method="set_voltage", args=[1.0], deadline=deadline)
        yield MemberCase("I41", f"deadline {deadline!r}", "otto", timed, (code,))
        yield MemberCase("I41", f"deadline {deadline!r}", "vera", timed, (code, 403))


PRIVATE = (
    *("", " ", "a.b", "_secret", "__init__", "__class__", "__getattribute__", "__getattr__"),
    *("__setattr__", "__reduce_ex__", "calls", "voltage", "mro", "set_voltage ", "\u212aelvin"),
)


def _ingest() -> Iterator[MemberCase]:
    start = request("upload_start", dataset_id="d", **_SESSION)
    chunk = [*request("upload_chunk", dataset_id="d", offset=0, **_SESSION), b"x"]
    commit = request("upload_commit", dataset_id="d", size=1, sha256="0" * 64, **_SESSION)
    for who in ("vera", "broker"):
        for name, frames in (("start", start), ("chunk", chunk), ("commit", commit)):
            yield MemberCase("I43", f"upload: {name}", who, frames, _FORBIDDEN)


def _retrieve() -> Iterator[MemberCase]:
    for who in ("vera", "otto", "psu-2", "bank-1", "broker"):
        for kind in ("delete_dataset", "restore_dataset", "purge_dataset"):
            asked = request(kind, dataset_id="unknown")
            yield MemberCase("I43", kind, who, asked, _FORBIDDEN)
    for who in ("vera", "psu-2", "bank-1", "broker"):
        note = request("annotate", dataset_id="unknown", note="n", who="ada")
        yield MemberCase("I43", "annotate", who, note, _FORBIDDEN)
    for who, code in (("vera", 404), ("psu-2", 404)):
        asked = request("get_dataset", dataset_id="unknown")
        yield MemberCase("I43", "look for one that is not there", who, asked, (code,))
