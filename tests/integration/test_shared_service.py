"""The socket that a driver's thread reads itself: whoever waits for it misses nothing."""

from __future__ import annotations

import select
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import zmq
from tests.support.peers import LOOPBACK, endpoint_of, open_sockets, raw_socket
from tests.support.served import eventually

from labmesh.protocol.codec import Codec
from labmesh.protocol.messages import Call, Done, Request
from labmesh.transport.answering import Origin
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
