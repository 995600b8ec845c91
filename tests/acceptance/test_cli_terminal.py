"""What commands do at a terminal, and only there: colour, progress, asking for the password."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.processes import Process, Start

if sys.platform == "win32":
    pytest.skip("this system has no such terminals", allow_module_level=True)

from tests.support.terminal import Terminal

LABMESH = ["-m", "labmesh"]
LIMIT_S = 20.0
PASSWORD = "correct horse battery"
DOCTOR = [*LABMESH, "doctor", "--broker", "127.0.0.1:1", "--timeout", "0.2"]
COLOUR = r"\x1b\[[0-9;]*3[0-9]m"


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The broker's address of a mesh with a password."""
    words = [*LABMESH, "up", "--free-ports", "--json"]
    folder = tmp_path_factory.mktemp("mesh")
    with Process(words, cwd=folder, environ={"LMH_NETWORK_PASSWORD": PASSWORD}) as process:
        told = json.loads(process.wait_for('"event":"ready"', LIMIT_S).string)
        yield told["broker"]["rpc"]


def test_colour_at_a_terminal(tmp_path: Path) -> None:
    with Terminal(DOCTOR, cwd=tmp_path) as terminal:
        assert terminal.wait_end(LIMIT_S) == 1
        assert terminal.shows(COLOUR)


def test_no_colour_where_it_is_not_wanted(tmp_path: Path) -> None:
    with Terminal(DOCTOR, cwd=tmp_path, environ={"NO_COLOR": "1"}) as terminal:
        assert terminal.wait_end(LIMIT_S) == 1
        assert not terminal.shows(COLOUR)


def test_no_colour_in_a_pipe(start: Start, tmp_path: Path) -> None:
    process = start(DOCTOR, cwd=tmp_path, environ={"FORCE_COLOR": "1"})
    assert process.wait_end(LIMIT_S) == 1
    assert "\x1b" not in process.output + process.errors


def test_a_transfer_that_lasts_shows_its_progress(mesh: str, tmp_path: Path) -> None:
    environ = {"LMH_BROKER": mesh, "LMH_NETWORK_PASSWORD": PASSWORD}
    words = [*LABMESH, "data", "put", "-", "--name", "long"]
    with Terminal(words, cwd=tmp_path, environ=environ, piped=True) as terminal:
        pieces = 0
        while not terminal.shows("to bank-0"):
            assert pieces < 100_000, terminal.text
            terminal.feed(bytes(10_000))
            pieces += 1
        terminal.end_of_input()
        assert terminal.wait_end(LIMIT_S) == 0
        assert terminal.shows(r"stored in bank-0, verified")


def test_a_quick_transfer_shows_no_bar(mesh: str, tmp_path: Path) -> None:
    environ = {"LMH_BROKER": mesh, "LMH_NETWORK_PASSWORD": PASSWORD}
    (tmp_path / "scan.csv").write_text("1,2\n")
    with Terminal([*LABMESH, "data", "put", "scan.csv"], cwd=tmp_path, environ=environ) as terminal:
        assert terminal.wait_end(LIMIT_S) == 0
        assert terminal.shows("stored in bank-0")
        assert not terminal.shows("to bank-0")


@pytest.mark.parametrize(("typed", "exit_code"), [(PASSWORD, 0), ("another word", 4)])
def test_the_password_is_asked_for(mesh: str, tmp_path: Path, typed: str, exit_code: int) -> None:
    words = [*LABMESH, "ls", "--ask-password", "--broker", mesh]
    with Terminal(words, cwd=tmp_path) as terminal:
        terminal.wait_for("Network password", LIMIT_S)
        terminal.type(typed)
        assert terminal.wait_end(LIMIT_S) == exit_code
        assert terminal.shows("Inst-0") is (exit_code == 0)
        assert not terminal.shows(typed), "it is not shown"


def test_without_a_terminal_nobody_is_asked(start: Start, mesh: str, tmp_path: Path) -> None:
    process = start([*LABMESH, "ls", "--ask-password", "--broker", mesh], cwd=tmp_path)
    assert process.wait_end(LIMIT_S) == 2
    assert "LMH_NETWORK_PASSWORD" in process.errors


def test_a_mesh_with_a_password_says_what_is_missing(
    start: Start, mesh: str, tmp_path: Path
) -> None:
    process = start([*LABMESH, "ls", "--broker", mesh], cwd=tmp_path)
    assert process.wait_end(LIMIT_S) in (4, 5)
    assert "LMH_NETWORK_PASSWORD" in process.errors
