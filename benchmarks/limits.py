"""What a round trip can be at best: 64 bytes to and fro, without anything of labmesh's.

    python benchmarks/limits.py

Over ZeroMQ (DEALER and ROUTER) and over plain sockets, by TCP and by Unix sockets. Each is measured
with both sides asleep while they wait, and with both looking all the time, giving their core away
between two looks as labmesh does. docs/benchmarks.md says what for.
"""

from __future__ import annotations

import argparse
import os
import select
import socket
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from time import perf_counter
from typing import Any

import zmq

_FRAME = b"%-64.1f" % 2.5
_NOBLOCK, _EVENTS, _POLLIN = int(zmq.NOBLOCK), int(zmq.EVENTS), int(zmq.POLLIN)
_WARM_UP = 50

Call = Callable[[], object]

TRANSPORTS = ("zmq-tcp", "zmq-ipc", "plain-tcp", "plain-unix")
WAITS = ("asleep", "looking")


# ── ZeroMQ ──────────────────────────────────────────────────────────────────────────────────────


def _receiver(found: zmq.Socket[bytes], wait: str) -> Callable[[], bytes]:
    if wait == "asleep":
        return found.recv
    poll = select.poll()
    poll.register(found.FD, select.POLLIN)

    def receive() -> bytes:
        # The descriptor tells only of what comes when the socket was found empty before.
        if not found.getsockopt(_EVENTS) & _POLLIN:
            while not (poll.poll(0) and found.getsockopt(_EVENTS) & _POLLIN):
                os.sched_yield()
        return found.recv(_NOBLOCK)

    return receive


def _serve_zmq(address: str, wait: str) -> None:
    with zmq.Context() as context, context.socket(zmq.ROUTER) as router:
        router.bind(address)
        _announce(router.getsockopt_string(zmq.LAST_ENDPOINT))
        receive = _receiver(router, wait)
        while True:
            routing_id = receive()
            frame = router.recv()
            router.send(routing_id, zmq.SNDMORE)
            router.send(frame)


def _ask_zmq(stack: ExitStack, address: str, wait: str) -> Call:
    dealer = stack.enter_context(stack.enter_context(zmq.Context()).socket(zmq.DEALER))
    dealer.connect(address)
    receive = _receiver(dealer, wait)

    def call() -> bytes:
        dealer.send(_FRAME)
        return receive()

    return call


# ── plain sockets ───────────────────────────────────────────────────────────────────────────────


def _plain_receiver(found: socket.socket, wait: str) -> Callable[[], bytes]:
    if wait == "asleep":
        return lambda: found.recv(len(_FRAME))
    found.setblocking(False)

    def receive() -> bytes:
        while True:
            try:
                return found.recv(len(_FRAME))
            except BlockingIOError:
                os.sched_yield()

    return receive


def _opened(kind: str) -> socket.socket:
    return socket.socket(socket.AF_UNIX if kind == "plain-unix" else socket.AF_INET)


def _send_at_once(found: socket.socket) -> None:
    if found.family == socket.AF_INET:
        found.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def _serve_plain(kind: str, folder: str, wait: str) -> None:
    with _opened(kind) as listener:
        listener.bind(f"{folder}/plain" if kind == "plain-unix" else ("127.0.0.1", 0))
        listener.listen()
        name = listener.getsockname()
        _announce(name if isinstance(name, str) else str(name[1]))
        connection, _ = listener.accept()
    with connection:
        _send_at_once(connection)
        receive = _plain_receiver(connection, wait)
        while frame := receive():
            connection.send(frame)


def _ask_plain(stack: ExitStack, kind: str, address: str, wait: str) -> Call:
    connection = stack.enter_context(_opened(kind))
    connection.connect(address if kind == "plain-unix" else ("127.0.0.1", int(address)))
    _send_at_once(connection)
    receive = _plain_receiver(connection, wait)

    def call() -> bytes:
        connection.send(_FRAME)
        return receive()

    return call


# ── who measures ────────────────────────────────────────────────────────────────────────────────


def _announce(address: str) -> None:
    sys.stdout.write(f"{address}\n")
    sys.stdout.flush()


def _serve(kind: str, wait: str, folder: str) -> None:
    if kind.startswith("zmq"):
        _serve_zmq(f"ipc://{folder}/zmq" if kind == "zmq-ipc" else "tcp://127.0.0.1:*", wait)
    else:
        _serve_plain(kind, folder, wait)


def _measured(kind: str, wait: str, seconds: float) -> float:
    """The usual round trip, in microseconds.

    Its server runs only meanwhile: one that looks all the time would disturb the others.
    """
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        command = [sys.executable, str(Path(__file__)), "--serve", kind, wait, folder]
        server = stack.enter_context(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        stack.callback(server.kill)
        assert server.stdout is not None
        address = server.stdout.readline().strip()
        if kind.startswith("zmq"):
            call = _ask_zmq(stack, address, wait)
        else:
            call = _ask_plain(stack, kind, address, wait)
        for _ in range(_WARM_UP):
            call()
        return statistics.median(_times(call, seconds)) * 1e6


def _times(call: Call, seconds: float) -> list[float]:
    times = []
    before = perf_counter()
    deadline = before + seconds
    while before < deadline:
        call()
        after = perf_counter()
        times.append(after - before)
        before = after
    return times


def main(argv: list[str] | None = None) -> int:
    """Measure all of them in turn, and print the medians and their ratios to the first."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=0.2, help="for each, in each round")
    parser.add_argument("--serve", nargs=3, help=argparse.SUPPRESS)
    options: Any = parser.parse_args(argv)
    if options.serve:
        _serve(*options.serve)
        return 0
    cases = [(kind, wait) for kind in TRANSPORTS for wait in WAITS]
    found: dict[tuple[str, str], list[float]] = {case: [] for case in cases}
    for _ in range(options.rounds):
        for kind, wait in cases:
            found[kind, wait].append(_measured(kind, wait, options.seconds))
    for kind, wait in cases:
        ratio = statistics.median(
            mine / base for mine, base in zip(found[kind, wait], found[cases[0]], strict=True)
        )
        usual = statistics.median(found[kind, wait])
        sys.stdout.write(f"{kind:10} both {wait:7} {usual:7.1f} µs {ratio:6.2f}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
