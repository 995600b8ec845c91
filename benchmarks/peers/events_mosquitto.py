"""MQTT: ``mosquitto`` on the path, and paho-mqtt at QoS 0, one client for each subscriber."""

from __future__ import annotations

import asyncio
import shutil
import sys
import tempfile
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from time import perf_counter

from eventing import NODE, Ear, answer_events, serve_publisher
from measuring import announce, connect_deadline, free_port, stdin_closed
from paho.mqtt.client import Client, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion

_TOPIC = f"event/{NODE}"
_RETRY_S = 0.1


async def _serve() -> None:
    program = shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin")
    if program is None:
        raise SystemExit("mosquitto is not installed")
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="labmesh-events-") as folder:
        settings = _write_settings(Path(folder), port)
        server = await asyncio.create_subprocess_exec(
            program, "-c", str(settings), stderr=asyncio.subprocess.DEVNULL
        )
        try:
            announce(str(port))
            await stdin_closed()
        finally:
            server.terminate()
            await server.wait()


def _write_settings(folder: Path, port: int) -> Path:
    # It gives its rights up; it has to find its settings nevertheless.
    folder.chmod(0o755)
    settings = folder / "mosquitto.conf"
    settings.write_text(f"listener {port} 127.0.0.1\nallow_anonymous true\n", encoding="ascii")
    return settings


@contextmanager
def _connected(port: int) -> Iterator[Client]:
    """A client whose own thread talks to the broker."""
    client = Client(CallbackAPIVersion.VERSION2)
    deadline = connect_deadline()
    up = threading.Event()
    client.on_connect = lambda *_: up.set()
    while True:
        # The broker may not listen yet.
        try:
            client.connect("127.0.0.1", port)
        except ConnectionRefusedError:
            if perf_counter() > deadline:
                raise
            threading.Event().wait(_RETRY_S)
        else:
            break
    client.loop_start()
    try:
        if not up.wait(20):
            raise TimeoutError("mosquitto does not answer")
        yield client
    finally:
        client.disconnect()
        client.loop_stop()


@asynccontextmanager
async def _publisher(address: str) -> AsyncIterator[Callable[[bytes], Awaitable[None]]]:
    with _connected(int(address)) as client:

        async def publish(payload: bytes) -> None:
            client.publish(_TOPIC, payload)

        yield publish


@asynccontextmanager
async def _audience(address: str, ears: Sequence[Ear]) -> AsyncIterator[None]:
    with ExitStack() as clients:
        for each in ears:
            client = clients.enter_context(_connected(int(address)))
            client.on_message = _hearing(each)
            client.subscribe(_TOPIC)
        yield


def _hearing(ear: Ear) -> Callable[[Client, object, MQTTMessage], None]:
    def hear(_client: Client, _data: object, message: MQTTMessage) -> None:
        ear.hear(message.payload)

    return hear


if __name__ == "__main__":
    match sys.argv[1]:
        case "broker":
            asyncio.run(_serve())
        case "publish":
            asyncio.run(serve_publisher(_publisher))
        case _:
            answer_events(_audience, "paho-mqtt")
