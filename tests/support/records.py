"""Builders of directory lines, and of what the directory does about them."""

from __future__ import annotations

from typing import Any

from msgspec.structs import replace

from labmesh.errors import LabmeshError
from labmesh.protocol.directory import Changed, Effect, Probe, Refused
from labmesh.protocol.messages import Epoch, NodeId, NodeRecord, PresenceChange


def relay(
    node_id: str = "Inst-0", *, epoch: str = "e1", port: int = 5801, **more: Any
) -> NodeRecord:
    """A relay on host lab-3; ``endpoint=`` replaces the one that ``port`` makes."""
    endpoint = more.pop("endpoint", f"tcp://10.0.0.3:{port}")
    fields = {"endpoints": {"rpc": endpoint}, "host": "lab-3", "pid": 4242, **more}
    return NodeRecord(node_id=NodeId(node_id), kind="relay", epoch=Epoch(epoch), **fields)


def bank(
    node_id: str = "bank-0", *, epoch: str = "e1", port: int = 5900, **more: Any
) -> NodeRecord:
    """A bank on host store; its retrieve port is the one behind its ingest port."""
    endpoints = {
        "ingest": f"tcp://10.0.0.9:{port}",
        "retrieve": f"tcp://10.0.0.9:{port + 1}",
    }
    fields = {"endpoints": endpoints, "host": "store", "pid": 77, **more}
    return NodeRecord(node_id=NodeId(node_id), kind="bank", epoch=Epoch(epoch), **fields)


def joined(record: NodeRecord) -> Changed:
    return Changed(PresenceChange(node=record, change="joined"))


def left(record: NodeRecord, reason: str) -> Changed:
    return Changed(PresenceChange(node=record, change="left", reason=reason))


def suspected(record: NodeRecord) -> Changed:
    return Changed(PresenceChange(node=replace(record, state="suspect"), change="suspect"))


def back(record: NodeRecord) -> Changed:
    return Changed(PresenceChange(node=record, change="back"))


def refusal(effects: list[Effect], token: object) -> LabmeshError:
    """The error with which this asker was refused."""
    (error,) = [each.error for each in effects if isinstance(each, Refused) and each.token == token]
    return error


def probe(effects: list[Effect]) -> Probe:
    (only,) = [each for each in effects if isinstance(each, Probe)]
    return only
