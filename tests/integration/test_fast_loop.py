"""The blocking mesh and the command line on uvloop, where it is installed."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

import labmesh
from labmesh.loops import VARIABLE

pytest.importorskip("uvloop")


def test_a_mesh_calls_watches_and_stores_on_the_fast_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE)
    with labmesh.demo() as mesh:
        psu = mesh["Inst-0"]
        psu.set_voltage(2.5)
        assert psu.call("set_voltage", [1.5], timeout=5.0) is not False
        with pytest.raises(ValueError, match=r"volt|V"):
            psu.set_voltage(1000)
        reading = next(iter(psu.watch(timeout=10.0)))
        assert reading.relay_id == "Inst-0"
        record = mesh.put(b"bytes" * 1000, "scan")
        assert record.read() == b"bytes" * 1000


def test_the_demo_of_the_command_line_runs_on_it() -> None:
    environment = {key: value for key, value in os.environ.items() if key != VARIABLE}
    done = subprocess.run(
        [sys.executable, "-m", "labmesh", "demo"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert done.returncode == 0, done.stderr
