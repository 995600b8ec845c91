"""The spare broker of a file: who is told of it, and at which ports it listens."""

from __future__ import annotations

from pathlib import Path

import pytest

from labmesh.cli import assembly
from labmesh.config import Config, RelayEntry, load_config
from labmesh.errors import ConfigError
from labmesh.instruments.simulated import PowerSupply

ENTRY = RelayEntry(id="psu-1", driver="labmesh.instruments.simulated:PowerSupply")


def written(folder: Path, broker: str) -> Config:
    path = folder / "labmesh.toml"
    path.write_text(f'[broker]\naddress = "lab-pc"\n{broker}\n')
    return load_config(path)


@pytest.mark.parametrize(
    ("broker", "address", "binds"),
    [
        ('spare = "lab-pc2"', "lab-pc2", ["*:5750", "*:5751", "*:5752"]),
        ('spare = "lab-pc:6750"', "lab-pc", ["*:6750", "*:6751", "*:6752"]),
        (
            'spare = "lab-pc2:5850"\nrpc_bind = "tcp://*:*"\nxsub_bind = "tcp://*:7001"',
            "lab-pc2",
            ["*:*", "*:7101", "*:5852"],
        ),
    ],
)
def test_the_spare_listens_where_the_file_says(
    tmp_path: Path, broker: str, address: str, binds: list[str]
) -> None:
    config = assembly.as_spare(written(tmp_path, broker)).broker
    assert (config.address, config.spare) == (address, "")
    found = [config.rpc_bind, config.xsub_bind, config.xpub_bind]
    assert [each.replace(":0", ":*") for each in found] == [f"tcp://{each}" for each in binds]


def test_a_file_without_a_spare_makes_none(tmp_path: Path) -> None:
    config = written(tmp_path, "")
    with pytest.raises(ConfigError, match=r"labmesh\.toml: \[broker\] spare names no spare broker"):
        assembly.as_spare(config)
    assert assembly.make_bank(config)._spare_rpc == ""
    assert assembly.make_relay(config, ENTRY, PowerSupply())._spare_rpc == ""


def test_nodes_are_told_of_the_spare_also_beside_a_broker_on_another_port(tmp_path: Path) -> None:
    config = written(tmp_path, 'spare = "lab-pc2"')
    spare = "tcp://lab-pc2:5750"
    assert assembly.make_bank(config)._spare_rpc == spare
    assert assembly.make_relay(config, ENTRY, PowerSupply())._spare_rpc == spare

    class Started:
        """A broker that got other ports than the file says."""

        rpc = assembly.parse_bind("tcp://*:7000")
        xsub = assembly.parse_bind("tcp://*:7001")

    beside = assembly.beside(config, Started())  # type: ignore[arg-type]
    assert assembly.make_bank(beside)._broker_rpc == "tcp://lab-pc:7000"
    assert assembly.make_bank(beside)._spare_rpc == spare
