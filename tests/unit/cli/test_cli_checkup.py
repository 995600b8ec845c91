"""What the doctor finds out about this computer."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from labmesh.cli import access_checkup, checkup
from labmesh.cli.checkup import FAIL, OK, WARN, HeldPort
from labmesh.config import BankTable, BrokerTable, Config, RelayEntry, RelayTable
from labmesh.transport.keys import Security

ANYWHERE = "tcp://127.0.0.1:*"
QUIET = Config(
    broker=BrokerTable(rpc_bind=ANYWHERE, xsub_bind=ANYWHERE, xpub_bind=ANYWHERE),
    relay=RelayTable(default_rpc_bind=ANYWHERE),
    bank=BankTable(ingest_bind=ANYWHERE, retrieve_bind=ANYWHERE),
)


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    """Some program that is not labmesh, on some port of this machine."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server


def with_bind(bind: str) -> Config:
    return Config(
        broker=QUIET.broker,
        relay=QUIET.relay,
        bank=QUIET.bank,
        relays=(RelayEntry(id="psu-1", driver="lab:PSU", bind=bind),),
    )


def test_versions_are_named() -> None:
    findings = list(checkup.installation())
    assert [each.level for each in findings] == [OK, OK, OK]
    text = " ".join(each.text for each in findings)
    assert sys.executable in text
    assert "libzmq 4." in text


def test_a_file_and_none() -> None:
    assert "default" in checkup.file_is_valid(Config()).text
    assert "x.toml is valid" in checkup.file_is_valid(Config(path=Path("x.toml"))).text


def test_a_port_that_somebody_holds(listener: socket.socket) -> None:
    port = listener.getsockname()[1]
    for host in ("127.0.0.1", "*"):
        held = checkup.ports_held(with_bind(f"tcp://{host}:{port}"))
        assert held == [HeldPort("[[relays]] psu-1 bind", "127.0.0.1", port)]
    listener.close()
    assert checkup.ports_held(with_bind(f"tcp://127.0.0.1:{port}")) == []


async def test_another_program_is_no_node(listener: socket.socket) -> None:
    held = [HeldPort("k", "127.0.0.1", listener.getsockname()[1])]
    assert await checkup.labmesh_ports(Security("open"), held) == {}


def test_a_folder_that_is_there_or_can_be_made(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "not" / "yet"):
        finding = checkup.folder(Config(bank=BankTable(default_data_dir=str(folder))))
        assert finding.level == OK
        assert str(folder) in finding.text
    assert list(tmp_path.iterdir()) == [], "nothing is left behind"


def test_a_folder_that_is_a_file(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    bank = BankTable(default_data_dir=str(file))
    assert checkup.folder(Config(bank=bank)).level == WARN
    finding = checkup.folder(Config(bank=bank, path=Path("labmesh.toml")))
    assert finding.level == FAIL
    assert "[bank] default_data_dir" in finding.text
    assert finding.advice


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write all")
def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    finding = checkup.folder(Config(bank=BankTable(default_data_dir=str(tmp_path))))
    assert finding.level == WARN
    assert "Permission denied" in finding.text


def test_the_limit_of_open_files_is_named() -> None:
    assert checkup.descriptors().check == "open files"


@pytest.mark.parametrize(
    ("security", "level", "text"),
    [
        (Security("open"), OK, "only programs on this computer"),
        (Security("open", insecure=True), WARN, "every computer"),
        (Security("password"), OK, "encrypted"),
        (Security("password", short_password=True), WARN, "fewer than 12 characters"),
    ],
)
def test_security(security: Security, level: str, text: str) -> None:
    finding = access_checkup.protection(security)
    assert finding.level == level
    assert text in finding.text
    assert bool(finding.advice) == (level != OK)


def test_a_file_whose_nodes_miss_each_other_is_worth_a_warning() -> None:
    findings = list(checkup.wiring(Config(broker=BrokerTable(xsub_bind="tcp://*:6751"))))
    assert {each.level for each in findings} == {WARN}
    assert len(findings) == 2
