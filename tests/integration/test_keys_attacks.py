"""Attacks of members with a key of their own, and of keys that were revoked, on a live mesh."""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
import zmq
from tests.support.keyed import KeyedLab, keyed_socket
from tests.support.peers import open_sockets, until
from tests.support.places import Places

from labmesh import DirectoryBroker, RelayAgent
from labmesh.access.guard import guard_of
from labmesh.errors import AuthenticationError, DriverError, Locked
from labmesh.events.log_stream import LogLine
from labmesh.transport.audience import MARKS_OF_ONE, MAX_OF_ONE
from labmesh.transport.key_pairs import new_key_pair
from labmesh.transport.link import Link

LIMIT_S = 10.0


class Supply:
    """A driver with something to read, something to write, and something that fails."""

    def __init__(self) -> None:
        self.voltage = 0.0

    def measure(self) -> float:
        """Read it."""
        return self.voltage

    def set_voltage(self, value: float) -> float:
        """Change it."""
        self.voltage = value
        return value

    def numbers(self) -> Iterator[int]:
        """One after the other, without end."""
        yield from itertools.count()

    def check(self) -> None:
        """Fail, with a traceback."""
        raise ValueError("nothing is connected")


class Mesh:
    """A broker, a relay, and the keys of its members."""

    def __init__(self, path: Path, opened: AsyncExitStack) -> None:
        self.keys = KeyedLab(path / "keys")
        self.places = Places(path)
        self._opened = opened

    async def open(self) -> None:
        relay = self.keys.admit("psu-1", "relay")
        self.vera = self.keys.admit("vera", "viewer")
        self.otto = self.keys.admit("otto", "operator")
        self.broker: DirectoryBroker = await self.enter(
            self.places.broker(security=self.keys.broker)
        )
        self.relay: RelayAgent = await self.enter(
            self.places.relay(
                "psu-1",
                Supply(),
                security=relay,
                read_only=("measure", "check", "numbers"),
                log_level="INFO",
            )
        )
        await asyncio.wait_for(_of(self.relay.ready), LIMIT_S)

    async def enter(self, node: Any) -> Any:
        return await self._opened.enter_async_context(node)

    def subscriber(self, name: str) -> Any:
        """A socket of plain pyzmq that sends what it likes to the broker's event port."""
        endpoint = f"tcp://127.0.0.1:{self.broker.xpub.port}"
        return keyed_socket(zmq.XSUB, endpoint, self.keys.pairs[name], self.keys.broker_pair.public)


async def _of(awaitable: Any) -> Any:
    return await awaitable


@pytest.fixture
async def mesh(tmp_path: Path, no_leaks: None) -> AsyncIterator[Mesh]:
    async with AsyncExitStack() as opened:
        mesh = Mesh(tmp_path, opened)
        await mesh.open()
        yield mesh


# ── a viewer ────────────────────────────────────────────────────────────────────────────────────


async def test_a_viewer_reads_no_traceback_in_the_log_either(
    mesh: Mesh, caplog: pytest.LogCaptureFixture
) -> None:
    client = await mesh.enter(mesh.places.client(security=mesh.vera))
    lines: list[LogLine] = []
    client.on_log(lines.append, level="DEBUG")
    await client.subscribed()
    psu = await client.get_relay_agent("psu-1")
    with pytest.raises(DriverError) as raised:
        await psu.call("check")
    number = raised.value.detail["error_id"]
    assert "Traceback" in caplog.text
    # What comes after it in the log has come, and it has not.
    logging.getLogger("tests").warning("the end")
    await until(lambda: any(each.text == "the end" for each in lines), LIMIT_S)
    assert any(number in each.text for each in lines), "the number is told to whoever looks for it"
    assert not any("Traceback" in each.text + each.exception for each in lines)


async def test_no_key_has_more_subscriptions_by_what_else_it_sends(mesh: Mesh) -> None:
    """Neither messages that are none, nor the end of subscriptions that it never had."""
    proxy = mesh.broker._proxy
    with mesh.subscriber("vera") as socket:
        for number in range(MAX_OF_ONE):
            socket.send(b"\x01state.a%d" % number)
        for number in range(500):
            socket.send(b"\x05state.b%d" % number)
            socket.send(b"\x00state.c%d" % number)
            socket.send(b"\x01state.d%d" % number)
        await until(lambda: proxy.subscriptions_refused >= 500, LIMIT_S)
        assert proxy.subscriptions == MAX_OF_ONE
        # What it gives back it may have again.
        socket.send(b"\x00state.a0")
        socket.send(b"\x01state.e0")
        socket.send(b"\x01state.e1")
        await until(lambda: proxy.subscriptions_refused >= 1001, LIMIT_S)
        assert proxy.subscriptions == MAX_OF_ONE


async def test_the_marks_of_one_key_leave_others_in_step(mesh: Mesh) -> None:
    proxy = mesh.broker._proxy
    with mesh.subscriber("vera") as socket:
        for number in range(1000):
            socket.send(b"\x01mark.m%d" % number)
        await until(lambda: proxy.subscriptions_refused >= 1000 - MARKS_OF_ONE, LIMIT_S)
        client = await mesh.enter(mesh.places.client(security=mesh.otto))
        await client.subscribed()


# ── a key that was revoked ──────────────────────────────────────────────────────────────────────


async def test_a_revoked_key_is_not_even_told_what_its_last_call_gave(mesh: Mesh) -> None:
    guard = mesh.relay._sockets.security.guard
    assert guard is not None
    own = mesh.keys.pairs["otto"]
    with keyed_socket(
        zmq.DEALER, mesh.relay.endpoints["rpc"], own, guard.identity.public
    ) as socket:

        async def answer() -> dict[str, Any]:
            call = {"type": "call", "id": "1", "session": "s1", "method": "set_voltage"}
            socket.send(json.dumps({**call, "args": [2.0]}).encode())
            await until(lambda: socket.poll(0), LIMIT_S)
            told: dict[str, Any] = json.loads(socket.recv())
            return told

        assert (await answer())["value"] == 2.0
        mesh.keys.revoke("otto")
        await until(lambda: guard.grant_of(mesh.keys.grant("otto", "operator").user) is None)
        assert (await answer())["name"] == "forbidden"


async def test_what_a_revoked_key_has_open_keeps_nobody_from_the_instrument(mesh: Mesh) -> None:
    """A stream that its reader does not read on, and a lease that could last a day."""
    mesh.keys.admit("bob", "operator")
    guard = mesh.relay._sockets.security.guard
    assert guard is not None
    bob = mesh.keys.grant("bob", "operator").user
    await until(lambda: guard.grant_of(bob) is not None, LIMIT_S)
    client = await mesh.enter(mesh.places.client(security=mesh.otto))
    psu = await client.get_relay_agent("psu-1")
    own, server = mesh.keys.pairs["bob"], guard.identity.public
    with keyed_socket(zmq.DEALER, mesh.relay.endpoints["rpc"], own, server) as socket:
        stream = {"type": "call", "id": "1", "session": "s1", "method": "numbers", "credit": 1}
        for each in (stream, {"type": "acquire", "id": "2", "ttl_s": 86_400.0}):
            socket.send(json.dumps(each).encode())
            await until(lambda: socket.poll(0), LIMIT_S)
            socket.recv()
        with pytest.raises(Locked):
            await psu.call("set_voltage", [1.0])
        mesh.keys.revoke("bob")
        await until(lambda: not mesh.relay._desk.busy, what="its stream has ended")
        assert await psu.call("set_voltage", [3.0]) == 3.0


async def test_who_keeps_an_instrument_busy_cannot_call_himself_somebody_else(mesh: Mesh) -> None:
    client = await mesh.enter(mesh.places.client(security=mesh.otto))
    psu = await client.get_relay_agent("psu-1")
    guard = mesh.relay._sockets.security.guard
    assert guard is not None
    own, server = mesh.keys.pairs["otto"], guard.identity.public
    with keyed_socket(zmq.DEALER, mesh.relay.endpoints["rpc"], own, server) as socket:
        ping = {"type": "ping", "id": "0", "session": "s1", "caller": "the director"}
        stream = {"type": "call", "id": "1", "session": "s1", "method": "numbers", "credit": 1}
        for each in (ping, stream):
            socket.send(json.dumps(each).encode())
            await until(lambda: socket.poll(0), LIMIT_S)
            socket.recv()
        assert (await psu.status()).facts["busy_by"] == "otto (the director)"


# ── a relay ─────────────────────────────────────────────────────────────────────────────────────


async def test_who_has_a_relay_s_key_cannot_stand_in_for_the_broker(
    mesh: Mesh, tmp_path: Path
) -> None:
    """A relay may claim any address that nobody holds: also one at which the broker is reached."""
    evil = new_key_pair()
    endpoint = mesh.places.rpc
    security = mesh.otto.for_node("client", "otto", guard_of)
    assert security.guard is not None
    security.guard.learn_server("relay", "evil", evil.public.decode(), (endpoint,))
    await mesh.broker.stop()
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    fake = context.socket(zmq.ROUTER)
    fake.linger = 0
    fake.curve_server = True
    fake.curve_secretkey = evil.secret
    fake.bind(endpoint)
    try:
        with open_sockets(security, "otto") as sockets:
            link = Link(sockets, sockets.expect_broker(endpoint), where="the broker")
            try:
                with pytest.raises(AuthenticationError):
                    await link.wait_up(LIMIT_S)
            finally:
                link.close()
        with pytest.raises(AuthenticationError):
            await mesh.enter(mesh.places.client(security=mesh.otto))
    finally:
        fake.close(0)
        context.term()
