"""The commands that run nodes, as processes: they start, say so, stop, and complain in a line."""

from __future__ import annotations

import json
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.support.processes import Process, Start, free_ports
from tests.support.promptness import SLACK_S

from labmesh.cli import main
from labmesh.config import example_config, load_config

LABMESH = ["-m", "labmesh"]
LIMIT_S = 20.0
ANYWHERE = "tcp://127.0.0.1:*"
SIMULATED = "labmesh.instruments.simulated"
BROKER = ["broker", *(f"--{each}-bind={ANYWHERE}" for each in ("rpc", "xsub", "xpub"))]

Command = Callable[..., Process]
Captured = pytest.CaptureFixture[str]


@pytest.fixture
def command(start: Start, tmp_path: Path) -> Command:
    """Start ``labmesh`` with these words, in an empty folder."""

    def start_one(*words: str, **environ: str) -> Process:
        return start([*LABMESH, *words], cwd=tmp_path, environ=environ)

    return start_one


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """``host:port`` of a running ``labmesh broker``."""
    words = [*LABMESH, *BROKER, "--json"]
    with Process(words, cwd=tmp_path_factory.mktemp("broker")) as process:
        yield ready(process)["broker"]["rpc"].removeprefix("tcp://")
        process.interrupt()
        assert process.wait_end(LIMIT_S) == 0


def ready(process: Process) -> dict[str, Any]:
    """What a node said when it was ready."""
    told: dict[str, Any] = json.loads(process.wait_for('"event":"ready"', LIMIT_S).string)
    return told


def listed(broker: str, capsys: Captured) -> dict[str, Any]:
    assert main(["ls", "--json", "--broker", broker]) == 0
    told: dict[str, Any] = json.loads(capsys.readouterr().out)
    return {
        each.get("relay_id") or each["bank_id"]: each for each in told["relays"] + told["banks"]
    }


# ── one node each ───────────────────────────────────────────────────────────────────────────────


def test_a_bank_and_a_relay_beside_a_broker_on_an_unusual_port(
    broker: str, command: Command, tmp_path: Path, capsys: Captured
) -> None:
    bank = command(
        *("bank", "--id", "bank-7", "--data-dir", "datasets", "--heartbeat-seconds", "2"),
        *("--ingest-bind", ANYWHERE, "--retrieve-bind", ANYWHERE, "--broker", broker, "--json"),
    )
    relay = command(
        *("relay", f"{SIMULATED}:PowerSupply", "--id", "psu-7", "--bind", ANYWHERE),
        *("--kwarg", "max_voltage=5", "--poll", "0.5", "--heartbeat-seconds", "1.5", "--json"),
        LMH_BROKER=broker,
    )
    assert ready(bank)["banks"][0]["folder"] == str(tmp_path / "datasets")
    assert ready(relay)["relays"][0]["driver"] == f"{SIMULATED}:PowerSupply"
    there = listed(broker, capsys)
    assert there["bank-7"]["heartbeat_s"] == 2.0
    assert there["psu-7"]["heartbeat_s"] == 1.5
    assert main(["show", "psu-7", "--json", "--broker", broker]) == 0
    assert json.loads(capsys.readouterr().out)["state_interval_s"] == 0.5
    assert main(["call", "psu-7", "set_voltage", "6", "--broker", broker]) == 6
    assert "outside 0 to 5 V" in capsys.readouterr().err
    for node in (bank, relay):
        node.terminate()
        assert node.wait_end(LIMIT_S) == 0
        assert node.errors == ""
    assert not {"bank-7", "psu-7"} & set(listed(broker, capsys)), "they said goodbye"


def test_ctrl_c_is_the_normal_end_of_a_node(broker: str, command: Command) -> None:
    relay = command("relay", f"{SIMULATED}:Thermometer", "--bind", ANYWHERE, "--broker", broker)
    relay.wait_for("labmesh show Thermometer --broker", LIMIT_S)
    relay.interrupt()
    assert relay.wait_end(LIMIT_S) == 0
    assert relay.errors == "stopped"


def test_a_relay_that_is_an_entry_of_the_file(
    broker: str, command: Command, tmp_path: Path
) -> None:
    (tmp_path / "labmesh.toml").write_text(
        f'[[relays]]\nid = "T-1"\ndriver = "{SIMULATED}:Thermometer"\nbind = "{ANYWHERE}"\n'
    )
    told = ready(command("relay", "--id", "T-1", "--broker", broker, "--json"))
    assert told["relays"][0]["relay_id"] == "T-1"


def test_a_relay_without_an_address_takes_that_of_the_file(
    broker: str, command: Command, tmp_path: Path
) -> None:
    (port,) = free_ports(1)
    (tmp_path / "labmesh.toml").write_text(f'[relay]\ndefault_rpc_bind = "tcp://*:{port}"\n')
    words = ["relay", f"{SIMULATED}:Thermometer", "--id", "T-2", "--broker", broker]
    told = ready(command(*words, "--json"))
    assert told["relays"][0]["rpc"] == f"tcp://127.0.0.1:{port}"
    second = command("relay", f"{SIMULATED}:Thermometer", "--id", "T-3", "--broker", broker)
    assert second.wait_end(LIMIT_S) == 4
    assert f"port {port} " in second.errors
    assert "port '*'" in second.errors


def test_an_id_that_is_taken_is_told_and_the_first_keeps_it(
    broker: str, command: Command, capsys: Captured
) -> None:
    words = ["relay", f"{SIMULATED}:Thermometer", "--id", "T-4", "--bind", ANYWHERE]
    first = command(*words, "--broker", broker, "--json")
    place = ready(first)["relays"][0]["rpc"]
    second = command(*words, "--broker", broker)
    assert second.wait_end(LIMIT_S) == 4
    assert "T-4" in second.errors
    assert "Traceback" not in second.errors
    assert listed(broker, capsys)["T-4"]["endpoints"]["rpc"] == place


def test_a_relay_waits_for_its_broker(command: Command, tmp_path: Path) -> None:
    ports = free_ports(3)
    (tmp_path / "labmesh.toml").write_text(
        f'[broker]\nrpc_bind = "tcp://*:{ports[0]}"\nxsub_bind = "tcp://*:{ports[1]}"\n'
        f'xpub_bind = "tcp://*:{ports[2]}"\n'
        f'[relay]\nbroker_rpc = "tcp://BROKER:{ports[0]}"\n'
        f'broker_xsub = "tcp://BROKER:{ports[1]}"\n'
    )
    relay = command("relay", f"{SIMULATED}:Thermometer", "--bind", ANYWHERE)
    relay.wait_for("no broker yet", LIMIT_S)
    command("broker")
    relay.wait_for("labmesh watch Thermometer", LIMIT_S)


# ── up ──────────────────────────────────────────────────────────────────────────────────────────


def test_up_without_a_file_simulates_and_says_so(command: Command, tmp_path: Path) -> None:
    up = command("up", "--free-ports", "--data-dir", "kept")
    line = up.wait_for(r"labmesh ls --broker 127.0.0.1:\d+", LIMIT_S).string.split()
    up.wait_for("Ctrl-C", LIMIT_S)
    assert "simulated" in up.errors
    assert main([*line[1:], "-q"]) == 0
    for relay_id in ("Inst-0", "Thermo-0", "Scope-0"):
        assert relay_id in up.output
    assert (tmp_path / "kept").is_dir()
    up.terminate()
    assert up.wait_end(LIMIT_S) == 0


@pytest.mark.parametrize(
    ("text", "exit_code", "words"),
    [
        ("[broker]\nrpc_port = 5750\n", 2, ["bad.toml", "[broker]", "rpc_port"]),
        ("[broker]\nrpc_bind = 5750\n", 2, ["bad.toml", "[broker]", "rpc_bind", "tcp://*:5750"]),
        ('[broker]\nrpc_bind = "tcp://*:6750"\n', 2, ["bad.toml", "[relay] broker_rpc", "5750"]),
        ('[bank]\ndefault_data_dir = "bad.toml"\n', 2, ["bad.toml: the ", "default_data_dir"]),
        ('[[relays]]\nid = "P-1"\ndriver = "nowhere:PSU"\n', 2, ["P-1", "nowhere:PSU"]),
        (
            f'[[relays]]\nid = "P-1"\ndriver = "{SIMULATED}:PowerSupply"\nargs = [1]\n',
            2,
            ["P-1", "PowerSupply(1)"],
        ),
        (
            f'[[relays]]\nid = "P-1"\ndriver = "{SIMULATED}:PowerSupply"\nbind = "tcp://9.9.9.9:*"\n',
            2,
            ["bad.toml", "P-1", "9.9.9.9"],
        ),
    ],
)
def test_what_is_wrong_ends_up_before_anything_is_ready(
    command: Command, tmp_path: Path, text: str, exit_code: int, words: list[str]
) -> None:
    (tmp_path / "bad.toml").write_text(text)
    options = ["--free-ports"] if "9.9.9.9" not in text and "6750" not in text else []
    up = command("up", "bad.toml", *options)
    assert up.wait_end(LIMIT_S) == exit_code
    assert up.output == ""
    first, second = up.errors.splitlines()
    assert first.startswith("error: ")
    for word in words:
        assert word in first
    assert second.startswith("  try: ")


@pytest.fixture
def held() -> Iterator[int]:
    """A port of this machine that another program listens at."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def test_a_port_that_is_taken_is_named(command: Command, held: int, tmp_path: Path) -> None:
    (tmp_path / "labmesh.toml").write_text(
        f'[broker]\nrpc_bind = "tcp://127.0.0.1:*"\nxsub_bind = "tcp://127.0.0.1:*"\n'
        f'xpub_bind = "tcp://127.0.0.1:*"\n[bank]\ningest_bind = "tcp://127.0.0.1:{held}"\n'
    )
    up = command("up")
    assert up.wait_end(LIMIT_S) == 4
    assert up.output == ""
    assert f"port {held} " in up.errors
    assert "bank bank-0 asked for it" in up.errors


def test_two_banks_do_not_share_a_folder(broker: str, command: Command) -> None:
    words = ["bank", f"--ingest-bind={ANYWHERE}", f"--retrieve-bind={ANYWHERE}"]
    first = command(*words, "--id", "bank-1", "--broker", broker, "--json")
    ready(first)
    second = command(*words, "--id", "bank-2", "--broker", broker)
    assert second.wait_end(LIMIT_S) == 1
    assert "in use by another bank" in second.errors


# ── init ────────────────────────────────────────────────────────────────────────────────────────


def test_init_writes_the_commented_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["init"]) == 0
    assert capsys.readouterr().out == "labmesh.toml\n"
    assert Path("labmesh.toml").read_text() == example_config()
    assert load_config("labmesh.toml").relays
    Path("labmesh.toml").write_text("mine")
    assert main(["init"]) == 4
    assert "--force" in capsys.readouterr().err
    assert Path("labmesh.toml").read_text() == "mine"
    assert main(["init", "--force", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"path": "labmesh.toml"}
    assert Path("labmesh.toml").read_text() == example_config()


def test_init_into_a_folder(tmp_path: Path, capsys: Captured) -> None:
    assert main(["init", str(tmp_path)]) == 0
    assert (tmp_path / "labmesh.toml").is_file()
    assert main(["init", str(tmp_path / "missing" / "x.toml")]) == 3


def test_the_file_that_init_writes_runs(command: Command, tmp_path: Path) -> None:
    assert main(["init", str(tmp_path)]) == 0
    up = command("up", "--free-ports", "--json")
    assert [each["relay_id"] for each in ready(up)["relays"]] == ["Inst-0"]


# ── demo ────────────────────────────────────────────────────────────────────────────────────────


def test_demo_ends_by_itself(command: Command, tmp_path: Path) -> None:
    demo = command("demo")
    assert demo.wait_end(LIMIT_S) == 0, demo.tail()
    assert demo.errors == ""
    for text in ("simulated", "set_voltage", "sha256", "median round trip", "labmesh up"):
        assert text in demo.output
    assert list(tmp_path.iterdir()) == [], "nothing is left behind"


@pytest.mark.parametrize("numpy", ["there", "missing"])
def test_demo_for_programs(start: Start, tmp_path: Path, numpy: str) -> None:
    """Also where numpy is not installed."""
    hide = "import sys; sys.modules['numpy'] = None; " if numpy == "missing" else ""
    text = f"{hide}from labmesh.cli import main; raise SystemExit(main(['demo', '--json']))"
    demo = start(["-c", text], cwd=tmp_path)
    assert demo.wait_end(LIMIT_S) == 0, demo.tail()
    *steps, end = [json.loads(each) for each in demo.output.splitlines()]
    assert end["event"] == "done"
    assert end["seconds"] < 10 + SLACK_S
    assert [each["step"] for each in steps] == list(range(1, len(steps) + 1))
    assert steps[0]["simulated"] is True
    assert len(next(each["states"] for each in steps if "states" in each)) == 3
    assert sum(each.get("verified", False) for each in steps) == 2
    assert 0 < steps[-1]["median_s"] < SLACK_S


def test_demo_with_a_password(command: Command) -> None:
    demo = command("demo", "--json", LMH_NETWORK_PASSWORD="correct horse battery")
    assert demo.wait_end(LIMIT_S) == 0, demo.tail()
    assert json.loads(demo.output.splitlines()[0])["security"] == "password"


def test_ctrl_c_ends_the_demo(command: Command) -> None:
    demo = command("demo", "--json")
    demo.wait_for('"step":1', LIMIT_S)
    demo.interrupt()
    assert demo.wait_end(LIMIT_S) == (1 if sys.platform == "win32" else 130)
    assert "Traceback" not in demo.errors
