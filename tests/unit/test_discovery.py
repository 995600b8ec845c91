"""Where the broker is: who wins, every form of an address, errors that name who gave it."""

from __future__ import annotations

from pathlib import Path

import pytest

from labmesh.access.broker_place import remember_broker
from labmesh.discovery import BROKER_VARIABLE, SPARE_VARIABLE, broker_candidate
from labmesh.errors import ConfigError
from labmesh.protocol.addresses import parse_connect


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
    assert broker_candidate(None, {}) == ("tcp://localhost:5750", None, "the default", "")


def test_a_file_here_gives_both_addresses(file: Path) -> None:
    candidate = broker_candidate(None, {})
    assert candidate.rpc == "tcp://lab-pc:6750"
    assert candidate.xpub == "tcp://lab-pc:5752"
    assert Path(candidate.source).name == "labmesh.toml"


def test_the_variable_wins_over_a_file_here(file: Path) -> None:
    environ = {BROKER_VARIABLE: "other-pc:7000"}
    assert broker_candidate(None, environ) == ("tcp://other-pc:7000", None, BROKER_VARIABLE, "")


def test_a_file_that_was_named_wins_over_the_variable(file: Path, tmp_path: Path) -> None:
    named = tmp_path / "named.toml"
    named.write_text('[broker]\naddress = "named-pc"\n')
    candidate = broker_candidate(None, {BROKER_VARIABLE: "other-pc"}, named)
    assert candidate.rpc == "tcp://named-pc:5750"
    assert candidate.source == str(named)


def test_the_argument_wins_over_all(file: Path) -> None:
    candidate = broker_candidate("mine", {BROKER_VARIABLE: "other-pc"}, file)
    assert candidate == ("tcp://mine:5750", None, "the argument", "")


def test_the_spare_goes_with_the_broker(folder: Path, tmp_path: Path) -> None:
    environ = {SPARE_VARIABLE: "spare-pc"}
    assert broker_candidate(None, environ).spare == "tcp://spare-pc:5750"
    named = {**environ, BROKER_VARIABLE: "other-pc:7000"}
    assert broker_candidate(None, named).spare == "tcp://spare-pc:7000"
    assert broker_candidate("mine", named).spare == "", "the variable speaks of another broker"
    file = folder / "labmesh.toml"
    file.write_text('[broker]\naddress = "lab-pc"\n')
    assert broker_candidate(None, environ).spare == "tcp://spare-pc:5750"
    assert broker_candidate(None, environ, file).spare == "", "a file that was named says it all"
    file.write_text('[broker]\naddress = "lab-pc"\nspare = "lab-pc2:6000"\n')
    for path in (None, file):
        assert broker_candidate(None, environ, path).spare == "tcp://lab-pc2:6000"
    assert broker_candidate(None, named).spare == "tcp://spare-pc:7000"


def test_a_spare_that_is_the_broker_itself_is_refused(folder: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"LMH_SPARE: the spare broker is at tcp://localhost:5750"
    ):
        broker_candidate(None, {SPARE_VARIABLE: "localhost"})
    file = folder / "labmesh.toml"
    file.write_text('[broker]\naddress = "lab-pc"\nspare = "lab-pc"\n')
    with pytest.raises(
        ConfigError, match=r"labmesh\.toml: \[broker\] spare: .*another host or port"
    ):
        broker_candidate(None, {}, file)


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


# ── a machine that has joined a network ─────────────────────────────────────────────────────────


@pytest.fixture
def joined(folder: Path) -> dict[str, str]:
    """The environment of a machine that has joined a network whose broker is at 10.0.0.7."""
    remember_broker(folder / "keys", parse_connect("tcp://10.0.0.7:5750"))
    return {"LMH_KEYS_DIR": str(folder / "keys")}


def test_a_machine_that_has_joined_knows_its_broker(joined: dict[str, str], folder: Path) -> None:
    source = str(folder / "keys" / "broker.toml")
    assert broker_candidate(None, joined) == ("tcp://10.0.0.7:5750", None, source, "")
    (folder / "labmesh.toml").write_text('[[relays]]\nid = "psu-1"\ndriver = "module:Class"\n')
    assert broker_candidate(None, joined).rpc == "tcp://10.0.0.7:5750"


def test_whatever_names_a_broker_wins_over_what_was_joined(
    joined: dict[str, str], file: Path
) -> None:
    assert broker_candidate(None, joined).rpc == "tcp://lab-pc:6750"
    assert broker_candidate(None, {**joined, BROKER_VARIABLE: "other-pc"}).source == BROKER_VARIABLE
    file.unlink()
    assert broker_candidate("mine", joined).source == "the argument"
    assert broker_candidate(None, {**joined, "LMH_SECURITY": "open"}).source == "the default"


def test_a_note_of_the_broker_that_cannot_be_read_is_named(
    joined: dict[str, str], folder: Path
) -> None:
    for text in ("address = 5", "address = 'nowhere'", "adress = ", ""):
        (folder / "keys" / "broker.toml").write_text(text)
        with pytest.raises(ConfigError, match=r"broker\.toml: .*; write one line such as address"):
            broker_candidate(None, joined)
