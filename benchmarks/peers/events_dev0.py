"""labmesh 0.0.0.dev0: its broker, its clients, and states in JSON as its relay publishes them."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import zmq
import zmq.asyncio
from eventing import HEAD_BYTES, NODE, Ear, answer_events, serve_publisher
from measuring import announce, free_port, stdin_closed

from labmesh import DirectorClientAgent, DirectoryBroker
from labmesh.util import dumps

_TOPIC = f"state.{NODE}".encode()
#: It sends JSON: bytes go as twice as many digits. As long as the others' events all in all.
_FILL = "x" * 120


async def _broker() -> None:
    requests, xsub, xpub = (f"tcp://127.0.0.1:{free_port()}" for _ in range(3))
    broker = DirectoryBroker(rpc_bind=requests, xsub_bind=xsub, xpub_bind=xpub)
    serving = asyncio.create_task(broker.serve())
    announce(f"{requests} {xsub} {xpub}")
    await stdin_closed()
    serving.cancel()


@asynccontextmanager
async def _publisher(address: str) -> AsyncIterator[Callable[[bytes], Awaitable[None]]]:
    socket = zmq.asyncio.Context.instance().socket(zmq.PUB)
    socket.connect(address.split()[1])

    async def publish(payload: bytes) -> None:
        state = {"event": payload[:HEAD_BYTES].hex(), "text": _FILL}
        await socket.send_multipart([_TOPIC, dumps({"relay_id": NODE, "state": state})])

    try:
        yield publish
    finally:
        socket.close(0)


@asynccontextmanager
async def _audience(address: str, ears: Sequence[Ear]) -> AsyncIterator[None]:
    requests, _, xpub = address.split()
    before = asyncio.all_tasks()
    clients = []
    try:
        for each in ears:
            client = DirectorClientAgent("127.0.0.1", broker_rpc=requests, broker_xpub=xpub)
            client.on_state(_hearing(each))
            await client.connect()
            clients.append(client)
        listeners = asyncio.all_tasks() - before
        yield
    finally:
        # It has no end of its own.
        for listener in listeners:
            listener.cancel()
        for client in clients:
            client.sub.close(0)
            client.dir_req.close(0)


def _hearing(ear: Ear) -> Callable[[str, dict[str, Any]], None]:
    def hear(_relay_id: str, state: dict[str, Any]) -> None:
        ear.hear(bytes.fromhex(state["event"]))

    return hear


if __name__ == "__main__":
    match sys.argv[1]:
        case "broker":
            asyncio.run(_broker())
        case "publish":
            asyncio.run(serve_publisher(_publisher))
        case _:
            answer_events(_audience, "labmesh", "pyzmq")
