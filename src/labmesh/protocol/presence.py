"""What a client of two brokers tells of joining and leaving: each change once, whoever says it."""

from __future__ import annotations

from collections.abc import Iterable

from msgspec.structs import replace

from labmesh.protocol.messages import NodeId, NodeRecord, PresenceChange

__all__ = ["UNSEEN", "PresenceTold"]

#: The reason of a departure that no broker has told to this client.
UNSEEN = "gone meanwhile"


class PresenceTold:
    """What was told so far, so that nothing is told twice.

    Two brokers notice the same death a little apart, and each says so.
    """

    def __init__(self) -> None:
        self._told: dict[NodeId, NodeRecord] = {}
        self._has_begun = False

    def is_news(self, change: PresenceChange) -> bool:
        """Take an announcement; False: a repeat, or of an incarnation that was replaced."""
        node = change.node
        told = self._told.get(node.node_id)
        is_told = told is not None and told.epoch == node.epoch
        if change.change == "joined":
            is_news = not is_told
        elif change.change == "left":
            is_news = is_told
        else:
            is_news = is_told and told is not None and told.state != node.state
        if is_news and change.change == "left":
            del self._told[node.node_id]
        elif is_news:
            self._told[node.node_id] = node
        return is_news

    def begin(self, nodes: Iterable[NodeRecord]) -> None:
        """Take the first list: who is on it was there before. Of a later one, nothing is taken."""
        if not self._has_begun:
            self._has_begun = True
            self._told = {each.node_id: each for each in nodes}

    def differences(self, nodes: Iterable[NodeRecord]) -> list[PresenceChange]:
        """Take a list as the truth: what has to be told so that the listeners know it, too."""
        listed = {each.node_id: each for each in nodes}
        changes: list[PresenceChange] = []
        for node_id, told in self._told.items():
            node = listed.get(node_id)
            if node is None or node.epoch != told.epoch:
                changes.append(PresenceChange(node=told, change="left", reason=UNSEEN))
        for node_id, node in listed.items():
            known = self._told.get(node_id)
            if known is None or known.epoch != node.epoch:
                changes.append(PresenceChange(node=replace(node, state="live"), change="joined"))
                known = None
            if node.state != ("live" if known is None else known.state):
                change = PresenceChange(
                    node=node, change="suspect" if node.state == "suspect" else "back"
                )
                changes.append(change)
        self._told = listed
        return changes
