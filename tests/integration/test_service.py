"""The answering side: who asks gets one answer, in his form, whatever happens inside."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest
import zmq
from tests.support.peers import LOOPBACK, endpoint_of, open_sockets, raw_socket, until

from labmesh.errors import Busy, Conflict, DriverError, NotFound, Stopping
from labmesh.protocol.messages import (
    RELAY_REQUESTS,
    RETRIEVE_REQUESTS,
    Call,
    Cancel,
    Describe,
    Done,
    Fetch,
    Fetched,
    GetStatus,
    Request,
    Result,
)
from labmesh.transport.service import Answer, Origin, Service

LIMIT_MS = 5000
pack, unpack = msgspec.msgpack.encode, msgspec.msgpack.decode


class Desk:
    """Answers requests in the ways that a node may; what waits is let go by :attr:`gate`."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.began = 0
        self.origins: list[Origin] = []
        self.futures: list[asyncio.Future[Answer]] = []

    def handle(self, request: Request, _body: memoryview | None, origin: Origin) -> Any:
        match request:
            case GetStatus():
                return Done(id=request.id)
            case Describe():
                return self._later(request)
            case Cancel():
                raise NotFound("no such call", node_id="Inst-0")
            case Call(method="later"):
                self.origins.append(origin)
                return None
            case Call(method="future"):
                self.futures.append(asyncio.get_running_loop().create_future())
                return self.futures[-1]
            case Call(method="large"):
                return Result(id=request.id, value="x" * 10**6)
            case Call(method="bug"):
                raise ZeroDivisionError("division by zero")
            case Call(method="bug later"):
                return self._bug()
            case Call(method="unsendable"):
                return Result(id=request.id, value={1, 2})
            case Call(method="odd detail"):
                raise DriverError("it broke", exception_type="ValueError", what={1, 2})
            case Call():
                return Result(id=request.id, value=request.args)
            case Fetch():
                return Fetched(id=request.id, offset=request.offset), b"x" * request.size

    async def _later(self, request: Request) -> Answer:
        self.began += 1
        await self.gate.wait()
        return Done(id=request.id)

    async def _bug(self) -> Answer:
        raise ZeroDivisionError("division by zero")


@pytest.fixture
def desk() -> Desk:
    return Desk()


@asynccontextmanager
async def serving(
    desk: Desk, requests: Any = RELAY_REQUESTS, role: str = "relay"
) -> AsyncIterator[Service]:
    with open_sockets(name="server") as sockets:
        service = Service(
            sockets,
            LOOPBACK,
            role=role,
            requests=requests,
            node_id="Inst-0",
            kind="relay",
            epoch="e1",
            handle=desk.handle,
            max_pending=3,
        )
        try:
            yield service
        finally:
            await service.close()


@pytest.fixture
async def service(desk: Desk) -> AsyncIterator[Service]:
    async with serving(desk) as opened:
        yield opened


@pytest.fixture
def dealer(service: Service) -> Iterator[zmq.Socket[bytes]]:
    with raw_socket(zmq.DEALER, endpoint_of(service.address)) as socket:
        yield socket


async def receive(socket: zmq.Socket[bytes]) -> list[bytes]:
    """The next message; its sender's loop runs meanwhile."""
    await until(lambda: socket.getsockopt(zmq.EVENTS) & zmq.POLLIN)
    return socket.recv_multipart()


async def ask(socket: zmq.Socket[bytes], **message: Any) -> dict[str, Any]:
    """The answer to one request in MessagePack."""
    socket.send(pack(message))
    [header] = await receive(socket)
    answer: dict[str, Any] = unpack(header)
    return answer


async def test_an_answer_echoes_the_id(dealer: zmq.Socket[bytes]) -> None:
    assert await ask(dealer, type="get_status", id="7") == {"type": "done", "id": "7"}


async def test_a_ping_tells_node_epoch_and_clock(dealer: zmq.Socket[bytes]) -> None:
    first, second = [await ask(dealer, type="ping", id="p") for _ in range(2)]
    assert (first["type"], first["node_id"], first["epoch"]) == ("pong", "Inst-0", "e1")
    assert second["clock"] > first["clock"]


async def test_a_peer_that_speaks_json_is_answered_in_json(dealer: zmq.Socket[bytes]) -> None:
    dealer.send(b'{"type":"call","id":"7","method":"echo","args":[1.5,"\xc3\xbc"]}')
    [header] = await receive(dealer)
    assert json.loads(header) == {"type": "result", "id": "7", "value": [1.5, "ü"]}
    dealer.send(b'{"type":"nonsense","id":"8"}')
    [header] = await receive(dealer)
    refusal = json.loads(header)
    assert (refusal["type"], refusal["id"], refusal["code"]) == ("error", "8", 400)
    assert await ask(dealer, type="get_status", id="9") == {"type": "done", "id": "9"}


async def test_a_req_socket_gets_its_empty_delimiter_back(service: Service) -> None:
    with raw_socket(zmq.REQ, endpoint_of(service.address)) as socket:
        for message, kind in (
            (pack({"type": "get_status", "id": "7"}), "done"),
            (b"\xff", "error"),
            (pack({"type": "get_status", "id": "8"}), "done"),
        ):
            socket.send(message)
            [header] = await receive(socket)
            assert unpack(header)["type"] == kind


@pytest.mark.parametrize(
    ("frames", "request_id"),
    [
        ([b""], ""),
        ([b"", b""], ""),
        ([b"\xff\xfe"], ""),
        ([pack({"type": "nonsense", "id": "7"})], "7"),
        ([pack({"type": "call", "id": "7", "method": 5})], "7"),
        ([pack({"type": "call", "id": 7, "method": "echo"})], ""),
        ([pack({"type": "upload_start", "id": "7"})], "7"),
        ([pack({"type": "get_status", "id": "7"}), b"too", b"many"], "7"),
    ],
)
async def test_what_cannot_be_read_is_refused_with_the_id_where_there_is_one(
    dealer: zmq.Socket[bytes], service: Service, frames: list[bytes], request_id: str
) -> None:
    dealer.send_multipart(frames)
    received = await receive(dealer)
    refusal = unpack(received[-1])
    assert (refusal["type"], refusal["code"], refusal["id"]) == ("error", 400, request_id)
    assert len(received) == (2 if frames[0] == b"" else 1), "a delimiter comes back"
    assert service.dropped == 1
    assert await ask(dealer, type="get_status", id="8") == {"type": "done", "id": "8"}


async def test_bad_input_is_worth_one_line_a_second(
    dealer: zmq.Socket[bytes], service: Service, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(300):
        dealer.send(b"junk")
    for _ in range(300):
        await receive(dealer)
    assert service.dropped == 300
    assert [each.levelno for each in caplog.records] == [logging.WARNING]
    assert "relay Inst-0 (relay): bad input" in caplog.text


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"target": "Inst-1"}, 404),
        ({"epoch": "e0"}, 410),
        ({"deadline": 1.0}, 408),
        ({"deadline": float("nan")}, 400),
        ({"version": 2}, 415),
    ],
)
async def test_a_request_for_somebody_or_some_time_else_is_refused(
    dealer: zmq.Socket[bytes], fields: dict[str, Any], code: int
) -> None:
    for kind in ("ping", "get_status"):
        refusal = await ask(dealer, type=kind, id="7", **fields)
        assert (refusal["type"], refusal["code"], refusal["id"]) == ("error", code, "7")


async def test_an_error_of_the_node_becomes_the_refusal(dealer: zmq.Socket[bytes]) -> None:
    assert await ask(dealer, type="cancel", id="7", call="1") == {
        "type": "error",
        "id": "7",
        "code": 404,
        "name": "not_found",
        "text": "no such call",
        "detail": {"node_id": "Inst-0"},
    }


@pytest.mark.parametrize("method", ["bug", "bug later"])
async def test_a_fault_of_the_node_is_told_and_logged_and_the_node_lives(
    dealer: zmq.Socket[bytes], method: str, caplog: pytest.LogCaptureFixture
) -> None:
    refusal = await ask(dealer, type="call", id="7", method=method)
    assert (refusal["code"], refusal["name"], refusal["id"]) == (500, "internal", "7")
    assert "ZeroDivisionError" in refusal["text"]
    assert "division by zero" not in refusal["text"], "what is inside stays in the log"
    [record] = caplog.records
    assert record.levelno == logging.ERROR
    assert record.exc_info is not None
    assert isinstance(record.exc_info[1], ZeroDivisionError)
    assert await ask(dealer, type="get_status", id="8") == {"type": "done", "id": "8"}


async def test_an_answer_that_cannot_be_sent_is_an_error(dealer: zmq.Socket[bytes]) -> None:
    refusal = await ask(dealer, type="call", id="7", method="unsendable")
    assert (refusal["code"], refusal["id"]) == (400, "7")
    assert "set" in refusal["text"]


async def test_an_error_whose_detail_cannot_be_sent_is_sent_without_it(
    dealer: zmq.Socket[bytes],
) -> None:
    refusal = await ask(dealer, type="call", id="7", method="odd detail")
    assert (refusal["name"], refusal["text"]) == ("driver", "it broke")
    assert "detail" not in refusal


async def test_requests_of_one_connection_that_wait_are_limited_and_others_are_not_affected(
    dealer: zmq.Socket[bytes], service: Service, desk: Desk
) -> None:
    for number in range(5):
        dealer.send(pack({"type": "describe", "id": str(number)}))
    for number in (3, 4):
        refusal = unpack((await receive(dealer))[0])
        assert (refusal["name"], refusal["id"]) == (Busy.name, str(number))
        assert refusal["retryable"]
    with raw_socket(zmq.DEALER, endpoint_of(service.address)) as other:
        other.send(pack({"type": "describe", "id": "0"}))
        await until(lambda: desk.began == 4)
        assert await ask(dealer, type="get_status", id="s") == {"type": "done", "id": "s"}
        desk.gate.set()
        assert unpack((await receive(other))[0]) == {"type": "done", "id": "0"}
    answered = {unpack((await receive(dealer))[0])["id"] for _ in range(3)}
    assert answered == {"0", "1", "2"}
    assert service._pending == {}
    assert service._tasks == {}


async def test_an_answer_may_come_later_and_to_a_peer_that_has_gone_it_is_dropped(
    service: Service, desk: Desk
) -> None:
    with raw_socket(zmq.DEALER, endpoint_of(service.address)) as socket:
        socket.send(pack({"type": "call", "id": "7", "method": "later"}))
        await until(lambda: desk.origins)
        assert service.reply(desk.origins[0], Result(id="7", value=1))
        assert unpack((await receive(socket))[0]) == {"type": "result", "id": "7", "value": 1}
    await until(lambda: not service.reply(desk.origins[0], Result(id="7", value=2)))
    assert service.dropped == 1


async def test_a_body_travels_behind_its_header(desk: Desk) -> None:
    async with serving(desk, RETRIEVE_REQUESTS) as service:
        with raw_socket(zmq.DEALER, endpoint_of(service.address)) as socket:
            for encode, decode in ((pack, unpack), (msgspec.json.encode, json.loads)):
                fetch = {"type": "fetch", "id": "7", "dataset_id": "d", "offset": 5, "size": 9000}
                socket.send(encode(fetch))
                header, body = await receive(socket)
                assert decode(header) == {"type": "fetched", "id": "7", "offset": 5}
                assert body == b"x" * 9000


@pytest.mark.parametrize("role", ["directory", "relay", "ingest", "retrieve"])
async def test_what_a_socket_takes_in_one_header_does_not_limit_what_it_answers(
    desk: Desk, role: str
) -> None:
    """A directory of a thousand nodes, a page of a thousand records."""
    async with serving(desk, role=role) as service:
        with raw_socket(zmq.DEALER, endpoint_of(service.address)) as socket:
            socket.send(pack({"type": "call", "id": "7", "method": "large"}))
            answer = unpack((await receive(socket))[0])
            assert answer == {"type": "result", "id": "7", "value": "x" * 10**6}


async def test_closing_tells_those_who_wait_and_lets_the_last_answers_leave(desk: Desk) -> None:
    async with serving(desk) as service:
        with raw_socket(zmq.DEALER, endpoint_of(service.address)) as socket:
            for number in range(3):
                socket.send(pack({"type": "describe", "id": str(number)}))
            await until(lambda: desk.began == 3)
            await service.close()
            refusals = [unpack((await receive(socket))[0]) for _ in range(3)]
            assert {(each["name"], each["id"]) for each in refusals} == {
                ("stopping", "0"),
                ("stopping", "1"),
                ("stopping", "2"),
            }
        await service.close()


async def test_the_bound_address_is_told_and_taken_from_nobody(desk: Desk) -> None:
    async with serving(desk) as service:
        assert service.address.host == "127.0.0.1"
        with open_sockets() as sockets:
            make: Callable[[], Service] = lambda: Service(  # noqa: E731
                sockets,
                service.address,
                role="relay",
                requests=RELAY_REQUESTS,
                node_id="Inst-1",
                kind="relay",
                epoch="e1",
                handle=desk.handle,
            )
            with pytest.raises(Conflict, match=f"port {service.address.port}.*relay Inst-1"):
                make()


async def test_an_answer_may_be_a_future_which_counts_like_a_coroutine(
    dealer: zmq.Socket[bytes], service: Service, desk: Desk
) -> None:
    for number in range(4):
        dealer.send(pack({"type": "call", "id": str(number), "method": "future"}))
    assert unpack((await receive(dealer))[0])["name"] == Busy.name
    good, bad, open_one, refused = desk.futures
    assert refused.cancelled()
    good.set_result(Done(id="0"))
    assert unpack((await receive(dealer))[0]) == {"type": "done", "id": "0"}
    bad.set_exception(NotFound("it is gone"))
    failure = unpack((await receive(dealer))[0])
    assert (failure["id"], failure["name"]) == ("1", NotFound.name)
    await service.close()
    assert open_one.cancelled()
    assert unpack((await receive(dealer))[0])["name"] == Stopping.name
    assert (service._pending, service._tasks) == ({}, {})
