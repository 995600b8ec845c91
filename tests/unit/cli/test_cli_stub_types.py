"""The classes of ``labmesh stubs`` under a type checker: right scripts pass, wrong ones do not."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import labmesh
from labmesh.cli.stub_text import stub_text
from labmesh.protocol.messages import Description, MethodInfo, ValueInfo

DESCRIPTION = Description(
    id="1",
    node_id="Inst-0",
    epoch="e1",
    driver="PowerSupply",
    doc="A power supply.",
    methods=[
        MethodInfo(name="set_voltage", signature="(value: float, *, wait: float = None) -> float"),
        MethodInfo(name="measure", signature="() -> dict[str, Any]", doc='In "V".'),
        MethodInfo(name="unit", signature="(unit: Literal['C', 'F'] = 'C') -> None"),
        MethodInfo(name="scan", signature="(start, stop=1) -> Iterator[float]", yields=True),
        MethodInfo(name="list", signature="(*names: str) -> list[Quantity]"),
        MethodInfo(name="property"),
        MethodInfo(name="status"),
    ],
    values=[
        ValueInfo(name="voltage", type="float", settable=True),
        ValueInfo(name="serial", type="str"),
        ValueInfo(name="float", type="float", settable=True),
    ],
)
SCRIPT = """\
import labmesh
from inst_0 import PowerSupply

mesh = labmesh.connect()
psu = mesh.instrument("Inst-0", PowerSupply)
volts: float = psu.set_voltage(2.5, wait=None)
psu.voltage = psu.voltage + 1
for point in psu.scan(0, 1):
    total: float = point
psu.unit("F")
reveal_type(psu.list("a"))
reveal_type(psu.serial)
psu.set_voltage("high")
psu.voltage = "high"
psu.serial = "1"
psu.unit("K")
"""
ASYNC_SCRIPT = """\
import labmesh
from inst_0_async import PowerSupply


async def main(client: labmesh.DirectorClientAgent) -> None:
    psu = await client.get_relay_agent("Inst-0", PowerSupply)
    volts: float = await psu.set_voltage(2.5)
    volts = await psu.get("voltage", timeout=1)
    await psu.set("voltage", 3)
    reveal_type(await psu.get("serial"))
    await psu.set_voltage("high")
"""


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[int, str]]:
    """What mypy says of each file: line → message."""
    api = pytest.importorskip("mypy.api")
    folder = tmp_path_factory.mktemp("types")
    files = {
        "inst_0.py": stub_text(DESCRIPTION, module="inst_0"),
        "inst_0_async.py": stub_text(DESCRIPTION, module="inst_0_async", is_async=True),
        "other/inst_1.pyi": stub_text(DESCRIPTION, module="inst_0", is_async=True, for_pyi=True),
        "script.py": SCRIPT,
        "script_async.py": ASYNC_SCRIPT,
    }
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    with pytest.MonkeyPatch.context() as environ:
        environ.setenv("MYPYPATH", str(Path(labmesh.__file__).parents[1]))
        environ.chdir(folder)
        out, err, _ = api.run(
            [
                "--strict",
                "--follow-imports=silent",
                "--config-file=",
                "--hide-error-context",
                *files,
            ]
        )
    assert not err
    found: dict[str, dict[int, str]] = {name: {} for name in files}
    for name, line, text in re.findall(r"^(\S+?):(\d+): (.*)$", out, flags=re.MULTILINE):
        found[name].setdefault(int(line), text)
    return found


def test_the_classes_themselves_are_without_fault(said: dict[str, dict[int, str]]) -> None:
    assert said["inst_0.py"] == {}
    assert said["inst_0_async.py"] == {}
    assert said["other/inst_1.pyi"] == {}


def test_a_script_is_checked_against_the_driver(said: dict[str, dict[int, str]]) -> None:
    found = said["script.py"]
    assert sorted(found) == [11, 12, 13, 14, 15, 16]
    assert '"list[Any]"' in found[11].replace("builtins.", "")
    assert '"str"' in found[12].replace("builtins.", "")
    assert 'incompatible type "str"; expected "float"' in found[13]
    assert "Incompatible types in assignment" in found[14]
    assert "read-only" in found[15]
    assert "Literal['K']" in found[16]


def test_an_async_script_as_well(said: dict[str, dict[int, str]]) -> None:
    found = said["script_async.py"]
    assert sorted(found) == [10, 11]
    assert '"str"' in found[10].replace("builtins.", "")
    assert 'expected "float"' in found[11]
