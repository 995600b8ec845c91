"""The ZAP handler: what it answers, and that without it nobody gets in."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import zmq
from tests.support.doubles import RouterDouble
from tests.support.peers import (
    LOOPBACK,
    PROTECTED,
    endpoint_of,
    open_sockets,
    raw_socket,
    until,
    with_password,
)
from tests.support.processes import Process, free_ports, program
from tests.support.promptness import SLACK_S
from zmq.utils import z85

from labmesh.errors import AuthenticationError, NotSent
from labmesh.protocol.messages import RELAY_REQUESTS, Done, GetStatus, Request
from labmesh.transport.keys import Security
from labmesh.transport.link import Link
from labmesh.transport.service import Answer, Origin, Service
from labmesh.transport.sockets import Sockets

WORD = "correct horse"
LIMIT_S = 15.0
MODES = pytest.mark.parametrize("security", [PROTECTED, with_password(WORD)], ids=lambda s: s.mode)


def answer(request: Request, _body: memoryview | None, _origin: Origin) -> Answer:
    return Done(id=request.id)


@contextmanager
def asking(sockets: Sockets) -> Iterator[zmq.Socket[bytes]]:
    """What libzmq asks the handler through."""
    socket = sockets._context.socket(zmq.DEALER)
    socket.linger = 0
    socket.connect("inproc://zeromq.zap.01")
    try:
        yield socket
    finally:
        socket.close(0)


def ask(socket: zmq.Socket[bytes], *frames: bytes) -> list[bytes]:
    socket.send_multipart([b"", *frames])
    assert socket.poll(5000), "the handler does not answer any more"
    empty, *answered = socket.recv_multipart()
    assert empty == b""
    return answered


def request(
    mechanism: bytes, *credentials: bytes, address: bytes = b"127.0.0.1", version: bytes = b"1.0"
) -> list[bytes]:
    return [version, b"7", b"labmesh/labmesh/relay", address, b"", mechanism, *credentials]


@MODES
def test_the_handler_answers_as_rfc_27_says_and_outlives_every_request(security: Security) -> None:
    with open_sockets(security) as sockets:
        sockets.bind(zmq.ROUTER, LOOPBACK, role="relay", owner="test")
        with asking(sockets) as socket:
            for odd in ([b"1.0"], [b"1.0", b"7"], [b""], request(b"NULL", version=b"9.9")):
                version, request_id, status, _, user, _ = ask(socket, *odd)
                assert (version, status, user) == (b"1.0", b"500", b"")
                assert request_id == (odd[1] if len(odd) > 1 else b"")
            if security.keys is not None:
                # A key of a length that no key has: the decision itself fails.
                assert ask(socket, *request(b"CURVE", b"short"))[2] == b"500"
                good = request(b"CURVE", z85.decode(security.keys.client.public))
                bad = request(b"CURVE", bytes(32))
                who = b"member"
            else:
                good, bad = request(b"NULL"), request(b"NULL", address=b"10.0.0.7")
                who = b"local"
            assert ask(socket, *good) == [b"1.0", b"7", b"200", b"OK", who, b""]
            refused = ask(socket, *bad)
            assert (refused[2], refused[4]) == (b"400", b"")
            # What is not ASCII anywhere harms nobody either.
            assert ask(socket, *request(b"\xff", b"\xff", address=b"\xff\xfe"))[2] == b"400"
            assert sockets.refused == 2


@MODES
async def test_without_its_handler_a_node_admits_nobody_and_keeps_whom_it_has(
    security: Security,
) -> None:
    with open_sockets(security, "server") as servers, open_sockets(security) as sockets:
        service = Service(
            servers,
            LOOPBACK,
            role="relay",
            requests=RELAY_REQUESTS,
            node_id="Inst-0",
            kind="relay",
            epoch="e1",
            handle=answer,
        )
        known = Link(sockets, endpoint_of(service.address), where="relay Inst-0")
        await known.wait_up(LIMIT_S)

        handler = servers._authenticator
        assert handler is not None
        handler._control.send(b"")
        handler._thread.join()

        stranger = Link(sockets, endpoint_of(service.address), where="relay Inst-0")
        with pytest.raises(NotSent):
            await stranger.wait_up(1.0)
        await known.request(GetStatus(id="-"), Done, timeout=LIMIT_S)
        stranger.close()
        known.close()
        await service.close()


@pytest.mark.soak  # it waits for a handshake's time limit
async def test_a_node_that_stands_still_is_not_taken_for_one_with_another_password(
    tmp_path: Path,
) -> None:
    """Its handshakes break as those with a wrong password do, but not at once."""
    port, nobody = free_ports(2)
    relay = {
        "kind": "relay",
        "relay_id": "Inst-0",
        "broker_rpc": f"tcp://127.0.0.1:{nobody}",
        "state_pub": f"tcp://127.0.0.1:{nobody}",
        "rpc_bind": f"tcp://127.0.0.1:{port}",
    }
    environ = {"LMH_NETWORK_PASSWORD": WORD}
    arguments = [program("nodes.py"), json.dumps([relay])]
    with (
        Process(arguments, cwd=tmp_path, environ=environ) as process,
        open_sockets(with_password(WORD)) as sockets,
    ):
        first = Link(sockets, f"tcp://127.0.0.1:{port}", where="relay Inst-0")
        await first.wait_up(LIMIT_S)
        first.close()
        process.stop()
        link = Link(sockets, f"tcp://127.0.0.1:{port}", where="relay Inst-0")
        with pytest.raises(NotSent):
            await link.wait_up(6.0)
        assert not isinstance(link.trouble, AuthenticationError)
        process.cont()
        began = time.monotonic()
        await link.wait_up(LIMIT_S)
        print(f"up {time.monotonic() - began:.2f} s after it went on")
        link.close()


async def test_a_server_of_plain_zeromq_is_not_trusted_with_a_password() -> None:
    """It cannot prove that it knows the password, so it is told nothing."""
    says = "runs without a password, but LMH_NETWORK_PASSWORD is set here"
    with RouterDouble() as double, open_sockets(with_password()) as sockets:
        link = Link(sockets, double.endpoint, where="the node")
        began = time.monotonic()
        with pytest.raises(AuthenticationError, match=says):
            await link.wait_up(LIMIT_S)
        assert time.monotonic() - began < SLACK_S
        link.close()
        assert double.requests == []


async def test_a_port_of_plain_zeromq_clients_stays_closed_to_them() -> None:
    """Raw sockets, without a password or with another one: nothing that they send arrives."""
    arrived: list[Request] = []

    def note(request_: Request, _body: memoryview | None, _origin: Origin) -> Answer:
        arrived.append(request_)
        return Done(id=request_.id)

    with open_sockets(with_password(WORD), "server") as servers:
        service = Service(
            servers,
            LOOPBACK,
            role="relay",
            requests=RELAY_REQUESTS,
            node_id="Inst-0",
            kind="relay",
            epoch="e1",
            handle=note,
        )
        endpoint = endpoint_of(service.address)
        asked = b'{"type":"get_status","id":"7"}'
        for stranger in (PROTECTED, with_password("another word")):
            with raw_socket(zmq.DEALER, endpoint, security=stranger) as socket:
                socket.send(asked)
                if stranger is not PROTECTED:  # who may hang up by itself, before it is refused
                    await until(lambda: servers.refused > 0)
                assert not socket.poll(100)
        with raw_socket(zmq.DEALER, endpoint, security=with_password(WORD)) as socket:
            socket.send(asked)
            await until(lambda: socket.getsockopt(zmq.EVENTS) & zmq.POLLIN)
        assert len(arrived) == 1
        await service.close()
