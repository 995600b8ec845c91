"""A channel: whatever comes in whatever rhythm, nothing is left lying in the socket."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from itertools import pairwise

import pytest
import zmq
from tests.support.peers import LOOPBACK, endpoint_of, open_sockets, until

from labmesh.transport.channel import Channel, Frames
from labmesh.transport.monitor import EVENTS, Health, Monitor, News
from labmesh.transport.sockets import Sockets

LIMIT_S = 30.0
Socket = zmq.Socket[bytes]


@pytest.fixture
def sockets() -> Iterator[Sockets]:
    with open_sockets() as opened:
        yield opened


def ignore(_: Frames) -> None:
    """For a side that only sends."""


@asynccontextmanager
async def linked(sockets: Sockets, *, bound: int = 1000) -> AsyncIterator[tuple[Socket, Socket]]:
    """A ROUTER and a DEALER that is connected to it, with room for ``bound`` messages each way."""
    # Not by bind() and connect(): the bound must be set before either.
    router, dealer = sockets._new(zmq.ROUTER), sockets._new(zmq.DEALER)
    router.router_mandatory = True
    for each in (router, dealer):
        each.sndhwm = each.rcvhwm = bound
    dealer.connect(f"tcp://127.0.0.1:{router.bind_to_random_port('tcp://127.0.0.1')}")
    await until(lambda: dealer.getsockopt(zmq.EVENTS) & zmq.POLLOUT)
    yield router, dealer


class Pump:
    """Sends ``count`` numbered messages as fast as its socket takes them, and takes as many.

    It sends whenever its socket has room again and never otherwise: an edge that is not seen
    leaves it standing for ever.
    """

    def __init__(self, socket: Socket, count: int, to: bytes = b"") -> None:
        self._envelope = [to] if to else []
        self._count = count
        self._sent = 0
        self.received: list[int] = []
        self.done = asyncio.Event()
        self.stops = 0
        self.channel = Channel(socket, self._take, name="pump", on_writable=self._send_on)
        asyncio.get_running_loop().call_soon(self._send_on)

    def _send_on(self) -> None:
        while self._sent < self._count:
            # Padded, so that the system's own buffers are full soon as well.
            if not self.channel.send([*self._envelope, b"%500d" % self._sent]):
                self.stops += 1
                return
            self._sent += 1

    def _take(self, frames: Frames) -> None:
        self.received.append(int(frames[-1]))
        if len(self.received) == self._count:
            self.done.set()


async def test_50000_messages_each_way_through_narrow_sockets_all_arrive_in_order(
    sockets: Sockets,
) -> None:
    count = 50_000
    async with linked(sockets, bound=20) as (router, dealer):
        dealer.send(b"who am I")
        await until(lambda: router.getsockopt(zmq.EVENTS) & zmq.POLLIN)
        identity, _ = router.recv_multipart()
        pumps = [Pump(router, count, to=identity), Pump(dealer, count)]
        async with asyncio.timeout(LIMIT_S):
            for each in pumps:
                await each.done.wait()
        for each in pumps:
            each.channel.close()
            assert each.received == list(range(count))
        assert min(each.stops for each in pumps) > 3, "the sockets were never full"


@pytest.mark.parametrize("window", [1, 64])
async def test_question_and_answer_never_come_to_a_standstill(
    sockets: Sockets, window: int
) -> None:
    """Each message is sent from within the callback for another one, and nothing else happens."""
    rounds = 5000
    async with linked(sockets) as (router, dealer):
        done = asyncio.Event()
        answers = 0

        def answer(frames: Frames) -> None:
            assert server.send(frames)

        def ask_again(_: Frames) -> None:
            nonlocal answers
            answers += 1
            if answers <= rounds - window:
                assert client.send([b"question"])
            elif answers == rounds:
                done.set()

        server = Channel(router, answer, name="server")
        client = Channel(dealer, ask_again, name="client")
        for _ in range(window):
            client.send([b"question"])
        async with asyncio.timeout(LIMIT_S):
            await done.wait()
        server.close()
        client.close()


@pytest.mark.parametrize("askers", [1, 16])
async def test_sending_between_two_looks_at_the_socket_hides_no_answer(
    sockets: Sockets, askers: int
) -> None:
    """A send takes note of what has arrived, and the descriptor does not tell of it again."""
    rounds = 3000
    async with linked(sockets) as (router, dealer):
        loop = asyncio.get_running_loop()
        waiting: dict[bytes, asyncio.Future[None]] = {}
        server = Channel(
            router, lambda frames: loop.call_soon(server.send, frames) and None, name="server"
        )
        client = Channel(
            dealer, lambda frames: waiting.pop(bytes(frames[0])).set_result(None), name="client"
        )

        async def ask(asker: int) -> None:
            for number in range(rounds // askers):
                question = b"%d %d" % (asker, number)
                waiting[question] = loop.create_future()
                client.send([question])
                await waiting[question]

        async with asyncio.timeout(LIMIT_S):
            await asyncio.gather(*(ask(each) for each in range(askers)))
        server.close()
        client.close()


async def test_the_first_message_after_the_news_of_a_connection_is_sent(sockets: Sockets) -> None:
    """The socket may not have looked yet that its connection is there."""
    router, address = sockets.bind(zmq.ROUTER, LOOPBACK, role="relay", owner="test")
    arrived: list[bytes] = []
    server = Channel(router, lambda frames: arrived.append(bytes(frames[1])), name="server")
    outcomes: list[bool] = []
    for number in range(100):
        dealer, monitor = sockets.connect(zmq.DEALER, endpoint_of(address), EVENTS)
        client = Channel(dealer, ignore, name="client")
        sent: list[bool] = []

        def on_news(
            news: News | None,
            client: Channel = client,
            sent: list[bool] = sent,
            number: int = number,
        ) -> None:
            if news == "up":
                sent.append(client.send([b"%d" % number]))

        watching = Monitor(monitor, endpoint_of(address), Health("the router"), on_news)
        await until(lambda sent=sent: sent)
        outcomes += sent
        watching.close()
        client.close()
        sockets.close(dealer, linger_ms=1000)
    assert outcomes == [True] * 100
    await until(lambda: len(arrived) == 100)
    assert set(arrived) == {b"%d" % number for number in range(100)}
    server.close()


async def collect(
    sockets: Sockets, send: Callable[[Socket], None], count: int
) -> tuple[list[Frames], Channel]:
    """The messages (without routing id) that a server gets of what ``send`` sends."""
    received: list[Frames] = []
    async with linked(sockets) as (router, dealer):
        server = Channel(router, lambda frames: received.append(frames[1:]), name="server")
        send(dealer)
        await until(lambda: len(received) == count)
        server.close()
        return received, server


async def test_large_frames_arrive_as_views_and_small_ones_as_bytes(sockets: Sockets) -> None:
    parts = [b"header", b"s" * 4095, b"l" * 4096, bytes(2**20), b""]
    [received], _ = await collect(sockets, lambda dealer: dealer.send_multipart(parts), 1)
    assert [type(each) for each in received] == [bytes, bytes, memoryview, memoryview, bytes]
    assert [bytes(each) for each in received] == parts


async def test_a_large_frame_stays_valid_when_its_socket_is_gone() -> None:
    with open_sockets() as sockets:
        content = bytes(range(256)) * 4096
        [received], _ = await collect(sockets, lambda each: each.send_multipart([b"", content]), 1)
    assert received[1] == content


async def test_messages_of_too_many_frames_are_dropped_and_counted_and_the_next_one_comes(
    sockets: Sockets, caplog: pytest.LogCaptureFixture
) -> None:
    def send(dealer: Socket) -> None:
        for frames in (65, 66, 1000, 66, 100_000, 1):
            dealer.send_multipart([b"f"] * frames)

    received, server = await collect(sockets, send, 2)
    assert [len(each) for each in received] == [65, 1], "66 with the routing id are allowed"
    assert server.dropped == 4
    [line] = caplog.records
    assert "more than 66 frames" in line.getMessage(), "one line a second, not one each"


async def test_a_callback_that_raises_is_logged_and_does_not_end_the_reader(
    sockets: Sockets, caplog: pytest.LogCaptureFixture
) -> None:
    seen: list[bytes] = []
    async with linked(sockets) as (router, dealer):

        def raising(frames: Frames) -> None:
            seen.append(bytes(frames[1]))
            raise ZeroDivisionError("our own fault")

        server = Channel(router, raising, name="server")
        for number in range(3):
            dealer.send(b"%d" % number)
        await until(lambda: len(seen) == 3)
        server.close()
    assert [each.levelno for each in caplog.records] == [logging.ERROR] * 3
    assert "our own fault" in caplog.text


async def test_a_flood_does_not_keep_the_loop_from_other_work(sockets: Sockets) -> None:
    received = 0
    async with linked(sockets, bound=100_000) as (router, dealer):
        for _ in range(20_000):
            dealer.send(b"flood")

        def count(_: Frames) -> None:
            nonlocal received
            received += 1

        server = Channel(router, count, name="server")
        turns: list[int] = []
        async with asyncio.timeout(LIMIT_S):
            while received < 20_000:
                turns.append(received)
                await asyncio.sleep(0)
        server.close()
    steps = [after - before for before, after in pairwise(turns)]
    assert max(steps) <= 2 * 256


async def test_sending_to_nobody_is_false_and_no_error(sockets: Sockets) -> None:
    router, address = sockets.bind(zmq.ROUTER, LOOPBACK, role="relay", owner="test")
    server = Channel(router, ignore, name="server")
    assert not server.send([b"unknown peer", b"hello"])
    server.close()
    sockets.close(router)
    dealer, _ = sockets.connect(zmq.DEALER, endpoint_of(address), EVENTS)
    client = Channel(dealer, ignore, name="client")
    assert not client.send([b"hello"])
    client.close()


async def test_a_closed_channel_calls_nobody_and_may_be_closed_again(sockets: Sockets) -> None:
    async with linked(sockets) as (router, dealer):
        received: list[Frames] = []
        server = Channel(router, received.append, name="server")
        dealer.send(b"before")
        await until(lambda: received)
        server.close()
        server.close()
        dealer.send(b"after")
        await until(lambda: router.getsockopt(zmq.EVENTS) & zmq.POLLIN)
        assert not server.drain()
        assert len(received) == 1
