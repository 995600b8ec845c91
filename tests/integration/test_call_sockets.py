"""Sockets for threads that wait, against servers that do not behave."""

from __future__ import annotations

import contextlib
import gc
import itertools
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import cache, partial
from typing import Any

import msgspec
import pytest
import zmq
from tests.support.direct import DirectClient
from tests.support.doubles import RouterDouble
from tests.support.leaks import Held
from tests.support.looking import Sleepless
from tests.support.peers import PROTECTED, open_sockets, with_password
from tests.support.processes import free_ports
from tests.support.promptness import SLACK_S
from tests.support.served import eventually

import labmesh.protocol.zmtp as zmtp_module
import labmesh.transport.call_socket as call_socket_module
import labmesh.transport.channel as channel_module
import labmesh.transport.lines as lines_module
import labmesh.transport.plain_line as plain_line_module
from labmesh.errors import LinkLost, OutcomeUnknown, ProtocolError, TooLarge
from labmesh.protocol.messages import Alive, Call, Cancel, Done, Failure, Result
from labmesh.transport.blocking import CallSockets
from labmesh.transport.call_socket import Unsent, Unsettled
from labmesh.transport.connection import Standing
from labmesh.transport.keys import Security
from labmesh.transport.lines import DealerLine
from labmesh.transport.plain_line import PlainLine
from labmesh.transport.sockets import Sockets
from labmesh.transport.spinning import Spin

LIMIT_S = 15.0


@cache  # its keys take long to make
def password() -> Security:
    return with_password()


@pytest.fixture(params=["plain", "encrypted"])
def security(request: pytest.FixtureRequest) -> Security:
    """Of the network, which decides what kind of line its clients have."""
    return PROTECTED if request.param == "plain" else password()


@pytest.fixture
def sockets(security: Security) -> Iterator[Sockets]:
    with open_sockets(security, name="client") as opened:
        yield opened


MakeRouter = Callable[..., RouterDouble]
MakeClient = Callable[[str], DirectClient]


@pytest.fixture
def router(security: Security) -> MakeRouter:
    return partial(RouterDouble, security=security)


@pytest.fixture
def client_of(sockets: Sockets) -> Iterator[MakeClient]:
    clients: list[DirectClient] = []

    def make(endpoint: str) -> DirectClient:
        clients.append(DirectClient(sockets, endpoint))
        return clients[-1]

    yield make
    for each in clients:
        each.close()


class Interrupted(BaseException):
    """As a signal's handler may raise it."""


@contextlib.contextmanager
def interrupted_before(line: int, call: Callable[..., Any]) -> Iterator[Callable[..., Any]]:
    """The function, interrupted before so many lines of those modules that a call goes through."""
    lines = itertools.count(1)
    names = {module.__file__ for module in (call_socket_module, channel_module, lines_module)}
    names |= {plain_line_module.__file__, zmtp_module.__file__}

    def trace(frame: Any, event: str, _arg: object) -> Any:
        if frame.f_code.co_filename not in names:
            return None
        if event == "line" and next(lines) == line:
            raise Interrupted
        return trace

    def traced(*args: Any) -> Any:
        sys.settrace(trace)
        try:
            return call(*args)
        finally:
            sys.settrace(traced_before)

    traced_before = sys.gettrace()
    yield traced


def result(request: Any, value: Any = "moved") -> Result:
    return Result(id=request.id, value=value)


# ── replies ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "value", [None, 2.5, True, 2**63, "text", [1, [2]], {"a": 1}, 1j, b"x" * 9000]
)
def test_a_reply_is_read_as_it_is_by_every_codec(
    client_of: MakeClient, router: MakeRouter, value: Any
) -> None:
    with router(lambda request: [result(request, value)]) as server:
        client = client_of(server.endpoint)
        client.connected()
        got = client.call().value
        assert got == value
        assert type(got) is type(value)


def test_who_looks_instead_of_sleeping_misses_no_reply(
    client_of: MakeClient, router: MakeRouter
) -> None:
    stray = msgspec.msgpack.encode({"type": "result", "id": "another", "value": "not yours"})

    def answer(request: Any) -> list[Any]:
        return [[stray], result(request)] if int(request.id) % 3 == 0 else [result(request)]

    with router(answer) as server:
        client = client_of(server.endpoint)
        client.connected()
        (socket,) = client.idle
        spin = socket._spin = Sleepless()
        assert [client.call().value for _ in range(300)] == ["moved"] * 300
        assert spin.finds


def test_a_call_that_is_not_waited_for_at_once_does_not_count_as_quick(
    client_of: MakeClient, router: MakeRouter, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted: list[float] = []
    monkeypatch.setattr(Spin, "came", lambda _, waited_s: counted.append(waited_s))
    with router(lambda request: [result(request)]) as server:
        client = client_of(server.endpoint)
        client.connected()
        with contextlib.suppress(OutcomeUnknown):  # on a slow machine
            client.call(timeout=0.09)
        assert not counted
        client.call()
        assert len(counted) == 1


def test_replies_to_other_calls_are_skipped_readable_or_not(
    client_of: MakeClient, router: MakeRouter
) -> None:
    stray = msgspec.msgpack.encode({"type": "result", "id": "another", "value": "not yours"})
    unreadable = msgspec.msgpack.encode({"type": "result", "id": "another", "value": {(1,): 2}})

    def answer(request: Any) -> list[Any]:
        return [[stray], [unreadable], Done(id="7"), [stray], result(request)]

    with router(answer) as server:
        client = client_of(server.endpoint)
        client.connected()
        assert [client.call().value for _ in range(3)] == ["moved"] * 3


def test_a_reply_that_cannot_be_read_leaves_the_call_unsettled(
    client_of: MakeClient, router: MakeRouter
) -> None:
    def answer(request: Any) -> list[Any]:
        return [[msgspec.msgpack.encode({"type": "result", "id": request.id, "value": {(1,): 2}})]]

    with router(answer) as server:
        client = client_of(server.endpoint)
        client.connected()
        with pytest.raises(Unsettled, match="neither text nor a number"):
            client.call()
        assert client.idle == []


def test_an_endless_message_leaves_the_call_unsettled(
    client_of: MakeClient, router: MakeRouter
) -> None:
    with router(lambda _: [[b"x"] * 100]) as server:
        client = client_of(server.endpoint)
        client.connected()
        with pytest.raises(Unsettled, match="frames"):
            client.call()
        assert client.idle == []


def test_an_answer_that_is_a_failure_is_an_answer(
    client_of: MakeClient, router: MakeRouter
) -> None:
    def answer(request: Any) -> list[Any]:
        return [Failure(id=request.id, code=429, name="busy", text="full")]

    with router(answer) as server:
        client = client_of(server.endpoint)
        client.connected()
        assert client.call().name == "busy"


def test_only_what_is_encrypted_or_has_a_name_needs_libzmq(
    security: Security, sockets: Sockets, router: MakeRouter
) -> None:
    with router() as server:
        for endpoint in (server.endpoint, f"tcp://localhost:{server.port}"):
            line = sockets.lend(endpoint)
            is_plain = security is PROTECTED and endpoint == server.endpoint
            assert type(line) is (PlainLine if is_plain else DealerLine)
            eventually(lambda line=line: line.is_open, "it is connected")
            line.close()
            line.close()
            assert line.closed


# ── what is not sent ────────────────────────────────────────────────────────────────────────────


def test_the_call_that_finds_no_connection_is_not_sent_and_makes_one(
    client_of: MakeClient,
    router: MakeRouter,
) -> None:
    with router(lambda request: [result(request)]) as server:
        client = client_of(server.endpoint)
        with pytest.raises(Unsent):
            client.call(1)
        client.connected()
        assert client.call(2).value == "moved"
        assert [each.args for each in server.requests] == [[2]]


def test_where_nobody_listens_nothing_is_sent_and_sockets_are_renewed(
    client_of: MakeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    (port,) = free_ports(1)
    client = client_of(f"tcp://127.0.0.1:{port}")
    with pytest.raises(Unsent):
        client.call()
    (first,) = client.idle
    with pytest.raises(Unsent):
        client.call()
    assert client.idle == [first]
    monkeypatch.setattr(call_socket_module, "_BLOCKED_S", 0.0)
    for _ in range(2):
        with pytest.raises(Unsent):
            client.call()
    assert first.closed
    assert client.idle != [first]


def test_a_node_that_has_moved_is_called_where_it_is_now(
    client_of: MakeClient, router: MakeRouter
) -> None:
    with (
        router(lambda request: [result(request, "old")]) as old,
        router(lambda request: [result(request, "new")]) as new,
    ):
        client = client_of(old.endpoint)
        client.connected()
        assert client.call().value == "old"
        client.known.endpoint = new.endpoint
        with pytest.raises(Unsent):
            client.call()
        client.connected()
        assert client.call().value == "new"


def test_values_that_cannot_travel_are_refused_before_anything_is_sent(
    client_of: MakeClient,
    router: MakeRouter,
) -> None:
    with router(lambda request: [result(request)]) as server:
        client = client_of(server.endpoint)
        client.connected()
        for value in ({1}, 2**64, "\ud800"):
            with pytest.raises(ProtocolError):
                client.call(value)
        with pytest.raises(TooLarge, match="an argument of"):
            client.call(bytes(16 * 2**20 + 1))
        assert client.call(-(2**63)).value == "moved"
        assert [each.args for each in server.requests] == [[-(2**63)]]


# ── waiting ─────────────────────────────────────────────────────────────────────────────────────


def test_signs_of_life_keep_a_call_open_and_silence_does_not(
    client_of: MakeClient, router: MakeRouter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(call_socket_module, "_QUIET_S", 0.25)
    with router(lambda request: [Alive(id=request.id, state="running")]) as server:
        client = client_of(server.endpoint)
        client.connected()
        began = time.monotonic()
        with pytest.raises(Unsettled, match="quiet") as caught:
            client.call()
        assert time.monotonic() - began > 0.25
        assert began < caught.value.sent_at < caught.value.heard_at
        assert caught.value.state == "running"
        assert client.idle == []


@pytest.mark.parametrize(
    "standing",
    [Standing(False, "double", "e1", 0.0), Standing(True, "double", "e2", 0.0)],
    ids=["down", "restarted"],
)
def test_a_call_is_unsettled_soon_after_its_link_has_changed(
    client_of: MakeClient, router: MakeRouter, standing: Standing
) -> None:
    with router() as server:
        client = client_of(server.endpoint)
        client.connected()
        changed = threading.Timer(0.05, lambda: setattr(client.known, "standing", standing))
        changed.start()
        began = time.monotonic()
        with pytest.raises(Unsettled, match="has changed"):
            client.call()
        assert time.monotonic() - began < SLACK_S
        changed.join()


@pytest.mark.parametrize("timeout", [0.03, 0.25])
def test_at_its_deadline_a_call_is_taken_back_and_unknown(
    client_of: MakeClient, router: MakeRouter, timeout: float
) -> None:
    with router() as server:
        client = client_of(server.endpoint)
        client.connected()
        began = time.monotonic()
        with pytest.raises(OutcomeUnknown, match="at its deadline") as caught:
            client.call(timeout=timeout)
        took_s = time.monotonic() - began
        print(f"overrun {1000 * (took_s - timeout):.0f} ms")
        assert timeout < took_s < timeout + SLACK_S
        eventually(lambda: len(server.requests) == 2, "it was taken back")
        call, cancel = server.requests
        assert isinstance(cancel, Cancel)
        assert cancel.call == call.id == caught.value.detail["call"]
        assert cancel.session == client.session.token == caught.value.detail["session"]
        assert client.session.age_s(call.id) < LIMIT_S


def test_whatever_interrupts_the_wait_takes_the_call_back(
    client_of: MakeClient, router: MakeRouter, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise Interrupted

    with router() as server:
        client = client_of(server.endpoint)
        client.connected()
        monkeypatch.setattr(call_socket_module.CallSocket, "_receive", interrupt)
        with pytest.raises(Interrupted):
            client.call()
        eventually(lambda: len(server.requests) == 2, "it was taken back")
        assert server.requests[1].call == server.requests[0].id
        assert client.idle == []


def test_half_a_message_is_never_completed_by_another_one(
    client_of: MakeClient, router: MakeRouter, monkeypatch: pytest.MonkeyPatch
) -> None:
    def send_half(socket: zmq.Socket[bytes], frames: list[Any]) -> None:
        socket.send(frames[0], zmq.NOBLOCK | zmq.SNDMORE)
        raise Interrupted

    def send_half_here(line: Any, pieces: list[memoryview], *_: object, **__: object) -> None:
        assert len(pieces) == 2
        assert line._socket.send(pieces[0]) == len(pieces[0])
        raise Interrupted

    with router(lambda request: [result(request)]) as server:
        client = client_of(server.endpoint)
        client.connected()
        with monkeypatch.context() as patched:
            patched.setattr(lines_module, "send_frames", send_half)
            patched.setattr(PlainLine, "_send_on", send_half_here)
            with pytest.raises(Interrupted):
                client.call(bytes(10_000))
        client.connected()
        assert client.call(2).value == "moved"
        assert [each.args for each in server.requests] == [[2]]


@pytest.mark.parametrize("value", [1, bytes(10_000)], ids=["small", "two frames"])
def test_wherever_a_call_is_interrupted_nothing_but_whole_calls_arrives(
    client_of: MakeClient, router: MakeRouter, value: Any
) -> None:
    """Ctrl-C before each line, one after the other, that a call goes through."""
    with router(lambda request: [result(request)]) as server:
        client = client_of(server.endpoint)
        client.connected()
        client.call(value)
        before = Held.now()
        for line in itertools.count(1):
            with interrupted_before(line, client.call) as call, contextlib.suppress(Interrupted):
                assert call(value, line).value == "moved"
                break
            assert not client.sockets._held
            client.connected()
            assert client.call(value, -line).value == "moved"
        gc.collect()
        assert Held.now().left_since(before) == []
        assert line > 30
        calls = [each.args for each in server.requests if isinstance(each, Call)]
        assert calls[0] == [value]
        assert {each[0] for each in calls} == {value}
        # Each one at most once, and each that was told to be moved.
        assert len({each[1] for each in calls[1:]}) == len(calls) - 1
        assert {each[1] for each in calls[1:]} >= {*range(-line + 1, 0), line}


@pytest.mark.parametrize("given_back", [True, False])
def test_what_interrupts_the_return_of_a_socket_leaves_none_that_nobody_has(
    client_of: MakeClient, router: MakeRouter, monkeypatch: pytest.MonkeyPatch, given_back: bool
) -> None:
    def interrupt(*_: object) -> None:
        raise Interrupted

    step = "_keep_none_once_closed" if given_back else "_give_back"
    with router(lambda request: [result(request)]) as server:
        client = client_of(server.endpoint)
        client.connected()
        (socket,) = client.idle
        with monkeypatch.context() as patched:
            patched.setattr(CallSockets, step, interrupt)
            with pytest.raises(Interrupted):
                client.call()
        assert socket.closed is not given_back
        assert client.idle == ([socket] if given_back else [])
        assert not client.sockets._held
        assert not client.sockets.is_held_here()


def test_without_room_for_a_socket_nothing_is_sent(
    client_of: MakeClient, router: MakeRouter, sockets: Sockets, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_endpoint: str) -> None:
        raise LinkLost("too many open files")

    with router(lambda request: [result(request)]) as server:
        client = client_of(server.endpoint)
        with monkeypatch.context() as patched:
            patched.setattr(sockets, "lend", full)
            with pytest.raises(Unsent):
                client.call()
        client.connected()
        assert client.call().value == "moved"


# ── the end ─────────────────────────────────────────────────────────────────────────────────────


async def test_closing_ends_calls_that_wait_and_takes_them_back(
    client_of: MakeClient, router: MakeRouter
) -> None:
    with router() as server:
        client = client_of(server.endpoint)
        client.connected()
        errors: list[BaseException] = []

        def call() -> None:
            try:
                client.call()
            except LinkLost as exc:
                errors.append(exc)

        thread = threading.Thread(target=call)
        thread.start()
        eventually(lambda: server.requests, "it was sent")
        assert not client.sockets.is_held_here()
        await client.sockets.close()
        assert client.idle == []
        assert not client.sockets._held
        thread.join()
        assert "outcome is unknown" in str(errors[0])
        eventually(lambda: len(server.requests) == 2, "it was taken back")
        with pytest.raises(Unsent):
            client.call()
        assert client.idle == []
        await client.sockets.close()
