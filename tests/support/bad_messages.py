"""The numbered table of bad messages: what is sent, and what must come back."""

from __future__ import annotations

import io
import json
import marshal
import pickle
import struct
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import msgspec
import numpy as np
import zmq
from msgspec.msgpack import Ext
from tests.support.bad_calls import calls_and_leases
from tests.support.bad_case import BAD, Case, nested, pack, request
from tests.support.bad_packs import bad_packs

from labmesh.protocol.msgpack_values import ARRAY

__all__ = ["Case", "attack", "cases_for", "code_of", "dealer"]

_BAD_OR_LARGE = (400, 413)
_DROPPED = (None,)
#: Over the size limit of some sockets, not of others.
_LARGE = (400, 413, None)

#: How long a reply may take. The witness has its own limit, of 100 ms.
REPLY_MS = 3000
#: Messages that must be dropped are given so long, after the last of all, to be answered after all.
DROP_MS = 200


def cases_for(role: str, canary: str) -> list[Case]:
    """The part of the table that a socket of this role has to survive."""
    own = {"directory": directory, "relay": relay, "ingest": ingest, "retrieve": retrieve}
    return [*any_socket(canary), *own[role]()]


@contextmanager
def dealer(endpoint: str) -> Iterator[zmq.Socket[bytes]]:
    """A client of plain pyzmq."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    with context, context.socket(zmq.DEALER) as peer:
        peer.linger = 0
        peer.connect(endpoint)
        yield peer


def attack(role: str, canary: str, endpoint: str) -> list[int | None]:
    """Send each message over a connection of its own; the code of the first answer to each, None
    where none. What must be answered is sent one by one; for the silence about all others is
    waited once."""
    cases = cases_for(role, canary)
    codes: dict[int, int | None] = {}
    with ExitStack() as stack:
        silent = {
            number: stack.enter_context(dealer(endpoint))
            for number, case in enumerate(cases)
            if None in case.codes
        }
        for number, case in enumerate(cases):
            if number in silent:
                silent[number].send_multipart(case.frames)
            else:
                with dealer(endpoint) as peer:
                    peer.send_multipart(case.frames)
                    codes[number] = code_of(peer, REPLY_MS)
        until = time.monotonic() + DROP_MS / 1000
        for number, peer in silent.items():
            codes[number] = code_of(peer, max(0, round(1000 * (until - time.monotonic()))))
    return [codes[number] for number in range(len(cases))]


def code_of(peer: zmq.Socket[bytes], patience_ms: int) -> int | None:
    """The error code of the next answer, 0 for one that is no error, None where none comes."""
    if not peer.poll(patience_ms):
        return None
    # A delimiter is given back.
    header = next(each for each in peer.recv_multipart() if each)
    decode = msgspec.json.decode if header[:1] == b"{" else msgspec.msgpack.decode
    answer = decode(header)
    first = answer[0] if isinstance(answer, list) else answer
    return int(first.get("code", 0))


def text(message: Any) -> list[bytes]:
    return [json.dumps(message).encode()]


def ping(**fields: Any) -> dict[str, Any]:
    return {"type": "ping", "id": "7", **fields}


class Canary:
    """Unpickled anywhere, it makes a file."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (self.path, "w")


def any_socket(canary: str) -> Iterator[Case]:
    """What any socket must survive."""
    yield Case("I1", "one empty frame", [b""], BAD)
    yield Case("I1", "two empty frames", [b"", b""], BAD)
    for count in (9, 64, 65, 1000, 100_000):
        many = [pack(ping()), *[b"x"] * (count - 1)]
        yield Case("I2", f"{count} frames", many, BAD if count <= 64 else (400, None))
        yield Case("I2", f"{count} empty frames", [b""] * count, (400, None))
    yield Case("I3", "a delimiter, as of a REQ socket", [b"", pack(ping())], (0,))
    yield from _text_faults()
    yield from _shape_faults()
    yield from _numbers()
    yield from _bombs()
    yield from _foreign(canary)
    yield from _envelope()
    yield from bad_packs()


def _text_faults() -> Iterator[Case]:
    yield Case("I4", "not UTF-8", [b"\xff\xfe"], BAD)
    yield Case("I4", "not UTF-8 inside JSON", [b'{"type":"ping","id":"\xff"}'], BAD)
    yield Case("I4", "UTF-16", [json.dumps(ping()).encode("utf-16")], BAD)
    yield Case("I4", "UTF-8 with a byte order mark", [b"\xef\xbb\xbf" + text(ping())[0]], BAD)
    yield Case("I4", "a NUL in an id", text(ping(id="a\0b")), (0, 400))
    yield Case("I4", "a lone surrogate", [b'{"type":"ping","id":"\\ud800"}'], BAD)
    yield Case("I4", "bad UTF-8 in MessagePack", [b"\x81\xa4type\xa4\xff\xfe\xfd\xfc"], BAD)
    yield Case("I5", "no JSON", [b"hello"], BAD)
    yield Case("I5", "half a JSON", [b'{"type":"ping","id":"7"'], BAD)
    yield Case("I5", "bytes behind the JSON", [text(ping())[0] + b"x"], BAD)
    yield Case("I5", "two JSON objects", [text(ping())[0] * 2], BAD)
    yield Case("I5", "bytes behind the MessagePack", [pack(ping()) + b"\x01"], BAD)
    for value in (None, 3, "x", [], True):
        yield Case("I6", f"JSON {json.dumps(value)}", text(value), BAD)
        yield Case("I6", f"MessagePack {value!r}", [pack(value)], BAD)


def _shape_faults() -> Iterator[Case]:
    deep = b'{"type":"ping","id":"7","x":'
    yield Case("I7", "100,000 open brackets", [b"[" * 100_000], _LARGE)
    # In a field that nobody knows, and so nobody reads: a short one is skipped.
    yield Case("I7", "a JSON list 60,000 deep", [deep + b"[" * 60_000], _LARGE)
    yield Case("I7", "JSON objects 10,000 deep", [b'{"a":' * 10_000], _LARGE)
    yield Case("I7", "MessagePack 100,000 deep", [b"\x91" * 100_000], _LARGE)
    yield Case("I5", "half a MessagePack", [pack(ping())[:-1]], BAD)
    twice = b'{"type":"ping","type":"hello","id":"7"}'
    yield Case("I8", "two types", [twice], BAD)
    yield Case("I8", "two ids, the last one counts", [b'{"type":"ping","id":"6","id":"7"}'], (0,))


def _numbers() -> Iterator[Case]:
    for name, value in (
        ("NaN", "NaN"),
        ("Infinity", "Infinity"),
        ("1e999", "1e999"),
        ("an integer of 10,000 digits", "1" * 10_000),
    ):
        raw = b'{"type":"ping","id":"7","deadline":' + value.encode() + b"}"
        yield Case("I9", f"deadline {name} in JSON", [raw], BAD)
    for value in (float("nan"), float("inf")):
        yield Case("I9", f"deadline {value} in MessagePack", [pack(ping(deadline=value))], BAD)
    yield Case("I9", "deadline -0.0: long past", text(ping(deadline=-0.0)), (408,))
    for value in (1.5, True, 2**63, "1"):
        yield Case("I9", f"version {value!r}", text(ping(version=value)), (400, 415))


def _bombs() -> Iterator[Case]:
    keys = b"{" + b",".join(b'"k%d":0' % each for each in range(10**6)) + b"}"
    yield Case("I10", "a million keys", [keys], _LARGE)
    yield Case("I10", "text of 10 MB", text(ping(id="x" * 10**7)), _LARGE)
    yield Case("I11", "a list that claims 2**32 items", [b"\xdd\xff\xff\xff\xff"], BAD)
    yield Case("I11", "bytes that claim 2**32", [b"\xc6\xff\xff\xff\xff"], BAD)
    yield Case("I11", "a map that claims 2**32 keys", [b"\xdf\xff\xff\xff\xff"], BAD)
    yield Case("I11", "an extension type as the message", [pack(Ext(42, b"x"))], BAD)
    yield Case("I11", "a timestamp as the message", [b"\xd6\xff\x00\x00\x00\x00"], BAD)
    yield Case("I11", "a key that is a number", [b"\x81\x01\x02"], BAD)
    yield Case("I11", "a key that is a list", [b"\x81\x90\x01"], BAD)
    yield Case("I11", "a key that is a map", [b"\x81\x80\x01"], BAD)


def _foreign(canary: str) -> Iterator[Case]:
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        content = pickle.dumps(Canary(canary), protocol)
        yield Case("I12", f"a pickle of protocol {protocol}", [content], BAD)
    yield Case("I12", "marshal", [marshal.dumps(compile("1", "x", "eval"))], BAD)
    yield Case("I12", "YAML", [b"!!python/object/apply:os.system ['true']"], BAD)
    file = io.BytesIO()
    np.save(file, np.array([Canary(canary)], dtype=object), allow_pickle=True)
    yield Case("I12", ".npy of objects", [file.getvalue()], BAD)


def _envelope() -> Iterator[Case]:
    yield Case("I13", "no type", text({"id": "7"}), BAD)
    yield Case("I13", "no type, MessagePack", [pack({"id": "7"})], BAD)
    for kind in ("nonsense", "", None, 3, ["ping"], {"ping": 1}):
        yield Case("I13", f"type {kind!r}", text({"type": kind, "id": "7"}), BAD)
    for version in (0, 99, -1):
        yield Case("I13", f"version {version}", text(ping(version=version)), (415,))
    for version in (None, [1], {}):
        yield Case("I13", f"version {version!r}", text(ping(version=version)), (400, 415))
    yield Case("I14", "no id", text({"type": "ping"}), BAD)
    for value in (None, 7, {"a": 1}, ["7"], "", "x" * 65, "x" * 60_000):
        shown = repr(value)[:20]
        yield Case("I14", f"id {shown}", text({"type": "ping", "id": value}), _LARGE)
        yield Case("I14", f"id {shown}", [pack({"type": "ping", "id": value})], _LARGE)
    yield Case("I15", "one frame of 17 MiB", [bytes(17 * 2**20)], _DROPPED)


#: Ids that must never become a file's name, or a line of somebody's terminal.
BAD_IDS: tuple[Any, ...] = (
    "",
    " ",
    ".",
    "..",
    "../../evil",
    "/etc/passwd",
    "/",
    "a/b",
    "a\\b",
    "a\0b",
    "a\nb",
    "ab\n",
    "x" * 300,
    "\uff41",
    "\u202egnp",
    "CON",
    "con.txt",
    "a.",
    "a..b",
    "-rf",
    "%2e%2e",
    3,
    None,
    ["a"],
    {"a": 1},
)


def directory() -> Iterator[Case]:
    """What the directory must refuse."""
    node = {
        "node_id": "evil",
        "kind": "relay",
        "epoch": "e1",
        "endpoints": {"rpc": "tcp://127.0.0.1:1"},
    }
    for each in BAD_IDS:
        yield Case(
            "I23", f"hello of {each!r:.30}", request("hello", node=node | {"node_id": each}), BAD
        )
    for role in ("", "client", "admin", None, ["relay"], 3):
        yield Case("I23", f"hello as {role!r}", request("hello", node=node | {"kind": role}), BAD)
    for endpoint in (
        "file:///etc/passwd",
        "inproc://x",
        "ipc:///tmp/x",
        "tcp://*:1",
        "tcp://127.0.0.1:0",
        "tcp://127.0.0.1:65536",
        "tcp://127.0.0.1:-1",
        "tcp://127.0.0.1:x",
        "tcp://a\nb:1",
        "tcp://user:pass@host:1",
        "tcp://" + "h" * 10_000 + ":1",
        "tcp://169.254.169.254:80",
        "tcp://0.0.0.0:1",
        "tcp://BROKER:1",
        "",
        None,
        3,
    ):
        bad = node | {"endpoints": {"rpc": endpoint}}
        yield Case("I25", f"endpoint {endpoint!r:.30}", request("hello", node=bad), BAD)
    yield Case("I25", "no endpoint", request("hello", node=node | {"endpoints": {}}), BAD)
    stranger = {"node_id": "nobody", "node_epoch": "e"}
    yield Case("I26", "heartbeat of a stranger", request("heartbeat", **stranger), (404,))
    other = {"node_id": "Inst-0", "node_epoch": "e"}
    yield Case("I26", "heartbeat for another's id", request("heartbeat", **other), (404,))
    yield Case("I28", "goodbye for another's id", request("goodbye", **other), (0,))
    yield Case("I27", "an unknown request", request("__class__"), BAD)
    yield Case("I27", "a list with unknown fields", request("list_nodes", extra=1), (0,))
    for token in BAD_IDS:
        yield Case("I30", f"mark {token!r:.30}", request("mark", token=token), BAD)


def relay() -> Iterator[Case]:
    """What a relay must refuse; none of it may reach the driver."""
    for method in (
        "",
        " ",
        "a.b",
        "_secret",
        "__init__",
        "__class__",
        "__getattribute__",
        "__getattr__",
        "__setattr__",
        "__reduce_ex__",
        "calls",
        "voltage",
        "mro",
        "x" * 200,
        "🔬",
        "\u212aelvin",
        "set_voltage ",
    ):
        yield Case("I39", f"method {method!r:.30}", request("call", method=method), (404,))
    for method in (3, ["set_voltage"], None, "x" * 10_000):
        yield Case("I39", f"method {method!r:.30}", request("call", method=method), BAD)
    call = {"method": "set_voltage"}
    for kwargs in (
        {"self": 1},
        {"__class__": 1},
        {"not an identifier": 1},
        {"voltage": 1},
        {},
        {"value": 1, "extra": 2},
        {str(each): each for each in range(9000)},
    ):
        shown = f"{kwargs!s:.30}"
        yield Case("I40", f"keywords {shown}", request("call", **call, kwargs=kwargs), BAD)
    for args in ([1, 2], [], list(range(100_000)), "x", 3, {"value": 1}):
        yield Case("I40", f"arguments {args!r:.30}", request("call", **call, args=args), _LARGE)
    one = {**call, "args": [1]}
    for deadline in (-1.0, 0.0):
        yield Case("I41", f"deadline {deadline}", request("call", **one, deadline=deadline), (408,))
    for value in ("5", float("nan"), float("inf"), [1], True):
        yield Case("I41", f"deadline {value!r}", request("call", **one, deadline=value), BAD)
    yield Case("I14", "for another node", request("call", **one, target="psu-2"), (404,))
    yield Case("I14", "for another incarnation", request("call", **one, epoch="old"), (410,))
    yield Case("I45", "cancel of an unknown call", request("cancel", call="99"), (404,))
    yield from _arrays(call)
    yield from calls_and_leases()


def _arrays(call: dict[str, Any]) -> Iterator[Case]:
    def array(dtype: str, shape: list[int], buffer: Any) -> Ext:
        return Ext(ARRAY, pack([dtype, shape, buffer]))

    wide = "[" + ",".join(f"('f{each}','<i4')" for each in range(1000)) + "]"
    for name, value in (
        ("objects", array("|O", [1], b"\0" * 8)),
        ("void", array("|V8", [1], b"\0" * 8)),
        ("a structured type", array(wide, [1], b"\0" * 4000)),
        ("an unknown type", array("nonsense", [1], b"")),
        ("a product of shapes that overflows", array("<f8", [2**40, 2**40], b"")),
        ("a negative shape", array("<f8", [-1], b"")),
        ("fewer bytes than its shape", array("<f8", [4], b"\0" * 8)),
        ("a buffer that is not there", array("<f8", [1], 5)),
        ("33 levels", nested(33)),
        ("an unknown extension", Ext(99, b"x")),
        ("half a complex number", Ext(1, b"x")),
    ):
        yield Case("I12", f"argument: {name}", request("call", **call, args=[value]), _BAD_OR_LARGE)
    index = Ext(ARRAY, pack(["<f8", [1], 0]))
    doubled = [*request("call", **call, args=[index, index]), struct.pack("<d", 1.0)]
    yield Case("I12", "argument: a buffer used twice", doubled, BAD)
    stray = [*request("call", **call, args=[1]), b"nobody refers to this"]
    yield Case("I12", "a buffer that nobody refers to", stray, BAD)


_SESSION = {"session": "s" * 16}


def ingest() -> Iterator[Case]:
    """What a bank must not store."""
    for each in BAD_IDS:
        start = request("upload_start", dataset_id=each, **_SESSION)
        yield Case("I46", f"dataset {each!r:.30}", start, BAD)
    for size in (-1, 1.5, "10", float("nan"), 10**18, True, "x"):
        start = request("upload_start", dataset_id="d", size=size, **_SESSION)
        yield Case("I47", f"size {size!r}", start, _BAD_OR_LARGE)
    for sha256 in ("x", "A" * 64, "0" * 63, "g" * 64, 3):
        start = request("upload_start", dataset_id="d", sha256=sha256, **_SESSION)
        yield Case("I48", f"sha256 {sha256!r:.20}", start, BAD)
    chunk = {"dataset_id": "never-begun", **_SESSION}
    body = b"x" * 100
    yield Case(
        "I49", "chunk before start", [*request("upload_chunk", **chunk, offset=0), body], (409,)
    )
    for offset in (-1, 1.5, "0", 2**64 - 1, None):
        frames = [*request("upload_chunk", **chunk, offset=offset), body]
        yield Case("I50", f"offset {offset!r}", frames, BAD)
    header = request("upload_chunk", **chunk, offset=0)
    yield Case("I51", "chunk without bytes", header, BAD)
    yield Case("I51", "chunk of two frames", [*header, body, body], BAD)
    yield Case("I51", "chunk of 9 MiB", [*header, bytes(9 * 2**20)], (413, None))
    commit = {**chunk, "size": 1, "sha256": "0" * 64}
    yield Case("I51", "commit before start", request("upload_commit", **commit), (409,))
    yield Case("I51", "abort before start", request("upload_abort", **chunk), (0,))
    for session in ("", "short", "x" * 65, None, 3):
        start = request("upload_start", dataset_id="d", session=session)
        yield Case("I52", f"session {session!r:.20}", start, BAD)
    begin = {"dataset_id": "d", **_SESSION}
    for name, meta in (
        ("a list", [1]),
        ("of 300 kB", {"x": "y" * 300_000}),
        ("1,000 deep", {"x": nested(900)}),
    ):
        yield Case("I53", f"meta {name}", request("upload_start", **begin, meta=meta), _LARGE)


def retrieve() -> Iterator[Case]:
    """What a bank must not serve."""
    for each in BAD_IDS:
        yield Case("I54", f"dataset {each!r:.30}", request("get_dataset", dataset_id=each), BAD)
        fetch = request("fetch", dataset_id=each, size=1)
        yield Case("I54", f"bytes of {each!r:.30}", fetch, BAD)
    yield Case("I54", "an unknown dataset", request("get_dataset", dataset_id="unknown"), (404,))
    for offset, size in ((-1, 1), (0, -1), (0, 0), (0, 2**40), (1.5, 1), ("0", 1)):
        fetch = request("fetch", dataset_id="unknown", offset=offset, size=size)
        yield Case("I55", f"offset {offset!r}, size {size!r}", fetch, BAD)
    for limit in (0, -1, 10**9, "all", None, 1.5):
        listing = request("list_datasets", limit=limit)
        yield Case("I57", f"limit {limit!r}", listing, BAD)
    listing = request("list_datasets", after=-1)
    yield Case("I57", "a list after -1", listing, BAD)
