"""Nodes from a configuration file: each key arrives where it acts."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from labmesh.cli import assembly
from labmesh.config import BankTable, BrokerTable, Config, RelayEntry, load_config
from labmesh.errors import ConfigError
from labmesh.instruments.simulated import PowerSupply
from labmesh.transfer import UploadSettings

#: Every value differs from its default.
FILE = """
[broker]
rpc_bind = "tcp://127.0.0.1:6750"
xsub_bind = "tcp://127.0.0.1:6751"
xpub_bind = "tcp://127.0.0.1:6752"
ttl_seconds = 12.5
address = "10.0.0.1"

[relay]
keep_alive = 7.5
log_level = "warning"
default_rpc_bind = "tcp://*:6850"
state_interval = 0.25
broker_rpc = "tcp://BROKER:6750"
broker_xsub = "tcp://BROKER:6751"
heartbeat_seconds = 2.5
upload_timeout = 3.5
upload_retries = 7
upload_chunk = 70000
spool_dir = "my_spool"
spool_limit = "2 GB"
default_address = "10.0.0.2"

[bank]
ingest_bind = "tcp://127.0.0.1:6761"
retrieve_bind = "tcp://127.0.0.1:6762"
default_data_dir = "./my_data"
broker_rpc = "tcp://BROKER:6750"
broker_xsub = "tcp://BROKER:6751"
heartbeat_seconds = 1.5
default_address = "10.0.0.3"
log_level = "off"

[[relays]]
id = "psu-1"
driver = "labmesh.instruments.simulated:PowerSupply"
kwargs = { max_voltage = 5.0 }
bind = "tcp://127.0.0.1:6851"

[[relays]]
id = "psu-2"
driver = "labmesh.instruments.simulated:PowerSupply"
poll = 0.75
publish = "change"
"""


@pytest.fixture
def config(tmp_path: Path) -> Config:
    path = tmp_path / "labmesh.toml"
    path.write_text(FILE)
    return load_config(path)


def held(node: object, *names: str) -> list[Any]:
    return [getattr(node, name) for name in names]


def test_the_broker_has_what_its_table_says(config: Config) -> None:
    node = assembly.make_broker(config)
    binds, ttl_s = held(node, "_binds", "_ttl_s")
    assert [each.port for each in binds] == [6750, 6751, 6752]
    assert ttl_s == 12.5


def test_a_bank_has_what_its_table_says(config: Config) -> None:
    node = assembly.make_bank(config, bank_id="bank-7")
    assert node.node_id == "bank-7"
    assert [each.port for each in held(node, "_ingest_bind", "_retrieve_bind")] == [6761, 6762]
    assert held(node, "_data_dir", "_heartbeat_s", "_local_address") == [
        Path("my_data"),
        1.5,
        "10.0.0.3",
    ]
    assert held(node, "_broker_rpc", "_broker_events") == [
        "tcp://10.0.0.1:6750",
        "tcp://10.0.0.1:6751",
    ]
    assert node._log_level is None


def test_a_relay_has_what_its_table_and_its_entry_say(config: Config) -> None:
    first, second = config.relays
    node = assembly.make_relay(config, first, assembly.load_entry(first))
    assert node.node_id == "psu-1"
    assert node._rpc_bind.port == 6851
    assert held(node, "_state_interval_s", "_heartbeat_s", "_local_address") == [
        0.25,
        2.5,
        "10.0.0.2",
    ]
    assert held(node, "_broker_rpc", "_broker_events") == [
        "tcp://10.0.0.1:6750",
        "tcp://10.0.0.1:6751",
    ]
    assert node._upload_settings == UploadSettings(3.5, 7, 70_000)
    assert held(node, "_spool_dir", "_spool_bytes") == [
        Path("my_spool/psu-1").absolute(),
        2 * 10**9,
    ]
    assert isinstance(node.driver, PowerSupply)
    with pytest.raises(ValueError, match="outside 0 to 5 V"):
        node.driver.set_voltage(6)
    assert held(node, "_keep_alive_s", "_log_level") == [None, logging.WARNING]
    other = assembly.make_relay(config, second, PowerSupply())
    assert other._state_interval_s == 0.75, "an entry's own poll wins"
    assert other._keep_alive_s == 7.5, "and so does what it publishes"


def test_a_relay_knows_what_is_read_only_and_whether_it_needs_a_lease(config: Config) -> None:
    first, second = config.relays
    entry = replace(first, read_only=["set_*", "p*"], require_lease=True)
    node = assembly.make_relay(config, entry, PowerSupply())
    names = [each.name for each in node._table.describe() if each.read_only]
    assert names == ["measure", "poll", "set_current_limit", "set_output", "set_voltage"]
    assert node._require_lease
    other = assembly.make_relay(config, second, PowerSupply())
    marked = [each.name for each in other._table.describe() if each.read_only]
    assert marked == ["measure", "poll"], "as its class says"
    assert not other._require_lease


def test_a_read_only_method_that_the_driver_does_not_have_is_named_with_its_relay(
    config: Config,
) -> None:
    entry = replace(config.relays[0], read_only=["mesure"])
    with pytest.raises(ConfigError) as caught:
        assembly.make_relay(config, entry, PowerSupply())
    assert str(caught.value) == (
        "relay psu-1: read_only = 'mesure' matches no method of PowerSupply; "
        "did you mean 'measure'?"
    )


def test_uploads_of_commands_are_as_patient_as_the_file_says(config: Config) -> None:
    assert assembly.upload_settings(config) == UploadSettings(3.5, 7, 70_000)


def test_a_driver_that_cannot_be_made_is_named_with_its_relay() -> None:
    entry = RelayEntry(id="psu-1", driver="labmesh.instruments.simulated:PowerSuply")
    with pytest.raises(ConfigError, match=r"relay psu-1: .*did you mean PowerSupply"):
        assembly.load_entry(entry)


def test_an_entry_by_its_id(config: Config) -> None:
    assert assembly.relay_entry(config, "psu-2").poll == 0.75
    with pytest.raises(ConfigError, match=r"labmesh.toml has no .*'psu-3' \(did you mean 'psu-"):
        assembly.relay_entry(config, "psu-3")
    with pytest.raises(ConfigError, match="its ids: none"):
        assembly.relay_entry(Config(), "psu-1")


def test_without_a_file_there_are_three_simulated_instruments() -> None:
    config = assembly.simulated(Config())
    drivers = [assembly.load_entry(each) for each in config.relays]
    assert [type(each).__module__ for each in drivers] == ["labmesh.instruments.simulated"] * 3


def test_free_ports_keep_the_hosts(config: Config) -> None:
    free = assembly.free_ports(config)
    assert free.broker.rpc_bind == "tcp://127.0.0.1:0"
    assert free.bank.retrieve_bind == "tcp://127.0.0.1:0"
    assert free.relay.default_rpc_bind == "tcp://*:0"
    assert [each.bind for each in free.relays] == ["tcp://127.0.0.1:0", "tcp://*:0"]


def test_the_usual_event_port_goes_with_the_usual_request_port(config: Config) -> None:
    assert assembly.usual_events(config, "tcp://lab-pc:6750") == "tcp://lab-pc:6751"
    assert assembly.usual_events(config, "tcp://lab-pc:9999") is None


def test_another_broker_for_relays_and_banks(config: Config) -> None:
    moved = assembly.at_broker(config, "tcp://lab-pc:1", "tcp://lab-pc:2")
    assert (moved.relay.broker_rpc, moved.bank.broker_rpc) == ("tcp://lab-pc:1",) * 2
    assert (moved.relay.broker_xsub, moved.bank.broker_xsub) == ("tcp://lab-pc:2",) * 2


# ── a file whose nodes would not find each other ────────────────────────────────────────────────


def test_the_defaults_fit_together() -> None:
    assert assembly.mismatches(Config()) == []


def test_a_broker_that_listens_elsewhere_is_noticed() -> None:
    config = Config(broker=BrokerTable(rpc_bind="tcp://*:6750"))
    found = assembly.mismatches(config)
    assert [each.partition(" =")[0] for each in found] == [
        "[relay] broker_rpc",
        "[bank] broker_rpc",
        "[client] broker_rpc",
    ]
    assert "5750" in found[0]
    assert "[broker] rpc_bind" in found[0]


def test_a_broker_on_loopback_is_not_found_from_outside() -> None:
    config = Config(broker=BrokerTable(rpc_bind="tcp://127.0.0.1:5750", address="10.0.0.1"))
    assert len(assembly.mismatches(config)) == 3
    assert assembly.mismatches(replace(config, broker=BrokerTable(address="10.0.0.1"))) == []


def test_a_free_port_fits_any(config: Config) -> None:
    assert assembly.mismatches(assembly.free_ports(Config())) == []


def test_heartbeats_that_are_too_far_apart_are_named() -> None:
    config = Config(broker=BrokerTable(ttl_seconds=4), bank=BankTable(heartbeat_seconds=3))
    (wrong,) = assembly.mismatches(config)
    assert wrong.startswith(
        "[relay] heartbeat_seconds = 5 is not less than [broker] ttl_seconds = 4"
    )


def test_a_port_is_traced_to_the_keys_that_ask_for_it() -> None:
    relay = RelayEntry(id="psu", driver="my_lab:Supply", bind="tcp://*:5761")
    config = Config(relays=(relay,))
    assert assembly.keys_of_port(config, 5761) == ["[bank] ingest_bind", "[[relays]] psu bind"]
    assert assembly.keys_of_port(config, 9) == []
    assert assembly.keys_of_port(config, None) == []
