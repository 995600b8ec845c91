"""Connections that speak ZMTP themselves: to libzmq, and to servers that do not behave."""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial

import msgspec
import pytest
import zmq
from tests.support.direct import DirectClient
from tests.support.doubles import (
    accepted_by_nobody,
    black_hole,
    closing,
    http,
    nothing_listening,
    silent,
    tcp_server,
)
from tests.support.peers import open_sockets, until
from tests.support.promptness import SLACK_S
from tests.support.served import eventually
from tests.support.zmtp import GREETING, command, message, ping, ready, shake_hands

import labmesh.transport.plain_line as plain_line_module
from labmesh.errors import LinkLost, OutcomeUnknown, ProtocolError, TooLarge
from labmesh.protocol.addresses import parse_connect
from labmesh.transport.binding import has_ipv6
from labmesh.transport.call_socket import Unsent, Unsettled
from labmesh.transport.lines import LineLost
from labmesh.transport.plain_line import PlainLine
from labmesh.transport.plain_socket import has_plain_sockets
from labmesh.transport.sockets import Sockets

pytestmark = pytest.mark.skipif(not has_plain_sockets(), reason="this system has no such lines")

LIMIT_S = 15.0
#: Of the ROUTERs here: so often they ask.
_ASKS_MS = 20


def never() -> bool:
    return False


@contextlib.contextmanager
def line_to(endpoint: str) -> Iterator[PlainLine]:
    line = PlainLine(parse_connect(endpoint))
    line.be_patient(100)
    try:
        yield line
    finally:
        line.close()


@contextlib.contextmanager
def open_line_to(endpoint: str) -> Iterator[PlainLine]:
    with line_to(endpoint) as line:
        eventually(lambda: line.is_open, "it is connected")
        yield line


def received(line: PlainLine) -> list[bytes | memoryview]:
    """The next message, however long it takes."""
    deadline = time.monotonic() + LIMIT_S
    while (frames := line.receive()) is None:
        assert time.monotonic() < deadline, "nothing comes"
    return frames


def outcome(line: PlainLine, error: type[Exception], match: str) -> None:
    """Receiving ends with this, whatever comes before it."""

    def is_over() -> bool:
        line.receive()
        return False

    with pytest.raises(error, match=match):
        eventually(is_over, "it is over")


# ── libzmq ──────────────────────────────────────────────────────────────────────────────────────


class Router:
    """A ROUTER of libzmq that sends back what comes, in a thread of its own."""

    def __init__(self, address: str = "tcp://127.0.0.1:*", *, waits_ms: int = 15_000) -> None:
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.socket = self._context.socket(zmq.ROUTER)
        self.socket.linger = 0
        self.socket.ipv6 = "[" in address
        self.socket.heartbeat_ivl, self.socket.heartbeat_timeout = _ASKS_MS, waits_ms
        self.socket.heartbeat_ttl = 2000
        self.hung_up = self.socket.get_monitor_socket(zmq.EVENT_DISCONNECTED)
        self.socket.bind(address)
        self.endpoint = self.socket.getsockopt_string(zmq.LAST_ENDPOINT).rstrip("\0")
        self._stop, self._stopped = self._context.socket(zmq.PAIR), self._context.socket(zmq.PAIR)
        self._stop.bind("inproc://stop")
        self._stopped.connect("inproc://stop")
        self._thread = threading.Thread(target=self._run, name="router", daemon=True)

    def __enter__(self) -> Router:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.send(b"")
        self._thread.join()
        self.socket.disable_monitor()
        for each in (self.hung_up, self.socket, self._stop, self._stopped):
            each.close(0)
        self._context.term()

    def _run(self) -> None:
        poller = zmq.Poller()
        poller.register(self._stopped, zmq.POLLIN)
        poller.register(self.socket, zmq.POLLIN)
        while self._stopped not in dict(poller.poll()):
            frames = self.socket.recv_multipart(copy=False)
            self.socket.send_multipart(frames, copy=False)


MiB = 2**20
MESSAGES: list[list[bytes]] = [
    [b""],
    [b"x" * 255],
    [b"x" * 256],
    [b"x" * 4095],
    [b"x" * 4096],
    [b"x" * 65_536],
    [b"x" * (16 * MiB)],
    [b"header", b"", b"y" * 5000, b"", b"z" * MiB, b"end"],
    [b"header", *(bytes([each]) * 1000 * each for each in range(64))],
    [b"header", b"a" * (16 * MiB), b"b" * (16 * MiB), b"c" * (16 * MiB - 100)],
]


def is_sent(line: PlainLine, frames: list[bytes]) -> bool:
    """Send a message; False: the other side has not read the one before yet."""
    try:
        line.send([*frames], never)
    except Unsent:
        return False
    return True


def test_messages_of_any_size_go_to_and_fro_while_the_other_side_asks() -> None:
    with Router() as router, open_line_to(router.endpoint) as line:
        for frames in MESSAGES:
            for _ in range(2):
                eventually(partial(is_sent, line, frames), "there is room for it")
            for _ in range(2):
                assert received(line) == frames
        assert not line._incoming.is_partial
        assert line._incoming.ttl_s == 2.0


def test_who_is_tended_or_waits_stays_connected_and_who_is_left_alone_is_hung_up_on() -> None:
    waits_ms = 1500
    with (
        Router(waits_ms=waits_ms) as router,
        open_line_to(router.endpoint) as tended,
        open_line_to(router.endpoint) as waiting,
    ):
        with open_line_to(router.endpoint) as left:
            waiting.be_patient(10)
            until = time.monotonic() + 1.5 * waits_ms / 1000
            while time.monotonic() < until:
                assert waiting.receive() is None
                if tended.is_due:
                    tended.tend()
            assert router.hung_up.poll(LIMIT_S * 1000)
            left.tend()
            assert left.closed
        router.hung_up.recv_multipart()
        for line in (tended, waiting):
            line.send([b"still here"], never)
            assert received(line) == [b"still here"]
        assert not router.hung_up.poll(0)


@pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6")
def test_it_goes_over_ipv6_as_well() -> None:
    with Router("tcp://[::1]:*") as router, open_line_to(router.endpoint) as line:
        line.send([b"hello"], never)
        assert received(line) == [b"hello"]


@pytest.mark.parametrize("kind", [zmq.PUB, zmq.REP, zmq.DEALER])
def test_other_sockets_of_zeromq_are_no_relay(kind: int) -> None:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    with context.socket(kind) as other:
        other.linger = 0
        port = other.bind_to_random_port("tcp://127.0.0.1")
        with line_to(f"tcp://127.0.0.1:{port}") as line:
            eventually(lambda: line.tend() or line.closed, "it is closed")
            assert not line.is_open
    context.term()


# ── servers that do not shake hands ─────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "server", [nothing_listening, black_hole, accepted_by_nobody, silent, closing, http]
)
def test_where_nobody_shakes_hands_nothing_is_sent(
    server: Callable[[], contextlib.AbstractContextManager[str]],
) -> None:
    with server() as endpoint, line_to(endpoint) as line:
        for _ in range(3):
            with pytest.raises(Unsent):
                line.send([b"hello"], never)
        if server in (nothing_listening, closing, http):
            eventually(lambda: line.tend() or line.closed, "it is closed")
        assert not line.is_open


@pytest.mark.parametrize(
    "said",
    [
        GREETING[:12] + b"CURVE" + GREETING[17:],
        GREETING[:10] + b"\x01" + GREETING[11:],
        GREETING + command(b"\x05ERROR\x03400"),
        GREETING + message(b"early"),
        os.urandom(500),
    ],
    ids=["mechanism", "version", "refused", "message", "junk"],
)
def test_who_shakes_hands_in_another_way_is_hung_up_on(said: bytes) -> None:
    ended = threading.Event()

    def serve(connection: socket.socket) -> None:
        connection.settimeout(LIMIT_S)
        connection.sendall(said)
        with contextlib.suppress(ConnectionResetError):
            while connection.recv(1000):
                continue
        ended.set()

    with tcp_server(serve) as endpoint, line_to(endpoint) as line:
        eventually(lambda: line.tend() or line.closed, "it is closed")
        assert ended.wait(LIMIT_S)


def test_a_handshake_may_come_byte_by_byte() -> None:
    def serve(connection: socket.socket) -> None:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for each in GREETING + ready("ROUTER") + message(b"hello", b"there", between=ping()):
            connection.sendall(bytes([each]))

    with tcp_server(serve) as endpoint, open_line_to(endpoint) as line:
        # The message may have been read together with the end of the handshake, for nobody.
        line.tend()
        assert line.is_open


# ── servers that shake hands ────────────────────────────────────────────────────────────────────


@contextlib.contextmanager
def line_of(serve: Callable[[socket.socket], None]) -> Iterator[PlainLine]:
    """A line to a server that does this once the line has sent a message."""

    def shake_first(connection: socket.socket) -> None:
        shake_hands(connection)
        begin = message(b"begin")
        assert connection.recv(len(begin), socket.MSG_WAITALL) == begin
        serve(connection)

    with tcp_server(shake_first) as endpoint, open_line_to(endpoint) as line:
        line.send([b"begin"], never)
        yield line


@pytest.mark.parametrize(
    ("said", "error", "why"),
    [
        (b"", LineLost, "hung up"),
        (ping() + message(b"a", b"bc")[:-1], LineLost, "hung up"),
        (message(bytes(200_000))[:-1], LineLost, "hung up"),
        (command(b"\x05ERROR\x07no more"), ProtocolError, "no more"),
        (b"\x40\x00", ProtocolError, "no frame"),
        (b"HTTP/1.1", ProtocolError, "no frame"),
        (b"\x01\x00" * 100, TooLarge, "frames"),
        (b"\x02" + (2**63 + 1).to_bytes(8, "big"), TooLarge, "no memory"),
        (b"\x02" + (2**50).to_bytes(8, "big"), TooLarge, "no memory"),
        (10_000 * ping(), ProtocolError, "without end"),
    ],
)
def test_what_is_no_reply_ends_the_wait(said: bytes, error: type[Exception], why: str) -> None:
    def serve(connection: socket.socket) -> None:
        connection.sendall(said)
        connection.shutdown(socket.SHUT_WR)

    with line_of(serve) as line:
        outcome(line, error, why)


def test_what_is_claimed_takes_no_memory_before_it_comes() -> None:
    def serve(connection: socket.socket) -> None:
        for _ in range(3):
            connection.sendall(b"\x03" + (2**30).to_bytes(8, "big") + bytes(10))
            connection.sendall(bytes(2**20))
        connection.shutdown(socket.SHUT_WR)

    resource = pytest.importorskip("resource", reason="needs the use of resources")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with line_of(serve) as line:
        outcome(line, LineLost, "hung up")
    # In KiB (macOS: bytes).
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 * 2**10


def test_a_reply_counts_more_than_what_the_other_side_asks_with_it() -> None:
    """It has gone meanwhile, so that nobody takes the answer."""

    def serve(connection: socket.socket) -> None:
        connection.sendall(ping() + message(b"reply"))
        # So that closing it is a reset, not an end.
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.close()

    def has_gone() -> bool:
        return any(event & select.POLLHUP for _, event in line._readable.poll(0))

    with line_of(serve) as line:
        eventually(has_gone, "it has gone")
        assert received(line) == [b"reply"]
        with pytest.raises(LineLost):
            line.receive()


def test_who_said_until_when_it_lives_is_given_up_then() -> None:
    def serve(connection: socket.socket) -> None:
        connection.sendall(ping(ttl_s=0.1))

    with line_of(serve) as line:
        eventually(lambda: line.tend() or line.closed, "it is closed")
        assert line._incoming.ttl_s == 0.1


def test_there_is_something_to_do_for_a_line_that_was_sent_to_or_has_ended() -> None:
    late, end = threading.Event(), threading.Event()

    def serve(connection: socket.socket) -> None:
        assert late.wait(LIMIT_S)
        connection.sendall(message(b"late"))
        assert end.wait(LIMIT_S)
        connection.close()

    with line_of(serve) as line:
        assert not line.is_due
        for each in (late, end):
            each.set()
            eventually(lambda: line.is_due, "something has come")
            line.tend()
            assert line.is_due is (each is end)
        assert line.closed


def test_late_replies_without_end_keep_nobody_who_tends_a_line() -> None:
    gone = threading.Event()

    def serve(connection: socket.socket) -> None:
        flood = 100 * message(b"late" * 100) + message(b"x", bytes(100_000))
        with contextlib.suppress(OSError):
            while not gone.is_set():
                connection.sendall(flood)

    with line_of(serve) as line:
        for _ in range(20):
            began = time.monotonic()
            line.tend()
            assert time.monotonic() - began < SLACK_S
        assert line.is_open
        gone.set()


@pytest.mark.parametrize("ends", ["stuck", "in vain", "gone"])
def test_a_message_of_which_a_part_was_taken_is_never_delivered(
    ends: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its sender is told that it was not sent: at its deadline, after a while, or at once."""
    monkeypatch.setattr(plain_line_module, "_STUCK_MS", 300 if ends == "stuck" else 60_000)
    content = os.urandom(16 * MiB)
    got: list[bytes] = []
    closed, sent = threading.Event(), threading.Event()

    def serve(connection: socket.socket) -> None:
        got.append(connection.recv(1000))
        if ends == "gone":
            connection.close()
            return
        assert sent.wait(LIMIT_S)
        with contextlib.suppress(ConnectionResetError):
            while piece := connection.recv(MiB):
                got.append(piece)
        closed.set()

    with line_of(serve) as line:
        until = time.monotonic() + (0.3 if ends == "in vain" else LIMIT_S)
        with pytest.raises(Unsent):
            line.send([b"header", content], lambda: time.monotonic() > until)
        assert not line.is_whole
        assert line.closed
        assert time.monotonic() < until + SLACK_S
        sent.set()
        if ends != "gone":
            assert closed.wait(LIMIT_S)
    assert len(b"".join(got)) < len(content)


def test_who_reads_slowly_gets_all_of_it() -> None:
    content = os.urandom(4 * MiB)
    got: list[bytes] = []
    done = threading.Event()

    def serve(connection: socket.socket) -> None:
        while sum(map(len, got)) < len(message(b"header", content, b"end")):
            got.append(connection.recv(10_000))
        done.set()

    with line_of(serve) as line:
        line.send([b"header", content, b"end"], never)
        assert line.is_whole
        assert done.wait(LIMIT_S)
    assert b"".join(got) == message(b"header", content, b"end")


_SCRIPT = """
import signal, sys
from labmesh.protocol.addresses import parse_connect
from labmesh.transport.lines import Unsent
from labmesh.transport.plain_line import PlainLine
signal.signal(signal.SIGPIPE, signal.SIG_DFL)
line = PlainLine(parse_connect(sys.argv[1]))
while not line.is_open:
    pass
line.send([b"hello"], bool)
line._readable.poll()  # it has hung up
try:
    while True:
        line.send([b"hello"], bool)
except Unsent:
    print("not sent")
"""


def test_a_program_that_ends_by_sigpipe_does_not_end_by_a_relay_that_has_gone() -> None:
    def serve(connection: socket.socket) -> None:
        shake_hands(connection)
        # An end, and no reset: nothing is left to be read.
        hello = message(b"hello")
        assert connection.recv(len(hello), socket.MSG_WAITALL) == hello
        connection.close()

    with tcp_server(serve) as endpoint:
        run = subprocess.run(
            [sys.executable, "-c", _SCRIPT, endpoint],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert (run.returncode, run.stdout) == (0, "not sent\n"), run.stderr


# ── calls over them ─────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def sockets() -> Iterator[Sockets]:
    with open_sockets(name="client") as opened:
        yield opened


@contextlib.contextmanager
def calling(sockets: Sockets, serve: Callable[[socket.socket], None]) -> Iterator[DirectClient]:
    """A client of a server that does this once it has a call."""

    def shake_first(connection: socket.socket) -> None:
        shake_hands(connection)
        serve(connection)

    with tcp_server(shake_first) as endpoint:
        client = DirectClient(sockets, endpoint)
        client.connected()
        yield client
        client.close()


_STRAY = message(msgspec.msgpack.encode({"type": "result", "id": "0", "value": "not yours"}))


@pytest.mark.parametrize(
    "said",
    [1000 * _STRAY, message(bytes(2**30 // 1000))[:10_000], b"\0"],
    ids=["late replies", "a large frame", "nothing"],
)
@pytest.mark.parametrize("piece", [10**6, 1])
def test_whatever_comes_a_call_is_over_at_its_deadline(
    sockets: Sockets, said: bytes, piece: int
) -> None:
    """In a flood, or byte by byte."""
    over = threading.Event()

    def serve(connection: socket.socket) -> None:
        connection.recv(1000)
        with contextlib.suppress(OSError):
            while not over.is_set():
                for at in range(0, len(said), piece):
                    connection.sendall(said[at : at + piece])
                    if over.wait(0.001 if piece == 1 else 0.0):
                        return

    with calling(sockets, serve) as client:
        began = time.monotonic()
        with pytest.raises((OutcomeUnknown, Unsettled)):
            client.call(timeout=0.5)
        assert time.monotonic() - began < 0.5 + SLACK_S
        over.set()


def test_a_part_of_a_reply_is_a_sign_of_life(
    sockets: Sockets, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A large one may take long on its way."""
    monkeypatch.setattr("labmesh.transport.call_socket._QUIET_S", 0.25)
    sent_at: list[float] = []

    def serve(connection: socket.socket) -> None:
        connection.recv(1000)
        sent_at.append(time.monotonic())
        connection.sendall(message(bytes(100_000))[:-1])

    with calling(sockets, serve) as client:
        with pytest.raises(Unsettled, match="quiet") as caught:
            client.call()
        assert caught.value.heard_at > sent_at[0]


def test_a_relay_that_has_gone_since_the_last_call_is_sent_nothing(sockets: Sockets) -> None:
    """It is not a call of which nobody knows how it stands, even where nobody looked meanwhile."""
    hung_up = threading.Event()

    def serve(connection: socket.socket) -> None:
        connection.recv(1000)
        connection.sendall(_STRAY.replace(b"\xa10", b"\xa11"))
        connection.close()
        hung_up.set()

    with calling(sockets, serve) as client:
        assert client.call().value == "not yours"
        (used,) = client.idle
        assert hung_up.wait(LIMIT_S)
        eventually(lambda: used._line._readable.poll(0), "that it hung up has come")
        used._used_at = 0.0
        with pytest.raises(Unsent):
            client.call()
        assert used.closed
        assert client.idle == []


async def test_connections_that_wait_for_the_next_call_are_looked_after(
    sockets: Sockets, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("labmesh.transport.blocking._TEND_S", 0.01)
    pongs: list[bytes] = []
    hang_up = threading.Event()

    def serve(connection: socket.socket) -> None:
        for number in (b"1", b"2"):
            connection.sendall(_STRAY + ping(number))
            pong = command(b"\x04PONG" + number)
            pongs.append(connection.recv(len(pong), socket.MSG_WAITALL))
        assert hang_up.wait(LIMIT_S)
        connection.close()

    with calling(sockets, serve) as client:
        (waiting,) = client.idle
        task = asyncio.create_task(client.sockets.tend())
        await until(lambda: len(pongs) == 2)
        assert pongs == [command(b"\x04PONG1"), command(b"\x04PONG2")]
        assert client.idle == [waiting]
        waiting.blocked_at = 0.0  # as if it had been used
        hang_up.set()
        await until(lambda: client.idle == [])
        assert waiting.closed
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


def test_without_a_descriptor_there_is_no_connection_and_then_there_is(sockets: Sockets) -> None:
    resource = pytest.importorskip("resource", reason="needs limits of resources")
    with Router() as router:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        lowest_free = os.dup(0)
        os.close(lowest_free)
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free, hard))
        try:
            with pytest.raises(LinkLost, match="cannot open another socket"):
                sockets.lend(router.endpoint)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        line = sockets.lend(router.endpoint)
        eventually(lambda: line.is_open, "it is connected")
        line.close()
