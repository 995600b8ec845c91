"""Calls of threads that wait: over sockets of their own, without the background loop."""

from __future__ import annotations

import gc
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.support.processes import Process, program
from tests.support.promptness import BEGUN_S, SLACK_S, hear_last_words
from tests.support.served import ServedMesh, eventually

import labmesh
import labmesh.transport.blocking as blocking_module
import labmesh.transport.call_socket as call_socket_module
from labmesh.errors import (
    BadArguments,
    DriverError,
    Expired,
    LinkLost,
    NoAnswer,
    NotSent,
    OutcomeUnknown,
    ProtocolError,
    TooLarge,
)
from labmesh.mesh import Instrument, Mesh
from labmesh.protocol.messages import Done
from labmesh.testing import Held, ScriptedInstrument

LIMIT_S = 15.0


class Echo:
    """A driver that gives back what it gets."""

    def __init__(self) -> None:
        self._level = 0.0

    def echo(self, *values: Any, **named: Any) -> Any:
        """Give it back."""
        return [*values, named] if named else values[0] if len(values) == 1 else list(values)

    def fail(self) -> None:
        """Raise an error."""
        raise ValueError("no such channel")

    @property
    def level(self) -> float:
        """A value that can be set."""
        return self._level

    @level.setter
    def level(self, value: float) -> None:
        self._level = value


@pytest.fixture
def served() -> Iterator[ServedMesh]:
    with ServedMesh({"echo-0": Echo()}, banks=0) as mesh:
        yield mesh


@pytest.fixture
def mesh(served: ServedMesh) -> Mesh:
    return served.connect()


@pytest.fixture
def echo(mesh: Mesh) -> Instrument:
    proxy = mesh["echo-0"]
    connected(mesh, "echo-0")
    return proxy


def sockets_of(mesh: Mesh) -> dict[str, list[Any]]:
    """Relay id → the sockets that wait for its next calls."""
    return mesh._session.client.direct._idle


def connected(mesh: Mesh, relay_id: str) -> None:
    """Wait until the next call to a relay needs no loop; tells nobody to run anything."""
    mesh._session.learn(relay_id)

    def is_connected() -> bool:
        # As a call takes it: the loop may just be looking after it.
        idle = sockets_of(mesh)[relay_id]
        if not idle:
            return False
        socket = idle.pop()
        is_open = bool(socket.is_open)
        idle.append(socket)
        return is_open

    eventually(is_connected, "a socket is connected")


@contextmanager
def loop_held(mesh: Mesh) -> Iterator[None]:
    """The background loop of a mesh does nothing: what works now does not need it."""
    began, released = threading.Event(), threading.Event()

    def hold() -> None:
        began.set()
        assert released.wait(LIMIT_S)

    mesh._session._background._loop.call_soon_threadsafe(hold)
    assert began.wait(LIMIT_S)
    try:
        yield
    finally:
        released.set()


class Stage:
    """An instrument on the mesh whose ``hold()`` lasts until it is released."""

    def __init__(self, served: ServedMesh) -> None:
        self.released = threading.Event()
        self.driver = ScriptedInstrument(hold=Held(self.released, "held"), move="moved", warm=None)
        served.do(served.local.start_relay("stage", self.driver))
        self._threads: list[threading.Thread] = []

    def in_a_thread(self, call: Callable[[], object]) -> list[Any]:
        """Call it elsewhere; what it returns or raises will be in the list."""
        got: list[Any] = []

        def run() -> None:
            try:
                got.append(call())
            except Exception as exc:
                got.append(exc)

        thread = threading.Thread(target=run)
        self._threads.append(thread)
        thread.start()
        return got

    def hold(self, proxy: Instrument) -> list[Any]:
        """``hold()`` is running when this returns."""
        before = len(self.driver.calls.of("hold"))
        got = self.in_a_thread(proxy.hold)
        self.driver.calls.wait_for(before + 1, "hold")
        return got

    def release(self) -> None:
        """Let it end, and all that waits behind it."""
        self.released.set()
        for each in self._threads:
            each.join()
        self._threads.clear()


@pytest.fixture
def stage(served: ServedMesh) -> Iterator[Stage]:
    stage = Stage(served)
    yield stage
    stage.release()


# ── the usual way ───────────────────────────────────────────────────────────────────────────────


def test_a_call_does_not_pass_the_loop(mesh: Mesh, echo: Instrument) -> None:
    with loop_held(mesh):
        assert echo.echo(2.5) == 2.5
        assert echo.echo("µ", [1, {"a": None}], unit=b"V") == [
            "µ",
            [1, {"a": None}],
            {"unit": b"V"},
        ]
        assert echo.call("echo", (1 + 2j,), timeout=LIMIT_S) == 1 + 2j
        with pytest.raises(ValueError, match="no such channel") as caught:
            echo.fail()
        assert isinstance(caught.value, DriverError)
        with pytest.raises(BadArguments):
            echo.fail(1)


def test_values_are_read_and_written_the_same_way(mesh: Mesh, echo: Instrument) -> None:
    with loop_held(mesh):
        echo.set("level", 2.5)
        assert echo.get("level") == 2.5


def test_a_batch_goes_the_same_way(mesh: Mesh, echo: Instrument) -> None:
    calls = [["echo", [1], {}, "call"], ["fail", [], {}, "call"], ["echo", [2], {}, "call"]]
    with loop_held(mesh):
        outcomes = mesh._session.batch("echo-0", calls, keep_going=True).outcomes
        stopped = mesh._session.batch("echo-0", calls, timeout=LIMIT_S).outcomes
    assert [outcomes[0], outcomes[1][0], outcomes[2]] == [[1], "driver", [2]]
    assert len(stopped) == 2


def test_large_arrays_come_back_as_views_of_what_was_received(mesh: Mesh, echo: Instrument) -> None:
    sent = np.arange(200_000.0)
    with loop_held(mesh):
        back, small = echo.echo(sent, np.arange(3))
    np.testing.assert_array_equal(back, sent)
    np.testing.assert_array_equal(small, np.arange(3))
    assert not back.flags.owndata


def test_what_cannot_be_sent_is_told_before_anything_is(mesh: Mesh, echo: Instrument) -> None:
    for value, error in (
        ({1, 2}, ProtocolError),
        (2**70, ProtocolError),
        (bytes(17 * 2**20), TooLarge),
    ):
        with pytest.raises(error):
            echo.echo(value)
    with loop_held(mesh):
        assert echo.echo(1) == 1


def test_a_call_that_lasts_is_kept_open_by_its_signs_of_life(mesh: Mesh, stage: Stage) -> None:
    proxy = mesh["stage"]
    connected(mesh, "stage")
    with loop_held(mesh):
        got = stage.hold(proxy)
        # Without a sign it would be given up here, and wait for the loop.
        time.sleep(call_socket_module._QUIET_S + 0.3)
        stage.release()
        assert got == ["held"]


async def test_it_works_where_a_loop_runs_already(mesh: Mesh, echo: Instrument) -> None:
    """As in a notebook."""
    with loop_held(mesh):
        assert echo.echo(3) == 3


# ── several threads ─────────────────────────────────────────────────────────────────────────────


def test_threads_never_get_each_others_replies(mesh: Mesh, echo: Instrument) -> None:
    wrong: list[Any] = []

    def ask(number: int) -> None:
        for turn in range(100):
            value = [number, turn]
            got = echo.echo(value, np.full(1000, number))
            if got[0] != value or set(got[1]) != {number}:
                wrong.append((value, got))

    in_threads(ask, 12)
    assert wrong == []
    assert len(sockets_of(mesh)["echo-0"]) <= blocking_module._KEPT


def test_two_hundred_threads_leave_few_sockets_and_none_at_the_end(served: ServedMesh) -> None:
    mesh = served.connect()
    proxy = mesh["echo-0"]
    connected(mesh, "echo-0")
    together = threading.Barrier(200)
    got: list[int] = []

    def ask(number: int) -> None:
        together.wait(LIMIT_S)
        got.append(proxy.echo(number))

    in_threads(ask, 200)
    assert sorted(got) == list(range(200))
    assert 0 < len(sockets_of(mesh)["echo-0"]) <= blocking_module._KEPT
    mesh.close()
    assert sockets_of(mesh)["echo-0"] == []


def in_threads(work: Callable[[int], None], count: int) -> None:
    """Do it in so many threads at a time, and wait for all."""
    threads = [threading.Thread(target=work, args=(number,)) for number in range(count)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()


# ── deadlines, and what comes after them ────────────────────────────────────────────────────────


def test_at_its_deadline_a_queued_call_has_not_run_and_a_running_one_is_unknown(
    mesh: Mesh, stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    hear_last_words(monkeypatch)
    proxy = mesh["stage"]
    connected(mesh, "stage")
    with loop_held(mesh):
        running = timed(lambda: proxy.call("hold", timeout=BEGUN_S), OutcomeUnknown)
        queued = timed(lambda: proxy.call("move", timeout=0.3), Expired)
        short = timed(lambda: proxy.call("move", timeout=0.02), Expired)
    print(f"overruns: {1000 * (running - BEGUN_S):.0f}, {1000 * (queued - 0.3):.0f} ms")
    assert running - BEGUN_S < SLACK_S
    assert queued - 0.3 < SLACK_S
    assert short - 0.02 < SLACK_S
    stage.release()
    assert proxy.move() == "moved"
    assert len(stage.driver.calls.of("move")) == 1


def timed(call: Callable[[], object], error: type[Exception]) -> float:
    """How long it takes to fail, in seconds."""
    began = time.monotonic()
    with pytest.raises(error):
        call()
    return time.monotonic() - began


def test_replies_that_come_too_late_are_not_taken_for_others(mesh: Mesh, stage: Stage) -> None:
    proxy = mesh["stage"]
    connected(mesh, "stage")
    (socket,) = sockets_of(mesh)["stage"]
    with loop_held(mesh):
        for _ in range(3):
            with pytest.raises(NoAnswer):
                proxy.call("hold", timeout=0.15)
        stage.released.set()
        assert [proxy.move() for _ in range(5)] == ["moved"] * 5
        assert sockets_of(mesh)["stage"] == [socket]


def test_a_call_whose_outcome_is_unknown_can_be_asked_for(mesh: Mesh, stage: Stage) -> None:
    proxy = mesh["stage"]
    connected(mesh, "stage")
    with pytest.raises(OutcomeUnknown, match="call_status") as caught:
        proxy.call("hold", timeout=BEGUN_S)
    stage.release()
    relay = mesh._session.run(mesh._session.client.get_relay_agent("stage"))
    eventually(
        lambda: mesh._session.run(relay.call_status(caught.value)).state == "returned",
        "it has returned",
    )


@pytest.mark.parametrize("timeout", [0, -1, float("nan"), "soon"])
def test_a_timeout_that_is_none_is_refused(echo: Instrument, timeout: Any) -> None:
    with pytest.raises((NotSent, ValueError, TypeError)):
        echo.call("echo", 1, timeout=timeout)


# ── the other way ──────────────────────────────────────────────────────────────────────────────


def test_what_cannot_be_sent_from_here_goes_through_the_loop(
    mesh: Mesh, echo: Instrument, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unsent(*_: object) -> None:
        raise call_socket_module.Unsent

    monkeypatch.setattr(mesh._session.client.direct, "ask", unsent)
    assert echo.echo(1) == 1
    assert echo.call("echo", 2, timeout=LIMIT_S) == 2
    calls = [["echo", [3], {}, "call"], ["fail", [], {}, "call"]]
    outcomes = mesh._session.batch("echo-0", calls, timeout=LIMIT_S).outcomes
    assert outcomes[0] == [3]
    assert outcomes[1][0] == "driver"
    with pytest.raises(ValueError, match="no such channel"):
        echo.fail()


def test_a_relay_that_says_that_it_is_another_one_is_looked_for(
    mesh: Mesh, echo: Instrument, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when a link has not noticed yet that the relay was restarted."""
    link = mesh._session.client.link_to("echo-0")
    assert link is not None
    stale = link.standing._replace(epoch="an earlier one")
    calls = mesh._session._calls
    monkeypatch.setattr(calls, "_way", lambda *_: (link, stale, stale.ahead_s))
    assert echo.echo(1) == 1


def test_an_answer_that_is_none_is_settled(
    mesh: Mesh, echo: Instrument, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nonsense(request: Any, *_: object) -> Done:
        return Done(id=request.id)

    monkeypatch.setattr(mesh._session.client.direct, "ask", nonsense)
    assert echo.echo(1) == 1


# ── what is settled by sending it again ─────────────────────────────────────────────────────────


def test_a_call_of_which_nothing_is_heard_is_settled_and_runs_once(
    mesh: Mesh, stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy = mesh["stage"]
    connected(mesh, "stage")
    monkeypatch.setattr(call_socket_module, "_QUIET_S", 0.0)
    got = stage.hold(proxy)
    # The socket is given up with the call.
    eventually(lambda: not mesh._session.client.direct._held, "the call goes on elsewhere")
    assert sockets_of(mesh)["stage"] == []
    stage.release()
    assert got == ["held"]
    assert len(stage.driver.calls.of("hold")) == 1


def test_a_relay_that_is_restarted_between_calls_is_found_again(
    served: ServedMesh, mesh: Mesh, echo: Instrument
) -> None:
    assert echo.echo(1) == 1
    for turn in range(3):
        served.do(served.local.restart_relay("echo-0"))
        assert echo.echo(turn) == turn
    eventually(
        lambda: (
            echo.echo(0) == 0 and any(not each.blocked_at for each in sockets_of(mesh)["echo-0"])
        ),
        "calls go their usual way again",
    )


def test_a_relay_that_dies_during_a_call(served: ServedMesh, mesh: Mesh, tmp_path: Path) -> None:
    """Killed, frozen, or told to end: its caller knows within 4 s. All three at a time."""
    deaths = ("kill9", "stop", "terminate")
    with ExitStack() as stack:
        relays = {
            how: stack.enter_context(
                Process([program("nodes.py"), bench(served, how)], cwd=tmp_path)
            )
            for how in deaths
        }
        for how, relay in relays.items():
            relay.wait_for(f"ready bench-{how}", LIMIT_S)
            connected(mesh, f"bench-{how}")
        ended: dict[str, tuple[float, OutcomeUnknown]] = {}

        def call(how: str) -> None:
            try:
                mesh[f"bench-{how}"].block(30.0)
            except OutcomeUnknown as exc:
                ended[how] = (time.monotonic(), exc)

        threads = [threading.Thread(target=call, args=(how,)) for how in deaths]
        for each in threads:
            each.start()
        died_at = {}
        for how, relay in relays.items():
            proxy = mesh[f"bench-{how}"]
            eventually(lambda proxy=proxy: proxy.status().busy_with == "block", f"{how}: it runs")
            getattr(relay, how)()
            died_at[how] = time.monotonic()
        for each in threads:
            each.join(LIMIT_S)
        relays["stop"].cont()
    took_s = {how: ended[how][0] - died_at[how] for how in deaths if how in ended}
    for how, seconds in took_s.items():
        print(f"{how}: known after {seconds:.2f} s: {ended[how][1]}")
    assert took_s.keys() == set(deaths)
    assert [how for how in deaths if took_s[how] >= 4.0 + SLACK_S] == [], took_s


def bench(served: ServedMesh, name: str) -> str:
    """A relay for a process of its own."""
    broker = served.local.broker
    return json.dumps(
        [
            {
                "kind": "relay",
                "relay_id": f"bench-{name}",
                "broker_rpc": str(broker.rpc),
                "state_pub": str(broker.xsub),
                "rpc_bind": "tcp://127.0.0.1:*",
            }
        ]
    )


# ── its end ─────────────────────────────────────────────────────────────────────────────────────


def test_closing_ends_a_call_at_once_and_takes_a_queued_one_back(
    served: ServedMesh, stage: Stage
) -> None:
    mesh, other = served.connect(), served.connect()["stage"]
    proxy = mesh["stage"]
    connected(mesh, "stage")
    running = stage.hold(proxy)
    queued = stage.in_a_thread(proxy.move)
    eventually(lambda: other.status().queued == 1, "one waits")
    began = time.monotonic()
    mesh.close()
    took_s = time.monotonic() - began
    eventually(lambda: running and queued, "both have ended")
    for (error,) in (running, queued):
        assert isinstance(error, LinkLost)
        assert "outcome is unknown" in str(error)
    assert took_s < SLACK_S
    eventually(lambda: other.status().queued == 0, "it was taken back")
    stage.release()
    assert stage.driver.calls.of("move") == []
    with pytest.raises(NotSent, match="closed"):
        proxy.move()


def test_a_mesh_that_is_forgotten_is_closed(served: ServedMesh) -> None:
    def threads() -> list[threading.Thread]:
        return [each for each in threading.enumerate() if each.name == "labmesh"]

    mesh: Mesh | None = labmesh.connect(served.local.address)
    assert mesh is not None
    proxy = mesh["echo-0"]
    connected(mesh, "echo-0")
    mesh = None
    gc.collect()
    assert proxy.echo(1) == 1
    del proxy
    gc.collect()
    eventually(lambda: not threads(), "the thread has ended")


# ── scripts ─────────────────────────────────────────────────────────────────────────────────────


_PRELUDE = """
import os, signal, sys, threading, time
signal.signal(signal.SIGINT, signal.default_int_handler)
import labmesh
mesh = labmesh.connect(sys.argv[1])
stage = mesh["stage"]
while not any(not each.blocked_at for each in mesh._session.client.direct._idle["stage"]):
    stage.warm()
def no_loop(*_):
    raise AssertionError("this went through the loop")
mesh._session._background.run = no_loop
def wait_until(true):
    # For what another process does; fails when nothing comes of it.
    deadline = time.monotonic() + 15.0
    while not true():
        assert time.monotonic() < deadline, "what is waited for did not come"
        threading.Event().wait(0.01)
print("ready")
"""


@pytest.fixture
def script(served: ServedMesh, stage: Stage, tmp_path: Path) -> Iterator[Callable[[str], Process]]:
    """Starts a script; before its first line a call to ``stage`` needs no loop any more."""
    with ExitStack() as stack:

        def start(text: str) -> Process:
            path = tmp_path / "script.py"
            path.write_text(_PRELUDE + text)
            return stack.enter_context(Process([path, served.local.address], cwd=tmp_path))

        yield start


on_posix = pytest.mark.skipif(sys.platform == "win32", reason="needs signals of one process")


@on_posix
def test_ctrl_c_takes_a_queued_call_back_and_is_raised_at_once(
    mesh: Mesh, stage: Stage, script: Callable[[str], Process], tmp_path: Path
) -> None:
    proxy = mesh["stage"]
    process = script(
        """
wait_until(lambda: os.path.exists("go"))
try:
    stage.move(1)
except KeyboardInterrupt:
    print("interrupted")
wait_until(lambda: not os.path.exists("go"))
print("moved", stage.move(2))
"""
    )
    process.wait_for("ready", LIMIT_S)
    stage.hold(proxy)
    (tmp_path / "go").touch()
    eventually(lambda: proxy.status().queued == 1, "the call is in the queue")
    sent_at = time.monotonic()
    process.interrupt()
    process.wait_for("interrupted", LIMIT_S)
    print(f"raised {1000 * (process.lines[-1].time - sent_at):.0f} ms after the signal")
    eventually(lambda: proxy.status().queued == 0, "the call was taken back")
    stage.release()
    (tmp_path / "go").unlink()
    # By another socket, since the interrupted one may have been in the middle of a message.
    assert process.wait_end(LIMIT_S) == 1
    assert "this went through the loop" in process.errors
    assert stage.driver.calls.of("move") == []


@on_posix
def test_a_signal_whose_handler_closes_the_mesh_in_the_middle_of_a_call(
    stage: Stage, script: Callable[[str], Process]
) -> None:
    process = script(
        """
def close(*_):
    mesh.close()
    print("handled")
signal.signal(signal.SIGUSR1, close)
try:
    stage.hold()
except ConnectionError as exc:
    print("ended:", exc)
"""
    )
    process.wait_for("ready", LIMIT_S)
    stage.driver.calls.wait_for(1, "hold")
    os.kill(process.pid, signal.SIGUSR1)
    process.wait_for("handled", LIMIT_S)
    process.wait_for("ended: the mesh was closed", LIMIT_S)
    assert process.wait_end(LIMIT_S) == 0
    assert process.errors == ""


def test_the_end_of_a_program_waits_for_no_call(
    stage: Stage, script: Callable[[str], Process]
) -> None:
    process = script(
        """
def call():
    try:
        stage.hold()
    except ConnectionError:
        pass
thread = threading.Thread(target=call, daemon=True)
thread.start()
del mesh._session._background.run
wait_until(lambda: stage.status().busy_with == "hold")
print("end", time.monotonic())
"""
    )
    process.wait_for("end", LIMIT_S)
    ended_at = process.lines[-1].time
    assert process.wait_end(LIMIT_S) == 0
    assert time.monotonic() - ended_at < 2.0 + SLACK_S
    assert process.errors == ""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_fork_does_not_use_its_parents_sockets(
    stage: Stage, script: Callable[[str], Process]
) -> None:
    process = script(
        """
import warnings
warnings.simplefilter("ignore", DeprecationWarning)  # threads and fork: just what is tried here
if os.fork() == 0:
    del mesh._session._background.run
    try:
        stage.move(1)
    except ConnectionError as exc:
        print("child:", exc)
    mesh.close()
    sys.exit()
print("child's exit code", os.wait()[1])
print("parent", stage.move(2))
"""
    )
    process.wait_for("child: this mesh was connected in the process that this one", LIMIT_S)
    assert process.wait_end(LIMIT_S) == 0
    assert process.output.splitlines()[-2:] == ["child's exit code 0", "parent moved"]
    assert [each.args for each in stage.driver.calls.of("move")] == [(2,)]
