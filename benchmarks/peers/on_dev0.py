"""labmesh 0.0.0.dev0, as its own examples use it. It sends JSON, so arrays go as base64.

Its client reads one reply at a time and drops those of other calls, so each of the calls in flight
has a client of its own.
"""

from __future__ import annotations

import asyncio
import base64
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from time import perf_counter
from typing import Any

import numpy as np
from measuring import (
    ARRAY_BYTES,
    VOLTAGE,
    announce,
    answer_async,
    connect_deadline,
    free_port,
    stdin_closed,
)
from numpy.typing import NDArray

from labmesh import DirectorClientAgent, DirectoryBroker, RelayAgent

_RELAY = "psu-1"
_MOST_LANES = 64


class PowerSupply:
    """The driver. This labmesh calls it in the loop that serves all clients."""

    def __init__(self) -> None:
        self._arrays = {size: np.arange(size // 8, dtype=np.float64) for size in ARRAY_BYTES}

    def set_voltage(self, value: float) -> float:
        """The value that was set."""
        return value

    def waveform(self, size: int) -> str:
        """The bytes of an array, in base64."""
        return base64.b64encode(self._arrays[size].tobytes()).decode("ascii")


async def _broker() -> None:
    requests, xsub, xpub = (f"tcp://127.0.0.1:{free_port()}" for _ in range(3))
    broker = DirectoryBroker(rpc_bind=requests, xsub_bind=xsub, xpub_bind=xpub)
    serving = asyncio.create_task(broker.serve())
    announce(f"{requests} {xsub} {xpub}")
    await _until_stdin_closes(serving)


async def _serve(addresses: str) -> None:
    requests, xsub, _ = addresses.split()
    relay = RelayAgent(
        _RELAY,
        PowerSupply(),
        broker_rpc=requests,
        rpc_bind=f"tcp://127.0.0.1:{free_port()}",
        state_pub=xsub,
    )
    serving = asyncio.create_task(relay.run())
    announce(addresses)
    await _until_stdin_closes(serving)


async def _until_stdin_closes(serving: asyncio.Task[None]) -> None:
    closed = asyncio.create_task(stdin_closed())
    await asyncio.wait({serving, closed}, return_when=asyncio.FIRST_COMPLETED)
    if serving.done():
        serving.result()
    serving.cancel()


class _Dev0:
    def __init__(self, relays: Sequence[Any]) -> None:
        self._relays = relays

    async def call(self) -> float:
        answered: float = await self._relays[0].set_voltage(VOLTAGE)
        return answered

    async def array(self, size: int) -> NDArray[np.float64]:
        text = await self._relays[0].waveform(size)
        return np.frombuffer(base64.b64decode(text), np.float64)

    def lanes(self, width: int) -> Sequence[Callable[[], Awaitable[float]]]:
        return [partial(each.set_voltage, VOLTAGE) for each in self._relays[:width]]


@asynccontextmanager
async def _opened(addresses: str) -> AsyncIterator[_Dev0]:
    requests, _, xpub = addresses.split()
    client = DirectorClientAgent("127.0.0.1", broker_rpc=requests, broker_xpub=xpub)
    await client.connect()
    deadline = connect_deadline()
    while not await client.list_relay_ids():
        if perf_counter() > deadline:
            raise TimeoutError("labmesh 0.0.0.dev0: the relay did not register")
    yield _Dev0([await client.get_relay_agent(_RELAY) for _ in range(_MOST_LANES)])


if __name__ == "__main__":
    match sys.argv[1]:
        case "broker":
            asyncio.run(_broker())
        case "serve":
            asyncio.run(_serve(sys.argv[2]))
        case _:
            answer_async(_opened, "labmesh", "pyzmq", "numpy")
