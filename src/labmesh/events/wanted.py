"""What a client has the broker send: the subscriptions that its listeners need."""

from __future__ import annotations

from collections.abc import Callable

from labmesh.events.in_step import InStep
from labmesh.events.listeners import Listeners, Sink
from labmesh.protocol.interests import Changes, Interests
from labmesh.protocol.topics import subscription
from labmesh.transport.subscriber import Subscriber

__all__ = ["Wanted"]


class Wanted:
    """Makes and ends the subscriptions of one client, on its loop.

    :param forget_states: called when subscriptions to states have ended, with those that are left:
        nothing keeps the states under no such prefix current.
    """

    def __init__(
        self,
        subscriber: Subscriber,
        in_step: InStep,
        forget_states: Callable[[tuple[str, ...]], None],
    ) -> None:
        self._subscriber = subscriber
        self._in_step = in_step
        self._forget_states = forget_states
        self._interests = Interests()
        self._followed: set[str | None] = set()
        self._banks: set[str] = set()

    def listen(
        self,
        listeners: Listeners,
        sink: Sink,
        family: str = "",
        patterns: tuple[str, ...] | None = None,
    ) -> None:
        """Have a sink hear what comes; its last moment takes the subscriptions back."""
        wanted: list[str | None] = [None] if patterns is None else list(patterns)
        if not family:
            wanted = []
        listeners.add(sink, patterns)
        for each in wanted:
            self._want(family, each)

        def ended() -> None:
            listeners.discard(sink)
            for each in wanted:
                self._want(family, each, end=True)

        sink.on_end(ended)

    def wants(self, family: str, node_id: str) -> bool:
        """Whether anybody listens to this node: not every event that comes was asked for."""
        return self._interests.wants(family, node_id)

    def follow_states(self, relay_id: str | None) -> str:
        """Subscribe to the states of a relay (None: of all), for good; the prefix of their topics.

        :raises ProtocolError: this is no id.
        """
        prefix = subscription("state", relay_id)
        if relay_id not in self._followed:
            self._followed.add(relay_id)
            self._want("state", relay_id)
        return prefix

    def follow_banks(self, bank_ids: set[str]) -> None:
        """Follow these banks, and no others."""
        for each in bank_ids - self._banks:
            self.follow_bank(each)
        for each in self._banks - bank_ids:
            self.follow_bank(each, end=True)

    def follow_bank(self, bank_id: str, *, end: bool = False) -> None:
        """How far its datasets have come; relays tell that of themselves to who wants to know."""
        if end is (bank_id not in self._banks):
            return
        (self._banks.discard if end else self._banks.add)(bank_id)
        change = self._interests.remove if end else self._interests.add
        self._subscribe("tail", change("tail", bank_id))

    def _want(self, family: str, pattern: str | None, *, end: bool = False) -> None:
        """A family of events, and with it how far its publishers have come."""
        change = self._interests.remove if end else self._interests.add
        self._subscribe(family, change(family, pattern))
        self._subscribe("tail", change("tail", pattern))

    def _subscribe(self, family: str, changes: Changes) -> None:
        for each in sorted(changes.begin):
            self._subscriber.subscribe(each)
        for each in sorted(changes.end):
            self._subscriber.unsubscribe(each)
        if changes.begin:
            self._in_step.prove()
        if family == "state" and changes != Changes():
            self._in_step.unfollow(changes.end)
            self._in_step.follow(changes.begin)
            if changes.end:
                self._forget_states(tuple(self._interests.in_force("state")))
