"""Plain scripts that use the blocking facade: how they end, and what Ctrl-C does."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.support.processes import Process, Start
from tests.support.served import ServedMesh, eventually

from labmesh.instruments.simulated import PowerSupply
from labmesh.testing import Held, ScriptedInstrument

START_S = 20.0
END_S = 10.0

#: A script that is run in the background of a shell may ignore SIGINT, and so would its children.
_HEAR_CTRL_C = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"


@pytest.fixture
def served() -> Iterator[ServedMesh]:
    with ServedMesh({"Inst-0": PowerSupply()}) as mesh:
        yield mesh


@pytest.fixture
def script(tmp_path: Path, served: ServedMesh, start: Start) -> Callable[[str], Process]:
    """Starts a script whose broker is the served one."""

    def start_one(text: str) -> Process:
        path = tmp_path / "script.py"
        path.write_text(_HEAR_CTRL_C + text)
        address = served.local.address.removeprefix("tcp://")
        return start([path], cwd=tmp_path, environ={"LMH_BROKER": address})

    return start_one


def test_a_script_that_forgets_to_close_ends_at_once_and_silently(
    script: Callable[[str], Process],
) -> None:
    process = script(
        """
import labmesh
mesh = labmesh.connect()
psu = mesh["Inst-0"]
readings = psu.watch(timeout=10)
print("voltage", psu.set_voltage(2.5), next(readings).relay_id)
record = mesh.put(b"data")
print("read", record.read(), record.save("out.bin"))
mesh.on_presence(print)
"""
    )
    assert process.wait_end(START_S) == 0
    assert process.errors == ""
    assert [each.text for each in process.lines] == ["voltage 2.5 Inst-0", "read b'data' out.bin"]


def test_a_demo_that_is_forgotten_ends_too_and_removes_its_folder(
    script: Callable[[str], Process],
) -> None:
    process = script(
        """
import labmesh
mesh = labmesh.demo()
print("relays", mesh.relays)
record = mesh.put("text")
print("folder", mesh._session.client.known("bank-0").title, record.read())
"""
    )
    folder = process.wait_for(r"^folder (\S+) text$", START_S)[1]
    assert process.wait_end(END_S) == 0
    assert process.errors == ""
    assert process.lines[0].text == "relays ['Inst-0', 'Scope-0', 'Thermo-0']"
    assert not Path(folder).exists()


def test_an_error_that_ends_a_script_is_all_that_it_prints(
    script: Callable[[str], Process],
) -> None:
    process = script('import labmesh\nlabmesh.connect()["Inst-0"].set_voltage(1e9)\n')
    assert process.wait_end(START_S) == 1
    assert process.errors.count("Traceback (most recent call last)") == 2  # its own, the relay's
    assert "DriverValueError: value is 1e+09 V, outside 0 to 30 V" in process.errors


@pytest.mark.skipif(sys.platform == "win32", reason="there, Ctrl-C cannot be sent to one process")
@pytest.mark.parametrize("caught", [True, False], ids=["caught", "not caught"])
def test_ctrl_c_takes_a_queued_call_back_and_is_raised_at_once(
    served: ServedMesh, script: Callable[[str], Process], caught: bool
) -> None:
    released = threading.Event()
    stage = ScriptedInstrument(hold=Held(released), move="moved")
    served.do(served.local.start_relay("stage", stage))
    mine = served.connect()["stage"]
    holder = threading.Thread(target=mine.hold)
    holder.start()
    try:
        stage.calls.wait_for(1, "hold")
        process = script(
            f"""
import labmesh, time
stage = labmesh.connect()["stage"]
print("ready")
try:
    stage.move(1)
except {"KeyboardInterrupt" if caught else "ZeroDivisionError"}:
    print("interrupted")
    time.sleep(60)
"""
        )
        process.wait_for("ready", START_S)
        eventually(lambda: mine.status().queued == 1, "the call is in the queue")
        process.interrupt()
        if caught:
            process.wait_for("interrupted", END_S)
        else:
            assert process.wait_end(END_S) != 0
            last = process.errors.rstrip().splitlines()[-2:]
            assert last[0] == "KeyboardInterrupt"
            assert "taken back if it had not begun" in last[1]
        eventually(lambda: mine.status().queued == 0, "the call was taken back")
    finally:
        released.set()
        holder.join()
    assert mine.call("move") == "moved"
    assert [each.args for each in stage.calls.of("move")] == [()]


@pytest.mark.skipif(sys.platform == "win32", reason="there, Ctrl-C cannot be sent to one process")
def test_ctrl_c_ends_watching(script: Callable[[str], Process]) -> None:
    process = script(
        """
import labmesh
with labmesh.connect() as mesh:
    readings = mesh.watch("nobody-*")
    try:
        print("ready")
        for reading in readings:
            pass
    except KeyboardInterrupt:
        print("interrupted")
"""
    )
    process.wait_for("ready", START_S)
    process.interrupt()
    assert process.wait_end(END_S) == 0
    assert [each.text for each in process.lines] == ["ready", "interrupted"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_fork_is_told_to_connect_again(script: Callable[[str], Process]) -> None:
    process = script(
        """
import os, warnings
import labmesh
warnings.simplefilter("ignore", DeprecationWarning)  # threads and fork: just what is tried here
mesh = labmesh.connect()
psu = mesh["Inst-0"]
if os.fork() == 0:
    try:
        psu.set_voltage(1)
    except ConnectionError as exc:
        print("child:", exc)
    mesh.close()
else:
    os.wait()
    print("parent:", psu.set_voltage(1))
"""
    )
    assert process.wait_end(START_S) == 0, process.tail()
    assert [each.text for each in process.lines] == [
        "child: this mesh was connected in the process that this one was forked from: connect "
        "again, in this process",
        "parent: 1.0",
    ]
