"""Short messages of one moment travel as one: who packs them, what is packed, and what if not."""

from __future__ import annotations

import asyncio
import gc
import logging
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest
import zmq
from tests.support.doubles import Answers, RouterDouble
from tests.support.peers import LOOPBACK, endpoint_of, open_sockets, raw_socket
from tests.support.served import eventually

from labmesh.errors import NoAnswer
from labmesh.protocol.codec import Codec
from labmesh.protocol.messages import REPLIES, Alive, Call, Done, Message, Reply, Request, Result
from labmesh.protocol.packs import MAX_PACK, is_pack, pack, unpack
from labmesh.testing import LocalMesh
from labmesh.transport.answering import Origin
from labmesh.transport.link import Link
from labmesh.transport.shared import SharedService
from labmesh.transport.sockets import Sockets

LIMIT_S = 10.0


@pytest.fixture
def sockets() -> Iterator[Sockets]:
    with open_sockets(name="client") as opened:
        yield opened


@asynccontextmanager
async def linked(sockets: Sockets, double: RouterDouble) -> AsyncIterator[Link]:
    link = Link(sockets, double.endpoint, where="the node")
    try:
        await link.wait_up(LIMIT_S)
        double.packs.clear()
        yield link
    finally:
        link.close()


async def calls(link: Link, arguments: list[Any]) -> list[Any]:
    """The results of calls that begin in one turn of the loop."""
    return await asyncio.gather(
        *(link.call("move", [each], {}, timeout=LIMIT_S) for each in arguments)
    )


def echo(request: Request) -> Answers:
    assert isinstance(request, Call)
    return [Result(id=request.id, value=request.args[0])]


def asked(double: RouterDouble) -> list[Any]:
    return [each.args[0] for each in double.requests if isinstance(each, Call)]


async def test_calls_that_begin_in_one_moment_leave_in_packs(sockets: Sockets) -> None:
    with RouterDouble(echo) as double:
        async with linked(sockets, double) as link:
            count = 2 * MAX_PACK + 10
            assert await calls(link, list(range(count))) == list(range(count))
            assert asked(double) == list(range(count))
            # The first one does not wait for others.
            assert double.packs == [1, MAX_PACK, MAX_PACK, 9]


async def test_a_call_by_itself_is_not_packed(sockets: Sockets) -> None:
    with RouterDouble(echo) as double:
        async with linked(sockets, double) as link:
            for number in range(3):
                assert await calls(link, [number]) == [number]
            assert double.packs == [1, 1, 1]


async def test_what_is_long_travels_alone_in_its_turn(sockets: Sockets) -> None:
    """A long text, and bytes in a frame of their own."""
    arguments = [0, 1, 2, "x" * 2000, 4, bytes(5000), 6, 7]
    with RouterDouble(echo) as double:
        async with linked(sockets, double) as link:
            assert await calls(link, arguments) == arguments
            assert asked(double) == arguments
            assert double.packs == [1, 2, 1, 1, 1, 2]


async def test_answers_in_packs_end_each_its_own_call(sockets: Sockets) -> None:
    """Whatever is in a pack that nobody waits for, or that cannot be read, harms no other."""
    held: list[bytes] = []

    def together(request: Request) -> Answers:
        ((frame,),) = (Codec(()).encode(answer) for answer in echo(request))
        held.append(bytes(frame))
        if len(held) < 9:
            return []
        strange = [header(Done(id="12345")), b"\x81\xa4type\xa4oops", b"\x80"]
        return [[bytes(pack([*held[5:], *strange, *held[:5]]))]]

    with RouterDouble(together) as double:
        async with linked(sockets, double) as link:
            assert await calls(link, list(range(9))) == list(range(9))


async def test_a_pack_of_answers_that_cannot_be_read_is_no_answer(
    sockets: Sockets, caplog: pytest.LogCaptureFixture
) -> None:
    with RouterDouble(lambda request: [[b"\x92\x80"], [b"\xdc\xff\xff"], [b"\x90"]]) as double:
        async with linked(sockets, double) as link:
            with caplog.at_level(logging.WARNING), pytest.raises(NoAnswer):
                await link.request(Call(id="-", method="move"), Result, timeout=1.0)
            assert link.up
    assert caplog.text.count("cannot be read: this pack cannot be decoded") == 1


# ── who answers in packs ────────────────────────────────────────────────────────────────────────


class Answerer:
    """A relay's socket, which is read and answered by hand."""

    def __init__(self, service: SharedService, origins: list[Origin]) -> None:
        self.service, self._origins = service, origins

    def asked_by(self, peer: zmq.Socket[bytes], count: int, *frames: bytes) -> list[Origin]:
        """Send this; where the answers to its so many messages go."""
        self._origins.clear()
        peer.send_multipart(frames)
        eventually(lambda: self._read() or len(self._origins) == count, "all requests")
        return list(self._origins)

    def _read(self) -> None:
        with self.service.lock:
            while self.service.read():
                continue

    def answer(self, origins: list[Origin], *answers: Reply) -> None:
        """Answer them all in one moment."""
        with self.service.lock:
            for origin, each in zip(origins, answers, strict=True):
                self.service.send_soon(origin, self.service.encode(origin, each))
            self.service.flush()


@pytest.fixture
def answerer() -> Iterator[Answerer]:
    origins: list[Origin] = []

    def handle(_request: Request, _body: Any, origin: Origin) -> None:
        origins.append(origin)

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
        yield Answerer(service, origins)
        service.close()
        service.dispose()


@pytest.fixture
def peer(answerer: Answerer) -> Iterator[zmq.Socket[bytes]]:
    with raw_socket(zmq.DEALER, endpoint_of(answerer.service.address)) as socket:
        yield socket


def header(message: Message, *, json: bool = False) -> bytes:
    (only,) = Codec(()).encode(message, json=json)
    return bytes(only)


def a_call(number: int, *, json: bool = False) -> bytes:
    return header(Call(id=str(number), method="move"), json=json)


def a_pack(first: int, count: int) -> bytes:
    return bytes(pack([a_call(number) for number in range(first, first + count)]))


def received(peer: zmq.Socket[bytes], count: int) -> list[list[bytes]]:
    """The next so many messages of ZeroMQ, each as the headers in it."""
    found = []
    for _ in range(count):
        assert peer.poll(LIMIT_S * 1000)
        *_, frame = peer.recv_multipart()
        found.append(unpack(frame) if is_pack(frame) else [frame])
    assert not peer.poll(0)
    return found


def test_who_has_sent_a_pack_is_answered_in_packs(
    answerer: Answerer, peer: zmq.Socket[bytes]
) -> None:
    done = [Done(id=str(number)) for number in range(3)]
    alone = [origin for each in range(3) for origin in answerer.asked_by(peer, 1, a_call(each))]
    answerer.answer(alone, *done)
    assert received(peer, 3) == [[header(each)] for each in done]
    answerer.answer(answerer.asked_by(peer, 3, a_pack(0, 3)), *done)
    assert received(peer, 1) == [list(map(header, done))]
    answerer.answer(alone, *done)
    assert received(peer, 1) == [list(map(header, done))]


def test_who_puts_an_empty_frame_first_is_answered_in_no_packs(
    answerer: Answerer, peer: zmq.Socket[bytes]
) -> None:
    origins = answerer.asked_by(peer, 2, b"", a_pack(0, 2))
    answerer.answer(origins, Done(id="0"), Done(id="1"))
    assert received(peer, 2) == [[header(Done(id="0"))], [header(Done(id="1"))]]


def test_what_cannot_be_packed_keeps_its_place(answerer: Answerer, peer: zmq.Socket[bytes]) -> None:
    """Items of a stream are counted: none may overtake another."""
    origins = answerer.asked_by(peer, 5, a_pack(0, 5))
    origins[4:4] = answerer.asked_by(peer, 1, a_call(9, json=True))
    values = [0, 1, "x" * 2000, 3, 9, 4]
    results = [Result(id="0", value=value) for value in values]
    answerer.answer(origins, *results)
    heads = [header(each, json=each.value == 9) for each in results]
    assert received(peer, 5) == [heads[:2], heads[2:3], heads[3:4], heads[4:5], heads[5:]]


def test_each_answer_of_a_pack_that_nobody_takes_is_counted(answerer: Answerer) -> None:
    with raw_socket(zmq.DEALER, endpoint_of(answerer.service.address)) as leaving:
        origins = answerer.asked_by(leaving, 3, a_pack(0, 3))
    done = [Done(id=str(number)) for number in range(3)]

    def is_gone() -> bool:
        with answerer.service.lock:
            return not answerer.service.reply(origins[0], done[0])

    eventually(is_gone, "it is gone")
    before = answerer.service.dropped
    answerer.answer(origins, *done)
    assert answerer.service.dropped == before + 3


class Counting:
    """Tells how often it was called."""

    def __init__(self) -> None:
        self.steps: list[int] = []

    def move(self, step: int) -> int:
        self.steps.append(step)
        return step


@pytest.mark.parametrize("alike", [True, False], ids=["plain calls", "and one that is not plain"])
async def test_each_call_of_a_pack_has_its_own_fate(alike: bool) -> None:
    """Also where a pack of plain calls is read in one go."""
    driver = Counting()
    async with LocalMesh(banks=0) as mesh:
        relay = await mesh.start_relay("Inst-0", driver)
        late = time.monotonic() - 1.0
        session = "0123456789abcdef"
        sent = [
            Call(id="1", method="move", args=[1], session=session),
            Call(id="2", method="no_such_method", session=session),
            Call(id="3", method="move", args=[3], target="Inst-9"),
            Call(id="4", method="move", args=[4], epoch="another"),
            Call(id="5", method="move", args=[5], deadline=late, session=session),
            Call(id="6", method="move", args=[6], arrive_by=late, session=session),
            Call(id="1", method="move", args=[1], session=session),
            Call(id="8", method="move", args=[8], session=session, fence=7),
            Call(id="9", method="move", args=[9], session=session),
            Call(id="10", method="move", args=[10] if alike else [[10]], session=session),
        ]
        frame = pack([header(each) for each in sent])

        def converse() -> dict[str, str]:
            answers: dict[str, str] = {}
            with raw_socket(zmq.DEALER, endpoint_of(relay.rpc)) as peer:
                peer.send(frame)
                while len(answers) < 9:
                    assert peer.poll(LIMIT_S * 1000)
                    found = peer.recv()
                    for each in unpack(found) if is_pack(found) else [found]:
                        answer: Any = Codec(REPLIES).decode([each]).message
                        # On a busy machine calls that wait show signs of life.
                        if not isinstance(answer, Alive):
                            answers[answer.id] = getattr(answer, "name", "returned")
            return answers

        assert await asyncio.to_thread(converse) == {
            "1": "returned",
            "2": "unknown_method",
            "3": "not_found",
            "4": "stale_epoch",
            "5": "expired",
            "6": "expired",
            "8": "locked",
            "9": "returned",
            "10": "returned",
        }
    assert driver.steps == [1, 9, 10 if alike else [10]]


async def test_refused_calls_of_packs_leave_nothing_to_the_collector_of_garbage() -> None:
    """What keeps an error keeps its traceback, and that keeps frames: a cycle for each pack."""
    packs = 200
    codec = Codec(())
    async with LocalMesh(banks=0) as mesh:
        relay = await mesh.start_relay("Inst-0", Counting())

        def converse(first: int) -> None:
            for start in range(first, first + 4 * packs, 4):
                sent = [
                    Call(id=str(start + each), method=method, args=[0], session="0123456789abcdef")
                    for each, method in enumerate(["move", "no_such_method"] * 2)
                ]
                peer.send(pack([codec.encode(each)[0] for each in sent]))
                waited_for = {each.id for each in sent}
                while waited_for:
                    assert peer.poll(LIMIT_S * 1000)
                    found = peer.recv()
                    for each in unpack(found) if is_pack(found) else [found]:
                        answer = msgspec.msgpack.decode(each)
                        if answer["type"] != "alive":
                            waited_for.remove(answer["id"])

        with raw_socket(zmq.DEALER, endpoint_of(relay.rpc)) as peer:
            await asyncio.to_thread(converse, 1001)
            gc.collect()
            gc.disable()
            try:
                await asyncio.to_thread(converse, 5001)
                assert gc.collect() < packs
            finally:
                gc.enable()
