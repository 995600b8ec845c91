"""A client against brokers, relays and banks that lie: typed errors, in time, and no harm done."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
import zmq
from tests.support.doubles import Answers, BrokerDouble, RouterDouble
from tests.support.hearing import Heard
from tests.support.leaks import Held, assert_nothing_more, warm_up
from tests.support.peers import PROTECTED, endpoint_of, raw_socket, until
from tests.support.promptness import SLACK_S
from tests.support.wire_events import published

from labmesh import BankClient, DirectorClientAgent, DirectoryBroker
from labmesh.errors import (
    ChecksumMismatch,
    Conflict,
    DriverError,
    LabmeshError,
    LinkLost,
    NoAnswer,
    NotFound,
    OutcomeUnknown,
    ProtocolError,
)
from labmesh.protocol.codec import encode_value
from labmesh.protocol.messages import (
    Alive,
    Call,
    ChunkStored,
    DatasetPage,
    DatasetRecord,
    Done,
    Failure,
    Fetch,
    Fetched,
    GetDataset,
    ListDatasets,
    NodeList,
    NodeRecord,
    Request,
    UploadChunk,
    UploadCommit,
    UploadGranted,
    UploadStart,
)
from labmesh.transfer import UploadSettings

ANYWHERE = "tcp://127.0.0.1:*"
LIMIT_S = 15.0
CONTENT = bytes(range(256)) * 16_384  # 4 MiB: several ranges
SHA256 = hashlib.sha256(CONTENT).hexdigest()
pack = msgspec.msgpack.encode


@pytest.fixture(autouse=True)
async def no_leaks() -> AsyncIterator[None]:
    warm_up()
    before = Held.now()
    yield
    await assert_nothing_more(before)


# ── events ──────────────────────────────────────────────────────────────────────────────────────


def record_of(**fields: Any) -> dict[str, Any]:
    known = {"dataset_id": "d-1", "size": 4, "sha256": SHA256, "bank_id": "bank-0"}
    return {**known, **fields}


#: topic, payload; never of the form that a client may hand to a callback
EVENTS: dict[str, tuple[str, bytes]] = {
    "a state that is cut short": ("state.Inst-0", b"\x82\xa1"),
    "an empty state": ("state.Inst-0", b""),
    "a state that is a list": ("state.Inst-0", encode_value([1, 2])),
    "a state that is a number": ("state.Inst-0", encode_value(5)),
    "a state that is null": ("state.Inst-0", encode_value(None)),
    "a state that is text": ("state.Inst-0", encode_value("on")),
    "a state 100,000 deep": ("state.Inst-0", b"\x91" * 100_000),
    "a state that claims 2**32 items": ("state.Inst-0", b"\xdf\xff\xff\xff\xff"),
    "a state with a pickle in it": ("state.Inst-0", pack({"v": msgspec.msgpack.Ext(42, b"\x80")})),
    "a state with keys that are lists": ("state.Inst-0", b"\x81\x91\x01\x02"),
    "bad JSON": ("state.Inst-0", b'{"voltage": NaN}'),
    "an event that is cut short": ("event.Inst-0", b"\x82\xa1"),
    "a dataset that is null": ("dataset.bank-0", encode_value(None)),
    "a dataset without fields": ("dataset.bank-0", encode_value({})),
    "a dataset with a path": (
        "dataset.bank-0",
        encode_value(record_of(dataset_id="../../.bashrc")),
    ),
    "a dataset with a slash": ("dataset.bank-0", encode_value(record_of(dataset_id="a/b"))),
    "a dataset with an id of 10 kB": (
        "dataset.bank-0",
        encode_value(record_of(dataset_id="x" * 10_000)),
    ),
    "a dataset with a list as id": ("dataset.bank-0", encode_value(record_of(dataset_id=["d"]))),
    "a dataset of size -1": ("dataset.bank-0", encode_value(record_of(size=-1))),
    "a dataset of size 10**18": ("dataset.bank-0", encode_value(record_of(size=10**18))),
    "a dataset with a short digest": ("dataset.bank-0", encode_value(record_of(sha256="ab"))),
    "a dataset of another bank": ("dataset.bank-0", encode_value(record_of(bank_id="bank-1"))),
}


async def test_events_that_make_no_sense_reach_no_callback() -> None:
    broker = DirectoryBroker(ANYWHERE, ANYWHERE, ANYWHERE, security=PROTECTED)
    async with broker:
        client = DirectorClientAgent(broker_rpc=str(broker.rpc), security=PROTECTED)
        async with client:
            states, datasets, others = Heard(), Heard(), Heard()
            client.on_state(states)
            client.on_dataset(datasets)
            client.on_event(others)
            with raw_socket(zmq.XPUB, endpoint_of(broker.xsub)) as forger:
                await until(lambda: forger.getsockopt(zmq.EVENTS) & zmq.POLLIN)
                sequence = 0

                def publish(topic: str, payload: bytes) -> None:
                    nonlocal sequence
                    sequence += 1
                    header = {"publisher": "x", "epoch": "e1", "sequence": sequence, "time": 0.0}
                    forger.send_multipart(published([topic.encode(), pack(header), payload]))

                # Until the subscriptions are in force.
                await until(
                    lambda: (
                        publish("dataset.bank-0", encode_value(record_of(dataset_id="first"))),
                        publish("event.Inst-0", encode_value("first")),
                        publish("state.Inst-0", encode_value({"first": 1})),
                        states.items and datasets.items and others.items,
                    )[-1],
                    LIMIT_S,
                )
                dropped = client._feed.dropped
                for topic, payload in EVENTS.values():
                    publish(topic, payload)
                publish("state.Inst-0", encode_value({"last": 1}))
                publish("dataset.bank-0", encode_value(record_of(dataset_id="last")))
                publish("event.Inst-0", encode_value("last"))
                await states.one(lambda item: item[1] == {"last": 1})
                await datasets.one(lambda item: item["dataset_id"] == "last")
                await others.one(lambda item: item[2] == "last")
            assert {str(state) for _, state in states.items} == {"{'first': 1}", "{'last': 1}"}
            assert {each["dataset_id"] for each in datasets.items} == {"first", "last"}
            assert {value for _, _, value in others.items} == {"first", "last"}
            # What conflates is not looked at; the dataset events are each looked at.
            assert client._feed.dropped - dropped >= sum(
                topic.startswith("dataset") for topic, _ in EVENTS.values()
            )


# ── a broker that lies ──────────────────────────────────────────────────────────────────────────


def node(kind: str = "relay", **fields: Any) -> dict[str, Any]:
    endpoints = {"rpc": "tcp://127.0.0.1:1"}
    if kind == "bank":
        endpoints = {"ingest": "tcp://127.0.0.1:1", "retrieve": "tcp://127.0.0.1:1"}
    node_id = "Inst-0" if kind == "relay" else "bank-0"
    return {"node_id": node_id, "kind": kind, "epoch": "e1", "endpoints": endpoints, **fields}


def listing(*nodes: Any, **fields: Any) -> Callable[[Request], Answers]:
    def answer(request: Request) -> Answers:
        answered = {"type": "node_list", "id": request.id, "broker_epoch": "b1", "nodes": nodes}
        yield [pack({**answered, **fields})]

    return answer


LISTINGS: dict[str, Callable[[Request], Answers]] = {
    "nodes that are a number": listing(nodes=5),
    "nodes that are numbers": listing(1, 2),
    "no epoch": listing(node(), broker_epoch=None),
    "a node without an id": listing({"kind": "relay"}),
    "an id with a path": listing(node(node_id="../../x")),
    "no endpoints": listing(node(endpoints={})),
    "endpoints by other names": listing(node(endpoints={"web": "http://127.0.0.1"})),
    "endpoints that are a list": listing(node(endpoints=["tcp://127.0.0.1:1"])),
    "an endpoint that is a file": listing(node(endpoints={"rpc": "file:///etc/passwd"})),
    "an endpoint inside this process": listing(node(endpoints={"rpc": "inproc://zeromq.zap.01"})),
    "an endpoint that is a socket file": listing(node(endpoints={"rpc": "ipc:///tmp/x"})),
    "port 0": listing(node(endpoints={"rpc": "tcp://127.0.0.1:0"})),
    "port 65536": listing(node(endpoints={"rpc": "tcp://127.0.0.1:65536"})),
    "a port that is a star": listing(node(endpoints={"rpc": "tcp://127.0.0.1:*"})),
    "a host that is a star": listing(node(endpoints={"rpc": "tcp://*:5"})),
    "a host with a line end": listing(node(endpoints={"rpc": "tcp://a\nb:5"})),
    "an empty endpoint": listing(node(endpoints={"rpc": ""})),
    "another answer": lambda request: [Done(id=request.id)],
    "a refusal without a code": lambda request: [[pack({"type": "error", "id": request.id})]],
    "a refusal": lambda request: [Failure(id=request.id, code=403, name="forbidden", text="no")],
}


@pytest.mark.parametrize("what", LISTINGS)
async def test_a_directory_that_makes_no_sense_is_a_typed_error(what: str) -> None:
    with BrokerDouble(LISTINGS[what], honest=True) as broker:
        async with DirectorClientAgent(broker_rpc=broker.endpoint, security=PROTECTED) as client:
            broker.honest = False
            errors = []
            for work in (
                client.list_relay_ids(),
                client.list_banks(),
                client.get_relay_agent("Inst-0", wait=0.0),
                client.request("Inst-0", Call(id="-", method="ramp"), Done, timeout=0.3),
            ):
                began = time.monotonic()
                try:
                    await work
                except LabmeshError as exc:
                    errors.append(exc)
                assert time.monotonic() - began < 0.3 + SLACK_S
            assert errors
            assert not client._failure


@pytest.mark.parametrize("port", [0, -1, 65_536, 10**15, True, 5.5, "5752", None, [5752]])
async def test_an_event_port_that_makes_no_sense_is_a_typed_error(port: object) -> None:
    lie = {} if port is None else {"event_port": port}
    with BrokerDouble(honest=True, **lie) as broker:
        client = DirectorClientAgent(broker_rpc=broker.endpoint, security=PROTECTED)
        if lie:
            with pytest.raises(LinkLost, match="does not tell its event port"):
                await client.connect(timeout=4 * SLACK_S)
        else:
            await client.connect(timeout=4 * SLACK_S)
            await client.close()


async def test_a_directory_of_more_nodes_than_a_message_holds_is_no_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("labmesh.asking.links.REQUEST_S", 1.0)
    monkeypatch.setattr("labmesh.client.REQUEST_S", 1.0)
    many = listing(*(node(node_id=f"Inst-{number}", title="x" * 256) for number in range(20_000)))
    with BrokerDouble(many, honest=True) as broker:
        async with DirectorClientAgent(broker_rpc=broker.endpoint, security=PROTECTED) as client:
            broker.honest = False
            with pytest.raises((NoAnswer, ProtocolError)):
                await client.list_relay_ids()


# ── a relay that lies ───────────────────────────────────────────────────────────────────────────


@asynccontextmanager
async def client_of(double: RouterDouble, kind: str) -> AsyncIterator[DirectorClientAgent]:
    """A client whose directory lists this double as Inst-0 or bank-0."""
    names = ("rpc",) if kind == "relay" else ("ingest", "retrieve")
    listed = NodeRecord(**node(kind, endpoints=dict.fromkeys(names, double.endpoint)))
    answer = lambda request: [NodeList(id=request.id, broker_epoch="b1", nodes=[listed])]  # noqa: E731
    with BrokerDouble(answer) as broker:
        async with DirectorClientAgent(broker_rpc=broker.endpoint, security=PROTECTED) as client:
            yield client


def raw(**fields: Any) -> Callable[[Request], Answers]:
    return lambda request: [[pack({"id": request.id, **fields})]]


def driver(exception_type: str) -> Callable[[Request], Answers]:
    detail = {"exception_type": exception_type, "remote_traceback": 5, "relay_id": ["x"]}
    return raw(type="error", code=500, name="driver", text="boom", detail=detail)


RESULTS: dict[str, tuple[Callable[[Request], Answers], type[LabmeshError]]] = {
    "another answer": (raw(type="done"), OutcomeUnknown),
    "an unknown answer": (raw(type="novel"), OutcomeUnknown),
    "a request": (raw(type="call", method="x"), OutcomeUnknown),
    "an error without a code": (raw(type="error", name="busy"), OutcomeUnknown),
    "an error of a wrong code": (raw(type="error", code="x", name="busy"), OutcomeUnknown),
    "an error of no name": (raw(type="error", code=1, name="no such name"), LabmeshError),
    "an error with the text of a novel": (
        raw(type="error", code=1, name="busy", text="x" * 70_000),
        OutcomeUnknown,
    ),
    "a detail that is a list": (raw(type="error", code=1, name="busy", detail=[1]), OutcomeUnknown),
    "a detail that hides the text": (
        raw(type="error", code=1, name="conflict", detail={"self": 1, "text": "x", "": 2}),
        Conflict,
    ),
    "SystemExit": (driver("SystemExit"), DriverError),
    "KeyboardInterrupt": (driver("KeyboardInterrupt"), DriverError),
    "StopIteration": (driver("StopIteration"), DriverError),
    "GeneratorExit": (driver("GeneratorExit"), DriverError),
    "CancelledError": (driver("CancelledError"), DriverError),
    "a builtin that is no exception": (driver("print"), DriverError),
    "signs of life and nothing else": (
        lambda request: [Alive(id=request.id, state="running")],
        OutcomeUnknown,
    ),
    "nothing": (lambda _: [], OutcomeUnknown),
    "32 MB": (lambda request: [[b"{" + b" " * (32 * 2**20)]], OutcomeUnknown),
    "a value 100,000 deep": (
        lambda each: [[b"\x83\xa4type\xa6result\xa2id\xa1" + each.id.encode() + b"\xa5value"
                       + b"\x91" * 100_000]],
        OutcomeUnknown,
    ),
}  # fmt: skip


#: The caller hears nothing of these that it can read: it waits for its deadline.
UNANSWERED = ("nothing", "signs of life and nothing else", "32 MB", "a value 100,000 deep")


@pytest.mark.parametrize("what", RESULTS)
async def test_a_relay_that_makes_no_sense_gives_a_typed_error_in_time(what: str) -> None:
    answer, kind = RESULTS[what]
    with RouterDouble(answer, node_id="Inst-0") as double:
        async with client_of(double, "relay") as client:
            relay = await client.get_relay_agent("Inst-0")
            timeout = 1.0 if what in UNANSWERED else 4 * SLACK_S
            began = time.monotonic()
            with pytest.raises(LabmeshError) as caught:
                await relay.call("ramp", [1], timeout=timeout)
            took_s = time.monotonic() - began
            print(f"told after {took_s:.2f} s")
            assert took_s < 1.0 + SLACK_S
            assert isinstance(caught.value, kind)
            assert caught.value.executed is not False or kind is not OutcomeUnknown
            for ask in (relay.describe(), relay.status()):
                if what not in UNANSWERED:
                    with pytest.raises(LabmeshError):
                        await ask
                else:
                    ask.close()


# ── a bank that lies ────────────────────────────────────────────────────────────────────────────


def committed(**fields: Any) -> Callable[[Request], list[bytes]]:
    record = {
        "dataset_id": "scan-1",
        "size": len(CONTENT),
        "sha256": SHA256,
        "bank_id": "bank-0",
        **fields,
    }
    return lambda request: [pack({"type": "committed", "id": request.id, "record": record})]


def content_of(folder: Path) -> dict[str, bytes]:
    return {str(each.relative_to(folder)): each.read_bytes() for each in folder.rglob("*")}


def piece(request: Fetch) -> tuple[int, bytes]:
    return request.offset, CONTENT[request.offset : request.offset + request.size]


class BadBank:
    """Answers the record and the ranges of ``scan-1`` with what it was given, else rightly."""

    def __init__(
        self,
        record: Callable[[Request], list[bytes]] | None = None,
        fetched: Callable[[Fetch], Answers] | None = None,
    ) -> None:
        self._record, self._fetched = record or committed(), fetched

    def __call__(self, request: Request) -> Answers:
        if isinstance(request, GetDataset):
            yield self._record(request)
        elif isinstance(request, Fetch):
            if self._fetched is None:
                offset, content = piece(request)
                yield Fetched(id=request.id, offset=offset), content
            else:
                yield from self._fetched(request)


def fetched(offset: int = 0, cut: int = 0, more: int = 0, flip: bool = False) -> Any:
    """Answers to ranges: shifted by ``offset``, shorter by ``cut``, longer by ``more``."""

    def answer(request: Fetch) -> Answers:
        start, content = piece(request)
        content = content[: len(content) - cut] + bytes(more)
        if flip:
            content = bytes([content[0] ^ 1]) + content[1:]
        yield [pack({"type": "fetched", "id": request.id, "offset": start + offset}), content]

    return answer


DOWNLOADS: dict[str, tuple[BadBank, type[LabmeshError] | tuple[type[LabmeshError], ...]]] = {
    "another dataset": (BadBank(committed(dataset_id="scan-2")), ProtocolError),
    "an id with a path": (BadBank(committed(dataset_id="../evil")), ProtocolError),
    "an id that is a list": (BadBank(committed(dataset_id=["scan-1"])), ProtocolError),
    "size -1": (BadBank(committed(size=-1)), ProtocolError),
    "size 10**18": (BadBank(committed(size=10**18)), ProtocolError),
    "size 2**53, and the bytes of 4 MiB": (BadBank(committed(size=2**53)), LabmeshError),
    "a size that is text": (BadBank(committed(size="4")), ProtocolError),
    "a smaller size than there is": (BadBank(committed(size=100)), LabmeshError),
    "a larger size than there is": (BadBank(committed(size=len(CONTENT) + 1)), LabmeshError),
    "a wrong digest": (BadBank(committed(sha256="0" * 64)), ChecksumMismatch),
    "a short digest": (BadBank(committed(sha256=SHA256[:10])), ProtocolError),
    "a digest in capitals": (BadBank(committed(sha256=SHA256.upper())), ProtocolError),
    "no record": (BadBank(lambda each: [pack({"type": "done", "id": each.id})]), ProtocolError),
    "ranges one byte on": (BadBank(fetched=fetched(offset=1)), ProtocolError),
    "ranges one byte back": (BadBank(fetched=fetched(offset=-1)), ProtocolError),
    "ranges far behind": (BadBank(fetched=fetched(offset=2**52)), ProtocolError),
    "ranges too short": (BadBank(fetched=fetched(cut=1)), ProtocolError),
    "ranges too long": (BadBank(fetched=fetched(more=1)), ProtocolError),
    "ranges of 10 MB": (BadBank(fetched=fetched(more=10**7)), ProtocolError),
    "ranges of no byte, for ever": (BadBank(fetched=fetched(cut=2**20)), ProtocolError),
    "one bit flipped": (BadBank(fetched=fetched(flip=True)), ChecksumMismatch),
    "ranges without bytes": (
        BadBank(fetched=lambda each: [[pack({"type": "fetched", "id": each.id, "offset": 0})]]),
        ProtocolError,
    ),
    "a refusal of each range": (
        BadBank(fetched=lambda each: [Failure(id=each.id, code=404, name="not_found")]),
        NotFound,
    ),
    "busy for ever": (
        BadBank(fetched=lambda each: [Failure(id=each.id, code=429, name="busy", retryable=True)]),
        LabmeshError,
    ),
}


@pytest.mark.timeout(90)
@pytest.mark.parametrize(
    "what",
    [
        # The one that lasts: it takes every retry, twice.
        pytest.param(each, marks=pytest.mark.soak if each == "busy for ever" else ())
        for each in DOWNLOADS
    ],
)
async def test_a_download_from_a_bank_that_lies_leaves_nothing_behind(
    what: str, tmp_path: Path
) -> None:
    bank, kind = DOWNLOADS[what]
    (tmp_path / "kept").write_text("kept")
    with RouterDouble(bank, node_id="bank-0") as double:
        async with client_of(double, "bank") as client:
            proxy = await client.get_databank_agent()
            for target in (tmp_path, tmp_path / "kept"):
                with pytest.raises(LabmeshError) as caught:
                    await asyncio.wait_for(proxy.download("scan-1", target), 60.0)
                assert isinstance(caught.value, kind), repr(caught.value)
    assert content_of(tmp_path) == {"kept": b"kept"}


async def test_the_same_bank_when_it_does_not_lie(tmp_path: Path) -> None:
    """Else all of the above would prove nothing."""
    with RouterDouble(BadBank(), node_id="bank-0") as double:
        async with client_of(double, "bank") as client:
            proxy = await client.get_databank_agent()
            told = await proxy.download("scan-1", tmp_path)
            assert await proxy.read("scan-1") == CONTENT
    assert told["path"] == str(tmp_path / "scan-1")
    assert content_of(tmp_path) == {"scan-1": CONTENT}


async def test_no_more_is_written_than_the_record_says(tmp_path: Path) -> None:
    """A bomb: a record of 100 bytes, and ranges of a mebibyte."""
    written: list[int] = []
    with RouterDouble(BadBank(committed(size=100)), node_id="bank-0") as double:
        async with client_of(double, "bank") as client:
            proxy = await client.get_databank_agent()
            with pytest.raises(LabmeshError):
                await proxy.download(
                    "scan-1", tmp_path, progress=lambda safe, _size: written.append(safe)
                )
    assert max(written, default=0) <= 100
    assert content_of(tmp_path) == {}


PAGES: dict[str, Callable[[Request], Answers]] = {
    "no page": raw(type="done"),
    "records that are text": raw(type="dataset_page", records=["x"]),
    "a record with a path": raw(type="dataset_page", records=[record_of(dataset_id="../x")]),
    "meta 100 deep": lambda each: [
        [
            pack({"type": "dataset_page", "id": each.id})[: -0 or None].replace(b"\x82", b"\x83", 1)
            + b"\xa7records\x91\x85"
            + b"".join(pack(item) for pair in record_of().items() for item in pair)
            + b"\xa4meta"
            + b"\x81\xa1m" * 100
            + b"\xc0"
        ]
    ],
}


@pytest.mark.parametrize("what", PAGES)
async def test_a_list_that_makes_no_sense_is_a_typed_error(what: str) -> None:
    def answer(request: Request) -> Answers:
        return PAGES[what](request) if isinstance(request, ListDatasets) else ()

    with RouterDouble(answer, node_id="bank-0") as double:
        async with client_of(double, "bank") as client:
            with pytest.raises(ProtocolError):
                await (await client.get_databank_agent()).list()


async def test_a_page_of_the_same_form_that_does_make_sense() -> None:
    def answer(request: Request) -> Answers:
        yield DatasetPage(id=request.id, records=[DatasetRecord(**record_of())])

    with RouterDouble(answer, node_id="bank-0") as double:
        async with client_of(double, "bank") as client:
            [record] = await (await client.get_databank_agent()).list()
            assert record.dataset_id == "d-1"


# ── a bank that lies to who uploads ─────────────────────────────────────────────────────────────


class BadReceiver:
    """Takes an upload as a bank does, apart from what it was given."""

    def __init__(self, **wrong: Callable[[Any], Any]) -> None:
        self._wrong = wrong
        self.stored = 0

    def __call__(self, request: Request) -> Answers:
        match request:
            case UploadStart():
                grant = UploadGranted(id=request.id, offset=0, chunk_bytes=2**20, window=4)
                yield self._wrong.get("granted", lambda _: grant)(request)
            case UploadChunk():
                self.stored = min(request.offset + 2**20, len(CONTENT))
                stored = ChunkStored(id=request.id, offset=self.stored)
                yield self._wrong.get("stored", lambda _: stored)(request)
            case UploadCommit():
                yield self._wrong.get("committed", committed())(request)
            case _:
                yield Done(id=request.id)


UPLOADS: dict[str, tuple[BadReceiver, type[LabmeshError]]] = {
    "a grant without room": (
        BadReceiver(
            granted=lambda each: UploadGranted(id=each.id, offset=0, chunk_bytes=0, window=4)
        ),
        ProtocolError,
    ),
    "a grant without a window": (
        BadReceiver(
            granted=lambda each: UploadGranted(id=each.id, offset=0, chunk_bytes=1, window=0)
        ),
        ProtocolError,
    ),
    "a grant beyond the end": (
        BadReceiver(
            granted=lambda each: UploadGranted(id=each.id, offset=2**40, chunk_bytes=1, window=1)
        ),
        ProtocolError,
    ),
    "no grant": (BadReceiver(granted=lambda each: Done(id=each.id)), ProtocolError),
    "stored at once, something else": (
        BadReceiver(granted=committed(sha256="0" * 64)),
        LabmeshError,
    ),
    "chunks that are never stored": (
        BadReceiver(stored=lambda each: ChunkStored(id=each.id, offset=0)),
        ProtocolError,
    ),
    "chunks stored but for one byte": (
        BadReceiver(stored=lambda each: ChunkStored(id=each.id, offset=each.offset + 2**20 - 1)),
        ProtocolError,
    ),
    "more stored than was sent": (
        BadReceiver(stored=lambda each: ChunkStored(id=each.id, offset=2**50)),
        ProtocolError,
    ),
    "another answer to a chunk": (BadReceiver(stored=lambda each: Done(id=each.id)), ProtocolError),
    "committed, but another id": (
        BadReceiver(committed=committed(dataset_id="scan-2")),
        Conflict,
    ),
    "committed, but other bytes": (BadReceiver(committed=committed(sha256="0" * 64)), Conflict),
    "another answer to the commit": (
        BadReceiver(committed=lambda each: Done(id=each.id)),
        ProtocolError,
    ),
}


async def upload(proxy: BankClient) -> DatasetRecord:
    settings = UploadSettings(timeout_s=1.0, retries=1)
    work = proxy.upload(CONTENT, dataset_id="scan-1", settings=settings)
    return await asyncio.wait_for(work, LIMIT_S)


@pytest.mark.parametrize("what", UPLOADS)
async def test_an_upload_to_a_bank_that_lies_is_a_typed_error(what: str) -> None:
    receiver, kind = UPLOADS[what]
    with RouterDouble(receiver, node_id="bank-0") as double:
        async with client_of(double, "bank") as client:
            with pytest.raises(LabmeshError) as caught:
                await upload(await client.get_databank_agent())
    assert isinstance(caught.value, kind), repr(caught.value)


async def test_the_same_upload_to_a_bank_that_does_not_lie() -> None:
    with RouterDouble(BadReceiver(), node_id="bank-0") as double:
        async with client_of(double, "bank") as client:
            record = await upload(await client.get_databank_agent())
        assert b"".join(double.bodies) == CONTENT
    assert record.dataset_id == "scan-1"
