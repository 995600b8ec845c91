"""Who is here, until when, and who owns an id or an address: the broker's register.

A node claims its id and each of its endpoints. Relays and banks share one namespace, and a claim
has at most one owner. A newcomer that claims what another incarnation owns does not decide
anything by itself: the owner is probed, keeps its claims when it gives any sign of life, and is
replaced when it gives none for ``probe_s``.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Literal, TypeAlias

from msgspec.structs import replace

from labmesh.errors import Busy, Cancelled, LabmeshError, NotFound, ProtocolError
from labmesh.protocol.addresses import check_endpoint
from labmesh.protocol.alarms import Alarms
from labmesh.protocol.claims import claims_of, conflict_of
from labmesh.protocol.ids import shown
from labmesh.protocol.messages import Epoch, LiveState, NodeId, NodeRecord, PresenceChange
from labmesh.protocol.records import checked

__all__ = ["Changed", "Directory", "Effect", "Probe", "Refused", "Registered"]

_Incarnation: TypeAlias = tuple[NodeId, Epoch]


@dataclass(frozen=True, slots=True)
class Registered:
    """Answer the hello of ``token``: welcome. ``record`` is the line as it is listed."""

    token: object
    record: NodeRecord


@dataclass(frozen=True, slots=True)
class Refused:
    """Answer the hello of ``token``: no, with this error."""

    token: object
    error: LabmeshError


@dataclass(frozen=True, slots=True)
class Probe:
    """Ping ``record.endpoints`` and tell :meth:`Directory.probe_answered`.

    Alive is a pong that carries the id *and* epoch of ``record``: a newcomer that took the port of
    a dead node answers there too.
    """

    probe_id: int
    record: NodeRecord


@dataclass(frozen=True, slots=True)
class Changed:
    """Publish this."""

    change: PresenceChange


Effect: TypeAlias = Registered | Refused | Probe | Changed


@dataclass(slots=True, eq=False)
class _Entry:
    """A registered incarnation."""

    record: NodeRecord
    beat_at: float
    #: waiting newcomers that claim something of this entry, in the order of their hellos
    rivals: dict[_Incarnation, _Newcomer] = field(default_factory=dict)
    probe_id: int | None = None


@dataclass(slots=True, eq=False)
class _Newcomer:
    """A hello that waits until the owners of its claims are settled."""

    record: NodeRecord
    token: object
    #: the owners at the time of the hello; True: may still defend itself
    challenged: dict[_Entry, bool] = field(default_factory=dict)


class Directory:
    """The register of one broker. Its time is the broker's monotonic clock, in seconds.

    Each hello that is not refused by an exception is answered once, at once or by a later call, by
    :class:`Registered` or :class:`Refused` with its token. Presence changes alternate: ``joined``
    and ``left`` of an id, in between ``suspect`` and ``back``.

    :param ttl_s: a node that was not heard for so long is removed.
    :param suspect_after: so many beats missed, by the node's own ``heartbeat_s``: suspect.
    :param max_nodes: most nodes registered, and most newcomers that wait at one time.
    :param probe_s: an owner that does not answer a probe for so long is dead.
    :param own_endpoints: the broker's own addresses as others know them; no node may claim them.
    """

    def __init__(
        self,
        *,
        ttl_s: float = 30.0,
        suspect_after: int = 3,
        max_nodes: int = 10_000,
        probe_s: float = 1.0,
        own_endpoints: Iterable[str] = (),
    ) -> None:
        self.ttl_s = ttl_s
        self._suspect_after = suspect_after
        self._max_nodes = max_nodes
        self._probe_s = probe_s
        self._own_endpoints = frozenset(str(check_endpoint(each)) for each in own_endpoints)
        self._entries: dict[NodeId, _Entry] = {}
        #: claim → owner; ids and endpoints in one table, for an endpoint has "://" and no id has
        self._owners: dict[str, _Entry] = {}
        self._waiting: dict[_Incarnation, _Newcomer] = {}
        #: open probes by id, with their deadlines: the oldest first, as all last ``probe_s``
        self._probes: dict[int, tuple[float, _Entry]] = {}
        self._last_probe_id = 0
        self._alarms: Alarms[NodeId] = Alarms()

    def hello(self, node: NodeRecord, token: object, now: float) -> list[Effect]:
        """Register a node, now or once the owners of its claims are settled.

        ``token`` names the asker in the answer. A repeat by the registered incarnation is welcomed
        and updates its line. Of several hellos of one incarnation that wait, the last is answered
        for all, the earlier ones are refused as cancelled. Refusals: 409 (a live owner), 429 (the
        directory is full), 499.

        :raises ProtocolError: a bad id, endpoint or name of an endpoint, or a required endpoint
            that is missing. Nothing was changed.
        """
        record = self._checked(node)
        effects: list[Effect] = []
        own = self._registered(record.node_id, record.epoch)
        if own is not None:
            effects += self._beat(own, now)
        effects += self.expire(now)
        return effects + self._admit(_Newcomer(record, token), now)

    def heartbeat(self, node_id: NodeId, epoch: Epoch, now: float) -> list[Effect]:
        """Note a sign of life: the ttl begins anew, and newcomers that claim its id lose.

        A beat counts until :meth:`expire` has removed the node, also when its ttl has passed by
        then: after a pause of the broker itself the late one is the broker, not the node.

        :raises NotFound: this incarnation is not registered; it shall say hello.
        """
        entry = self._registered(node_id, epoch)
        if entry is None:
            raise NotFound(
                f"this incarnation of {shown(node_id)} is not registered; say hello first",
                node_id=node_id,
            )
        return self._beat(entry, now)

    def goodbye(
        self, node_id: NodeId, epoch: Epoch, now: float, reason: str = "goodbye"
    ) -> list[Effect]:
        """Remove this incarnation, and take back its waiting hello; any other one stays."""
        effects: list[Effect] = []
        waiting = self._waiting.get((node_id, epoch))
        if waiting is not None:
            error = Cancelled(f"{node_id} said goodbye before its registration was settled")
            effects.append(self._refuse(waiting, error))
        entry = self._registered(node_id, epoch)
        if entry is not None:
            effects += [self._remove(entry, reason), *self._release(entry, now)]
        return effects

    def probe_answered(self, probe_id: int, alive: bool, now: float) -> list[Effect]:
        """Settle a probe. One that was settled before, in whatever way, is ignored."""
        if probe_id not in self._probes:
            return []
        _, entry = self._probes[probe_id]
        return self._defend(entry) if alive else self._release(entry, now)

    def expire(self, now: float) -> list[Effect]:
        """Do what is due: remove or suspect silent nodes; a probe without answer counts as dead."""
        effects: list[Effect] = []
        while (alarm := self._alarms.first()) is not None and alarm[0] <= now:
            entry = self._entries[alarm[1]]
            if now >= entry.beat_at + self.ttl_s:
                effects += [self._remove(entry, "expired"), *self._release(entry, now)]
            else:
                effects.append(self._turn(entry, "suspect", "suspect"))
        for _, entry in list(takewhile(lambda probe: probe[0] <= now, self._probes.values())):
            effects += self._release(entry, now)
        return effects

    def excuse(self, paused_s: float) -> None:
        """The broker itself stood still for so long: its nodes were not silent, it was deaf."""
        for entry in self._entries.values():
            entry.beat_at += paused_s
            self._set_alarm(entry)

    def next_deadline(self) -> float | None:
        """When :meth:`expire` next has something to do."""
        due = (self._alarms.first(), next(iter(self._probes.values()), None))
        return min((each[0] for each in due if each is not None), default=None)

    def nodes(self) -> list[NodeRecord]:
        """The registered nodes, sorted by kind and id, as of the last :meth:`expire`."""
        records = [entry.record for entry in self._entries.values()]
        return sorted(records, key=lambda record: (record.kind, record.node_id))

    def _checked(self, node: NodeRecord) -> NodeRecord:
        record = checked(node)
        for name, endpoint in record.endpoints.items():
            if endpoint in self._own_endpoints:
                raise ProtocolError(
                    f"{node.kind} {node.node_id} claims {endpoint}, the broker's own address, "
                    f"as its {name}; choose another port ({name}_bind)"
                )
        return replace(record, state="live")

    def _registered(self, node_id: NodeId, epoch: Epoch) -> _Entry | None:
        entry = self._entries.get(node_id)
        return entry if entry is not None and entry.record.epoch == epoch else None

    def _owners_of(self, record: NodeRecord) -> list[_Entry]:
        owners = (self._owners.get(claim) for claim in claims_of(record))
        return list(dict.fromkeys(owner for owner in owners if owner is not None))

    def _challengeable(self, record: NodeRecord) -> list[_Entry]:
        """The owners of its claims, without its own earlier registration."""
        mine = _incarnation(record)
        return [each for each in self._owners_of(record) if _incarnation(each.record) != mine]

    def _admit(self, newcomer: _Newcomer, now: float) -> list[Effect]:
        record = newcomer.record
        effects: list[Effect] = []
        earlier = self._waiting.get(_incarnation(record))
        if earlier is not None:
            error = Cancelled(f"{record.node_id} said hello again; the later hello is answered")
            if claims_of(earlier.record) == claims_of(record):
                # A repeat must neither lose its place nor begin a new round of probes.
                refused = Refused(earlier.token, error)
                earlier.record, earlier.token = record, newcomer.token
                return [refused]
            effects.append(self._refuse(earlier, error))
        owners = self._challengeable(record)
        if owners:
            return effects + self._challenge(newcomer, owners, now)
        own = self._entries.get(record.node_id)
        if own is not None and own.record.endpoints == record.endpoints:
            own.record = replace(record, state=own.record.state)
            self._set_alarm(own)
            return [*effects, Registered(newcomer.token, own.record)]
        if not self._has_room(record):
            return [*effects, Refused(newcomer.token, self._full("nodes are registered"))]
        return effects + self._enter(newcomer, now)

    def _challenge(self, newcomer: _Newcomer, owners: list[_Entry], now: float) -> list[Effect]:
        if len(self._waiting) >= self._max_nodes:
            return [Refused(newcomer.token, self._full("newcomers wait"))]
        incarnation = _incarnation(newcomer.record)
        self._waiting[incarnation] = newcomer
        effects: list[Effect] = []
        for owner in owners:
            newcomer.challenged[owner] = True
            owner.rivals[incarnation] = newcomer
            if owner.probe_id is None:
                self._last_probe_id += 1
                owner.probe_id = self._last_probe_id
                self._probes[owner.probe_id] = (now + self._probe_s, owner)
                effects.append(Probe(owner.probe_id, owner.record))
        return effects

    def _defend(self, owner: _Entry) -> list[Effect]:
        """The owner lives: everyone who claims something of it has lost."""
        self._close_probe(owner)
        return [
            self._refuse(rival, conflict_of(rival.record, owner.record))
            for rival in tuple(owner.rivals.values())
        ]

    def _release(self, owner: _Entry, now: float) -> list[Effect]:
        """The owner does not defend itself, or is gone: settle who waited for that.

        A queue, because the one who wins may replace others, for whom somebody waits in turn.
        """
        effects: list[Effect] = []
        released = deque([owner])
        while released:
            each = released.popleft()
            self._close_probe(each)
            for rival in tuple(each.rivals.values()):
                rival.challenged[each] = False
                winner = self._winner_over(rival)
                if winner is not None:
                    effects.append(self._refuse(rival, conflict_of(rival.record, winner.record)))
                elif any(rival.challenged.values()):
                    continue
                elif not self._has_room(rival.record):
                    effects.append(self._refuse(rival, self._full("nodes are registered")))
                else:
                    # Rivals of the same owner are judged again: they may have lost just now.
                    released.extend([each, *self._owners_of(rival.record)])
                    effects += self._enter(rival, now)
        return effects

    def _winner_over(self, newcomer: _Newcomer) -> _Entry | None:
        """Who has registered one of its claims since it asked."""
        owners = self._challengeable(newcomer.record)
        return next((each for each in owners if each not in newcomer.challenged), None)

    def _enter(self, newcomer: _Newcomer, now: float) -> list[Effect]:
        """Register it; whoever owns one of its claims is replaced."""
        record = newcomer.record
        self._withdraw(newcomer)
        effects: list[Effect] = [
            self._remove(owner, "replaced") for owner in self._owners_of(record)
        ]
        entry = self._entries[record.node_id] = _Entry(record, now)
        for claim in claims_of(record):
            self._owners[claim] = entry
        self._set_alarm(entry)
        joined = Changed(PresenceChange(node=record, change="joined"))
        return [*effects, Registered(newcomer.token, record), joined]

    def _remove(self, entry: _Entry, reason: str) -> Changed:
        del self._entries[entry.record.node_id]
        for claim in claims_of(entry.record):
            del self._owners[claim]
        self._alarms.drop(entry.record.node_id)
        return Changed(PresenceChange(node=entry.record, change="left", reason=reason))

    def _refuse(self, newcomer: _Newcomer, error: LabmeshError) -> Refused:
        self._withdraw(newcomer)
        return Refused(newcomer.token, error)

    def _withdraw(self, newcomer: _Newcomer) -> None:
        incarnation = _incarnation(newcomer.record)
        self._waiting.pop(incarnation, None)
        for owner in newcomer.challenged:
            del owner.rivals[incarnation]

    def _beat(self, entry: _Entry, now: float) -> list[Effect]:
        entry.beat_at = now
        self._set_alarm(entry)
        effects: list[Effect] = [*self._defend(entry)]
        if entry.record.state == "suspect":
            effects.append(self._turn(entry, "live", "back"))
        return effects

    def _turn(self, entry: _Entry, state: LiveState, change: Literal["suspect", "back"]) -> Changed:
        entry.record = replace(entry.record, state=state)
        self._set_alarm(entry)
        return Changed(PresenceChange(node=entry.record, change=change))

    def _set_alarm(self, entry: _Entry) -> None:
        silence_s = self.ttl_s
        if entry.record.state == "live":
            silence_s = min(silence_s, self._suspect_after * entry.record.heartbeat_s)
        self._alarms.set(entry.record.node_id, entry.beat_at + silence_s)

    def _close_probe(self, entry: _Entry) -> None:
        if entry.probe_id is not None:
            del self._probes[entry.probe_id]
            entry.probe_id = None

    def _has_room(self, record: NodeRecord) -> bool:
        """Also for one that takes the place of another, or of its own earlier registration."""
        return bool(self._owners_of(record)) or len(self._entries) < self._max_nodes

    def _full(self, what: str) -> Busy:
        return Busy(
            f"the directory is full: {self._max_nodes} {what}, its limit; "
            "try again later, or raise max_nodes at the broker"
        )


def _incarnation(record: NodeRecord) -> _Incarnation:
    return record.node_id, record.epoch
