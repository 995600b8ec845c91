"""The commands about datasets, and the how-to that shows them, with a mesh in a process beside."""

from __future__ import annotations

import io
import json
import os
import re
import shlex
import signal
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.support.processes import Process
from tests.support.readme import ROOT

import labmesh
from labmesh.cli import main

LIMIT_S = 20.0
HOWTO = (ROOT / "docs" / "howto-datasets.md").read_text(encoding="utf-8")

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("mesh")
    command = ["-m", "labmesh", "up", "--free-ports", "--json"]
    with Process(command, cwd=folder) as process:
        ready = json.loads(process.wait_for('"event":"ready"', LIMIT_S).string)
        yield str(ready["broker"]["rpc"])
        process.interrupt()
        assert process.wait_end(LIMIT_S) == 0, process.tail()


@pytest.fixture
def command(
    broker: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> Command:
    """Runs a command in this process; exit code, stdout, stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LMH_BROKER", broker)

    def run(*words: str) -> tuple[int, str, str]:
        exit_code = main(list(words))
        captured = capfd.readouterr()
        return exit_code, captured.out, captured.err

    return run


def objects(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_the_commands_of_the_how_to(command: Command, tmp_path: Path) -> None:
    np.save(tmp_path / "scan.npy", np.arange(1000.0))
    (block,) = re.findall(r"<!-- commands -->\n```console\n(.*?)```", HOWTO, re.S)
    told: dict[str, str] = {}
    for line in block.splitlines():
        words = shlex.split(line.removeprefix("$ "))
        assert words[:2] == ["labmesh", "data"]
        exit_code, out, err = command(*words[1:])
        assert exit_code == 0, (line, err)
        told.setdefault(words[2], out)
    assert told["put"] == "scan-42\n"
    assert re.search(r"^scan-42 +scan.npy +8.1 kB +npy .* raw$", told["search"], re.M)
    shown = told["show"]
    assert "tags     raw" in shown
    assert "origin   user = " in shown
    assert re.search(r"^Inst-0 +set_voltage +0", shown, re.M)
    assert told["tag"] == "good\n"
    assert "+good" in told["history"]
    assert "the contact was loose" in told["history"]
    np.testing.assert_array_equal(np.load(tmp_path / "copy.npy"), np.arange(1000.0))
    np.testing.assert_array_equal(np.load(tmp_path / "scan-42.npy"), np.arange(1000.0))
    assert "scan-42  as it was stored" in told["verify"]
    assert told["export"] == "scan-42  exported\n"
    assert "wrong sample" in told["trash"]
    assert told["restore"] == "scan-42\n"
    assert told["import"] == "scan-42  already there\n"


def test_the_python_of_the_how_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"<!-- run -->\n```python\n(.*?)```", HOWTO, re.S)
    assert len(blocks) == HOWTO.count("```python")
    printed: list[str] = []
    with labmesh.demo() as mesh:
        for _ in mesh["Inst-0"].watch():
            break  # its state is known now
        names: dict[str, Any] = {
            "mesh": mesh,
            "print": lambda *words: printed.append(" ".join(map(str, words))),
        }
        for block in blocks:
            exec(compile(block, "howto-datasets.md", "exec"), names)
        assert names["bank"].trash() == []
    text = "\n".join(printed)
    assert "settings at its start:" in text
    assert "the contact was loose" in text
    assert "wrong model" in text
    assert "1 0 {}" in text
    assert (tmp_path / "for-anna" / "SHA256SUMS").exists()


def test_programs_get_one_object_a_line(command: Command, tmp_path: Path) -> None:
    for number in range(3):
        (tmp_path / f"{number}.txt").write_text(f"{number}")
        words = ["data", "put", f"{number}.txt", "--id", f"json-{number}", "--meta", "set=json"]
        _, out, err = command(*words, "--json")
        (record,) = objects(out)
        assert (record["kind"], record["meta"], err) == ("text", {"set": "json"}, "")
    chosen = ["--where", "set=json", "--json"]
    _, out, _ = command("data", "search", "set=json", "--json", "--sort=-name", "--limit", "2")
    assert [each["name"] for each in objects(out)] == ["2.txt", "1.txt"]
    _, out, _ = command("data", "get", "--all", str(tmp_path / "."), *chosen)
    assert [Path(each["path"]).name for each in objects(out)] == [
        "json-2.txt",
        "json-1.txt",
        "json-0.txt",
    ]
    _, out, _ = command("data", "verify", "--all", *chosen)
    assert all(each["verified"] for each in objects(out))
    _, out, _ = command("data", "export", "out", *chosen)
    assert {each["became"] for each in objects(out)} == {"exported"}
    _, out, _ = command("data", "note", "json-1", "seen", "--json")
    assert objects(out)[0]["dataset_id"] == "json-1"
    _, out, _ = command("data", "history", "json-1", "--json")
    assert objects(out)[0]["note"] == "seen"
    _, out, _ = command("data", "rm", "json-1", "--json")
    assert objects(out) == [{"deleted": "json-1", "bank_id": "bank-0"}]
    _, out, _ = command("data", "trash", "--json")
    assert "json-1" in [each["record"]["dataset_id"] for each in objects(out)]
    _, out, _ = command("data", "restore", "json-1", "--json")
    assert objects(out)[0]["dataset_id"] == "json-1"
    _, out, _ = command("data", "show", "json-1", "--json")
    assert objects(out)[0]["provenance"]["program"] == sys.argv[0]


def test_several_are_fetched_and_one_that_fails_does_not_stop_the_others(
    command: Command, tmp_path: Path
) -> None:
    (tmp_path / "a.csv").write_text("1\n")
    for name in ("many-1", "many-2"):
        assert command("data", "put", "a.csv", "--id", name)[0] == 0
    (tmp_path / "into").mkdir()
    exit_code, out, err = command("data", "get", "many-1", "no-such", "many-2", "into")
    assert exit_code == 3
    assert out.split() == [str(Path("into", "many-1.csv")), str(Path("into", "many-2.csv"))]
    assert "no-such: no dataset 'no-such' in bank-0" in err
    (tmp_path / "into" / "many-2.csv").write_text("changed")
    exit_code, _, err = command("data", "get", "many-1", "many-2", "into/")
    assert exit_code == 4
    assert "many-1.csv is there already, verified" in err
    assert "many-2: into/many-2.csv exists with other content; --force" in err
    assert command("data", "get", "many-1", "many-2", "into/", "--force")[0] == 0
    assert (tmp_path / "into" / "many-2.csv").read_text() == "1\n"


class Interrupting(io.RawIOBase):
    """A source at which somebody presses Ctrl-C."""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        os.kill(os.getpid(), signal.SIGINT)
        return len(buffer)


def test_whoever_interrupts_is_told_what_continues(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BufferedReader(Interrupting())))
    exit_code, out, err = command("data", "put", "-", "--id", "interrupted")
    assert (exit_code, out) == (130, "")
    assert "interrupted; nothing is kept" in err
    assert "the same command begins it again" in err
    assert command("data", "show", "interrupted")[0] == 3


def test_what_is_printed_is_not_held_in_memory(
    command: Command, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    text = "0123456789abcde\n" * 4_000_000
    (tmp_path / "long.txt").write_text(text)
    assert command("data", "put", "long.txt", "--id", "long")[0] == 0
    tracemalloc.start()
    try:
        assert main(["data", "get", "long", "-"]) == 0
        _, held = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert capfd.readouterr().out == text
    assert held < len(text) / 2


@pytest.mark.parametrize(
    ("words", "exit_code", "text"),
    [
        ("data search 'size<'", 2, "size"),
        ("data search --since soon", 2, "is no time"),
        ("data search --sort age", 2, "datasets are not sorted by"),
        ("data search no-such-word", 0, "Nothing meets these conditions"),
        ("data show no-such", 3, "no dataset 'no-such'"),
        ("data tag no-such good", 3, "no dataset 'no-such'"),
        ("data note no-such text", 3, "no dataset 'no-such'"),
        ("data history no-such", 3, "no dataset 'no-such'"),
        ("data rm no-such", 3, "no dataset 'no-such'"),
        ("data verify no-such", 3, "no dataset 'no-such'"),
        ("data restore no-such", 3, "is in the trash"),
        ("data export out no-such", 3, "no-such"),
        ("data import no-such", 3, "no-such"),
        ("data get --all no-such-folder", 3, "no such folder"),
        ("data put no-such-file --kind text", 3, "no-such-file"),
    ],
)
def test_what_goes_wrong_is_said_with_its_code(
    words: str, exit_code: int, text: str, command: Command
) -> None:
    ended, out, err = command(*shlex.split(words))
    assert (ended, out) == (exit_code, "")
    assert text in err
    assert "Traceback" not in err


def test_a_name_does_not_steer_the_terminal(command: Command, tmp_path: Path) -> None:
    (tmp_path / "x").write_text("x")
    meta = "note=\x1b[31mred"
    assert command("data", "put", "x", "--id", "red", "--name", "\x1b[2J", "--meta", meta)[0] == 0
    for words in (["ls"], ["show", "red"], ["search", "red"], ["export", "out", "red"]):
        _, out, err = command("data", *words)
        assert "\x1b" not in out + err
    assert os.listdir(tmp_path / "out" / "red")
