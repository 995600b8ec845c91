"""A line of the directory: what makes it of use, to the broker that takes it and to its readers."""

from __future__ import annotations

from msgspec.structs import replace

from labmesh.errors import ProtocolError
from labmesh.protocol.addresses import check_endpoint
from labmesh.protocol.ids import check_id
from labmesh.protocol.messages import NodeRecord

__all__ = ["REQUIRED_ENDPOINTS", "checked"]

#: What clients connect to: without it a node of this kind is of no use to anybody.
REQUIRED_ENDPOINTS = {"relay": ("rpc",), "bank": ("ingest", "retrieve")}


def checked(node: NodeRecord) -> NodeRecord:
    """The record with each endpoint in the one spelling by which they are compared.

    :raises ProtocolError: a bad id, endpoint or name of an endpoint, or a required one is missing.
    """
    check_id(node.node_id, f"{node.kind}_id")
    missing = [name for name in REQUIRED_ENDPOINTS[node.kind] if name not in node.endpoints]
    if missing:
        raise ProtocolError(
            f"{node.kind} {node.node_id} does not say where its {' and '.join(missing)} "
            "socket is; bind it first, then register with its endpoint"
        )
    endpoints = {
        check_id(name, "name of an endpoint"): str(check_endpoint(text))
        for name, text in node.endpoints.items()
    }
    return replace(node, endpoints=endpoints)
