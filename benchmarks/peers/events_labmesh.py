"""labmesh with its own clients: a broker, the publisher that relays have, and many clients."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from eventing import NODE, Ear, answer_events, serve_publisher
from measuring import announce, stdin_closed

import labmesh
from labmesh.transport.keys import Security
from labmesh.transport.publisher import Publisher
from labmesh.transport.sockets import Sockets

_ANYWHERE = "tcp://127.0.0.1:*"
_CONNECT_S = 20.0


async def _broker() -> None:
    async with labmesh.DirectoryBroker(_ANYWHERE, _ANYWHERE, _ANYWHERE) as broker:
        await broker.ready
        announce(f"{broker.rpc} {broker.xsub} {broker.xpub}")
        await stdin_closed()


@asynccontextmanager
async def _publisher(address: str) -> AsyncIterator[Callable[[bytes], Awaitable[None]]]:
    sockets = Sockets(Security.resolve(), NODE)
    up = asyncio.Event()
    publisher = Publisher(
        sockets, address.split()[1], node_id=NODE, epoch="0123456789abcdef", on_up=up.set
    )

    async def publish(payload: bytes) -> None:
        publisher.publish("event", "sample", payload)

    loop = asyncio.get_running_loop()
    # A relay says this with each heartbeat, so that a loss at the end is noticed.
    tails = loop.create_task(_tell_tails(publisher))
    try:
        async with asyncio.timeout(_CONNECT_S):
            await up.wait()
        yield publish
    finally:
        tails.cancel()
        publisher.close()
        sockets.close_all()


async def _tell_tails(publisher: Publisher) -> None:
    while True:
        await asyncio.sleep(1)
        publisher.publish_tail()


@asynccontextmanager
async def _audience(address: str, ears: Sequence[Ear]) -> AsyncIterator[None]:
    requests, _, xpub = address.split()
    async with AsyncExitStack() as clients:
        for each in ears:
            client = labmesh.DirectorClientAgent(broker_rpc=requests, broker_xpub=xpub)
            await clients.enter_async_context(client)
            client.on_event(_hearing(each))
        yield


def _hearing(ear: Ear) -> Callable[[str, str, Any], None]:
    def hear(_node: str, kind: str, value: Any) -> None:
        if kind == "sample":
            ear.hear(value)

    return hear


if __name__ == "__main__":
    match sys.argv[1]:
        case "broker":
            asyncio.run(_broker())
        case "publish":
            asyncio.run(serve_publisher(_publisher))
        case _:
            answer_events(_audience, "pyzmq", "msgspec")
