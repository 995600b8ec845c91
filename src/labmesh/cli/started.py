"""What a command that runs nodes says about them: who is where, and what to type next."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from labmesh.cli.output import Output
from labmesh.config import Config, RelayEntry, find_config
from labmesh.discovery import DEFAULT_PORT, broker_in
from labmesh.node import Node
from labmesh.protocol.addresses import Address, advertised, is_loopback, parse_connect

if TYPE_CHECKING:
    from labmesh.broker import DirectoryBroker
    from labmesh.databank import DataBank
    from labmesh.relay import RelayAgent

__all__ = ["announce", "bank_facts", "broker_facts", "option_for", "relay_facts"]


def broker_facts(node: DirectoryBroker, config: Config) -> dict[str, Any]:
    """Where a broker is reached, and what its request socket is bound to."""
    host = config.broker.address
    return {
        "rpc": advertised(node.rpc, host),
        "xsub": advertised(node.xsub, host),
        "xpub": advertised(node.xpub, host),
        "bound": str(node.rpc),
        **_mark(node),
    }


def bank_facts(node: DataBank, config: Config) -> dict[str, Any]:
    """Where a bank is reached, and what its folder is."""
    folder = Path(config.bank.default_data_dir).absolute()
    return {"bank_id": node.node_id, **node.endpoints, "folder": str(folder), **_mark(node)}


def relay_facts(node: RelayAgent, entry: RelayEntry) -> dict[str, Any]:
    """Where a relay is reached, and what it serves."""
    return {"relay_id": node.node_id, **node.endpoints, "driver": entry.driver, **_mark(node)}


def _mark(node: Node) -> dict[str, str]:
    """The fingerprint of a node that has a key of its own."""
    return {"fingerprint": node.fingerprint} if node.fingerprint else {}


def announce(out: Output, nodes: Mapping[str, Any], then: Sequence[str], **facts: Any) -> None:
    """Say that nodes are ready: one JSON line, or a table and what to type next."""
    if out.json:
        out.record({"event": "ready", **nodes, **facts})
        return
    rows = _rows(nodes)
    if any(mark for *_, mark in rows):
        out.table(("KIND", "ID", "WHAT", "ADDRESS", "FINGERPRINT"), rows)
    else:
        out.table(("KIND", "ID", "WHAT", "ADDRESS"), [row[:-1] for row in rows])
    out.line()
    out.line("Next, in another terminal:")
    for command in then:
        out.line(f"  {command}")
    out.line("Ctrl-C stops this one.")


def _rows(nodes: Mapping[str, Any]) -> list[tuple[str, str, str, str, str]]:
    rows = []
    if "broker" in nodes:
        each = nodes["broker"]
        what = "the directory" + (", at every interface" if "*" in each["bound"] else "")
        rows.append(("broker", "broker", what, each["rpc"], _mark_in(each)))
    for each in nodes.get("banks", ()):
        rows.append(("bank", each["bank_id"], each["folder"], each["ingest"], _mark_in(each)))
    for each in nodes.get("relays", ()):
        rows.append(("relay", each["relay_id"], each["driver"], each["rpc"], _mark_in(each)))
    return rows


def _mark_in(facts: Mapping[str, Any]) -> str:
    return str(facts.get("fingerprint", ""))


def option_for(config: Config, broker: DirectoryBroker) -> str:
    """`` --broker host:port``; empty when commands in this folder find the broker by themselves."""
    address = parse_connect(advertised(broker.rpc, config.broker.address))
    found = find_config()
    if found is not None and config.path is not None and found.samefile(config.path):
        expected = parse_connect(broker_in(config).rpc)
    elif found is None:
        expected = Address("localhost", DEFAULT_PORT)
    else:
        return f" --broker {address.host}:{address.port}"
    is_same_host = expected.host == address.host or (
        is_loopback(expected.host) and is_loopback(address.host)
    )
    if is_same_host and expected.port == address.port:
        return ""
    return " --broker " + str(address).removeprefix("tcp://")
