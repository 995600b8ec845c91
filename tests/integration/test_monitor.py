"""What tells of connections must never keep libzmq waiting: one thread serves the whole node."""

from __future__ import annotations

import asyncio
import os
import socket as stdlib_socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import zmq
from tests.support.peers import LOOPBACK, endpoint_of, open_sockets, until

from labmesh.transport.auth import _peer_address
from labmesh.transport.monitor import EVENTS, Health, Monitor, News
from labmesh.transport.sockets import Socket, Sockets

#: libzmq would keep 2000 events for somebody who does not read them, and then stand still.
KEPT, CONNECTIONS = 2000, 800
LOCAL = ("127.0.0.1", 0)
LIMIT_S = 15.0

# Whoever waits for libzmq then cannot be interrupted: the whole run is ended, with a report.
WHEN_IT_HANGS = pytest.mark.timeout(40, method="thread")

Watching = tuple[Socket, Monitor, list[News | None]]


def router(sockets: Sockets) -> tuple[Socket, str]:
    """A server, and its endpoint."""
    bound, address = sockets.bind(zmq.ROUTER, LOOPBACK, role="relay", owner="test")
    return bound, endpoint_of(address)


@contextmanager
def watching(
    sockets: Sockets, endpoint: str
) -> Iterator[tuple[Socket, Monitor, list[News | None]]]:
    """A connecting socket, who watches it, and the news so far."""
    news: list[News | None] = []
    dealer, events = sockets.connect(zmq.DEALER, endpoint, EVENTS)
    monitor = Monitor(events, Health("a router", encrypted=False), news.append)
    yield dealer, monitor, news
    monitor.close()
    sockets.close(dealer)


async def assert_the_node_works(sockets: Sockets) -> None:
    """A new connection of the same node comes up."""
    _, endpoint = router(sockets)
    with watching(sockets, endpoint) as (_, _, news):
        await until(lambda: "up" in news, LIMIT_S, "a new connection")


@WHEN_IT_HANGS
async def test_a_connection_that_breaks_while_its_link_is_taken_down() -> None:
    """The news of it goes nowhere."""
    with open_sockets() as sockets, open_sockets() as other_node:
        server, endpoint = router(other_node)
        with watching(sockets, endpoint) as (_, monitor, news):
            await until(lambda: "up" in news, LIMIT_S)
            monitor.close()
            other_node.close(server)
            await assert_the_node_works(sockets)


@WHEN_IT_HANGS
async def test_news_that_nobody_reads() -> None:
    """A callback that blocks its loop keeps the news of its links waiting, however much it is."""
    with open_sockets() as sockets, stdlib_socket.create_server(LOCAL, backlog=1024) as server:
        server.settimeout(LIMIT_S)
        endpoint = f"tcp://127.0.0.1:{server.getsockname()[1]}"
        # Of all kinds this one makes a connection each time.
        connecting, events = sockets.connect(zmq.ROUTER, endpoint, EVENTS)
        for _ in range(CONNECTIONS - 1):
            connecting.connect(endpoint)
        await asyncio.to_thread(turn_away, server, 3 * CONNECTIONS)
        await assert_the_node_works(sockets)
        unread = 0
        while events.poll(0):
            events.recv_multipart()
            unread += 1
        sockets.close(connecting)
    print(f"{unread} events waited")
    assert unread > KEPT


def turn_away(server: stdlib_socket.socket, count: int) -> None:
    """Close so many connections as soon as they come."""
    for _ in range(count):
        connection, _ = server.accept()
        connection.close()


# ── whose connection it was ─────────────────────────────────────────────────────────────────────


Connection = tuple[stdlib_socket.socket, stdlib_socket.socket]


@pytest.fixture
def connection() -> Iterator[Connection]:
    """Both ends of a TCP connection; the second one is a server's."""
    with (
        stdlib_socket.create_server(LOCAL) as server,
        stdlib_socket.create_connection(server.getsockname()) as near,
    ):
        far, _ = server.accept()
        with far:
            yield near, far


def test_the_address_behind_a_descriptor_is_found_and_the_connection_left_alone(
    connection: Connection,
) -> None:
    near, far = connection
    assert _peer_address(far.fileno()) == "127.0.0.1"
    near.sendall(b"still there")
    assert far.recv(100) == b"still there"


def test_a_descriptor_that_has_become_something_else_gives_no_address(tmp_path: Path) -> None:
    """libzmq closes a connection and tells of it later; the number may be in use again by then."""
    left, right = stdlib_socket.socketpair()
    with left, right, (tmp_path / "file").open("wb") as file:
        assert _peer_address(left.fileno()) == ""
        assert _peer_address(file.fileno()) == ""
        with stdlib_socket.socket() as unconnected:
            assert _peer_address(unconnected.fileno()) == ""
        left.sendall(b"still there")
        assert right.recv(100) == b"still there"
        gone = os.dup(file.fileno())
        os.close(gone)
        assert _peer_address(gone) == ""
        file.write(b"still open")


def test_with_a_default_timeout_descriptors_are_not_touched(connection: Connection) -> None:
    _, far = connection
    stdlib_socket.setdefaulttimeout(5.0)
    try:
        assert _peer_address(far.fileno()) == ""
        assert os.get_blocking(far.fileno())
    finally:
        stdlib_socket.setdefaulttimeout(None)
