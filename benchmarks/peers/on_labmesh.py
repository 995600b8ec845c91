"""labmesh, as its users run it: a broker, a relay, and a client, each in a process of its own."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import numpy as np
from measuring import (
    ARRAY_BYTES,
    VOLTAGE,
    announce,
    answer_async,
    answer_blocking,
    by_threads,
    repeat,
    stdin_closed,
)
from numpy.typing import NDArray

import labmesh

_ANYWHERE = "tcp://127.0.0.1:*"
_RELAY = "psu-1"


class PowerSupply:
    """The driver."""

    def __init__(self) -> None:
        self._arrays = {size: np.arange(size // 8, dtype=np.float64) for size in ARRAY_BYTES}

    def set_voltage(self, value: float) -> float:
        """The value that was set."""
        return value

    def waveform(self, size: int) -> NDArray[np.float64]:
        """An array of so many bytes."""
        return self._arrays[size]


async def _broker() -> None:
    async with labmesh.DirectoryBroker(_ANYWHERE, _ANYWHERE, _ANYWHERE) as broker:
        await broker.ready
        announce(f"{broker.rpc} {broker.xsub}")
        await stdin_closed()


async def _serve(broker: str) -> None:
    requests, events = broker.split()
    relay = labmesh.RelayAgent(
        _RELAY, PowerSupply(), broker_rpc=requests, state_pub=events, rpc_bind=_ANYWHERE
    )
    async with relay:
        await relay.ready
        announce(requests)
        await stdin_closed()


class _Blocking:
    def __init__(self, psu: Any) -> None:
        self._psu = psu

    def call(self) -> float:
        return float(self._psu.set_voltage(VOLTAGE))

    def array(self, size: int) -> Any:
        return self._psu.waveform(size)

    def in_flight(self, width: int, deadline: float) -> int:
        return by_threads([self.call] * width, deadline)


@contextmanager
def _blocking(broker: str) -> Iterator[_Blocking]:
    with labmesh.connect(broker) as mesh:
        yield _Blocking(mesh[_RELAY])


class _Async:
    def __init__(self, psu: Any) -> None:
        self._psu = psu

    async def call(self) -> float:
        return float(await self._psu.set_voltage(VOLTAGE))

    async def array(self, size: int) -> Any:
        return await self._psu.waveform(size)

    def lanes(self, width: int) -> Sequence[Callable[[], Awaitable[float]]]:
        return [self.call] * width


class _Both(_Blocking):
    """Calls one by one as a script makes them, many at a time as a program with asyncio does."""

    def __init__(self, psu: Any, runner: asyncio.Runner, awaited: Any) -> None:
        super().__init__(psu)
        self._runner = runner
        self._awaited = awaited

    def in_flight(self, width: int, deadline: float) -> int:
        return self._runner.run(self._in_flight(width, deadline))

    async def _in_flight(self, width: int, deadline: float) -> int:
        lanes = self._awaited.lanes(width)
        return sum(await asyncio.gather(*(repeat(each, deadline) for each in lanes)))


@contextmanager
def _both(broker: str) -> Iterator[_Both]:
    with asyncio.Runner() as runner, labmesh.connect(broker) as mesh:
        client = labmesh.DirectorClientAgent(broker_rpc=broker)
        runner.run(client.connect())
        try:
            awaited = _Async(runner.run(client.get_relay_agent(_RELAY)))
            yield _Both(mesh[_RELAY], runner, awaited)
        finally:
            runner.run(client.close())


@asynccontextmanager
async def _async(broker: str) -> AsyncIterator[_Async]:
    async with labmesh.DirectorClientAgent(broker_rpc=broker) as client:
        yield _Async(await client.get_relay_agent(_RELAY))


def main() -> None:
    """Run the role that the command line names."""
    match sys.argv[1]:
        case "broker":
            asyncio.run(_broker())
        case "serve":
            asyncio.run(_serve(sys.argv[2]))
        case "ask-async":
            answer_async(_async, "pyzmq", "msgspec", "numpy")
        case "ask-uvloop":
            import uvloop

            distributions = ("pyzmq", "msgspec", "numpy", "uvloop")
            answer_async(_async, *distributions, new_loop=uvloop.new_event_loop)
        case "ask-both":
            answer_blocking(_both, "pyzmq", "msgspec", "numpy")
        case _:
            answer_blocking(_blocking, "pyzmq", "msgspec", "numpy")


if __name__ == "__main__":
    main()
