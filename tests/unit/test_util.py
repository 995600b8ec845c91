"""The file's tables as plain dicts, and the password prompt on a real terminal."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TextIO

import pytest

import labmesh
from labmesh.errors import ConfigError
from labmesh.util import prompt_network_password, read_toml_config

PASSWORD = "LMH_NETWORK_PASSWORD"
SOURCE = str(Path(labmesh.__file__).parents[1])

# ── read_toml_config ────────────────────────────────────────────────────────────────────────────


def test_tables_are_plain_dicts_as_the_file_has_them(tmp_path: Path) -> None:
    path = tmp_path / "my.toml"
    path.write_text('[broker]\naddress = "10.0.0.1"\nttl_seconds = -3\n[mine]\nx = [1, 2.5]\n')
    expected = {"broker": {"address": "10.0.0.1", "ttl_seconds": -3}, "mine": {"x": [1, 2.5]}}
    assert read_toml_config(str(path)) == expected
    assert read_toml_config(path) == expected


def test_nothing_is_added_to_an_empty_file(tmp_path: Path) -> None:
    path = tmp_path / "empty.toml"
    path.write_bytes(b"")
    assert read_toml_config(path) == {}


def test_a_missing_file_is_named_with_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as error:
        read_toml_config("conf/labmesh.toml")
    line = str(error.value)
    assert line.startswith(
        f"{Path('conf/labmesh.toml')}: no such file (the current folder is {tmp_path})"
    )
    assert line.isprintable()


def test_what_is_not_toml_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "bad.toml"
    path.write_text("[broker\n")
    with pytest.raises(ConfigError) as error:
        read_toml_config(path)
    assert str(error.value).startswith(f"{path}: not valid TOML: ")
    assert str(error.value).isprintable()


# ── the password: nobody is asked ───────────────────────────────────────────────────────────────


@pytest.fixture
def no_password(monkeypatch: pytest.MonkeyPatch) -> None:
    # What the prompt stores is taken back after the test, also where nothing was set before.
    monkeypatch.setenv(PASSWORD, "")
    monkeypatch.delenv(PASSWORD)


def must_not_ask(prompt: str) -> str:
    raise AssertionError(f"asked: {prompt}")


@pytest.mark.parametrize("value", ["correct horse battery", ""])
@pytest.mark.parametrize("confirm", [False, True])
def test_a_set_variable_is_the_answer(
    value: str, confirm: bool, terminal: TextIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("labmesh.util.getpass", must_not_ask)
    monkeypatch.setenv(PASSWORD, value)
    assert prompt_network_password(confirm) == value
    assert os.environ[PASSWORD] == value


def closed() -> TextIO:
    stream = io.StringIO()
    stream.close()
    return stream


@pytest.mark.parametrize("make_stdin", [lambda: None, closed, io.StringIO])
@pytest.mark.usefixtures("no_password")
def test_without_a_terminal_nobody_is_asked(
    make_stdin: Callable[[], TextIO | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("labmesh.util.getpass", must_not_ask)
    monkeypatch.setattr(sys, "stdin", make_stdin())
    assert prompt_network_password() is None
    assert prompt_network_password(confirm=True) is None
    assert PASSWORD not in os.environ


# ── the password: which questions follow which answers ──────────────────────────────────────────


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[TextIO]:
    """Standard input is a terminal."""
    pty = pytest.importorskip("pty", reason="pseudo terminals exist on Unix only")
    master, slave = pty.openpty()
    with os.fdopen(slave) as stream:
        monkeypatch.setattr(sys, "stdin", stream)
        yield stream
    os.close(master)


def answers(monkeypatch: pytest.MonkeyPatch, *given: str) -> list[str]:
    """Give these answers, then close the terminal; returns the questions as they come."""
    questions: list[str] = []
    left = list(given)

    def ask(prompt: str) -> str:
        questions.append(prompt)
        if not left:
            raise EOFError
        return left.pop(0)

    monkeypatch.setattr("labmesh.util.getpass", ask)
    return questions


@pytest.mark.parametrize(
    ("confirm", "given", "answer"),
    [
        (False, ["one"], "one"),
        (False, [""], ""),
        (True, ["one", "one"], "one"),
        (True, [""], ""),
        (True, ["one", "two", "three", "three"], "three"),
        (True, ["one", "", "two", "two"], "two"),
        (True, ["one", "two", ""], ""),
    ],
)
@pytest.mark.usefixtures("no_password", "terminal")
def test_the_answer_is_kept_for_nodes_made_afterwards(
    confirm: bool, given: list[str], answer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    questions = answers(monkeypatch, *given)
    assert prompt_network_password(confirm) == answer
    assert len(questions) == len(given)
    assert os.environ[PASSWORD] == answer
    assert prompt_network_password(confirm) == answer
    assert len(questions) == len(given), "it does not ask again"


@pytest.mark.usefixtures("no_password", "terminal")
def test_no_answer_is_not_an_empty_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    answers(monkeypatch, "one")
    with pytest.raises(ConfigError, match=f"no network password was given.*set {PASSWORD}"):
        prompt_network_password(confirm=True)
    assert PASSWORD not in os.environ


# ── the password: a program on a real terminal ──────────────────────────────────────────────────

PROGRAM = """
import os
from labmesh.util import prompt_network_password
answer = prompt_network_password({arguments})
print("answer", repr(answer), repr(os.environ.get("LMH_NETWORK_PASSWORD")), "end")
"""

#: Makes the pseudo terminal on standard input the one that the program is controlled by.
CONTROLLED = "import fcntl, termios\nfcntl.ioctl(0, termios.TIOCSCTTY, 0)\n"


def environment(**more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name != PASSWORD}
    return {**kept, "PYTHONPATH": SOURCE, **more}


def converse(arguments: str, talk: list[tuple[str, str]], **more: str) -> str:
    """Run the program on a terminal, answer each question as it is seen; returns the screen."""
    pty = pytest.importorskip("pty", reason="pseudo terminals exist on Unix only")
    master, slave = pty.openpty()
    try:
        with subprocess.Popen(
            [sys.executable, "-c", CONTROLLED + PROGRAM.format(arguments=arguments)],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env=environment(**more),
            start_new_session=True,
        ) as process:
            os.close(slave)
            screen, seen = "", 0
            for question, answer in [*talk, ("end\r\n", "")]:
                while question not in screen[seen:]:
                    screen += os.read(master, 4096).decode()
                seen = screen.index(question, seen) + len(question)
                os.write(master, answer.encode())
            assert process.wait() == 0
            return screen
    finally:
        os.close(master)


def test_the_terminal_is_asked_and_shows_nothing() -> None:
    screen = converse("", [("Network password (empty for none): ", "correct horse\n")])
    assert "answer 'correct horse' 'correct horse' end" in screen
    assert screen.count("correct horse") == 2, "only what the program printed"


def test_two_answers_that_differ_are_asked_for_again() -> None:
    screen = converse(
        "confirm=True",
        [
            ("Network password (empty for none): ", "correct horse\n"),
            ("The same again: ", "correct hose\n"),
            ("The two differ. Network password (empty for none): ", "battery\n"),
            ("The same again: ", "battery\n"),
        ],
    )
    assert "answer 'battery' 'battery' end" in screen
    assert "horse" not in screen


def test_an_empty_answer_is_no_password() -> None:
    screen = converse("confirm=True", [("Network password (empty for none): ", "\n")])
    assert "answer '' '' end" in screen


def test_the_terminal_is_not_asked_when_the_variable_is_set() -> None:
    screen = converse("confirm=True", [], LMH_NETWORK_PASSWORD="")
    assert screen == "answer '' '' end\r\n"


@pytest.mark.skipif(sys.platform == "win32", reason="sessions exist on Unix only")
def test_a_service_is_not_asked() -> None:
    finished = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(arguments="")],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        env=environment(),
        start_new_session=True,
        check=True,
    )
    assert (finished.stdout, finished.stderr) == ("answer None None end\n", "")
