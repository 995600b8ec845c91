"""Sockets on loopback for tests of one layer: an open node's, and peers that are no labmesh."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import zmq

from labmesh.protocol.addresses import Address, parse_bind
from labmesh.transport.key_pairs import NetworkKeys
from labmesh.transport.keys import Security
from labmesh.transport.sockets import Sockets

#: Nobody but this machine, no password.
PROTECTED = Security("open")
LOOPBACK = parse_bind("tcp://127.0.0.1:*")


def with_password(word: str = "correct horse") -> Security:
    """The security of a network with this password."""
    return Security("password", keys=NetworkKeys.from_password(word, "labmesh"))


@contextmanager
def open_sockets(security: Security = PROTECTED, name: str = "test") -> Iterator[Sockets]:
    """A node's sockets, closed at the end."""
    sockets = Sockets(security, name)
    try:
        yield sockets
    finally:
        sockets.close_all()


async def until(condition: Callable[[], object], timeout_s: float = 10.0, what: str = "") -> None:
    """Let the loop run until something has become true; fails at the timeout."""
    try:
        async with asyncio.timeout(timeout_s):
            # For what nobody announces to this loop: another thread, a socket, a process.
            while not condition():  # noqa: ASYNC110
                await asyncio.sleep(0.002)
    except TimeoutError:
        raise AssertionError(f"not within {timeout_s:g} s: {what or condition}") from None


@contextmanager
def raw_socket(
    kind: int, endpoint: str = "", *, security: Security = PROTECTED
) -> Iterator[zmq.Socket[bytes]]:
    """A socket of plain pyzmq, connected where ``endpoint`` says; with this network's keys."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    socket = context.socket(kind)
    socket.linger = 0
    if security.keys is not None:
        socket.curve_serverkey = security.keys.server.public
        socket.curve_publickey = security.keys.client.public
        socket.curve_secretkey = security.keys.client.secret
    try:
        if endpoint:
            socket.connect(endpoint)
        yield socket
    finally:
        socket.close(0)
        context.term()


def endpoint_of(address: Address) -> str:
    """Where a socket that was bound on loopback is reached."""
    return f"tcp://127.0.0.1:{address.port}"
