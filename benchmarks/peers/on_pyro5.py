"""Pyro5 with its MessagePack serializer, which passes arrays as bytes."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import numpy as np
import Pyro5.api
from measuring import (
    ARRAY_BYTES,
    VOLTAGE,
    announce,
    answer_blocking,
    by_threads,
    end_with_stdin,
)
from numpy.typing import NDArray

Pyro5.config.SERIALIZER = "msgpack"
# Each of the 64 clients keeps a thread of the server.
Pyro5.config.THREADPOOL_SIZE = 100


@Pyro5.api.expose
@Pyro5.api.behavior(instance_mode="single")
class PowerSupply:
    """The driver. Pyro5 calls it in the thread that serves the connection."""

    def __init__(self) -> None:
        self._arrays = {size: np.arange(size // 8, dtype=np.float64) for size in ARRAY_BYTES}

    def set_voltage(self, value: float) -> float:
        """The value that was set."""
        return value

    def waveform(self, size: int) -> bytes:
        """The bytes of an array."""
        return self._arrays[size].tobytes()


def serve() -> None:
    """Answer until the end of the process."""
    end_with_stdin()
    daemon = Pyro5.api.Daemon(host="127.0.0.1")
    announce(str(daemon.register(PowerSupply)))
    daemon.requestLoop()


class _Pyro:
    def __init__(self, address: str, running: ExitStack) -> None:
        self._address = address
        self._running = running
        self._lanes: list[Callable[[], float]] = []
        self._psu = running.enter_context(Pyro5.api.Proxy(address))

    def call(self) -> float:
        answered: float = self._psu.set_voltage(VOLTAGE)
        return answered

    def array(self, size: int) -> NDArray[np.float64]:
        return np.frombuffer(self._psu.waveform(size), np.float64)

    def in_flight(self, width: int, deadline: float) -> int:
        while len(self._lanes) < width:
            self._lanes.append(self._lane())
        return by_threads(self._lanes, deadline)

    def _lane(self) -> Callable[[], float]:
        """A proxy belongs to one thread and one call at a time, so each thread gets its own."""
        proxy = self._running.enter_context(Pyro5.api.Proxy(self._address))

        def call() -> float:
            # Says "my thread's" each time, because the threads of each measurement are new ones.
            proxy._pyroClaimOwnership()  # noqa: SLF001 -- its documented name
            answered: float = proxy.set_voltage(VOLTAGE)
            return answered

        return call


@contextmanager
def _opened(address: str) -> Iterator[_Pyro]:
    with ExitStack() as running:
        yield _Pyro(address, running)


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve()
    else:
        answer_blocking(_opened, "Pyro5", "msgpack", "numpy")
