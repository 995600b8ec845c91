"""zenoh: a session in router mode as the broker, one session in client mode for each subscriber.

Over TCP: on one machine zenoh would pass large messages by shared memory, unless it is told not to.
"""

from __future__ import annotations

import asyncio
import json
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import ExitStack, asynccontextmanager

import zenoh
from eventing import NODE, Ear, answer_events, serve_publisher
from measuring import announce, end_with_stdin, free_port

_KEY = f"event/{NODE}"


def _config(mode: str, side: str, address: str) -> zenoh.Config:
    config = zenoh.Config()
    config.insert_json5("mode", json.dumps(mode))
    config.insert_json5("scouting/multicast/enabled", "false")
    config.insert_json5("transport/shared_memory/enabled", "false")
    if side == "connect":
        config.insert_json5("listen/endpoints", "[]")
    config.insert_json5(f"{side}/endpoints", json.dumps([address]))
    return config


def _serve() -> None:
    end_with_stdin()
    address = f"tcp/127.0.0.1:{free_port()}"
    with zenoh.open(_config("router", "listen", address)):
        announce(address)
        threading.Event().wait()


@asynccontextmanager
async def _publisher(address: str) -> AsyncIterator[Callable[[bytes], Awaitable[None]]]:
    with zenoh.open(_config("client", "connect", address)) as session:
        publisher = session.declare_publisher(_KEY)

        async def publish(payload: bytes) -> None:
            publisher.put(payload)

        yield publish


@asynccontextmanager
async def _audience(address: str, ears: Sequence[Ear]) -> AsyncIterator[None]:
    with ExitStack() as sessions:
        for each in ears:
            session = sessions.enter_context(zenoh.open(_config("client", "connect", address)))
            session.declare_subscriber(_KEY, _hearing(each))
        yield


def _hearing(ear: Ear) -> Callable[[zenoh.Sample], None]:
    def hear(sample: zenoh.Sample) -> None:
        ear.hear(sample.payload.to_bytes())

    return hear


if __name__ == "__main__":
    match sys.argv[1]:
        case "broker":
            _serve()
        case "publish":
            asyncio.run(serve_publisher(_publisher))
        case _:
            answer_events(_audience, "eclipse-zenoh")
