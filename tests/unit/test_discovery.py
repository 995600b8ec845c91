"""Where the broker is: who wins, every form of an address, errors that name who gave it."""

from __future__ import annotations

from pathlib import Path

import pytest

from labmesh.discovery import BROKER_VARIABLE, broker_candidate
from labmesh.errors import ConfigError


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def file(folder: Path) -> Path:
    """A labmesh.toml in the current folder, whose broker is lab-pc."""
    path = folder / "labmesh.toml"
    path.write_text('[broker]\naddress = "lab-pc"\n[client]\nbroker_rpc = "tcp://BROKER:6750"\n')
    return path


def test_without_anything_it_is_this_machine(folder: Path) -> None:
    assert broker_candidate(None, {}) == ("tcp://localhost:5750", None, "the default")


def test_a_file_here_gives_both_addresses(file: Path) -> None:
    candidate = broker_candidate(None, {})
    assert candidate.rpc == "tcp://lab-pc:6750"
    assert candidate.xpub == "tcp://lab-pc:5752"
    assert Path(candidate.source).name == "labmesh.toml"


def test_the_variable_wins_over_a_file_here(file: Path) -> None:
    environ = {BROKER_VARIABLE: "other-pc:7000"}
    assert broker_candidate(None, environ) == ("tcp://other-pc:7000", None, BROKER_VARIABLE)


def test_a_file_that_was_named_wins_over_the_variable(file: Path, tmp_path: Path) -> None:
    named = tmp_path / "named.toml"
    named.write_text('[broker]\naddress = "named-pc"\n')
    candidate = broker_candidate(None, {BROKER_VARIABLE: "other-pc"}, named)
    assert candidate.rpc == "tcp://named-pc:5750"
    assert candidate.source == str(named)


def test_the_argument_wins_over_all(file: Path) -> None:
    candidate = broker_candidate("mine", {BROKER_VARIABLE: "other-pc"}, file)
    assert candidate == ("tcp://mine:5750", None, "the argument")


def test_empty_means_not_given(folder: Path) -> None:
    assert broker_candidate("", {BROKER_VARIABLE: ""}).source == "the default"


@pytest.mark.parametrize(
    ("written", "rpc"),
    [
        ("lab-pc", "tcp://lab-pc:5750"),
        ("lab-pc:6000", "tcp://lab-pc:6000"),
        ("tcp://lab-pc:6000", "tcp://lab-pc:6000"),
        ("tcp://lab-pc", "tcp://lab-pc:5750"),
        (" 192.168.1.10 ", "tcp://192.168.1.10:5750"),
        ("::1", "tcp://[::1]:5750"),
        ("[::1]", "tcp://[::1]:5750"),
        ("[::1]:6000", "tcp://[::1]:6000"),
    ],
)
def test_forms_of_an_address(folder: Path, written: str, rpc: str) -> None:
    assert broker_candidate(written, {}).rpc == rpc


@pytest.mark.parametrize(
    "written", ["udp://lab-pc:1", "lab pc", "lab-pc:port", "*", "a:0", "u@h:1"]
)
def test_what_is_no_address_is_refused_by_whoever_gave_it(folder: Path, written: str) -> None:
    with pytest.raises(ConfigError, match=r"the broker's address.*like lab-pc"):
        broker_candidate(written, {})
    with pytest.raises(ConfigError, match="LMH_BROKER"):
        broker_candidate(None, {BROKER_VARIABLE: written})


def test_a_named_file_that_is_missing_is_an_error(folder: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        broker_candidate(None, {}, folder / "missing.toml")


def test_an_address_that_is_no_text_is_refused() -> None:
    with pytest.raises(TypeError, match="text such as 'lab-pc:5750', not int"):
        broker_candidate(5750, {})  # type: ignore[arg-type]
