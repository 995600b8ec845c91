"""The second connection of a link, over which its calls go, and what becomes of them without it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import pytest
from tests.support.doubles import RouterDouble, tcp_server
from tests.support.junction import Junction, Serve
from tests.support.peers import PROTECTED, open_sockets, until, with_password
from tests.support.promptness import SLACK_S
from tests.support.zmtp import GREETING, command, message, ping, ready, shake_hands

import labmesh.protocol.caller as caller_module
import labmesh.transport.connection as connection_module
import labmesh.transport.lane as lane_module
from labmesh import RelayClient
from labmesh.errors import LinkLost, NotSent, StaleEpoch
from labmesh.protocol.addresses import Address, parse_connect
from labmesh.protocol.messages import Call, Cancel, Failure, GetStatus, Item, More, Result, Status
from labmesh.testing import LocalMesh
from labmesh.transport.keys import Security
from labmesh.transport.lane import Lane
from labmesh.transport.link import Link
from labmesh.transport.plain_socket import has_plain_sockets
from labmesh.transport.sockets import Sockets

pytestmark = pytest.mark.skipif(not has_plain_sockets(), reason="this system has no lanes")

LIMIT_S = 15.0
MiB = 2**20
Many = list[Any]


@pytest.fixture(autouse=True)
def _patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a busy machine a handshake may take longer than is worth waiting for elsewhere."""
    monkeypatch.setattr(lane_module, "_HANDSHAKE_BEAT_S", SLACK_S)


@pytest.fixture
def sockets() -> Iterator[Sockets]:
    with open_sockets(name="client") as opened:
        yield opened


def square(request: Any) -> Many:
    """Answers calls of ``square``, and nothing else."""
    if not isinstance(request, Call) or request.method != "square":
        return []
    return [Result(id=request.id, value=request.args[0] ** 2)]


@asynccontextmanager
async def laned(
    sockets: Sockets, router: RouterDouble, lanes: Serve | None = None
) -> AsyncIterator[tuple[Link, Junction]]:
    """A link that is up, and the junction through which its connections go."""
    async with Junction(router.endpoint, lanes) as junction:
        link = Link(sockets, junction.endpoint, where="the node", has_lane=True)
        try:
            await link.wait_up(LIMIT_S)
            yield link, junction
        finally:
            link.close()


async def squared(link: Link, number: int, timeout: float = LIMIT_S) -> Any:
    return await link.call("square", [number], {}, timeout=timeout)


def begun(link: Link, method: str, *arguments: Any, timeout: float = LIMIT_S) -> Any:
    """A call that was sent, or waits to be; it cannot be cancelled by who waits for it."""
    now = time.monotonic()
    return link.begin_call(method, list(arguments), {}, now=now, deadline=now + timeout)


def calls_of(router: RouterDouble, method: str) -> list[str]:
    """The ids of the calls of this method that came, in their order."""
    return [each.id for each in router.requests if isinstance(each, Call) and each.method == method]


# ── that there is one ───────────────────────────────────────────────────────────────────────────


async def test_what_is_asked_goes_over_the_lane_alone(sockets: Sockets) -> None:
    with RouterDouble(lambda each: [Result(id=each.id, value=None)]) as router:
        async with laned(sockets, router) as (link, junction):
            dealer, lane = junction.ways
            before = dealer.came["up"]
            await asyncio.gather(*(link.call("set", [bytes(MiB)], {}, timeout=15) for _ in "123"))
            assert lane.came["up"] > 3 * MiB
            # It asks whether the node is there, and is answered.
            assert dealer.came["up"] - before < 1000


class Driver:
    def add(self, one: int, other: int) -> int:
        return one + other


@pytest.mark.parametrize("security", [PROTECTED, with_password()], ids=["open", "password"])
async def test_a_client_has_lanes_to_relays_where_nothing_is_encrypted(security: Security) -> None:
    async with LocalMesh({"Inst-0": Driver()}, in_memory=True, security=security) as mesh:
        client = await mesh.client()
        assert await RelayClient(client, "Inst-0").call("add", [1, 2]) == 3
        assert client._links is not None
        link = client._links.to_relays["Inst-0"]
        assert isinstance(link._road, Lane) is (security is PROTECTED)


# ── where there is none ─────────────────────────────────────────────────────────────────────────


def saying(said: bytes) -> Serve:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(said)
        await reader.read(-1)

    return serve


async def hanging_up(_: asyncio.StreamReader, __: asyncio.StreamWriter) -> None:
    return


async def trickling(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    for each in GREETING:
        writer.write(bytes([each]))
        await writer.drain()
        await asyncio.sleep(0.1)


@pytest.mark.parametrize(
    "serve",
    [
        hanging_up,
        saying(b""),
        saying(GREETING[:12] + b"CURVE" + GREETING[17:]),
        saying(GREETING + command(b"\x05ERROR\x03400")),
        saying(GREETING + ready("DEALER")),
        saying(GREETING + message(b"early")),
        saying(b"HTTP/1.1 400 Bad Request\r\n\r\n"),
        trickling,
    ],
    ids=["closed", "silent", "curve", "refused", "dealer", "message", "http", "trickle"],
)
async def test_without_a_lane_calls_go_with_the_pings(
    sockets: Sockets, monkeypatch: pytest.MonkeyPatch, serve: Serve
) -> None:
    """No second one is tried: whoever refuses one refuses all."""
    monkeypatch.setattr(lane_module, "_HANDSHAKE_BEAT_S", 0.25)
    with RouterDouble(square) as router:
        began = time.monotonic()
        async with laned(sockets, router, serve) as (link, junction):
            assert time.monotonic() - began < 0.5 + SLACK_S
            assert await squared(link, 3) == 9
            assert link._lane is None
            assert len(junction.ways) == 2


def shaken(then: Callable[[asyncio.StreamWriter], Awaitable[None]]) -> Serve:
    """Shakes hands as a ROUTER would, and swallows all that comes."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(GREETING + ready("ROUTER"))
        await reader.readexactly(len(GREETING))
        await then(writer)
        await reader.read(-1)

    return serve


async def nothing(_: asyncio.StreamWriter) -> None:
    return


async def flooding(writer: asyncio.StreamWriter) -> None:
    while True:
        writer.write(10_000 * message(b""))
        await writer.drain()


async def asking(writer: asyncio.StreamWriter) -> None:
    while True:
        writer.write(1000 * ping(bytes(16)))
        await writer.drain()


async def claiming(writer: asyncio.StreamWriter) -> None:
    writer.write(b"\x02" + (2**50).to_bytes(8, "big"))


@pytest.mark.parametrize("then", [nothing, flooding, asking, claiming])
async def test_a_lane_over_which_nothing_is_answered_is_left(
    sockets: Sockets, monkeypatch: pytest.MonkeyPatch, then: Any
) -> None:
    monkeypatch.setattr(connection_module, "_PING_AGAIN_S", 0.5)
    with RouterDouble(square) as router:
        async with laned(sockets, router, shaken(then)) as (link, junction):
            assert await squared(link, 3) == 9
            assert link._lane is None
            assert len(junction.ways) <= 1 + connection_module._LANES


async def test_without_a_descriptor_for_a_lane_calls_go_with_the_pings(sockets: Sockets) -> None:
    resource = pytest.importorskip("resource", reason="needs limits of resources")
    with RouterDouble(square) as router:
        async with laned(sockets, router) as (link, junction):
            link._leave_lane()
            soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
            with contextlib.ExitStack() as opened:
                highest = max(map(int, os.listdir("/dev/fd")))
                resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 1, hard))
                opened.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
                with contextlib.suppress(OSError):
                    while True:
                        opened.callback(os.close, os.dup(0))
                link._go_down()
                link._find_road()
                await link.wait_up(LIMIT_S)
            assert await squared(link, 3) == 9
            assert link._lane is None
            assert len(junction.ways) == 2


async def test_where_there_is_no_way_that_is_told_at_once() -> None:
    told: list[Any] = []
    with pytest.raises(OSError, match="unreachable"):
        lane_to(Address("255.255.255.255", 1), told)
    assert told == []


# ── a lane that breaks ──────────────────────────────────────────────────────────────────────────


async def test_calls_are_sent_again_over_the_next_lane_and_in_the_end_without(
    sockets: Sockets,
) -> None:
    with RouterDouble(square) as router:
        async with laned(sockets, router) as (link, junction):
            held = [begun(link, "hold", number) for number in range(5)]
            ids = [each.id for each in held]

            def have_come(times: int) -> bool:
                return calls_of(router, "hold") == times * ids

            def are_asked(times: int) -> bool:
                return len(questions(router)) == times

            for lane in range(1, 1 + connection_module._LANES):
                await until(partial(have_come, lane), LIMIT_S)
                question = asyncio.ensure_future(
                    link.request(GetStatus(id="-"), Status, timeout=LIMIT_S)
                )
                await until(partial(are_asked, lane), LIMIT_S)
                assert isinstance(link._road, Lane)
                junction.ways[lane].cut()
                with pytest.raises(LinkLost):
                    await question
                await link.wait_up(LIMIT_S)
            assert link._lane is None
            await until(lambda: calls_of(router, "hold") == 4 * ids, LIMIT_S)
            assert await squared(link, 3) == 9
            # A new connection may have lanes again.
            junction.ways[0].cut()
            await until(lambda: isinstance(link._road, Lane) and link.up, LIMIT_S)
            assert await squared(link, 4) == 16
            for each in held:
                link.forget(each)


def questions(router: RouterDouble) -> list[Any]:
    return [each for each in router.requests if isinstance(each, GetStatus)]


async def test_a_lane_that_swallows_calls_is_noticed_before_they_are_given_up(
    sockets: Sockets, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A firewall has forgotten it, and the other connection not."""
    with RouterDouble(square) as router:
        async with laned(sockets, router) as (link, junction):
            junction.ways[1].hold()
            asked = begun(link, "square", 3)
            with monkeypatch.context() as hurry:
                hurry.setattr(lane_module, "_BEAT_S", 0.02)
                await until(lambda: len(junction.ways) == 3, LIMIT_S)
            assert (await asyncio.wait_for(asked.future, SLACK_S)).value == 9
            assert calls_of(router, "square") == [asked.id]
    patience_s = (1 + lane_module._QUIET_BEATS) * lane_module._BEAT_S + lane_module._BEAT_S
    assert patience_s < caller_module.SILENCE_S


async def test_an_idle_lane_asks_and_is_answered(
    sockets: Sockets, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lane_module, "_QUIET_BEATS", 300)
    with RouterDouble(square) as router:
        async with laned(sockets, router) as (link, junction):
            lane, came = link._lane, junction.ways[1].came
            monkeypatch.setattr(lane_module, "_BEAT_S", 0.01)
            before = dict(came)
            await until(lambda: came["down"] > before["down"] + 20, LIMIT_S)
            assert link._lane is lane


async def test_a_loop_that_was_blocked_has_not_listened(
    sockets: Sockets, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So it takes nobody for gone."""
    monkeypatch.setattr(lane_module, "_BEAT_S", 0.02)
    monkeypatch.setattr(lane_module, "_QUIET_BEATS", 300)
    with RouterDouble(square) as router:
        async with laned(sockets, router) as (link, _):
            lane = link._lane
            assert lane is not None
            quiet = lane._quiet
            time.sleep(20 * lane_module._BEAT_S)  # noqa: ASYNC251 — as users' code does
            for _ in range(3):
                await asyncio.sleep(0)
            assert lane._quiet <= quiet + 1
            assert await squared(link, 3) == 9
            assert link._lane is lane


@pytest.mark.parametrize("first", ["connection", "lane"])
async def test_a_reply_that_is_on_its_way_at_the_break_is_good(
    sockets: Sockets, monkeypatch: pytest.MonkeyPatch, first: str
) -> None:
    monkeypatch.setattr(connection_module, "_LAST_WORDS_S", LIMIT_S)
    with RouterDouble(square) as router:
        async with laned(sockets, router) as (link, junction):
            dealer, lane = junction.ways
            lane.hold("down")
            before = lane.came["down"]
            asked = begun(link, "square", 3)
            await until(lambda: lane.came["down"] > before, LIMIT_S)
            if first == "connection":
                dealer.cut()
                await until(lambda: not link.up, LIMIT_S)
                with pytest.raises(NotSent):
                    begun(link, "square", 4)
                lane.release()
            else:
                lane.release()
                await until(lambda: asked.future.done(), LIMIT_S)
                lane.cut()
            assert (await asyncio.wait_for(asked.future, LIMIT_S)).value == 9
            assert calls_of(router, "square") == [asked.id]
            await link.wait_up(LIMIT_S)
            assert await squared(link, 5) == 25


async def test_the_last_words_are_not_waited_for_without_end(sockets: Sockets) -> None:
    with RouterDouble(square) as router:
        async with laned(sockets, router) as (link, junction):
            junction.ways[1].hold("down")
            question = asyncio.ensure_future(
                link.request(GetStatus(id="-"), Status, timeout=LIMIT_S)
            )
            await until(lambda: questions(router), LIMIT_S)
            junction.ways[0].cut()
            with pytest.raises(LinkLost):
                await asyncio.wait_for(question, SLACK_S)
            await link.wait_up(LIMIT_S)
            assert await squared(link, 5) == 25


async def test_all_that_a_restarted_node_refuses_is_sent_to_the_new_one(sockets: Sockets) -> None:
    """The question who it is comes behind what it was sent: none of it may have run."""

    def answer(request: Any) -> Many:
        if request.epoch == "e1":
            router._epoch = "e2"
            return [Failure(id=request.id, code=StaleEpoch.code, name=StaleEpoch.name)]
        return square(request)

    with RouterDouble(answer) as router:
        async with laned(sockets, router) as (link, junction):
            lane = link._lane
            asked = [begun(link, "square", number) for number in range(200)]
            ends = await asyncio.gather(*(each.future for each in asked))
            assert [each.value for each in ends] == [number**2 for number in range(200)]
            assert link.epoch == "e2"
            assert link._lane is lane
            assert len(junction.ways) == 2


# ── a lane that is full ─────────────────────────────────────────────────────────────────────────


async def test_what_finds_no_room_waits_in_its_order_and_is_told_at_its_deadline(
    sockets: Sockets,
) -> None:
    def answer(request: Any) -> Many:
        return (
            [Result(id=request.id, value=None)] if getattr(request, "method", "") == "set" else []
        )

    with RouterDouble(answer) as router:
        async with laned(sockets, router) as (link, junction):
            held = begun(link, "hold")
            await until(lambda: calls_of(router, "hold"), LIMIT_S)
            junction.ways[1].hold("up")
            large = [begun(link, "set", bytes(12 * MiB), timeout=60.0) for _ in range(3)]
            small = [begun(link, "set", each, timeout=60.0) for each in range(100)]
            late = begun(link, "late", timeout=0.2)
            with pytest.raises(NotSent, match="does not keep up"):
                await late.future
            link.forget(held)
            # It is not late yet: the other connection holds.
            assert link.up
            junction.ways[1].release()
            await asyncio.gather(*(each.future for each in large + small))
            assert calls_of(router, "set") == [each.id for each in large + small]
            assert not calls_of(router, "late")
            await until(lambda: any(isinstance(each, Cancel) for each in router.requests), LIMIT_S)
            assert len(junction.ways) == 2


async def test_a_stream_gets_its_credit_through_a_full_lane(sockets: Sockets) -> None:
    sent: dict[str, int] = {}

    def items(call: str, count: int) -> Many:
        first = sent.get(call, 0)
        sent[call] = first + count
        numbers = range(first, min(first + count, 10))
        found: Many = [Item(id=call, index=each, value=each) for each in numbers]
        return [*found, Result(id=call, value=None)] if sent[call] >= 10 > first else found

    def answer(request: Any) -> Many:
        if isinstance(request, More):
            return items(request.call, request.credit)
        if isinstance(request, Call) and request.method == "count":
            return items(request.id, request.credit)
        return [Result(id=request.id, value=None)]

    with RouterDouble(answer) as router:
        async with laned(sockets, router) as (link, junction):
            stream = link.stream("count", [], {}, timeout=60.0, credit=2)
            got = [await stream.next()]
            junction.ways[1].hold("up")
            large = begun(link, "set", bytes(12 * MiB), timeout=60.0)
            await until(lambda: link._road._unsent, LIMIT_S)  # type: ignore[union-attr]
            got.append(await stream.next())
            waiting = asyncio.ensure_future(stream.next())
            await until(lambda: link._untold or waiting.done(), LIMIT_S)
            junction.ways[1].release()
            got.append(await waiting)
            got += [await stream.next() for _ in range(7)]
            assert got == list(range(10))
            await large.future


# ── closing ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("moment", range(12))
async def test_a_link_can_be_closed_at_each_turn_of_the_loop(sockets: Sockets, moment: int) -> None:
    """The fixture asks whether a descriptor is left; nothing is called in a closed link."""
    changes: list[bool] = []
    with RouterDouble(square) as router:
        async with Junction(router.endpoint) as junction:
            link = Link(
                sockets,
                junction.endpoint,
                where="the node",
                has_lane=True,
                on_change=lambda: changes.append(link._closed),
            )
            await until(lambda: link._lane is not None, LIMIT_S)
            for _ in range(moment):
                await asyncio.sleep(0)
            link.close()
            link.close()
            await until(lambda: len(junction.ways) == 2, LIMIT_S)
    assert not any(changes)


@pytest.mark.parametrize("at_up", [True, False])
async def test_a_link_can_be_closed_by_who_is_told_of_it(sockets: Sockets, at_up: bool) -> None:
    with RouterDouble(square) as router:
        async with Junction(router.endpoint) as junction:
            was_up = asyncio.Event()

            def look() -> None:
                if link.up:
                    was_up.set()
                if link.up is at_up and was_up.is_set():
                    link.close()

            link = Link(sockets, junction.endpoint, where="the node", has_lane=True, on_change=look)
            await asyncio.wait_for(was_up.wait(), LIMIT_S)
            if not at_up:
                junction.ways[1].cut()
            await until(lambda: link._closed, LIMIT_S)
            with pytest.raises(NotSent, match="closed"):
                begun(link, "square", 3)


# ── by itself ───────────────────────────────────────────────────────────────────────────────────


def lane_to(address: Address, told: list[Any]) -> Lane:
    """A lane that writes down what it tells."""
    return Lane(
        address,
        name="the node",
        on_message=told.append,
        on_ready=lambda: told.append("ready"),
        on_end=told.append,
        on_room=lambda: told.append("room"),
    )


@pytest.mark.parametrize("is_reset", [False, True])
async def test_all_that_came_in_is_taken_before_the_end_is_told(is_reset: bool) -> None:
    """Also what is more than it takes at a time, and when sending has found out first."""
    many = 3000
    gone = threading.Event()

    def serve(connection: socket.socket) -> None:
        shake_hands(connection)
        assert connection.recv(1000) == message(b"begin")
        if is_reset:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
        connection.sendall(many * message(b"x"))
        connection.close()
        gone.set()

    told: list[Any] = []
    with tcp_server(serve) as endpoint:
        lane = lane_to(parse_connect(endpoint), told)
        await until(lambda: told == ["ready"], LIMIT_S)
        assert lane.send([b"begin"])
        lane._loop.remove_reader(lane._socket)

        await until(gone.is_set, LIMIT_S)
        until_s = time.monotonic() + LIMIT_S
        while len(told) == 1 and time.monotonic() < until_s:
            lane.send([b"is anybody there?"])
            await asyncio.sleep(0.001)
        await until(lambda: isinstance(told[-1], str), LIMIT_S)
        assert told[1:-1] == many * [[b"x"]]


async def test_a_flood_leaves_the_loop_its_turns() -> None:
    over = False

    def serve(connection: socket.socket) -> None:
        shake_hands(connection)
        with contextlib.suppress(OSError):
            while not over:
                connection.sendall(20_000 * message(b""))

    told: list[Any] = []
    with tcp_server(serve) as endpoint:
        lane = lane_to(parse_connect(endpoint), told)
        await until(lambda: len(told) > 1000, LIMIT_S)
        for _ in range(20):
            before = len(told)
            await asyncio.sleep(0)
            assert len(told) - before <= 3 * lane_module._BATCH
        over = True
        lane.close()


async def test_what_does_not_fit_at_once_arrives_whole_and_room_is_told() -> None:
    content = os.urandom(8 * MiB)
    got: list[bytes] = []
    may_read = threading.Event()

    def serve(connection: socket.socket) -> None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 100_000)
        shake_hands(connection)
        assert may_read.wait(LIMIT_S)
        whole = len(message(b"header", content, b"end"))
        while sum(map(len, got)) < whole:
            got.append(connection.recv(MiB))

    told: list[Any] = []
    with tcp_server(serve) as endpoint:
        lane = lane_to(parse_connect(endpoint), told)
        await until(lambda: told == ["ready"], LIMIT_S)
        assert lane.send_all([[b"header", content, b"end"], [b"next"]]) == 1
        assert not lane.send([b"next"])
        may_read.set()
        await until(lambda: told == ["ready", "room"], LIMIT_S)
        lane.close()
    assert b"".join(got) == message(b"header", content, b"end")
