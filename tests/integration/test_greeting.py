"""Why a handshake breaks, read from the server's greeting."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import zmq
from tests.support.peers import LOOPBACK, PROTECTED, endpoint_of, open_sockets, until, with_password
from tests.support.places import Places
from tests.support.promptness import SLACK_S
from tests.support.recording import Wire

from labmesh.transport.greeting import mechanism_at
from labmesh.transport.keys import Security

LIMIT_S = 15.0
NO_SIGNATURE = b"HTTP/1.1 400 Bad Request\r\nServer: a printer\r\n\r\n"
SIGNATURE = b"\xff" + bytes(8) + b"\x7f"


@asynccontextmanager
async def saying(answer: bytes, *, and_closes: bool) -> AsyncIterator[str]:
    """The endpoint of a server that says this to everybody."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(answer)
        if not and_closes:
            await reader.read()
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        yield f"tcp://127.0.0.1:{server.sockets[0].getsockname()[1]}"


@pytest.mark.parametrize(
    ("security", "mechanism"), [(PROTECTED, "NULL"), (with_password(), "CURVE")]
)
async def test_a_node_says_what_it_speaks_and_counts_no_intruder(
    security: Security, mechanism: str
) -> None:
    with open_sockets(security) as sockets:
        _, address = sockets.bind(zmq.ROUTER, LOOPBACK, role="relay", owner="test")
        assert await mechanism_at(endpoint_of(address)) == mechanism
        assert await mechanism_at(f"tcp://localhost:{address.port}") == mechanism
        assert sockets.refused == 0


@pytest.mark.parametrize(
    ("answer", "and_closes", "mechanism"),
    [
        (NO_SIGNATURE, False, ""),
        (b"SSH-2.0-x\r\n", False, ""),
        (b"", True, ""),
        (SIGNATURE, True, ""),
        (SIGNATURE + b"\x03\x00GSSAPI".ljust(22, b"\0"), True, "GSSAPI"),
        (SIGNATURE + b"\x03\x00\xff\xfe".ljust(22, b"\0"), False, "\ufffd\ufffd"),
    ],
    ids=["HTTP", "SSH", "nothing", "half of a greeting", "another mechanism", "no text"],
)
async def test_other_programs(answer: bytes, and_closes: bool, mechanism: str) -> None:
    async with saying(answer, and_closes=and_closes) as endpoint:
        assert await mechanism_at(endpoint) == mechanism


@pytest.mark.parametrize("endpoint", ["tcp://127.0.0.1:1", "inproc://here", "tcp://127.0.0.1"])
async def test_nobody_there(endpoint: str) -> None:
    assert await mechanism_at(endpoint) == ""


async def test_a_server_that_says_nothing_is_not_waited_for_long() -> None:
    began = time.monotonic()
    async with saying(b"", and_closes=False) as endpoint:
        assert await mechanism_at(endpoint) == ""
    assert time.monotonic() - began < SLACK_S


@pytest.mark.parametrize("security", [PROTECTED, with_password()], ids=lambda each: each.mode)
async def test_a_tunnel_whose_broker_is_not_there_yet_is_waited_for(
    security: Security, tmp_path: Path
) -> None:
    """It accepts every connection and closes it: that is neither a wrong password nor the end."""
    places = Places(tmp_path)
    async with Wire() as tunnel:
        ends = {"broker_rpc": tunnel.front(places.rpc), "state_pub": tunnel.front(places.xsub)}
        async with places.relay(**ends, security=security) as relay:
            link = relay._broker
            assert link is not None
            await until(
                lambda: "is nothing behind it yet" in str(link.trouble), LIMIT_S, str(link.trouble)
            )
            async with asyncio.timeout(LIMIT_S), places.broker(security=security):
                await relay.ready
                assert relay.registered
