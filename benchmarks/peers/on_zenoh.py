"""zenoh: a queryable, peer to peer over TCP, no router and no discovery.

zenoh moves bytes and leaves their meaning to its users: here a double, and the bytes of an array.
On one machine it passes large ones by shared memory unless it is told not to. ``serve`` and ``ask``
tell it, and measure TCP, as to an instrument's computer; ``serve-shm`` and ``ask-shm`` do not.
"""

from __future__ import annotations

import json
import struct
import sys
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from time import perf_counter
from typing import Any

import numpy as np
import zenoh
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

_CALL, _ARRAY = "psu/set_voltage", "psu/waveform"
_DOUBLE = struct.Struct("<d")
_REQUEST = _DOUBLE.pack(VOLTAGE)
_SHARED_MEMORY = sys.argv[1].endswith("-shm")


def _config(side: str, address: str) -> zenoh.Config:
    config = zenoh.Config()
    config.insert_json5("mode", '"peer"')
    config.insert_json5("scouting/multicast/enabled", "false")
    config.insert_json5("transport/shared_memory/enabled", json.dumps(_SHARED_MEMORY))
    if side == "connect":
        config.insert_json5("listen/endpoints", "[]")
    config.insert_json5(f"{side}/endpoints", json.dumps([address]))
    return config


def serve() -> None:
    """Answer until the end of the process. zenoh calls the two functions in threads of its own."""
    arrays = {size: np.arange(size // 8, dtype=np.float64) for size in ARRAY_BYTES}

    def set_voltage(query: zenoh.Query) -> None:
        (value,) = _DOUBLE.unpack(query.payload.to_bytes())
        query.reply(query.key_expr, _DOUBLE.pack(value))

    def waveform(query: zenoh.Query) -> None:
        size = int(query.payload.to_bytes())
        query.reply(query.key_expr, arrays[size].tobytes())

    end_with_stdin()
    address = f"tcp/127.0.0.1:{free_port()}"
    with zenoh.open(_config("listen", address)) as session:
        session.declare_queryable(_CALL, set_voltage)
        session.declare_queryable(_ARRAY, waveform)
        announce(address)
        threading.Event().wait()


class _Zenoh:
    def __init__(self, session: zenoh.Session) -> None:
        self._session = session

    def call(self) -> float:
        value: float = _DOUBLE.unpack(self._ask(_CALL, _REQUEST))[0]
        return value

    def array(self, size: int) -> NDArray[np.float64]:
        return np.frombuffer(self._ask(_ARRAY, b"%d" % size), np.float64)

    def in_flight(self, width: int, deadline: float) -> int:
        waiting = deque(self._begin() for _ in range(width))
        count = width
        while perf_counter() < deadline:
            self._end(waiting.popleft())
            waiting.append(self._begin())
            count += 1
        for each in waiting:
            self._end(each)
        return count

    def is_found(self) -> bool:
        """The two sides know of each other."""
        return any(reply.ok for reply in self._session.get(_CALL, payload=_REQUEST))

    def _begin(self) -> Iterable[Any]:
        replies: Iterable[Any] = self._session.get(_CALL, payload=_REQUEST)
        return replies

    def _end(self, replies: Iterable[Any]) -> None:
        _DOUBLE.unpack(_payload(replies))

    def _ask(self, key: str, payload: bytes) -> bytes:
        return _payload(self._session.get(key, payload=payload))


def _payload(replies: Iterable[Any]) -> bytes:
    """The first reply of those to one request."""
    for reply in replies:
        if reply.ok is None:
            raise RuntimeError(f"zenoh: {reply.err.payload.to_string()}")
        answered: bytes = reply.ok.payload.to_bytes()
        return answered
    raise RuntimeError("zenoh: nobody answered")


@contextmanager
def _opened(address: str) -> Iterator[_Zenoh]:
    deadline = connect_deadline()
    with zenoh.open(_config("connect", address)) as session:
        client = _Zenoh(session)
        # The server's declarations arrive some time after the connection.
        while not client.is_found():
            if perf_counter() > deadline:
                raise TimeoutError(f"zenoh: no queryable at {address}")
        yield client


if __name__ == "__main__":
    if sys.argv[1].startswith("serve"):
        serve()
    else:
        answer_blocking(_opened, "eclipse-zenoh", "numpy")
