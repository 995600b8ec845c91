"""A client's copy of the directory: the broker's last list, and what it announced since."""

from __future__ import annotations

from typing import Any

from labmesh.errors import NotFound
from labmesh.protocol.ids import did_you_mean
from labmesh.protocol.messages import NodeRecord, PresenceChange
from labmesh.protocol.records import checked

__all__ = ["Roster", "about", "nobody"]


class Roster:
    """Who is there, as far as this client has heard.

    A list and an announcement travel on different connections, so either may overtake the other.
    What was announced while a list was on its way is therefore applied to the list again: it may be
    older than the list, but then what followed it is applied again as well.
    """

    def __init__(self) -> None:
        self._records: dict[str, NodeRecord] = {}
        #: announcements since each list that is on its way was asked for
        self._asked: dict[int, list[PresenceChange]] = {}
        self._tickets = 0

    def ask(self) -> int:
        """A list is being asked for; the ticket to hand in with it."""
        self._tickets += 1
        self._asked[self._tickets] = []
        return self._tickets

    def listed(self, ticket: int, nodes: list[NodeRecord]) -> None:
        """The broker's list came.

        :raises ProtocolError: a record in it is of no use; the earlier ones stay.
        """
        changes = self._asked.pop(ticket)
        self._records = {each.node_id: checked(each) for each in nodes}
        for change in changes:
            self._apply(change)

    def failed(self, ticket: int) -> None:
        """The list did not come."""
        del self._asked[ticket]

    def announced(self, change: PresenceChange) -> None:
        """The broker announced a change."""
        for changes in self._asked.values():
            changes.append(change)
        self._apply(change)

    def get(self, node_id: str) -> NodeRecord | None:
        """The record of a node, or None."""
        return self._records.get(node_id)

    def nodes(self) -> list[NodeRecord]:
        """Everybody, sorted by kind and id."""
        return sorted(self._records.values(), key=lambda each: (each.kind, each.node_id))

    def _apply(self, change: PresenceChange) -> None:
        # A copy each time: other threads may be reading the old one.
        records = dict(self._records)
        if change.change == "left":
            records.pop(change.node.node_id, None)
        else:
            records[change.node.node_id] = change.node
        self._records = records


def about(record: NodeRecord) -> dict[str, Any]:
    """What lists of relays and of banks say alike."""
    return {
        "state": record.state,
        "title": record.title,
        "host": record.host,
        "pid": record.pid,
        "epoch": record.epoch,
        "software": record.software,
    }


def nobody(kind: str, node_id: str | None, nodes: list[NodeRecord], waited_s: float) -> NotFound:
    """The error for a relay or bank (None: any) that is not among ``nodes``."""
    there = [each for each in nodes if each.kind == kind]
    known = [str(each.node_id) for each in there]
    if node_id is None:
        return NotFound(
            f"no {kind} registered within {waited_s:g} s; the broker is fine: start one with "
            f"'labmesh {kind}'"
        )
    near = did_you_mean(node_id, known)
    listed = ", ".join(
        each.node_id if each.state == "live" else f"{each.node_id} (silent)" for each in there
    )
    return NotFound(
        f"no {kind} {node_id!r} registered within {waited_s:g} s{near and f' ({near})'}; the "
        f"broker is fine, and lists {listed or 'none'}",
        known=known,
    )
