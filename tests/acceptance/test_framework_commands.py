"""What the examples with PyMeasure and QCoDeS, and their how-to, tell people to type, typed."""

from __future__ import annotations

import ast
import asyncio
import json
import re
import shlex
import textwrap
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from tests.support.processes import Start, free_ports, program

from labmesh import DirectorClientAgent, RelayClient
from labmesh.config import RelayEntry, load_config
from labmesh.instruments.loading import load_driver

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
HOWTO = ROOT / "docs" / "howto-pymeasure-qcodes.md"
LIMIT_S = 30.0


def installed(package: str, relay_id: str) -> object:
    missing = pytest.mark.skipif(
        find_spec(package) is None, reason=f"pip install labmesh[{package}]"
    )
    return pytest.param(package, relay_id, marks=missing)


EACH = pytest.mark.parametrize(
    ("package", "relay_id"), [installed("pymeasure", "fake-1"), installed("qcodes", "dac-1")]
)


def entries_of(document: Path, tmp_path: Path) -> dict[str, RelayEntry]:
    """The ``[[relays]]`` tables that a document shows."""
    tables = re.findall(r"^ *\[\[relays\]\]\n(?: *\w+ = .*\n)+", text_of(document), re.M)
    toml = tmp_path / "labmesh.toml"
    toml.write_text("\n".join(map(textwrap.dedent, tables)), encoding="utf-8")
    return {entry.id: entry for entry in load_config(toml).relays}


@EACH
def test_the_tables_of_the_documents_agree_and_make_the_instrument(
    package: str, relay_id: str, tmp_path: Path
) -> None:
    example = entries_of(EXAMPLES / f"{package}_instrument.py", tmp_path)
    assert list(example) == [relay_id]
    entry = example[relay_id]
    assert entries_of(HOWTO, tmp_path)[relay_id] == entry
    driver = load_driver(entry.driver, entry.args, entry.kwargs)
    assert type(driver).__module__.startswith(package)
    if package == "qcodes":
        driver.close()  # type: ignore[attr-defined]


@EACH
@pytest.mark.parametrize("command", ["python {}_instrument.py", "labmesh relay"])
async def test_the_commands_of_the_examples(
    package: str, relay_id: str, command: str, start: Start, tmp_path: Path
) -> None:
    """Beside a broker, each in its own process: the values of the instrument, from here."""
    rpc, xsub, xpub = (f"tcp://127.0.0.1:{port}" for port in free_ports(3))
    options = {"kind": "broker", "rpc_bind": rpc, "xsub_bind": xsub, "xpub_bind": xpub}
    start([program("nodes.py"), json.dumps([options])], cwd=tmp_path).wait_for("^ready", LIMIT_S)
    words = words_of(EXAMPLES / f"{package}_instrument.py", command.format(package))
    if command == "labmesh relay":
        words = ["-m", *words, "--broker", rpc, "--bind", "tcp://127.0.0.1:*"]
    else:
        words = [*words[1:], "--broker-rpc", rpc, "--broker-xsub", xsub]
    relay = start(words, cwd=EXAMPLES)
    async with asyncio.timeout(LIMIT_S), DirectorClientAgent(broker_rpc=rpc) as client:
        instrument = await client.get_relay_agent(relay_id, wait=LIMIT_S)
        await (fake_works if package == "pymeasure" else dac_works)(instrument)
    relay.terminate()
    assert await asyncio.to_thread(relay.wait_end, 5.0) == 0


async def fake_works(fake: RelayClient) -> None:
    await fake.set("output_voltage", 2.5)
    assert await fake.get("output_voltage") == 2.5
    frame = await fake.get("frame")
    assert (frame.shape, frame.dtype) == ((1080, 1920), np.uint8)
    values = {each.name: each for each in (await fake.describe()).values}
    assert values["output_voltage"].settable
    assert not values["voltage"].settable
    assert values["frame_width"].doc == "Control frame width in pixels."


async def dac_works(dac: RelayClient) -> None:
    await dac.set("ch01.voltage", 1.5)
    assert await dac.get("ch01.voltage") == 1.5
    assert await dac.get("ch02.voltage") == 0
    with pytest.raises(ValueError, match=r"3 is invalid: must be between -2\.0 and 2\.0"):
        await dac.set("ch01.voltage", 3)
    values = {each.name: each for each in (await dac.describe()).values}
    limits = values["ch02.voltage"].limits
    assert (limits.unit, limits.lowest, limits.highest) == ("V", -2, 2)
    assert values["ch01.gnd"].limits.choices == ["'on'", "'off'"]


def text_of(document: Path) -> str:
    """A document, or the docstring of a program."""
    text = document.read_text(encoding="utf-8")
    return (ast.get_docstring(ast.parse(text)) or "") if document.suffix == ".py" else text


def words_of(document: Path, command: str) -> list[str]:
    """The first command of the text that begins so, as a shell reads it."""
    found = re.search(rf"{re.escape(command)}(?:.*\\\n)*.*", text_of(document))
    assert found is not None
    return shlex.split(found[0].replace("\\\n", " "))
