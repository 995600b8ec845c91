"""Builders of directory lines."""

from __future__ import annotations

from typing import Any

from labmesh.protocol.messages import Epoch, NodeId, NodeRecord


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
