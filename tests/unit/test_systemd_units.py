"""The units of examples/systemd: what they start exists, and what they hold a node to."""

from __future__ import annotations

import configparser
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from labmesh.cli.app import app

ROOT = Path(__file__).parents[2]
UNITS = sorted((ROOT / "examples" / "systemd").glob("*.service"))
NODES = {
    "labmesh-broker.service": "broker",
    "labmesh-bank.service": "bank",
    "labmesh-relay@.service": "relay",
}


def service_of(unit: Path) -> dict[str, str]:
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read_string(unit.read_text(encoding="utf-8"))
    return dict(parser["Service"])


def test_there_is_one_for_each_node() -> None:
    assert [unit.name for unit in UNITS] == sorted(NODES)


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_its_command_is_one_of_labmesh(unit: Path) -> None:
    program, *words = shlex.split(service_of(unit)["ExecStart"])
    assert program.endswith("/bin/labmesh")
    assert words[0] == NODES[unit.name]
    # Parsed as the command line would, without running it.
    _, bound, unused = app.parse_known_args(words[:1] + words[1:])[:3]
    assert unused == []
    assert bound.arguments


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_a_node_may_write_in_its_own_folder_only(unit: Path) -> None:
    service = service_of(unit)
    held_to = {
        "NoNewPrivileges": "yes",
        "ProtectSystem": "strict",
        "ProtectHome": "yes",
        "CapabilityBoundingSet": "",
        "UMask": "0077",
        "Restart": "always",
        "StateDirectory": "labmesh",
    }
    assert {key: service.get(key) for key in held_to} == held_to
    assert "MemoryMax" in service
    assert "LimitNOFILE" in service


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_systemd_finds_little_exposed(unit: Path) -> None:
    command = ["systemd-analyze", "security", "--offline=yes", "--no-pager", str(unit)]
    rated = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    exposure = re.search(r"exposure level for \S+: ([\d.]+)", rated.stdout)
    if exposure is None:
        pytest.skip(f"this systemd-analyze cannot rate a file: {rated.stderr.strip()}")
    assert float(exposure[1]) < 3
