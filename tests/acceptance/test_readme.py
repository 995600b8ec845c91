"""What the README tells people to type, typed."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping
from pathlib import Path

import pytest
from tests.support.processes import Process, Start, free_ports, program
from tests.support.readme import ROOT, block, blocks

from labmesh.cli import main

LIMIT_S = 20.0
LABMESH = ["-m", "labmesh"]
DOCUMENTS = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")]
DOCUMENTS += sorted((ROOT / "docs").rglob("*.md"))
#: Each is run by a test here, or, as a whole, by the continuous integration.
MARKS = [
    "command: demo",
    "command: test",
    "up",
    "commands",
    "run",
    "file: my_lab.py",
    "file: labmesh.toml",
    "commands in my_lab",
    "run with moved ports",
    "password",
]


def test_every_block_of_code_has_a_mark_by_which_it_is_run() -> None:
    assert [each.mark for each in blocks()] == MARKS


class Mesh:
    """``labmesh up`` of the README, at free ports."""

    def __init__(self, start: Start, folder: Path, environ: Mapping[str, str] | None = None):
        self._start, self._folder = start, folder
        self._environ = dict(environ or {})
        command = [*LABMESH, "up", "--free-ports", "--json"]
        self.process = start(command, cwd=folder, environ=self._environ)
        ready = json.loads(self.process.wait_for('"event":"ready"', LIMIT_S).string)
        self.address = ready["broker"]["rpc"].removeprefix("tcp://")
        self._environ["LMH_BROKER"] = self.address

    def python(self, text: str) -> Process:
        """Run a program of the README; it must end well."""
        path = self._folder / "snippet.py"
        path.write_text(text, encoding="utf-8")
        return self._run([path])

    def command(self, line: str) -> Process:
        """Run a command of the README; it must end well."""
        words = shlex.split(line)
        assert words[0] == "labmesh"
        return self._run([*LABMESH, *words[1:]])

    def _run(self, arguments: list[str | Path]) -> Process:
        process = self._start(arguments, cwd=self._folder, environ=self._environ)
        assert process.wait_end(LIMIT_S) == 0, process.tail()
        assert "Traceback" not in process.errors
        return process


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where a reader sits: with some result of a measurement, and without a labmesh.toml."""
    (tmp_path / "scan.csv").write_text("1,2\n3,4\n")
    return tmp_path


def test_the_first_network(start: Start, folder: Path) -> None:
    assert block("up").commands == ["labmesh up"]
    mesh = Mesh(start, folder)
    outputs = {line.split()[1]: mesh.command(line).output for line in block("commands").commands}
    assert "Inst-0" in outputs["ls"]
    assert "set_voltage" in outputs["show"]
    assert len(outputs["watch"].splitlines()) == 3
    assert "scan.csv" in outputs["data"]


def test_the_script(start: Start, folder: Path) -> None:
    output = Mesh(start, folder).python(block("run").text).output
    assert "3 relays" in output
    assert "{'voltages': [2.5, 2.6]}" in output
    assert "1000" in output.splitlines()[-1]


def test_your_own_instrument(start: Start, folder: Path) -> None:
    for name in ("my_lab.py", "labmesh.toml"):
        (folder / name).write_text(block(f"file: {name}").text, encoding="utf-8")
    mesh = Mesh(start, folder)
    call, watch = (mesh.command(each) for each in block("commands in my_lab").commands)
    assert call.output == "0.5"
    assert "port=COM3" in watch.output


def test_the_four_nodes(start: Start, folder: Path) -> None:
    text = block("run with moved ports").text
    (folder / "snippet.py").write_text(text, encoding="utf-8")
    usual = ["5750", "5751", "5752", "5761", "5762"]
    ports = json.dumps(dict(zip(usual, free_ports(len(usual)), strict=True)))
    process = start([program("moved_ports.py"), ports, "snippet.py"], cwd=folder)
    assert process.wait_end(LIMIT_S) == 0, process.tail()
    assert process.output.startswith("295.15\n296.15\n")
    assert (folder / "result.bin").read_bytes() == b"..." * 1000


def test_the_password(start: Start, folder: Path) -> None:
    export, up, ls = block("password").commands
    name, word = re.fullmatch(r"export (\w+)='(.*)'", export).groups()  # type: ignore[union-attr]
    assert up == "labmesh up"
    mesh = Mesh(start, folder, {name: word})
    assert "Inst-0" in mesh.command(ls.replace("lab-pc", mesh.address)).output
    stranger = start(
        [*LABMESH, "ls", "--broker", mesh.address], cwd=folder, environ={name: "another word"}
    )
    assert stranger.wait_end(LIMIT_S) == 4
    assert "password" in stranger.errors


@pytest.mark.parametrize("command", ["init", "relay", "doctor"])
def test_commands_that_the_text_names_exist(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert f"labmesh {command}" in (ROOT / "README.md").read_text(encoding="utf-8")
    assert main([command, "--help"]) == 0
    assert f"labmesh {command}" in capsys.readouterr().out


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(document: Path) -> None:
    text = re.sub(r"^```.*?^```$", "", document.read_text(encoding="utf-8"), flags=re.M | re.S)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith("https://"):
            continue
        path, _, anchor = target.partition("#")
        found = (document.parent / path) if path else document
        assert found.exists(), f"{target} of {document.name}"
        if anchor:
            assert anchor in anchors(found), f"{target} of {document.name}"


def anchors(document: Path) -> set[str]:
    """The names by which headings can be reached, as code hosts make them."""
    headings = re.findall(r"^#+ (.*)$", document.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w\- ]", "", each.lower()).replace(" ", "-") for each in headings}
