"""A notebook session in which something breaks: what is printed says what happened, what to do.

Each node is a process of its own. The session is this one, or, where it is interrupted, a process.
"""

from __future__ import annotations

import re
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from tests.support.networks import Network
from tests.support.processes import Process, Start, program
from tests.support.promptness import BEGUN_S, SLACK_S, hear_last_words
from tests.support.served import eventually

import labmesh
from labmesh.errors import Expired, NotSent, OutcomeUnknown
from labmesh.mesh import Mesh

LIMIT_S = 15.0
STATE_S = 0.2
ANYWHERE = "tcp://127.0.0.1:*"
SCANNER = '''
import threading, time

class Scanner:
    """A scanner that yields points."""

    def __init__(self):
        self.scans = []
        self.over = threading.Event()

    def scan(self):
        """Points without an end."""
        self.scans.append("begun")
        try:
            number = 0
            while True:
                yield number
                number += 1
                time.sleep(0.01)
        finally:
            self.scans.append("ended")
            self.over.set()

    def story(self):
        """What happened, once a scan is over."""
        self.over.wait(10)
        return self.scans

    def ramp(self):
        """Take long."""
        time.sleep(30)
'''


@pytest.fixture
def network(start: Start, tmp_path: Path) -> Network:
    return Network(start, tmp_path, heartbeat_s=0.5)


@pytest.fixture(autouse=True)
def broker(network: Network) -> Process:
    """The network's broker; it runs before anybody connects."""
    return network.broker()


@pytest.fixture
def connect(network: Network) -> Iterator[Callable[[], Mesh]]:
    """A session's ``labmesh.connect()``; closed at the end of the test."""
    opened: list[Mesh] = []

    def one() -> Mesh:
        opened.append(labmesh.connect(network.rpc))
        return opened[-1]

    yield one
    for each in opened:
        each.close()


@pytest.fixture
def cell() -> Iterator[Callable[[Callable[[], Any]], Future[Any]]]:
    """Runs a cell that takes long, while the test does something about it."""
    with ThreadPoolExecutor() as executor:
        yield executor.submit


def start_relay(network: Network) -> Process:
    return network.ready_nodes(network.relay("Inst-0", state_interval=STATE_S))


def sentences(error: BaseException | None) -> str:
    """What is printed of an error, and it is there."""
    assert error is not None
    print(f"{type(error).__name__}: {error}")
    return str(error)


# ── a relay is restarted ────────────────────────────────────────────────────────────────────────


def test_a_relay_dies_in_the_middle_of_a_call_and_comes_back(
    network: Network,
    connect: Callable[[], Mesh],
    cell: Callable[[Callable[[], Any]], Future[Any]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # How long a dead relay is asked how it is; that this is 4 s at most is tested elsewhere.
    monkeypatch.setattr("labmesh.asking.links._REACH_S", 1.0)
    relay = start_relay(network)
    psu = connect()["Inst-0"]
    other = connect()["Inst-0"]
    ramping = cell(lambda: psu.block(30))
    eventually(lambda: other.status().busy_with == "block", "the call runs")
    relay.kill9()

    error = ramping.exception(LIMIT_S)
    said = sentences(error)
    assert isinstance(error, OutcomeUnknown)
    for part in ("link to relay Inst-0", "broke", "block", "may have run", "look at the instr"):
        assert part in said
    assert f'call_status("{error.detail["call"]}")' in said

    began = time.monotonic()
    away = psu.status()
    print(away)
    assert not away.up
    assert time.monotonic() - began < LIMIT_S
    assert "DOWN, last message" in repr(away)
    with pytest.raises(NotSent) as not_sent:
        psu.call("square", 3, timeout=1)
    assert "Inst-0" in sentences(not_sent.value)
    assert not_sent.value.executed is False

    start_relay(network)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        eventually(lambda: psu.status().up, "the relay is reached again", LIMIT_S)
        assert psu.square(4) == 16  # the same object: nothing is connected again by hand
    settled = psu.call_status(error)
    print(settled)
    assert (settled.state, settled.executed) == ("unknown", None)
    assert "look at the instrument" in repr(settled)


def test_the_command_line_tells_of_a_dead_relay_soon(
    network: Network, start: Start, tmp_path: Path
) -> None:
    start_relay(network).kill9()
    environ = {"LMH_BROKER": network.rpc}
    began = time.monotonic()
    called = start(
        ["-m", "labmesh", "call", "Inst-0", "square", "3"], cwd=tmp_path, environ=environ
    )
    assert called.wait_end(LIMIT_S) == 5
    print(f"told after {time.monotonic() - began:.2f} s:\n{called.errors}")
    assert "nobody answers at relay Inst-0" in called.errors
    assert "(Nothing was run.)" in called.errors
    shown = start(["-m", "labmesh", "show", "Inst-0"], cwd=tmp_path, environ=environ)
    assert shown.wait_end(LIMIT_S) == 5
    assert "link        DOWN, last message never: nobody answers at relay" in shown.output


def test_a_relay_is_restarted_between_two_cells(
    network: Network, connect: Callable[[], Mesh]
) -> None:
    relay = start_relay(network)
    mesh = connect()
    psu = mesh["Inst-0"]
    square = psu.square
    assert square(2) == 4
    relay.terminate()
    assert relay.wait_end(LIMIT_S) == 0
    eventually(lambda: "(gone)" in repr(psu), "the card says so")
    print(psu)
    start_relay(network)
    eventually(lambda: "Inst-0" in mesh, "it is listed again")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert square(3) == 9
    assert "(live)" in repr(psu)


def test_a_relay_is_stopped_in_the_middle_of_a_call(
    network: Network,
    connect: Callable[[], Mesh],
    cell: Callable[[Callable[[], Any]], Future[Any]],
) -> None:
    relay = start_relay(network)
    psu = connect()["Inst-0"]
    ramping = cell(lambda: psu.block(30))
    eventually(lambda: psu.status().busy_with == "block", "the call runs")
    relay.terminate()
    error = ramping.exception(LIMIT_S)
    said = sentences(error)
    assert isinstance(error, OutcomeUnknown)
    # The relay's last word is lost to a client that a busy machine keeps from reading it in time.
    assert re.search(r"Inst-0 (was stopped|at \S+ (broke|fell silent)) while block was", said)
    assert "look at the instrument" in said


# ── a broker is restarted ───────────────────────────────────────────────────────────────────────


def test_a_broker_is_restarted_and_instruments_go_on(
    network: Network,
    broker: Process,
    connect: Callable[[], Mesh],
) -> None:
    start_relay(network)
    mesh = connect()
    psu = mesh["Inst-0"]
    eventually(lambda: psu.state is not None and not psu.state.stale, "states come")
    broker.kill9()

    eventually(lambda: "NO LINK to the broker" in repr(mesh), "the mesh notices")
    print(mesh)
    assert "this was there:" in repr(mesh)
    assert "Inst-0" in repr(mesh)
    assert psu.square(4) == 16
    eventually(lambda: psu.state.stale, "no state comes without the broker")
    print(psu)
    assert "STALE (one is due each 0.2 s)" in repr(psu)
    status = psu.status()
    print(status)
    assert "NOT REGISTERED with the broker" in repr(status)
    # The instrument is well; its states do not get here.
    eventually(lambda: not psu.status().stale, "it polls its driver")
    with pytest.MonkeyPatch.context() as short:
        short.setattr("labmesh.asking.links.REQUEST_S", 1.0)
        short.setattr("labmesh.client.REQUEST_S", 1.0)
        with pytest.raises(ConnectionError, match=r"nobody answers at the broker .*is it running"):
            mesh.status()

    network.broker()
    eventually(lambda: not psu.state.stale, "states come again", LIMIT_S)
    eventually(lambda: psu.status().registered, "the relay is registered again", LIMIT_S)
    print(mesh)
    assert "NO LINK" not in repr(mesh)
    assert mesh.relays == ["Inst-0"]
    assert psu.square(5) == 25


# ── a driver hangs ──────────────────────────────────────────────────────────────────────────────


def test_a_driver_hangs_and_everybody_sees_it(
    network: Network, connect: Callable[[], Mesh], monkeypatch: pytest.MonkeyPatch
) -> None:
    hear_last_words(monkeypatch)
    start_relay(network)
    psu = connect()["Inst-0"]
    began = time.monotonic()
    with pytest.raises(TimeoutError) as late:
        psu.call("block", 6, timeout=BEGUN_S)
    said = sentences(late.value)
    assert BEGUN_S - 0.1 < time.monotonic() - began < BEGUN_S + SLACK_S
    assert isinstance(late.value, OutcomeUnknown)
    for part in ("block", "Inst-0", "deadline", "call_status", "look at the instrument"):
        assert part in said

    # Who only looks sees it as well: with what, since when, and that it is over its time.
    observer = connect()["Inst-0"].status()
    print(observer)
    assert observer.stuck
    assert observer.busy_s is not None
    assert observer.busy_s >= 1
    assert "STUCK in block for" in repr(observer)
    assert "restart the relay" in repr(observer)
    assert "STALE" in repr(observer)

    running = psu.call_status(late.value)
    print(running)
    assert (running.state, running.executed) == ("running", True)
    with pytest.raises(Expired, match=r"square waited in the queue .*it was not run"):
        psu.call("square", 3, timeout=0.3)

    eventually(lambda: psu.call_status(late.value).state == "returned", "it returns", LIMIT_S)
    settled = psu.call_status(late.value)
    print(settled)
    assert "returned 6" in repr(settled)
    assert psu.square(3) == 9
    eventually(lambda: not psu.status().stale, "states come again")
    assert not psu.status().stuck


# ── Ctrl-C ──────────────────────────────────────────────────────────────────────────────────────


def test_ctrl_c_ends_a_cell_and_not_the_session(
    network: Network, start: Start, tmp_path: Path
) -> None:
    (tmp_path / "scanner.py").write_text(SCANNER)
    relay = ["-m", "labmesh", "relay", "scanner:Scanner", "--id", "Scan-0", "--bind", ANYWHERE]
    environ = {"LMH_BROKER": network.rpc, "PYTHONPATH": str(tmp_path)}
    start([*relay, "--json"], cwd=tmp_path, environ=environ).wait_for('"event":"ready"', LIMIT_S)
    cells = [
        "scanner = mesh['Scan-0']",
        "for point in scanner.scan(): print('point', point)",
        "scanner.story()",
        "scanner.ramp()",
        "scanner.status().busy_with",
    ]
    session = start([program("notebook.py"), network.rpc, *cells], cwd=tmp_path)
    session.wait_for("^point 5$", LIMIT_S)
    session.interrupt()
    session.wait_for(r"^\['begun', 'ended'\]$", LIMIT_S)
    session.wait_for(r"^\[4\]$", LIMIT_S)
    busy = start(["-m", "labmesh", "show", "Scan-0"], cwd=tmp_path, environ=environ)
    assert busy.wait_end(LIMIT_S) == 0
    assert "driver      busy with ramp for" in busy.output, busy.output
    session.interrupt()
    session.wait_for("^note: Scan-0.ramp was taken back if it had not begun; else it runs", LIMIT_S)
    session.wait_for("^'ramp'$", LIMIT_S)
    assert session.wait_end(LIMIT_S) == 0
    assert session.output.count("KeyboardInterrupt") == 2
