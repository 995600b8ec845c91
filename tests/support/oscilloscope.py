"""The simulated oscilloscope of the examples, and what PyVISA itself reads from it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

np = pytest.importorskip("numpy", reason="numpy is not installed")
pyvisa = pytest.importorskip("pyvisa", reason="pyvisa is not installed")
pytest.importorskip("pyvisa_sim", reason="pyvisa-sim is not installed")

EXAMPLES = Path(__file__).parents[2] / "examples"
VISA = f"{EXAMPLES / 'simulated_oscilloscope.yaml'}@sim"
RESOURCE = "TCPIP::scope.lab::INSTR"
DRIVER = "visa_oscilloscope:Oscilloscope"


def read_directly(command: str, *, binary: bool = False) -> Any:
    """The array that PyVISA returns, without labmesh."""
    session = pyvisa.ResourceManager(VISA).open_resource(RESOURCE)
    session.read_termination = session.write_termination = "\n"
    try:
        if binary:
            return session.query_binary_values(command, datatype="B", container=np.array)
        return session.query_ascii_values(command, container=np.array)
    finally:
        session.close()
