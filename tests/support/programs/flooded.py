"""A subscriber whose broker is killed in the middle of a flood, again and again: flooded.py ROUNDS.

Prints ``survived ROUNDS``. What floods is a process of plain pyzmq.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from labmesh.transport.keys import Security
from labmesh.transport.sockets import Sockets
from labmesh.transport.subscriber import Lost, Received, Subscriber

FLOOD = """
import sys, zmq
from labmesh.protocol.codec import encode_event, encode_value
from labmesh.protocol.event_frame import joined, sealed
from labmesh.protocol.events import Sequencer
socket = zmq.Context().socket(zmq.PUB)
socket.sndhwm = 100_000
print(socket.bind_to_random_port("tcp://127.0.0.1"), flush=True)
sequencer, payload = Sequencer("psu-1", "e1"), encode_value("x" * 40)
while True:
    event = encode_event(sequencer.next("event.psu-1", 1.0, "step"))
    socket.send(joined(b"event.psu-1", event, payload) + sealed(b"stamp"))
"""


@contextmanager
def flooding() -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A process that floods, and its address."""
    flood = subprocess.Popen([sys.executable, "-c", FLOOD], stdout=subprocess.PIPE, text=True)
    assert flood.stdout is not None
    with flood, flood.stdout as lines:
        try:
            yield flood, f"tcp://127.0.0.1:{lines.readline().strip()}"
        finally:
            flood.kill()


async def one_round(sockets: Sockets, number: int) -> None:
    """Hear a flood, until it breaks off."""
    heard = 0
    came, broke = asyncio.Event(), asyncio.Event()

    def deliver(batch: list[Received | Lost]) -> None:
        nonlocal heard
        heard += len(batch)
        if heard > 3000 + 200 * number:
            came.set()

    with flooding() as (flood, endpoint):
        subscriber = Subscriber(
            sockets,
            endpoint,
            deliver=deliver,
            on_link=lambda up: None if up else broke.set(),
        )
        try:
            subscriber.subscribe("event.")
            await came.wait()
            flood.kill()
            await broke.wait()
        finally:
            subscriber.close()


async def main(rounds: int) -> None:
    """All of them."""
    sockets = Sockets(Security("open"), "flooded")
    for number in range(rounds):
        await one_round(sockets, number)
    sockets.close_all()
    print(f"survived {rounds}")


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1])))
