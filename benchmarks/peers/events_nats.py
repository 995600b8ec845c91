"""NATS: ``nats-server`` on the path, and nats-py, one connection for each subscriber."""

from __future__ import annotations

import asyncio
import shutil
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import nats
from eventing import NODE, Ear, answer_events, serve_publisher
from measuring import announce, free_port, stdin_closed

_SUBJECT = f"event.{NODE}"


async def _serve() -> None:
    program = shutil.which("nats-server")
    if program is None:
        raise SystemExit("nats-server is not installed")
    port = free_port()
    server = await asyncio.create_subprocess_exec(
        program, "-a", "127.0.0.1", "-p", str(port), stderr=asyncio.subprocess.DEVNULL
    )
    try:
        announce(f"nats://127.0.0.1:{port}")
        await stdin_closed()
    finally:
        server.terminate()
        await server.wait()


@asynccontextmanager
async def _connected(address: str) -> AsyncIterator[Any]:
    # The server may not listen yet.
    client = await nats.connect(address, max_reconnect_attempts=100, reconnect_time_wait=0.1)
    try:
        yield client
    finally:
        await client.close()


@asynccontextmanager
async def _publisher(address: str) -> AsyncIterator[Callable[[bytes], Awaitable[None]]]:
    async with _connected(address) as client:

        async def publish(payload: bytes) -> None:
            await client.publish(_SUBJECT, payload)

        yield publish


@asynccontextmanager
async def _audience(address: str, ears: Sequence[Ear]) -> AsyncIterator[None]:
    async with AsyncExitStack() as clients:
        for each in ears:
            client = await clients.enter_async_context(_connected(address))
            await client.subscribe(_SUBJECT, cb=_hearing(each))
        yield


def _hearing(ear: Ear) -> Callable[[Any], Awaitable[None]]:
    async def hear(message: Any) -> None:
        ear.hear(message.data)

    return hear


if __name__ == "__main__":
    match sys.argv[1]:
        case "broker":
            asyncio.run(_serve())
        case "publish":
            asyncio.run(serve_publisher(_publisher))
        case _:
            answer_events(_audience, "nats-py")
