"""The commands that use a mesh, with the mesh of ``labmesh up`` in a process beside them.

Commands run in this process; where signals, pipes or the exit of the interpreter matter, they run
in one of their own.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tests.support.processes import Process, Start, environment

from labmesh import RelayClient
from labmesh.cli import main

LABMESH = ["-m", "labmesh"]
LIMIT_S = 20.0

FILE = """
[broker]
rpc_bind = "tcp://127.0.0.1:*"
xsub_bind = "tcp://127.0.0.1:*"
xpub_bind = "tcp://127.0.0.1:*"
[bank]
ingest_bind = "tcp://127.0.0.1:*"
retrieve_bind = "tcp://127.0.0.1:*"
[relay]
state_interval = 0.1
[[relays]]
id = "Inst-0"
driver = "labmesh.instruments.simulated:PowerSupply"
kwargs = { seed = 1, max_voltage = 12.0 }
[[relays]]
id = "Odd-0"
driver = "odd:Odd"
poll = 30.0
[[relays]]
id = "Slow-0"
driver = "odd:Odd"
poll = 0.1
"""

#: A driver that returns what JSON lacks, and that is in a bad mood.
DRIVER = '''
import datetime, math, time

class Odd:
    """Returns \\x1b[31modd\\x1b[0m things."""

    def everything(self):
        moment = datetime.datetime(2026, 1, 31, tzinfo=datetime.timezone.utc)
        return {"nan": math.nan, "raw": b"\\x00", "at": moment, "list": [1, (2, 3)]}

    def array(self, count):
        import numpy
        return numpy.arange(float(count))

    def echo(self, *args, **kwargs):
        return [list(args), kwargs]

    @property
    def level(self) -> float:
        """How odd it is, in dB."""
        return getattr(self, "_level", 0.5)

    @level.setter
    def level(self, value: float) -> None:
        self._level = float(value)

    def count(self, to: int, fail: bool = False):
        """Count up."""
        for number in range(to):
            yield number
        if fail:
            raise LookupError("no more fingers")
        return "counted"

    def nothing(self):
        return None

    def text(self):
        return "\\x1b[2Jtwo\\nlines"

    def wait(self, seconds):
        time.sleep(seconds)
        return seconds

    def fail(self):
        raise LookupError("no such channel")

    def poll(self):
        return {"nan": math.nan, "count": 1}
'''


class Mesh:
    """A running ``labmesh up``."""

    def __init__(self, process: Process, folder: Path) -> None:
        self.process = process
        self.folder = folder
        self.ready: dict[str, Any] = json.loads(process.wait_for('"event":"ready"', LIMIT_S).string)
        self.broker = str(self.ready["broker"]["rpc"])


@dataclass
class Ended:
    """A command that has ended."""

    exit_code: int
    out: str
    err: str

    @classmethod
    def of(cls, process: Process) -> Ended:
        """Wait for a process."""
        exit_code = process.wait_end(LIMIT_S)
        return cls(exit_code, process.output, process.errors)

    @property
    def objects(self) -> list[Any]:
        """What it printed with ``--json``."""
        return [json.loads(each) for each in self.out.splitlines()]

    @property
    def error(self) -> dict[str, Any]:
        """What it complained of with ``--json``."""
        (line,) = [each for each in self.err.splitlines() if each.startswith("{")]
        told: dict[str, Any] = json.loads(line)["error"]
        return told


Run = Callable[..., Ended]
StartCommand = Callable[..., Process]


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    folder = tmp_path_factory.mktemp("mesh")
    (folder / "mesh.toml").write_text(FILE)
    (folder / "odd.py").write_text(DRIVER)
    with Process([*LABMESH, "up", "mesh.toml", "--json"], cwd=folder) as process:
        yield Mesh(process, folder)
        process.interrupt()
        assert process.wait_end(LIMIT_S) == 0, process.tail()


@pytest.fixture
def run(
    mesh: Mesh,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Run:
    """Run a command to its end, in this process, with the mesh as its broker."""
    monkeypatch.chdir(tmp_path)

    def run_one(*words: str, **environ: str) -> Ended:
        with pytest.MonkeyPatch.context() as variables:
            for name, value in {"LMH_BROKER": mesh.broker, **environ}.items():
                variables.setenv(name, value)
            exit_code = main(words)
        captured = capsys.readouterr()
        return Ended(exit_code, captured.out.rstrip("\n"), captured.err.rstrip("\n"))

    return run_one


@pytest.fixture
def process(mesh: Mesh, start: Start, tmp_path: Path) -> StartCommand:
    """Start a command in a process of its own, with the mesh as its broker."""

    def start_one(*words: str) -> Process:
        return start([*LABMESH, *words], cwd=tmp_path, environ={"LMH_BROKER": mesh.broker})

    return start_one


# ── up ──────────────────────────────────────────────────────────────────────────────────────────


def test_up_tells_programs_who_is_where(mesh: Mesh) -> None:
    assert set(mesh.ready["broker"]) == {"rpc", "xsub", "xpub", "bound"}
    assert [each["relay_id"] for each in mesh.ready["relays"]] == ["Inst-0", "Odd-0", "Slow-0"]
    (bank,) = mesh.ready["banks"]
    assert bank["bank_id"] == "bank-0"
    assert bank["folder"] == str(mesh.folder / "bank_data")
    assert mesh.ready["simulated"] is False


# ── ls, show ────────────────────────────────────────────────────────────────────────────────────


def test_ls(run: Run) -> None:
    ended = run("ls")
    assert ended.exit_code == 0
    assert ended.err == ""
    head, *rows = [re.split(r"  +", each) for each in ended.out.splitlines()]
    assert head == ["KIND", "ID", "WHAT", "STATE", "LAST STATE", "ADDRESS", "HOST"]
    assert [row[:2] for row in rows] == [
        ["bank", "bank-0"],
        ["relay", "Inst-0"],
        ["relay", "Odd-0"],
        ["relay", "Slow-0"],
    ]
    assert rows[1][2:4] == ["PowerSupply", "live"]
    assert rows[0][4] == "-"
    assert re.fullmatch(r"[\d.]+ m?s ago", rows[1][4])


def test_ls_for_programs(run: Run, mesh: Mesh) -> None:
    (listed,) = run("ls", "--json").objects
    assert listed["broker"] == mesh.broker
    assert [each["relay_id"] for each in listed["relays"]] == ["Inst-0", "Odd-0", "Slow-0"]
    assert listed["relays"][0]["endpoints"]["rpc"] == mesh.ready["relays"][0]["rpc"]
    assert listed["relays"][0]["last_state"]["stale"] is False
    assert listed["banks"][0]["bank_id"] == "bank-0"


def test_show_a_relay(run: Run) -> None:
    out = run("show", "Inst-0").out
    assert out.startswith("Inst-0: PowerSupply\n")
    assert re.search(r"state, [\d.]+ m?s old: .*mode=off", out)
    for part in ("link ", "relay       registered, heartbeat", "driver      idle", "instrument "):
        assert f"\n  {part}" in out
    assert "set_voltage(value: float) -> float" in out
    assert "Set the output voltage in V" in out


def test_show_for_programs(run: Run) -> None:
    (shown,) = run("show", "Inst-0", "--json").objects
    assert shown["relay_id"] == "Inst-0"
    assert shown["driver"] == "PowerSupply"
    assert "set_output" in [each["name"] for each in shown["methods"]]
    assert shown["last_state"]["value"]["mode"] == "off"
    assert shown["last_state"]["age_s"] < 5
    assert shown["status"]["registered"] is True


def test_show_a_bank(run: Run) -> None:
    assert re.search(r"\d+ datasets, 0 uploads", run("show", "bank-0").out)
    (shown,) = run("show", "bank-0", "--json").objects
    assert (shown["bank_id"], shown["status"]["uploads_open"]) == ("bank-0", 0)


def test_what_a_driver_says_does_not_steer_the_terminal(run: Run) -> None:
    out = run("show", "Odd-0").out
    assert "\\x1b[31modd" in out
    assert "\x1b" not in out


# ── call ────────────────────────────────────────────────────────────────────────────────────────


def test_call(run: Run) -> None:
    ended = run("call", "Inst-0", "set_voltage", "value=2.5")
    assert (ended.exit_code, ended.out) == (0, "2.5")
    assert ended.err.startswith("Inst-0.set_voltage: ")
    assert run("call", "Inst-0", "set_voltage", "3", "-q").err == ""


def test_call_for_programs(run: Run) -> None:
    (answer,) = run("call", "Inst-0", "set_voltage", "2.5", "--json").objects
    assert answer.pop("seconds") > 0
    assert answer == {"relay_id": "Inst-0", "method": "set_voltage", "value": 2.5}


def test_arguments_are_json_else_text(run: Run) -> None:
    words = ["-1", "on", "[1, 2]", '"a=b"', "null", "name=x y", "flag=true"]
    (answer,) = run("call", "Odd-0", "echo", *words, "--json").objects
    assert answer["value"] == [[-1, "on", [1, 2], "a=b", None], {"name": "x y", "flag": True}]


def test_values_that_json_lacks(run: Run) -> None:
    (answer,) = run("call", "Odd-0", "everything", "--json").objects
    assert answer["value"] == {
        "nan": {"$float": "nan"},
        "raw": {"$bytes": "AA=="},
        "at": {"$datetime": "2026-01-31T00:00:00+00:00"},
        "list": [1, [2, 3]],
    }
    assert "'nan': nan" in run("call", "Odd-0", "everything").out


def test_arrays(run: Run) -> None:
    pytest.importorskip("numpy")
    (answer,) = run("call", "Odd-0", "array", "100000", "--json").objects
    assert answer["value"]["$array"]["shape"] == [100_000]
    assert run("call", "Odd-0", "array", "2").out == "array([0., 1.])"


def test_nothing_and_text(run: Run) -> None:
    assert run("call", "Odd-0", "nothing").out == ""
    assert run("call", "Odd-0", "text").out == "\\x1b[2Jtwo\nlines"


@pytest.mark.parametrize(
    ("words", "exit_code", "name", "text"),
    [
        ("call Inst-0 set_voltage 99", 6, "driver", "Inst-0.set_voltage raised ValueError"),
        ("call Odd-0 fail", 6, "driver", "Odd-0.fail raised LookupError: no such channel"),
        ("call Inst-0 set_voltag 1", 3, "unknown_method", "set_voltage"),
        ("call Inst-0 set_voltage volt=1", 2, "bad_arguments", "volt"),
        ("call Inst-1 measure", 3, "not_found", "did you mean 'Inst-0'?"),
        ("call Odd-0 wait 1.5 --timeout 0.5", 5, "outcome_unknown", "deadline"),
        ("show Inst-1", 3, "not_found", "did you mean 'Inst-0'?"),
        ("data show no-such-data", 3, "not_found", "bank-0"),
        ("data get no-such-data", 3, "not_found", "bank-0"),
        ("data ls --bank bank-1", 3, "not_found", "did you mean 'bank-0'?"),
        ("data put no-such-file", 3, "FileNotFoundError", "no-such-file"),
        ("ls --broker 127.0.0.1:1 --timeout 0.3", 5, "link_lost", "127.0.0.1:1"),
    ],
)
def test_errors(
    run: Run, monkeypatch: pytest.MonkeyPatch, words: str, exit_code: int, name: str, text: str
) -> None:
    # Nobody comes who could be waited for.
    for module in ("instrument_commands._FIND_S", "show._FIND_S", "data_banks.FIND_S"):
        monkeypatch.setattr(f"labmesh.cli.{module}", 0.1)
    ended = run(*words.split(), "--json")
    assert ended.exit_code == exit_code
    assert ended.out == ""
    assert ended.error["exit_code"] == exit_code
    assert ended.error["name"] == name
    assert text in ended.error["text"]
    assert ended.error["try"]


def test_an_error_for_people_is_two_lines(run: Run) -> None:
    ended = run("call", "Odd-0", "fail")
    assert ended.err.splitlines()[0] == "error: Odd-0.fail raised LookupError: no such channel"
    assert ended.err.splitlines()[1].startswith("  try: ")
    assert len(ended.err.splitlines()) == 2


def test_the_remote_traceback_with_v(run: Run, mesh: Mesh) -> None:
    err = run("call", "Odd-0", "fail", "-v").err
    assert 'raise LookupError("no such channel")' in err
    assert str(mesh.folder / "odd.py") in err


# ── get, set, items ─────────────────────────────────────────────────────────────────────────────


def test_a_value_is_read_and_written(run: Run) -> None:
    written = run("set", "Odd-0", "level", "2.5")
    assert (written.exit_code, written.out) == (0, "")
    assert written.err.startswith("Odd-0.level = 2.5: ")
    assert run("get", "Odd-0", "level").out == "2.5"
    (read,) = run("get", "Odd-0", "level", "--json").objects
    assert read.pop("seconds") > 0
    assert read == {"relay_id": "Odd-0", "name": "level", "value": 2.5}
    (told,) = run("set", "Odd-0", "level", "3", "--json").objects
    assert told["set"] == 3


def test_show_tells_values_and_marks(run: Run) -> None:
    out = run("show", "Odd-0").out
    assert "Values\n  level: float  [settable]\n      How odd it is, in dB.\n" in out
    assert re.search(r"count\(to: int, fail: bool = False\)  \[yields\]", out)
    assert "labmesh get Odd-0 VALUE" in out
    (shown,) = run("show", "Odd-0", "--json").objects
    assert [each["name"] for each in shown["values"]] == ["level"]


@pytest.mark.parametrize(
    ("words", "exit_code", "text"),
    [
        ("get Odd-0 levl", 3, "level"),
        ("set Odd-0 levl 1", 3, "level"),
        ("call Odd-0 level", 3, "labmesh get Odd-0 level"),
        ("set Odd-0 level high", 6, "Odd-0.level raised ValueError"),
        ("get Odd-0", 2, ""),
    ],
)
def test_what_is_wrong_with_a_value(run: Run, words: str, exit_code: int, text: str) -> None:
    ended = run(*words.split())
    assert ended.exit_code == exit_code
    assert text in ended.err


def test_items_are_printed_a_line_each(run: Run) -> None:
    ended = run("call", "Odd-0", "count", "3")
    assert ended.out.splitlines() == ["0", "1", "2"]
    assert re.fullmatch(r"Odd-0\.count: 3 items in .*, and it returned counted", ended.err)
    objects = run("call", "Odd-0", "count", "to=2", "--json").objects
    assert [each.get("item") for each in objects] == [0, 1, None]
    assert (objects[2]["items"], objects[2]["value"]) == (2, "counted")


def test_items_before_an_error_are_printed(run: Run) -> None:
    ended = run("call", "Odd-0", "count", "2", "fail=true")
    assert (ended.exit_code, ended.out.splitlines()) == (6, ["0", "1"])
    assert "no more fingers" in ended.err


def test_who_only_looks_sees_that_it_is_busy_and_its_state_stale(
    run: Run, process: StartCommand
) -> None:
    watching = process("watch", "Slow-0")
    watching.wait_for("  Slow-0  ", LIMIT_S)
    calling = process("call", "Slow-0", "wait", "8")
    watching.wait_for(r"^Slow-0: STALE, its last state is .* old, and one is due each", LIMIT_S)
    out = run("show", "Slow-0").out
    assert re.search(r"driver      busy with wait for [\d.]+ s", out)
    assert "STALE (one is due each 0.1 s)" in out
    rows = run("ls").out.splitlines()
    assert [row.split()[1] for row in rows if "STALE" in row] == ["Slow-0"]
    (state,) = run("watch", "Slow-0", "--count", "1", "--json").objects
    assert state["stale"] is True
    calling.interrupt()
    assert calling.wait_end(LIMIT_S) == 130


# ── stubs ───────────────────────────────────────────────────────────────────────────────────────


def test_stubs_are_printed_or_written(run: Run, tmp_path: Path) -> None:
    printed = run("stubs", "Odd-0").out
    assert "class Odd(labmesh.mesh.Instrument):" in printed
    assert "def level(self) -> float:" in printed
    path = tmp_path / "odd_0.py"
    for _ in range(2):  # the second time over the first
        assert run("stubs", "Odd-0", "-o", str(path), "--async").exit_code == 0
    names: dict[str, Any] = {"__name__": "odd_0"}
    exec(compile(path.read_text(encoding="utf-8"), str(path), "exec"), names)
    assert issubclass(names["Odd"], RelayClient)
    (told,) = run("stubs", "Odd-0", "--json").objects
    assert (told["class"], told["path"]) == ("Odd", None)


def test_stubs_do_not_write_over_another_file(run: Run, tmp_path: Path) -> None:
    mine = tmp_path / "analysis.py"
    mine.write_text("mine = True")
    ended = run("stubs", "Odd-0", "-o", str(mine))
    assert ended.exit_code == 2
    assert "was not made by 'labmesh stubs'" in ended.err
    assert mine.read_text() == "mine = True"


def test_call_limit_of_the_file_ends_a_call(run: Run, mesh: Mesh, tmp_path: Path) -> None:
    (tmp_path / "short.toml").write_text("[client]\ncall_limit = 0.3\n")
    ended = run("call", "Odd-0", "wait", "1", "--config", "short.toml", "--broker", mesh.broker)
    assert ended.exit_code == 5


# ── where the broker is ─────────────────────────────────────────────────────────────────────────


def test_the_option_wins_over_the_variable(run: Run, mesh: Mesh) -> None:
    place = mesh.broker.removeprefix("tcp://")
    assert run("ls", "--broker", place, LMH_BROKER="127.0.0.1:1").exit_code == 0


def test_a_file_names_the_broker(run: Run, mesh: Mesh, tmp_path: Path) -> None:
    (tmp_path / "labmesh.toml").write_text(
        f'[client]\nbroker_rpc = "{mesh.ready["broker"]["rpc"]}"\n'
        f'broker_xpub = "{mesh.ready["broker"]["xpub"]}"\n'
    )
    assert run("ls", LMH_BROKER="").exit_code == 0


def test_an_error_says_who_named_the_broker(run: Run) -> None:
    ended = run("ls", "--timeout", "0.5", LMH_BROKER="127.0.0.1:1")
    assert ended.exit_code == 5
    assert "the address is from LMH_BROKER" in ended.err


def test_a_password_that_the_mesh_does_not_have(run: Run) -> None:
    ended = run("ls", LMH_NETWORK_PASSWORD="a word of my own")
    assert ended.exit_code == 4
    assert "password" in ended.err
    assert "a word of my own" not in ended.err


@pytest.mark.parametrize(
    ("words", "exit_code"), [("ls", 0), ("call Odd-0 fail", 6), ("call Odd-0", 2), ("show x", 3)]
)
def test_the_exit_code_is_that_of_the_process(
    process: StartCommand, words: str, exit_code: int
) -> None:
    ended = Ended.of(process(*words.split()))
    assert ended.exit_code == exit_code
    assert "Traceback" not in ended.err


# ── watch ───────────────────────────────────────────────────────────────────────────────────────


def test_watch(run: Run) -> None:
    lines = run("watch", "Inst-*", "--count", "3").out.splitlines()
    assert len(lines) == 3
    for line in lines:
        assert re.match(r"\d\d:\d\d:\d\d\.\d\d\d  Inst-0  output=", line)


def test_watch_for_programs(run: Run) -> None:
    first, second = run("watch", "Inst-0", "--count", "2", "--json").objects
    assert (first["event"], first["relay_id"]) == ("state", "Inst-0")
    assert second["sequence"] > first["sequence"]
    assert first["value"]["simulated"] is True


def test_a_late_watcher_gets_the_last_state_at_once(run: Run) -> None:
    (state,) = run("watch", "Odd-0", "--count", "1", "--json").objects
    assert state["value"] == {"nan": {"$float": "nan"}, "count": 1}


def test_watch_datasets(process: StartCommand, run: Run, tmp_path: Path) -> None:
    watching = process("watch", "--only", "datasets", "--count", "1", "--json", "-v")
    watching.wait_for("linked to the broker", LIMIT_S)
    (tmp_path / "scan.csv").write_text("1,2\n")
    stored: list[str] = []
    while watching.exit_code is None and len(stored) < 20:
        stored.append(run("data", "put", "scan.csv", "--relay", "Inst-0", "-q").out)
    (event,) = Ended.of(watching).objects
    assert event["event"] == "dataset"
    assert event["dataset_id"] in stored
    assert event["name"] == "scan.csv"


def test_log(run: Run, process: StartCommand) -> None:
    lines = run("log", "Inst-0", "--json").objects
    assert {(each["event"], each["node_id"]) for each in lines} == {("log", "Inst-0")}
    assert "labmesh.relay" in {each["logger"] for each in lines}
    assert run("log", "Inst-0", "--level", "critical").out == ""
    first = run("log", "Inst-0", "--count", "1").out
    assert re.fullmatch(r"\d\d:\d\d:\d\d\.\d\d\d  Inst-0  INFO     labmesh\..*", first)
    following = process("log", "-f", "Inst-0", "--count", str(len(lines)), "--json")
    assert following.wait_end(LIMIT_S) == 0
    assert Ended.of(following).objects == lines
    assert run("log", "--level", "loud").exit_code == 2


def test_who_comes_and_goes_is_a_line_each(process: StartCommand) -> None:
    watching = process("ls", "--watch")
    watching.wait_for("Slow-0", LIMIT_S)
    relay = process("relay", "labmesh.instruments.simulated:Thermometer", "--id", "New-0")
    watching.wait_for(r"relay New-0  joined  Thermometer", LIMIT_S)
    relay.interrupt()
    watching.wait_for(r"relay New-0  left \(goodbye\)", LIMIT_S)
    watching.interrupt()
    assert watching.wait_end(LIMIT_S) == 130


def test_watch_says_whom_it_waits_for(process: StartCommand) -> None:
    watching = process("watch", "nobody-*")
    watching.wait_for(r"waiting: nobody is called nobody-\* yet; .*Inst-0", LIMIT_S)
    watching.interrupt()
    assert watching.wait_end(LIMIT_S) == 130
    assert "Traceback" not in watching.errors


def test_ctrl_c_ends_a_command_with_130(process: StartCommand) -> None:
    watching = process("watch")
    watching.wait_for("Inst-0", LIMIT_S)
    watching.interrupt()
    assert watching.wait_end(LIMIT_S) == 130
    assert watching.errors == ""


@pytest.mark.skipif(sys.platform == "win32", reason="there are no such pipes")
@pytest.mark.parametrize("options", ["", "--json"])
def test_a_reader_that_has_enough_ends_watch_quietly(
    mesh: Mesh, tmp_path: Path, options: str
) -> None:
    command = f"'{sys.executable}' -m labmesh watch {options} | head -n 1; echo ${{PIPESTATUS[0]}}"
    ended = subprocess.run(
        ["bash", "-c", command],
        cwd=tmp_path,
        env=environment({"LMH_BROKER": mesh.broker}),
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=True,
    )
    line, exit_code = ended.stdout.splitlines()
    assert re.search(r"(Inst|Odd|Slow)-0", line), line
    assert exit_code == "0"
    assert ended.stderr == ""


# ── data ────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def content() -> bytes:
    return os.urandom(3_000_000)


def test_a_dataset_there_and_back(run: Run, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "scan.dat").write_bytes(content)
    sha256 = hashlib.sha256(content).hexdigest()
    put = run("data", "put", "scan.dat", "--meta", "sample=A1", "--meta", "t=4.2")
    assert put.exit_code == 0
    dataset_id = put.out
    assert re.fullmatch(r"\S+", dataset_id)
    assert sha256 in put.err

    shown = run("data", "show", dataset_id).out
    assert f"sha256   {sha256}" in shown
    assert "sample = A1" in shown
    (record,) = run("data", "show", dataset_id, "--json").objects
    assert (record["size"], record["sha256"], record["name"]) == (3_000_000, sha256, "scan.dat")
    assert record["meta"] == {"sample": "A1", "t": 4.2}

    assert re.search(rf"^{dataset_id}  +scan.dat  +3.0 MB", run("data", "ls").out, re.M)
    newest, *_ = run("data", "ls", "--json", "--limit", "1").objects
    assert newest["dataset_id"] == dataset_id

    got = run("data", "get", dataset_id)
    assert got.out == f"{dataset_id}.dat"
    assert (tmp_path / got.out).read_bytes() == content
    (told,) = run("data", "get", dataset_id, "copy.bin", "--json").objects
    assert (told["path"], told["sha256"]) == ("copy.bin", sha256)


@pytest.mark.parametrize("target", ["nowhere/copy", "nowhere/"])
def test_a_folder_that_is_not_there_is_named(run: Run, tmp_path: Path, target: str) -> None:
    (tmp_path / "few.csv").write_text("1\n")
    (put,) = run("data", "put", "few.csv", "--json").objects
    ended = run("data", "get", put["dataset_id"], target)
    assert ended.exit_code == 3
    assert "nowhere: no such folder" in ended.err
    assert not (tmp_path / "nowhere").exists()


def test_an_existing_file_is_not_written_over(run: Run, tmp_path: Path) -> None:
    (tmp_path / "scan.csv").write_text("new\n")
    (put,) = run("data", "put", "scan.csv", "--id", "scan-1", "--json").objects
    assert put["dataset_id"] == "scan-1"
    refused = run("data", "get", "scan-1", "scan.csv")
    assert refused.exit_code == 4
    assert "--force" in refused.err
    (tmp_path / "scan.csv").write_text("old\n")
    assert run("data", "get", "scan-1", "scan.csv", "--force").exit_code == 0
    assert (tmp_path / "scan.csv").read_text() == "new\n"


def test_an_id_that_is_taken(run: Run, tmp_path: Path) -> None:
    (tmp_path / "a").write_text("a")
    (tmp_path / "b").write_text("b")
    assert run("data", "put", "a", "--id", "scan-2").exit_code == 0
    refused = run("data", "put", "b", "--id", "scan-2", "--json")
    assert refused.exit_code == 4
    assert refused.error["name"] == "conflict"


def test_standard_input_and_output(mesh: Mesh, tmp_path: Path, content: bytes) -> None:
    labmesh = f"'{sys.executable}' -m labmesh data"
    script = f"id=$({labmesh} put - --name piped) && {labmesh} get $id -"
    ended = subprocess.run(
        ["bash", "-c", script],
        input=content,
        cwd=tmp_path,
        env=environment({"LMH_BROKER": mesh.broker}),
        capture_output=True,
        timeout=LIMIT_S,
        check=True,
    )
    assert ended.stdout == content


# ── doctor ──────────────────────────────────────────────────────────────────────────────────────


def test_a_healthy_mesh(run: Run) -> None:
    ended = run("doctor", "--json")
    levels = {each["check"]: each["level"] for each in ended.objects}
    assert ended.exit_code == 0
    assert "FAIL" not in levels.values()
    assert {"broker", "bank bank-0", "relay Inst-0", "relay Odd-0", "clocks"} <= set(levels)
    assert {"python", "labmesh", "encryption", "configuration", "data folder"} <= set(levels)


def test_the_files_ports_are_held_by_the_mesh(
    run: Run, mesh: Mesh, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("labmesh.cli.doctor._CLOCKS_S", 0.1)  # not what this is about
    broker = mesh.ready["broker"]
    lines = [f'{key}_bind = "{broker[key]}"' for key in ("rpc", "xsub", "xpub")]
    (tmp_path / "held.toml").write_text(
        "\n".join(
            [
                "[broker]",
                *lines,
                "[client]",
                f'broker_rpc = "{broker["rpc"]}"',
                f'broker_xpub = "{broker["xpub"]}"',
            ]
        )
    )
    found = run("doctor", "--config", "held.toml", "--json").objects
    ports = [each for each in found if each["check"].startswith("port ")]
    assert [each["level"] for each in ports] == ["ok", "ok", "ok"]
    assert {each["text"].partition(": ")[2] for each in ports} == {"broker holds it"}


def test_a_mesh_that_is_not_there(run: Run) -> None:
    ended = run("doctor", "--broker", "127.0.0.1:1", "--timeout", "1")
    assert ended.exit_code == 1
    (line,) = [each for each in ended.out.splitlines() if each.startswith("FAIL")]
    assert "nobody answers" in line
    assert "labmesh up" in ended.out
    assert "1 of " in ended.err


def test_a_wrong_file(run: Run, tmp_path: Path) -> None:
    (tmp_path / "labmesh.toml").write_text("[broker]\nttl = 3\n")
    ended = run("doctor")
    assert ended.exit_code == 1
    assert re.search(r"FAIL +configuration .*\[broker\] ttl: .*ttl_seconds", ended.out)
