"""PyLECO: a Coordinator, an Actor with its device, a Director; arrays as binary frames."""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter
from typing import Any

import numpy as np
from measuring import (
    ARRAY_BYTES,
    VOLTAGE,
    announce,
    answer_blocking,
    connect_deadline,
    end_with_stdin,
    free_port,
)
from numpy.typing import NDArray
from pyleco.actors.actor import Actor
from pyleco.coordinators.coordinator import Coordinator
from pyleco.directors.director import Director

_NAME = "psu"
_TIMEOUT_S = 10.0
_GOODBYE_S = 0.5


class PowerSupply:
    """The driver. PyLECO calls it in the thread that reads the Actor's socket."""

    def __init__(self) -> None:
        self._arrays = {size: np.arange(size // 8, dtype=np.float64) for size in ARRAY_BYTES}

    def set_voltage(self, value: float) -> float:
        """The value that was set."""
        return value

    def waveform(self, size: int) -> tuple[None, list[bytes]]:
        """No value in JSON, and the bytes of an array in a frame of their own."""
        return None, [self._arrays[size].tobytes()]


def coordinate() -> None:
    """Route messages until the end of the process."""
    end_with_stdin()
    port = free_port()
    with Coordinator(namespace="bench", host="127.0.0.1", port=port) as coordinator:
        announce(str(port))
        coordinator.routing()


def serve(port: int) -> None:
    """Answer until the end of the process."""
    end_with_stdin()
    actor = Actor(_NAME, PowerSupply, host="127.0.0.1", port=port)
    actor.connect()
    actor.register_device_method(actor.device.set_voltage)
    actor.register_binary_rpc_method(actor.device.waveform, return_binary_output=True)
    announce(str(port))
    actor.listen(stop_event=threading.Event())


class _Leco:
    def __init__(self, director: Director) -> None:
        self._director = director

    def call(self) -> float:
        answered: float = self._director.ask_rpc("device.set_voltage", value=VOLTAGE)
        return answered

    def array(self, size: int) -> NDArray[np.float64]:
        _, frames = self._director.ask_rpc("waveform", extract_additional_payload=True, size=size)
        return np.frombuffer(frames[0], np.float64)

    def in_flight(self, width: int, deadline: float) -> int:
        begin, end = self._begin, self._director.read_rpc_response
        waiting = [begin() for _ in range(width)]
        count = width
        at = 0
        while perf_counter() < deadline:
            end(waiting[at], timeout=_TIMEOUT_S)
            waiting[at] = begin()
            at = (at + 1) % width
            count += 1
        for each in waiting[at:] + waiting[:at]:
            end(each, timeout=_TIMEOUT_S)
        return count

    def _begin(self) -> Any:
        return self._director.ask_rpc_async("device.set_voltage", value=VOLTAGE)


@contextmanager
def _opened(port: str) -> Iterator[_Leco]:
    deadline = connect_deadline()
    logging.disable(logging.ERROR)  # the Actor signs in by itself, some time after its start
    with Director(actor=_NAME, name="client", host="127.0.0.1", port=int(port)) as director:
        client = _Leco(director)
        director.communicator.timeout = _TIMEOUT_S
        try:
            _wait_signed_in(client, deadline)
            yield client
        finally:
            # It says goodbye at its end; there may be nobody left to answer.
            director.communicator.timeout = _GOODBYE_S


def _wait_signed_in(client: _Leco, deadline: float) -> None:
    while True:
        try:
            client.call()
            return
        except Exception as exc:
            # Whatever PyLECO raises while the coordinator does not know the actor yet.
            if perf_counter() > deadline:
                raise TimeoutError("pyleco: the actor did not sign in") from exc


if __name__ == "__main__":
    match sys.argv[1]:
        case "coordinate":
            coordinate()
        case "serve":
            serve(int(sys.argv[2]))
        case _:
            answer_blocking(_opened, "pyleco", "pyzmq", "numpy")
