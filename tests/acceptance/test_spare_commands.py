"""A spare broker from the command line: started, told of, followed when the first one is killed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.support.processes import Process, Start, free_ports

from labmesh import connect
from labmesh.cli import main

LIMIT_S = 20.0

Run = Callable[..., tuple[str, str]]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """A command in this process: what it printed on stdout, and on stderr."""
    monkeypatch.chdir(tmp_path)
    # How long it looks for brokers that were killed is no part of what is tested here.
    monkeypatch.setattr("labmesh.cli.doctor._CLOCKS_S", 0.1)
    monkeypatch.setattr("labmesh.cli.mesh_checkup._PING_S", 0.5)
    monkeypatch.setattr("labmesh.cli.options._PATIENCE_S", 2.0)

    def run_one(*arguments: str) -> tuple[str, str]:
        capsys.readouterr()
        main(list(arguments))
        return capsys.readouterr()

    return run_one


def listed(run: Run) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(run("ls", "--json")[0])
    return found


def findings(run: Run) -> dict[str, dict[str, Any]]:
    lines = map(json.loads, run("doctor", "--json")[0].splitlines())
    return {each["check"]: each for each in lines}


def test_the_spare_is_told_of_and_takes_over(start: Start, tmp_path: Path, run: Run) -> None:
    ports = free_ports(1)[0], free_ports(1)[0]
    first, spare = (f"tcp://127.0.0.1:{each}" for each in ports)
    (tmp_path / "labmesh.toml").write_text(
        f"""
[broker]
rpc_bind = "tcp://127.0.0.1:{ports[0]}"
xsub_bind = "tcp://127.0.0.1:*"
xpub_bind = "tcp://127.0.0.1:*"
spare = "127.0.0.1:{ports[1]}"
[relay]
broker_rpc = "{first}"
[bank]
broker_rpc = "{first}"
[client]
broker_rpc = "{first}"
"""
    )

    def process(*arguments: str) -> Process:
        return start(["-m", "labmesh", *arguments], cwd=tmp_path)

    def ready(one: Process) -> dict[str, Any]:
        told: dict[str, Any] = json.loads(one.wait_for('"event":"ready"', LIMIT_S).string)
        return told

    brokers = process("broker", "--json"), process("broker", "--spare", "--json")
    told = [ready(each)["broker"] for each in brokers]
    assert [each["rpc"] for each in told] == [first, spare]
    file = (tmp_path / "labmesh.toml").read_text()
    ends = told[0]
    file = file.replace("[relay]\n", f'[relay]\nbroker_xsub = "{ends["xsub"]}"\n')
    file = file.replace("[client]\n", f'[client]\nbroker_xpub = "{ends["xpub"]}"\n')
    (tmp_path / "labmesh.toml").write_text(file)
    relay = process(
        *("relay", "labmesh.instruments.simulated:PowerSupply", "--id", "psu-1"),
        *("--bind", "tcp://127.0.0.1:*", "--poll", "0.1", "--json", "-v"),
    )
    ready(relay)
    relay.wait_for("psu-1 is registered with the spare broker", LIMIT_S)

    ls = listed(run)
    assert ls["broker"] == first
    assert ls["brokers"] == [{"address": first, "up": True}, {"address": spare, "up": True}]
    assert run("ls")[1] == ""
    assert findings(run)["spare broker"]["level"] == "ok"
    with connect() as mesh:
        status = mesh.status()
        assert (status.broker, status.other_broker, status.other_broker_up) == (first, spare, True)
        assert f"the other broker at {spare} answers" in repr(status)

    brokers[0].kill9()
    ls = listed(run)
    assert [each["relay_id"] for each in ls["relays"]] == ["psu-1"]
    assert ls["broker"] == spare
    assert ls["brokers"] == [{"address": spare, "up": True}, {"address": first, "up": False}]
    assert f"The first broker does not answer; this is from {spare}." in run("ls")[1]
    found = findings(run)
    assert found["broker"]["level"] == "ok"
    assert spare in found["broker"]["text"]
    assert found["first broker"]["level"] == "warn"
    with connect() as mesh:
        assert mesh["psu-1"].status() is not None
        assert "does NOT answer" in repr(mesh.status())

    brokers[1].kill9()
    found = findings(run)
    assert found["broker"]["level"] == "FAIL"
    assert first in found["broker"]["text"]
    assert spare in found["broker"]["text"]
