"""The limit: blocking DEALER and ROUTER sockets that send frames as they are. No names, no types.

The server sends a request of 64 bytes back, and answers any other with the array of so many bytes.
``serve`` does it the quickest way; ``serve-multipart`` as it is usually written. ``…-curve``
encrypts.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter

import numpy as np
import zmq
from curved import connect, encrypt
from measuring import ARRAY_BYTES, VOLTAGE, announce, answer_blocking, end_with_stdin
from numpy.typing import NDArray

_FRAME = b"%-64.1f" % VOLTAGE


def serve(*, multipart: bool, encrypted: bool) -> None:
    """Answer until the end of the process."""
    end_with_stdin()
    arrays = {b"%d" % size: np.arange(size // 8, dtype=np.float64).data for size in ARRAY_BYTES}
    with zmq.Context() as context, context.socket(zmq.ROUTER) as router:
        words = encrypt([router]) if encrypted else []
        router.bind("tcp://127.0.0.1:*")
        announce(" ".join([router.getsockopt_string(zmq.LAST_ENDPOINT), *words]))
        if multipart:
            _echo_multipart(router, arrays)
        else:
            _echo(router, arrays)


def _echo(router: zmq.Socket[bytes], arrays: dict[bytes, memoryview]) -> None:
    while True:
        # Two receives cost less than one recv_multipart, and two sends than one send_multipart.
        routing_id = router.recv()
        frame = router.recv()
        router.send(routing_id, zmq.SNDMORE)
        if len(frame) == len(_FRAME):
            router.send(frame)
        else:
            router.send(arrays[frame], copy=False)


def _echo_multipart(router: zmq.Socket[bytes], arrays: dict[bytes, memoryview]) -> None:
    while True:
        routing_id, frame = router.recv_multipart()
        if len(frame) == len(_FRAME):
            router.send_multipart([routing_id, frame])
        else:
            router.send_multipart([routing_id, arrays[frame]], copy=False)


class _Raw:
    def __init__(self, dealer: zmq.Socket[bytes]) -> None:
        self._dealer = dealer

    def call(self) -> float:
        self._dealer.send(_FRAME)
        return float(self._dealer.recv())

    def array(self, size: int) -> NDArray[np.float64]:
        self._dealer.send(b"%d" % size)
        return np.frombuffer(self._dealer.recv(copy=False).buffer, np.float64)

    def in_flight(self, width: int, deadline: float) -> int:
        send, receive = self._dealer.send, self._dealer.recv
        for _ in range(width):
            send(_FRAME)
        count = width
        while perf_counter() < deadline:
            receive()
            send(_FRAME)
            count += 1
        for _ in range(width):
            receive()
        return count


@contextmanager
def _opened(address: str) -> Iterator[_Raw]:
    with zmq.Context() as context, context.socket(zmq.DEALER) as dealer:
        connect(dealer, address)
        yield _Raw(dealer)


if __name__ == "__main__":
    if sys.argv[1].startswith("serve"):
        kind = sys.argv[1].partition("-")[2]
        serve(multipart=kind == "multipart", encrypted=kind == "curve")
    else:
        answer_blocking(_opened, "pyzmq", "numpy")
