"""What begins in the middle of a long call or of a batch: nothing late, and nothing unwatched."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import msgspec
import pytest
import zmq.asyncio
from tests.support.promptness import SLACK_S

from labmesh import RelayClient, expose
from labmesh.errors import OutcomeUnknown
from labmesh.protocol.messages import Acquire, Lease
from labmesh.testing import LocalMesh

LIMIT_S = 10.0


class Stage:
    """A stage that can be watched while somebody else moves it."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.let_go = threading.Event()
        self.safe = threading.Event()

    @expose(read_only=True)
    def monitor(self) -> Iterator[int]:
        never = threading.Event()
        for number in range(1000):
            never.wait(0.01)
            yield number

    @expose(read_only=True, timeout=0.1)
    def position(self) -> float:
        self.let_go.wait(LIMIT_S)
        return 1.0

    def move(self, to: float, seconds: float = 0.0) -> None:
        self.log.append(f"move {to}")
        threading.Event().wait(seconds)

    def safe_state(self) -> None:
        self.log.append("safe")
        self.safe.set()


@asynccontextmanager
async def lab() -> AsyncIterator[tuple[Stage, LocalMesh, RelayClient]]:
    stage = Stage()
    try:
        async with LocalMesh({"stage-0": stage}, banks=0) as mesh:
            client = await mesh.client()
            yield stage, mesh, await client.get_relay_agent("stage-0")
    finally:
        stage.let_go.set()


async def test_no_call_of_a_batch_begins_after_its_deadline() -> None:
    """Nobody takes it back: its client has vanished, or the cable stands still."""
    async with lab() as (stage, mesh, relay):
        with zmq.asyncio.Context() as context, context.socket(zmq.DEALER) as socket:
            socket.linger = 0
            socket.connect(str(mesh.relays["stage-0"].rpc))
            await socket.send(msgspec.msgpack.encode({"type": "ping", "id": "p"}))
            clock = msgspec.msgpack.decode(await socket.recv())["clock"]
            moves = [["move", [number, 1.0]] for number in range(5)]
            batch = {"type": "batch", "id": "1", "calls": moves, "deadline": clock + 1.95}
            await socket.send(msgspec.msgpack.encode(batch))
            while (answer := msgspec.msgpack.decode(await socket.recv()))["type"] == "alive":
                pass
        assert answer["outcomes"] == [[None], [None]]
        await relay.call("move", 9, timeout=LIMIT_S)
        assert stage.log == ["move 0", "move 1", "move 9"]


async def test_the_safe_state_does_not_wait_for_a_stream() -> None:
    async with lab() as (stage, mesh, relay):
        stream = relay.stream("monitor")
        assert await anext(stream) == 0
        holder = await mesh.client()
        await holder.get_relay_agent("stage-0")
        acquire = Acquire(id="-", ttl_s=0.1, holder="a laptop", note="")
        await holder.request("stage-0", acquire, Lease)

        async def read() -> None:
            async for _ in stream:
                pass

        reading = asyncio.create_task(read())
        assert await asyncio.to_thread(stage.safe.wait, 2 * SLACK_S)
        assert not reading.done()
        reading.cancel()


async def test_a_call_that_hangs_in_the_middle_of_a_stream_is_reported() -> None:
    async with lab() as (stage, _mesh, relay):
        stream = relay.stream("monitor")
        assert await anext(stream) == 0
        with pytest.raises(OutcomeUnknown, match=r"position has run for as long"):
            await relay.call("position", timeout=LIMIT_S)
        facts = (await relay.status()).facts
        assert facts["busy_with"] == "position"
        assert facts["stuck"]
        stage.let_go.set()
        await stream.aclose()
