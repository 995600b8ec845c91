"""What a node claims when it registers, and what is said when another one has it."""

from __future__ import annotations

from labmesh.errors import Conflict
from labmesh.protocol.ids import shown
from labmesh.protocol.messages import NodeRecord

__all__ = ["claims_of", "conflict_of"]


def claims_of(record: NodeRecord) -> tuple[str, ...]:
    """The id and the endpoints: each belongs to one live node."""
    return tuple(dict.fromkeys((record.node_id, *record.endpoints.values())))


def conflict_of(newcomer: NodeRecord, owner: NodeRecord) -> Conflict:
    """Who holds what the newcomer claims, and the way out."""
    endpoint = next(iter(owner.endpoints.values()))
    what = f"id {newcomer.node_id} is taken by a live {owner.kind}"
    way_out = f"another id ({newcomer.kind}_id)"
    if owner.node_id != newcomer.node_id:
        held = owner.endpoints.values()
        name, endpoint = next(each for each in newcomer.endpoints.items() if each[1] in held)
        what = f"address {endpoint} is taken by the live {owner.kind} {owner.node_id}"
        way_out = f"another port ({name}_bind)"
    host = shown(owner.host) if owner.host else "unknown"
    text = (
        f"{what} (host {host}, pid {owner.pid}, {endpoint}); choose {way_out} or stop the other one"
    )
    owned = {"node_id": owner.node_id, "kind": owner.kind, "host": owner.host, "pid": owner.pid}
    return Conflict(text, endpoint=endpoint, **owned)
