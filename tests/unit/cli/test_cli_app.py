"""The commands: their help, their examples, wrong usage, completion."""

from __future__ import annotations

import logging
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import labmesh
from labmesh.cli import main
from labmesh.cli.app import app
from labmesh.cli.outcomes import EXIT_CODES, NO_ANSWER

Captured = pytest.CaptureFixture[str]

COMMANDS = [
    "audit show",
    "audit verify",
    "bank",
    "broker",
    "call",
    "data export",
    "data get",
    "data history",
    "data import",
    "data ls",
    "data note",
    "data put",
    "data restore",
    "data rm",
    "data search",
    "data show",
    "data tag",
    "data trash",
    "data verify",
    "demo",
    "doctor",
    "get",
    "init",
    "keys check",
    "keys init",
    "keys invite",
    "keys join",
    "keys list",
    "keys new",
    "keys revoke",
    "keys rotate",
    "keys show",
    "log",
    "ls",
    "password new",
    "relay",
    "set",
    "show",
    "stubs",
    "up",
    "watch",
]
NODES = {"bank", "broker", "relay", "up"}
GROUPS = {"audit", "data", "keys", "password"}


def registered() -> Iterator[str]:
    for name in app:
        if name in GROUPS:
            yield from (f"{name} {each}" for each in app[name] if not each.startswith("-"))
        elif not name.startswith("-"):
            yield name


def test_the_list_here_is_complete() -> None:
    assert sorted(registered()) == COMMANDS


def helped(command: str, capsys: Captured) -> str:
    assert main([*command.split(), "--help"]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    return captured.out


@pytest.fixture
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    """No line of the help is folded."""
    monkeypatch.setenv("COLUMNS", "250")


@pytest.mark.usefixtures("wide")
@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_examples_and_says_what_each_option_is(command: str, capsys: Captured) -> None:
    text = helped(command, capsys)
    assert "--json" in text
    assert "--quiet" in text
    for line in text.splitlines():
        if "--" in line and line.startswith("│"):
            described = line.strip("│ ").split("  ", 1)
            assert len(described) == 2, f"an option without a word about it: {line}"
    examples = [each.strip() for each in text.splitlines() if each.startswith("    ")]
    mine = [each for each in examples if f"labmesh {command}" in each]
    assert mine, "no example"
    for example in mine:
        assert len(example) <= 76, f"a terminal of 80 columns folds it: {example}"
        words = shlex.split(example.split(f"labmesh {command}")[1].partition(" | ")[0])
        _, bound, _ = app.parse_args(
            [*command.split(), *words], exit_on_error=False, print_error=False
        )
        assert bound.arguments or not words


def test_the_first_help_has_every_command_and_exit_code(capsys: Captured) -> None:
    assert main([]) == 0
    text = " ".join(capsys.readouterr().out.split())
    for command in COMMANDS:
        assert f" {command.split()[0]} " in text
    for code, meaning in EXIT_CODES.items():
        assert f"{code} {meaning}" in text


def test_version(capsys: Captured) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"{labmesh.__version__}\n"


@pytest.mark.parametrize(
    ("words", "text", "advice"),
    [
        ("lss", "lss", "'labmesh --help'"),
        ("ls --jsn", "--jsn", "'labmesh ls --help'"),
        ("call Inst-0", "METHOD", "'labmesh call --help'"),
        ("data show", "DATASET", "'labmesh data show --help'"),
        ("watch --count many", "many", "'labmesh watch --help'"),
        ("watch --only dogs", "dogs", "'labmesh watch --help'"),
    ],
)
def test_wrong_usage(words: str, text: str, advice: str, capsys: Captured) -> None:
    assert main(words.split()) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    first, second = captured.err.splitlines()
    assert first.startswith("error: ")
    assert text in first
    assert second == f"  try: see {advice}"


@pytest.mark.parametrize(
    "words",
    [
        "ls --timeout 0",
        "ls --timeout nan",
        "watch --count 0",
        "data ls --limit 0",
        "data search --limit 0",
        "data get",
        "data get a b --since 2h",
        "data get --all a b",
        "data verify",
        "data verify a --all",
        "data tag a",
        "data rm",
        "relay",
        "relay --id unknown",
        "relay no_such_module:Class",
        "relay labmesh.instruments.simulated:PowerSupply --poll 0",
        "relay labmesh.instruments.simulated:PowerSupply --kwarg max_voltage=high",
        "relay labmesh.instruments.simulated:PowerSupply --kwarg 5",
        "relay labmesh.instruments.simulated:PowerSupply --arg 1",
        "relay labmesh.instruments.simulated:PowerSupply --bind 5850",
        "relay labmesh.instruments.simulated:PowerSupply --id ..",
        "bank --heartbeat-seconds 0",
        "bank --id ..",
        "broker --ttl-seconds -1",
        "broker --rpc-bind localhost",
        "up missing.toml",
        "ls --config missing.toml",
        "ls --broker udp://lab-pc",
        "ls --ask-password",
    ],
)
def test_what_cannot_be_used_is_said_in_a_line_with_the_way_out(
    words: str, capsys: Captured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LMH_NETWORK_PASSWORD", raising=False)
    assert main(words.split()) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    first, second = captured.err.splitlines()
    assert first.startswith("error: ")
    assert second.startswith("  try: ")


def test_completion_knows_commands_and_options(tmp_path: Path) -> None:
    script = app.generate_completion(shell="bash")
    for command in COMMANDS:
        assert command.split()[-1] in script
    assert "--free-ports" in script
    path = tmp_path / "completion.bash"
    path.write_text(script)
    assert subprocess.run(["bash", "-n", path], check=False).returncode == 0


def test_completion_is_installed_where_it_is_wanted(tmp_path: Path) -> None:
    target = tmp_path / "labmesh.bash"
    assert main(["--install-completion", "--shell", "bash", "--output", str(target)]) == 0
    assert "labmesh" in target.read_text()


def test_a_word_too_many_is_named(capsys: Captured) -> None:
    assert main(["ls", "extra"]) == 2
    assert "nothing takes 'extra' here" in capsys.readouterr().err


def test_a_program_that_runs_a_command_has_its_own_log_afterwards(capsys: Captured) -> None:
    root = logging.getLogger()
    before = (root.level, list(root.handlers))
    words = ["ls", "--broker", "127.0.0.1:9", "--timeout", "0.1", "-vv"]
    assert main(words) == NO_ANSWER
    assert "DEBUG" in capsys.readouterr().err
    assert (root.level, list(root.handlers)) == before


@pytest.mark.parametrize(
    ("words", "closed", "exit_code"),
    [
        (["--help"], "stdout", 0),
        (["call", "x", "y", "a=1", "a=2"], "stderr", 2),
    ],
)
def test_the_exit_code_holds_when_nobody_reads(
    words: list[str], closed: str, exit_code: int
) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    streams = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, closed: writing}
    ended = subprocess.run([sys.executable, "-m", "labmesh", *words], **streams, check=False)  # type: ignore[call-overload]
    os.close(writing)
    assert ended.returncode == exit_code


def test_sigterm_ends_the_demo_without_a_trace(tmp_path: Path) -> None:
    here = {**os.environ, "TMPDIR": str(tmp_path), "TEMP": str(tmp_path), "TMP": str(tmp_path)}
    words = [sys.executable, "-m", "labmesh", "demo"]
    with subprocess.Popen(words, env=here, stdout=subprocess.PIPE, text=True) as demo:
        assert demo.stdout is not None
        for line in demo.stdout:
            if "start a broker" in line:
                demo.terminate()
                break
        demo.communicate(timeout=20)
    assert demo.returncode == 130
    assert list(tmp_path.iterdir()) == []
