"""Servers that do not behave: a ROUTER that answers as it is told, and TCP peers without ZeroMQ."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import zmq
from tests.support.processes import free_ports
from tests.support.wire_events import stamped

from labmesh.protocol.codec import Codec, encode_event, encode_value
from labmesh.protocol.messages import (
    DIRECTORY_REQUESTS,
    INGEST_REQUESTS,
    RELAY_REQUESTS,
    RETRIEVE_REQUESTS,
    Done,
    Event,
    GetStatus,
    LastEvents,
    ListLast,
    ListNodes,
    Mark,
    Message,
    NodeList,
    Ping,
    Pong,
    Request,
    Status,
)
from labmesh.protocol.packs import is_pack, unpack
from labmesh.transport.keys import Security

#: What a double answers a request with: messages (with a body, if they have one), or raw frames.
Answers = Iterable[Message | tuple[Message, bytes] | list[bytes]]

_REQUESTS = {
    kind: None
    for kinds in (DIRECTORY_REQUESTS, RELAY_REQUESTS, INGEST_REQUESTS, RETRIEVE_REQUESTS)
    for kind in kinds
}
_STOP, _HOLD, _READ = b"stop", b"hold", b"read"


class RouterDouble(AbstractContextManager["RouterDouble"]):
    """A server whose answers are a test's. It answers pings as a good one does, unless told.

    :param answer: what is sent back for each request, in its thread.
    :param pings: how often it answers a ping; None: always.
    :param security: of the network that it is in; anybody who knows its key gets in.
    """

    def __init__(
        self,
        answer: Callable[[Any], Answers] = lambda _: (),
        *,
        node_id: str = "double",
        epoch: str = "e1",
        pings: int | None = None,
        port: int | None = None,
        security: Security | None = None,
    ) -> None:
        self._answer = answer
        self._node_id, self._epoch = node_id, epoch
        self._pings = pings
        self._codec = Codec(tuple(_REQUESTS))
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._router = self._context.socket(zmq.ROUTER)
        self._router.linger = 0
        if security is not None and security.keys is not None:
            own = security.keys.server
            self._router.curve_server = True
            self._router.curve_publickey, self._router.curve_secretkey = own.public, own.secret
        self.port = port or self._router.bind_to_random_port("tcp://127.0.0.1")
        if port is not None:
            self._router.bind(f"tcp://127.0.0.1:{port}")
        self.endpoint = f"tcp://127.0.0.1:{self.port}"
        self._control, self._far = (self._context.socket(zmq.PAIR) for _ in range(2))
        self._control.bind("inproc://control")
        self._far.connect("inproc://control")
        #: what was asked, pings apart
        self.requests: list[Request] = []
        self.bodies: list[bytes] = []
        #: how many messages came together, for each frame of them
        self.packs: list[int] = []
        self.failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="double", daemon=True)
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._control.send(_STOP)
        self._thread.join()
        for each in (self._router, self._control, self._far):
            each.close(0)
        self._context.term()
        if self.failure is not None:
            raise self.failure

    def hold(self) -> None:
        """Read nothing from now on."""
        self._control.send(_HOLD)

    def read(self) -> None:
        """Read on."""
        self._control.send(_READ)

    def _run(self) -> None:
        poller = zmq.Poller()
        poller.register(self._far, zmq.POLLIN)
        poller.register(self._router, zmq.POLLIN)
        while True:
            ready = dict(poller.poll())
            if self._far in ready:
                command = self._far.recv()
                if command == _STOP:
                    return
                poller.register(self._router, zmq.POLLIN if command == _READ else 0)
                continue
            try:
                peer, *frames = self._router.recv_multipart()
                is_one = not is_pack(frames[0])
                messages = [frames] if is_one else [[each] for each in unpack(frames[0])]
                self.packs.append(len(messages))
                for each in messages:
                    self._serve(peer, *each)
            except Exception as exc:
                # The test hears of it at the end; without a thread it would wait for nothing.
                self.failure = exc

    def _serve(self, peer: bytes, *frames: bytes) -> None:
        decoded = self._codec.decode(frames)
        request = decoded.message
        assert isinstance(request, Request)
        if isinstance(request, Ping):
            self._pong(peer, request)
            return
        self.requests.append(request)
        if decoded.body is not None:
            self.bodies.append(bytes(decoded.body))
        for each in self._answer(request):
            self._router.send_multipart([peer, *self._frames(each)])

    def _pong(self, peer: bytes, ping: Ping) -> None:
        if self._pings is not None:
            self._pings -= 1
            if self._pings < 0:
                return
        pong = Pong(id=ping.id, node_id=self._node_id, epoch=self._epoch, clock=1000.0)
        self._router.send_multipart([peer, *self._frames(pong)])

    def _frames(self, answer: Message | tuple[Message, bytes] | list[bytes]) -> list[Any]:
        if isinstance(answer, list):
            return answer
        message, body = answer if isinstance(answer, tuple) else (answer, None)
        return list(self._codec.encode(message, body))


class BrokerDouble(RouterDouble):
    """A broker that works, but lists what a test tells it to.

    :param listing: what it answers :class:`ListNodes` with, while it is not ``honest``; then nobody
        is there.
    :param event_port: what it says where events are; None: the truth.
    """

    def __init__(
        self,
        listing: Callable[[ListNodes], Answers] = lambda _: (),
        *,
        honest: bool = False,
        event_port: object = None,
    ) -> None:
        self._listing = listing
        self.honest = honest
        self._event_port = event_port
        super().__init__(self._answer_as_broker, node_id="broker", epoch="b1")

    def _answer_as_broker(self, request: Request) -> Answers:
        match request:
            case GetStatus():
                told = self._xpub_port if self._event_port is None else self._event_port
                yield Status(
                    id=request.id,
                    node_id="broker",
                    kind="broker",
                    epoch="b1",
                    uptime_s=1.0,
                    facts={"xpub_port": told},
                )
            case Mark():
                event = Event(publisher="broker", epoch="b1", sequence=1, time=0.0)
                parts = [f"mark.{request.token}".encode(), encode_event(event), encode_value(None)]
                self._events.send_multipart(stamped(parts))
                yield Done(id=request.id)
            case ListLast():
                yield LastEvents(id=request.id, events=[])
            case ListNodes():
                if self.honest:
                    yield NodeList(id=request.id, broker_epoch="b1", nodes=[])
                else:
                    yield from self._listing(request)

    def _run(self) -> None:
        self._events = self._context.socket(zmq.XPUB)
        self._events.linger = 0
        self._xpub_port = self._events.bind_to_random_port("tcp://127.0.0.1")
        try:
            super()._run()
        finally:
            self._events.close(0)


# ── TCP ─────────────────────────────────────────────────────────────────────────────────────────


def _endpoint(listener: socket.socket) -> str:
    return f"tcp://127.0.0.1:{listener.getsockname()[1]}"


@contextmanager
def nothing_listening() -> Iterator[str]:
    """A port at which nobody is."""
    yield f"tcp://127.0.0.1:{free_ports(1)[0]}"


@contextmanager
def black_hole() -> Iterator[str]:
    """A port where a connection is never made: its queue of connections is full."""
    with contextlib.ExitStack() as opened:
        listener = opened.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(4):
            filler = opened.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())
        yield _endpoint(listener)


@contextmanager
def accepted_by_nobody() -> Iterator[str]:
    """A bound socket that never accepts: the system makes the connection, nobody serves it."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(16)
        yield _endpoint(listener)


@contextmanager
def tcp_server(serve: Callable[[socket.socket], None]) -> Iterator[str]:
    """A server that calls ``serve`` with each connection, one after the other."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(64)
        opened: list[socket.socket] = []

        def accept() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return  # the listener was shut down
                opened.append(connection)
                with contextlib.suppress(OSError):  # the other side hung up first
                    serve(connection)

        thread = threading.Thread(target=accept, name="tcp double", daemon=True)
        thread.start()
        try:
            yield _endpoint(listener)
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()
            for each in opened:
                each.close()


def silent() -> AbstractContextManager[str]:
    """Accepts, and then says nothing."""
    return tcp_server(lambda _: None)


def closing() -> AbstractContextManager[str]:
    """Accepts, and closes at once."""
    return tcp_server(lambda connection: connection.close())


def http() -> AbstractContextManager[str]:
    """A web server: it understands nothing, says so, and closes."""

    def refuse(connection: socket.socket) -> None:
        connection.recv(100)
        connection.sendall(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n")
        connection.close()

    return tcp_server(refuse)
