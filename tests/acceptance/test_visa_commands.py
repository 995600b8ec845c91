"""What the example with PyVISA and its how-to tell people to type, typed."""

from __future__ import annotations

import ast
import asyncio
import json
import re
import shlex
import textwrap
from pathlib import Path

import numpy as np
import pytest
from tests.support.oscilloscope import EXAMPLES, read_directly
from tests.support.processes import Start, free_ports, program

from labmesh import DirectorClientAgent
from labmesh.config import load_config
from labmesh.instruments.loading import load_driver

LIMIT_S = 20.0
DOCUMENTS = [EXAMPLES / "visa_oscilloscope.py", EXAMPLES.parent / "docs" / "howto-visa.md"]
EACH = pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)


@EACH
def test_the_table_of_the_documents(
    document: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = re.search(r"^ *\[\[relays\]\]\n(?: *\w+ = .*\n)+", text_of(document), re.M)
    assert table is not None
    toml = tmp_path / "labmesh.toml"
    toml.write_text(textwrap.dedent(table[0]), encoding="utf-8")
    [entry] = load_config(toml).relays
    monkeypatch.chdir(EXAMPLES)
    monkeypatch.syspath_prepend(EXAMPLES)
    driver = load_driver(entry.driver, entry.args, entry.kwargs)
    assert "SIMULATED" in driver.identity()  # type: ignore[attr-defined]


@EACH
@pytest.mark.parametrize("command", ["python visa_oscilloscope.py", "labmesh relay"])
async def test_the_commands_of_the_documents(
    document: Path, command: str, start: Start, tmp_path: Path
) -> None:
    """Beside a broker, each in its own process, in the example's folder."""
    rpc, xsub, xpub = (f"tcp://127.0.0.1:{port}" for port in free_ports(3))
    options = {"kind": "broker", "rpc_bind": rpc, "xsub_bind": xsub, "xpub_bind": xpub}
    start([program("nodes.py"), json.dumps([options])], cwd=tmp_path).wait_for("^ready", LIMIT_S)
    words = words_of(document, command)
    if command == "labmesh relay":
        words = ["-m", *words, "--broker", rpc, "--bind", "tcp://127.0.0.1:*"]
    else:
        words = [*words[1:], "--broker-rpc", rpc, "--broker-xsub", xsub]
    relay = start(words, cwd=EXAMPLES)
    async with asyncio.timeout(LIMIT_S), DirectorClientAgent(broker_rpc=rpc) as client:
        scope = await client.get_relay_agent("scope-1", wait=LIMIT_S)
        np.testing.assert_array_equal(await scope.waveform(2), read_directly("WAV2:ASC?"))
    relay.terminate()
    assert await asyncio.to_thread(relay.wait_end, 5.0) == 0


def text_of(document: Path) -> str:
    """A document, or the docstring of a program."""
    text = document.read_text(encoding="utf-8")
    return (ast.get_docstring(ast.parse(text)) or "") if document.suffix == ".py" else text


def words_of(document: Path, command: str) -> list[str]:
    """The first command of the text that begins so, as a shell reads it."""
    found = re.search(rf"{command} (?:.*\\\n)*.*", text_of(document))
    assert found is not None
    return shlex.split(found[0].replace("\\\n", " "))
