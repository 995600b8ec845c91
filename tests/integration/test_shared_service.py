"""The socket that a driver's thread reads itself: whoever waits for it misses nothing."""

from __future__ import annotations

import logging
import select
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
import zmq
from tests.support.looking import Sleepless
from tests.support.peers import LOOPBACK, endpoint_of, open_sockets, raw_socket
from tests.support.served import eventually

from labmesh.protocol.addresses import Address, parse_bind
from labmesh.protocol.codec import Codec
from labmesh.protocol.messages import Call, Done, Request, Result
from labmesh.transport.answering import Origin
from labmesh.transport.breaker import Intake
from labmesh.transport.shared import SharedService

LIMIT_S = 10.0


@dataclass
class Shared:
    """A service, what it was asked, and somebody who asks."""

    service: SharedService
    peer: zmq.Socket[bytes]
    asked: list[tuple[str, Origin]] = field(default_factory=list)

    def ask(self, request_id: str) -> None:
        self.peer.send_multipart(Codec(()).encode(Call(id=request_id, method="move")))

    def read_all(self) -> None:
        """As a driver's thread does before it waits."""
        with self.service.lock:
            while self.service.read():
                continue

    def has_something_to_tell(self) -> bool:
        """The descriptor says that something changed."""
        poll = select.poll()
        poll.register(self.service._socket.FD, select.POLLIN)
        return bool(poll.poll(0))


@pytest.fixture
def shared() -> Iterator[Shared]:
    asked: list[tuple[str, Origin]] = []

    def handle(request: Request, _body: Any, origin: Origin) -> None:
        asked.append((request.id, origin))

    with open_sockets() as sockets:
        service = SharedService(
            sockets,
            LOOPBACK,
            role="relay",
            requests=(Call,),
            node_id="Inst-0",
            kind="relay",
            epoch="e1",
            handle=handle,
            lock=threading.RLock(),
        )
        with raw_socket(zmq.DEALER, endpoint_of(service.address)) as peer:
            yield Shared(service, peer, asked)
        service.close()
        service.dispose()


def test_who_looks_instead_of_sleeping_misses_no_request(shared: Shared) -> None:
    service, count = shared.service, 300
    spin = service._spin = Sleepless()

    def serve() -> None:
        for _ in range(count):
            before = len(shared.asked)
            shared.read_all()
            while len(shared.asked) == before:
                service.wait()
                shared.read_all()
            with service.lock:
                request_id, origin = shared.asked[-1]
                service.reply(origin, Done(id=request_id))

    thread = threading.Thread(target=serve)
    thread.start()
    for number in range(count):
        shared.ask(str(number))
        assert shared.peer.poll(LIMIT_S * 1000), f"request {number} was missed"
        shared.peer.recv()
    thread.join(LIMIT_S)
    assert not thread.is_alive()
    assert spin.finds


def test_who_waits_for_the_first_request_of_a_row_sleeps(
    shared: Shared, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("there is no row of requests")

    monkeypatch.setattr(shared.service._bell, "look", refuse)
    shared.read_all()
    shared.ask("1")
    while not shared.asked:
        shared.service.wait(LIMIT_S)
        shared.read_all()


def test_what_came_while_another_thread_sent_is_read(shared: Shared) -> None:
    """A send takes in what the socket's own thread has to say; the descriptor says it no more."""
    shared.ask("1")
    eventually(lambda: shared.read_all() or shared.asked, "the first request")
    shared.ask("2")
    eventually(shared.has_something_to_tell, "the second request is there")
    with shared.service.lock:
        shared.service.reply(shared.asked[0][1], Done(id="1"))
    began = time.monotonic()
    shared.service.wait(LIMIT_S)
    assert time.monotonic() - began < LIMIT_S / 2
    shared.read_all()
    assert [request_id for request_id, _ in shared.asked] == ["1", "2"]


def test_more_than_it_takes_at_a_time_is_read_before_it_finds_nothing(shared: Shared) -> None:
    for number in range(1000):
        shared.ask(str(number))
    eventually(lambda: shared.read_all() or len(shared.asked) == 1000, "all of them")
    assert [int(request_id) for request_id, _ in shared.asked] == list(range(1000))


# ── waiting ─────────────────────────────────────────────────────────────────────────────────────


@contextmanager
def waiting(service: SharedService) -> Iterator[threading.Event]:
    """A thread that waits for the service; the event tells when it does no more."""
    begins, ended = threading.Event(), threading.Event()

    def wait() -> None:
        begins.set()
        service.wait(LIMIT_S)
        ended.set()

    thread = threading.Thread(target=wait)
    thread.start()
    assert begins.wait(LIMIT_S)
    yield ended
    thread.join(LIMIT_S)
    assert not thread.is_alive()


def is_empty(shared: Shared) -> None:
    """Until nothing is there, and nothing has changed since that was seen."""
    eventually(lambda: shared.read_all() or not shared.has_something_to_tell(), "it is quiet")


def test_a_request_ends_the_wait(shared: Shared) -> None:
    is_empty(shared)
    with waiting(shared.service) as ended:
        shared.ask("1")
        assert ended.wait(LIMIT_S / 2)
    eventually(lambda: shared.read_all() or shared.asked, "the request")


def test_a_ring_ends_the_wait(shared: Shared) -> None:
    is_empty(shared)
    with waiting(shared.service) as ended:
        shared.service.ring()
        assert ended.wait(LIMIT_S / 2)
    assert shared.asked == []


def test_closing_ends_the_wait_and_whatever_comes_after_it_is_harmless(shared: Shared) -> None:
    service = shared.service
    shared.ask("1")
    eventually(lambda: shared.read_all() or shared.asked, "the request")
    is_empty(shared)
    with waiting(service) as ended:
        service.close()
        assert ended.wait(LIMIT_S / 2)
    service.close()
    service.ring()
    began = time.monotonic()
    service.wait(LIMIT_S)
    assert time.monotonic() - began < LIMIT_S / 2
    with service.lock:
        assert not service.read()
        assert not service.reply(shared.asked[0][1], Done(id="1"))
    service.dispose()
    service.dispose()


def test_the_last_replies_leave_before_it_closes(shared: Shared) -> None:
    shared.ask("1")
    eventually(lambda: shared.read_all() or shared.asked, "the request")
    service, origin = shared.service, shared.asked[0][1]
    with service.lock:
        service.send_soon(origin, service.encode(origin, Result(id="1", value="last words")))
    service.close()
    assert shared.peer.poll(LIMIT_S * 1000)
    assert b"last words" in shared.peer.recv()


# ── replies that wait for each other ────────────────────────────────────────────────────────────


def test_replies_that_were_held_back_are_sent_in_their_order_before_another_one(
    shared: Shared,
) -> None:
    shared.ask("1")
    eventually(lambda: shared.read_all() or shared.asked, "the request")
    service, origin = shared.service, shared.asked[0][1]
    values = ["first", "x" * 100_000, "third"]
    with service.lock:
        for value in values:
            service.send_soon(origin, service.encode(origin, Result(id="1", value=value)))
        service.reply(origin, Result(id="1", value="at once"))
    reader = Codec((Result,))
    heard = []
    for _ in range(4):
        assert shared.peer.poll(LIMIT_S * 1000)
        heard.append(reader.decode(shared.peer.recv_multipart()).message.value)  # type: ignore[attr-defined]
    assert heard == [*values, "at once"]


def test_many_replies_do_not_wait_for_each_other_without_end(shared: Shared) -> None:
    shared.ask("1")
    eventually(lambda: shared.read_all() or shared.asked, "the request")
    service, origin = shared.service, shared.asked[0][1]
    with service.lock:
        for _ in range(100):
            service.send_soon(origin, service.encode(origin, Done(id="1")))
    assert shared.peer.poll(LIMIT_S * 1000), "some are sent though nobody has flushed"


def test_a_reply_to_who_is_gone_is_counted_and_harms_nobody(shared: Shared) -> None:
    service = shared.service
    with raw_socket(zmq.DEALER, endpoint_of(service.address)) as leaving:
        leaving.send_multipart(Codec(()).encode(Call(id="1", method="move")))
        eventually(lambda: shared.read_all() or shared.asked, "the request")
    gone = shared.asked[0][1]
    eventually(lambda: not replied(service, gone), "it is gone")
    dropped = service.dropped
    with service.lock:
        service.send_soon(gone, service.encode(gone, Done(id="1")))
        service.flush()
    assert service.dropped == dropped + 1
    shared.ask("2")
    eventually(lambda: shared.read_all() or len(shared.asked) == 2, "the other one's request")
    assert replied(service, shared.asked[1][1])
    assert shared.peer.poll(LIMIT_S * 1000)


def replied(service: SharedService, origin: Origin) -> bool:
    with service.lock:
        return service.reply(origin, Done(id="1"))


# ── messages without an end ─────────────────────────────────────────────────────────────────────


def test_an_endless_message_is_dropped_in_slices(
    shared: Shared, caplog: pytest.LogCaptureFixture
) -> None:
    """Between two of them others have their turn at the lock, and the driver at its thread."""
    shared.ask("before")
    eventually(lambda: shared.read_all() or shared.asked, "the first request")
    shared.peer.send_multipart([b"x"] * 30_000)
    shared.ask("behind")
    slices = 0
    with caplog.at_level(logging.WARNING):
        deadline = time.monotonic() + LIMIT_S
        while len(shared.asked) == 1:
            assert time.monotonic() < deadline, "what came behind it was not read"
            with shared.service.lock:
                slices += shared.service.read()
    assert [request_id for request_id, _ in shared.asked] == ["before", "behind"]
    assert 10 <= slices <= 20
    assert shared.service.dropped == 1
    assert caplog.text.count("a message of more than 66 frames") == 1


def test_an_endless_message_of_one_is_not_the_end_of_others(shared: Shared) -> None:
    with raw_socket(zmq.DEALER, endpoint_of(shared.service.address)) as hostile:
        for _ in range(3):
            hostile.send_multipart([b"x"] * 5000)
        shared.ask("1")
        eventually(lambda: shared.read_all() or shared.asked, "the request")
        eventually(lambda: shared.read_all() or shared.service.dropped == 3, "all are dropped")


# ── who it is ───────────────────────────────────────────────────────────────────────────────────


class Doorkeeper:
    """Sockets whose handshakes prove a name."""

    witness = None
    security = SimpleNamespace(guard=True)

    def __init__(self) -> None:
        #: whoever connects now
        self.name = ""
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._is_over = False
        self._requests = self._context.socket(zmq.REP)
        self._requests.bind("inproc://zeromq.zap.01")
        self._thread = threading.Thread(target=self._answer)
        self._thread.start()

    def bind(self, kind: int, address: Address, **_: str) -> tuple[zmq.Socket[bytes], Address]:
        socket = self._context.socket(kind)
        socket.router_mandatory = True
        socket.zap_domain = b"test"
        socket.bind(address.zmq_bind)
        bound = parse_bind(socket.getsockopt_string(zmq.LAST_ENDPOINT).rstrip("\0"))
        return socket, Address(address.host, bound.port)

    def intake(self, _: zmq.Socket[bytes]) -> Intake:
        return Intake("relay")

    def close(self, socket: zmq.Socket[bytes], linger_ms: int) -> None:
        socket.close(linger_ms)

    def end(self) -> None:
        self._is_over = True
        self._thread.join(LIMIT_S)
        self._requests.close(0)
        self._context.term()

    def _answer(self) -> None:
        while not self._is_over:
            if self._requests.poll(10):
                _, request_id, *_ = self._requests.recv_multipart()
                name = self.name.encode()
                self._requests.send_multipart([b"1.0", request_id, b"200", b"OK", name, b""])


@contextmanager
def proving() -> Iterator[tuple[Shared, Doorkeeper]]:
    """A service, and who decides what its peers are called."""
    asked: list[tuple[str, Origin]] = []
    doorkeeper = Doorkeeper()
    service = SharedService(
        doorkeeper,  # type: ignore[arg-type]
        LOOPBACK,
        role="relay",
        requests=(Call,),
        node_id="Inst-0",
        kind="relay",
        epoch="e1",
        handle=lambda request, _, origin: asked.append((request.id, origin)),
        lock=threading.RLock(),
    )
    try:
        with raw_socket(zmq.DEALER) as nobody:
            yield Shared(service, nobody, asked), doorkeeper
    finally:
        service.close()
        service.dispose()
        doorkeeper.end()


def names_of(shared: Shared, routing_id: bytes, *request_ids: str) -> list[str]:
    """Who these requests, over one new connection, are said to be from; then it ends."""
    before = len(shared.asked)
    deadline = time.monotonic() + LIMIT_S
    # libzmq tells of the end of a connection before its id is free, and ignores who comes with it
    # in between. Such a one has to come again.
    while len(shared.asked) < before + len(request_ids):
        assert time.monotonic() < deadline, "nobody was heard"
        with raw_socket(zmq.DEALER) as peer:
            if routing_id:
                peer.routing_id = routing_id
            peer.connect(endpoint_of(shared.service.address))
            for request_id in request_ids:
                peer.send_multipart(Codec(()).encode(Call(id=request_id, method="move")))
            heard_until = time.monotonic() + 1.0
            while time.monotonic() < heard_until:
                shared.read_all()
                if len(shared.asked) >= before + len(request_ids):
                    break
                time.sleep(0.005)  # nobody announces what has come
    origins = [origin for _, origin in shared.asked[before:]]
    eventually(lambda: not replied(shared.service, origins[-1]), "it is gone")
    return [each.user for each in origins[: len(request_ids)]]


def test_each_connection_has_the_name_that_its_handshake_proved() -> None:
    with proving() as (shared, doorkeeper):
        doorkeeper.name = "ada"
        assert names_of(shared, b"", "1", "2", "3") == ["ada"] * 3
        doorkeeper.name = "bob"
        assert names_of(shared, b"", "1", "2") == ["bob"] * 2


def test_a_routing_id_that_a_peer_has_chosen_does_not_inherit_a_name() -> None:
    with proving() as (shared, doorkeeper):
        doorkeeper.name = "ada"
        assert names_of(shared, b"probe", "1", "2") == ["ada", "ada"]
        doorkeeper.name = "bob"
        assert names_of(shared, b"probe", "1", "2") == ["bob", "bob"]
        doorkeeper.name = "cleo"
        assert names_of(shared, b"", "1") == ["cleo"]


def test_without_a_proof_there_is_no_name(shared: Shared) -> None:
    shared.ask("1")
    eventually(lambda: shared.read_all() or shared.asked, "the request")
    assert shared.asked[0][1].user in ("local", "")
