"""RPyC. Arrays go as bytes: a netref to an array would ask the server for each element."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter
from typing import Any

import numpy as np
import rpyc
from measuring import ARRAY_BYTES, VOLTAGE, announce, answer_blocking, end_with_stdin
from numpy.typing import NDArray
from rpyc.utils.server import ThreadedServer


class PowerSupply(rpyc.Service):
    """The driver. RPyC calls it in the thread that serves the connection."""

    def __init__(self) -> None:
        self._arrays = {size: np.arange(size // 8, dtype=np.float64) for size in ARRAY_BYTES}

    def exposed_set_voltage(self, value: float) -> float:
        """The value that was set."""
        return value

    def exposed_waveform(self, size: int) -> bytes:
        """The bytes of an array."""
        return self._arrays[size].tobytes()


def serve() -> None:
    """Answer until the end of the process."""
    end_with_stdin()
    server = ThreadedServer(PowerSupply(), hostname="127.0.0.1", port=0)
    announce(str(server.port))
    server.start()


class _Rpyc:
    def __init__(self, connection: Any) -> None:
        self._psu = connection.root
        self._begin = rpyc.async_(self._psu.set_voltage)

    def call(self) -> float:
        answered: float = self._psu.set_voltage(VOLTAGE)
        return answered

    def array(self, size: int) -> NDArray[np.float64]:
        return np.frombuffer(self._psu.waveform(size), np.float64)

    def in_flight(self, width: int, deadline: float) -> int:
        waiting = deque(self._begin(VOLTAGE) for _ in range(width))
        count = width
        while perf_counter() < deadline:
            waiting.popleft().wait()
            waiting.append(self._begin(VOLTAGE))
            count += 1
        for each in waiting:
            each.wait()
        return count


@contextmanager
def _opened(port: str) -> Iterator[_Rpyc]:
    with rpyc.connect("127.0.0.1", int(port)) as connection:
        yield _Rpyc(connection)


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve()
    else:
        answer_blocking(_opened, "rpyc", "numpy")
