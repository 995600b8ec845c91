"""The directory under any order of hellos, beats, goodbyes, probe answers and time."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from tests.support.records import bank, relay

from labmesh.errors import Busy, Cancelled, Conflict, NotFound
from labmesh.protocol.directory import Changed, Directory, Effect, Probe, Refused, Registered
from labmesh.protocol.messages import Epoch, NodeId, NodeRecord, PresenceChange

TTL, PROBE, MAX_NODES = 8.0, 1.0, 3

ids = st.sampled_from(["a", "b", "c", "d"]).map(NodeId)
epochs = st.sampled_from(["e1", "e2", "e3"]).map(Epoch)
# Two relays can claim one port, and a relay a port of a bank.
ports = st.sampled_from([5900, 5901, 5902, 5903])
# In eighths, so that sums are exact and times meet.
spans = st.integers(0, 24).map(lambda eighths: eighths / 8) | st.sampled_from([TTL, 1e6])
heartbeats = st.sampled_from([0.5, 1.0, 100.0])

Incarnation = tuple[NodeId, Epoch]


def incarnation(record: NodeRecord) -> Incarnation:
    return record.node_id, record.epoch


class DirectoryMachine(RuleBasedStateMachine):
    """Beside the directory, what a careful observer of its effects knows."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = Directory(ttl_s=TTL, suspect_after=3, max_nodes=MAX_NODES, probe_s=PROBE)
        self.now = 0.0
        self.step = 0
        #: token → (step, time) of its hello, while it waits
        self.asked: dict[int, tuple[int, float]] = {}
        self.answered: set[int] = set()
        #: what a subscriber to presence knows
        self.listed: dict[NodeId, NodeRecord] = {}
        #: when a registered node was last heard, as (step, time)
        self.life: dict[Incarnation, tuple[int, float]] = {}
        self.probes: dict[int, Incarnation] = {}

    # ── what happens ────────────────────────────────────────────────────────────────────────────

    @rule(node_id=ids, epoch=epochs, port=ports, heartbeat_s=heartbeats, is_bank=st.booleans())
    def hello(
        self, node_id: NodeId, epoch: Epoch, port: int, heartbeat_s: float, is_bank: bool
    ) -> None:
        self.step += 1
        if is_bank:
            record = bank(node_id, epoch=epoch, port=port, heartbeat_s=heartbeat_s)
        else:
            place = f"tcp://10.0.0.9:{port}"
            record = relay(node_id, epoch=epoch, endpoint=place, heartbeat_s=heartbeat_s)
        self.asked[self.step] = (self.step, self.now)
        if incarnation(record) in self.life:
            self.life[incarnation(record)] = (self.step, self.now)
        self.watch(self.directory.hello(record, self.step, self.now))

    @rule(node_id=ids, epoch=epochs)
    def heartbeat(self, node_id: NodeId, epoch: Epoch) -> None:
        self.step += 1
        try:
            effects = self.directory.heartbeat(node_id, epoch, self.now)
        except NotFound:
            assert (node_id, epoch) not in self.life
        else:
            self.life[node_id, epoch] = (self.step, self.now)
            self.watch(effects)

    @rule(node_id=ids, epoch=epochs)
    def goodbye(self, node_id: NodeId, epoch: Epoch) -> None:
        self.step += 1
        self.watch(self.directory.goodbye(node_id, epoch, self.now))
        assert (node_id, epoch) not in self.life

    @precondition(lambda self: self.probes)
    @rule(choice=st.data(), alive=st.booleans())
    def probe_answered(self, choice: st.DataObject, alive: bool) -> None:
        """Also late ones, and ones that come twice."""
        self.step += 1
        probe_id = choice.draw(st.sampled_from(sorted(self.probes)))
        probed = self.probes[probe_id]
        was_registered = probed in self.life
        self.watch(self.directory.probe_answered(probe_id, alive, self.now))
        if alive:
            assert (probed in self.life) == was_registered

    @rule(span=spans)
    def wait(self, span: float) -> None:
        self.step += 1
        self.now += span
        self.watch(self.directory.expire(self.now))
        self.nothing_is_overdue()

    @precondition(lambda self: self.directory.next_deadline() is not None)
    @rule()
    def wait_for_the_next_deadline(self) -> None:
        deadline = self.directory.next_deadline()
        assert deadline is not None
        if deadline > self.now:
            early = (self.now + deadline) / 2
            assert self.directory.expire(early) == []
            self.now = deadline
        self.step += 1
        self.watch(self.directory.expire(self.now))
        self.nothing_is_overdue()

    # ── what must hold ──────────────────────────────────────────────────────────────────────────

    def nothing_is_overdue(self) -> None:
        for _, heard_at in self.life.values():
            assert self.now < heard_at + TTL
        for _, asked_at in self.asked.values():
            assert self.now < asked_at + PROBE
        deadline = self.directory.next_deadline()
        assert deadline is None or deadline > self.now
        for record in self.listed.values():
            _, heard_at = self.life[incarnation(record)]
            overdue = self.now >= heard_at + 3 * record.heartbeat_s
            assert record.state == ("suspect" if overdue else "live")

    def watch(self, effects: list[Effect]) -> None:
        replaced: list[Incarnation] = []
        for effect in effects:
            match effect:
                case Registered(token, record):
                    assert isinstance(token, int)
                    self.no_replaced_owner_had_shown_life(token, record, replaced)
                    replaced.clear()
                    self.answer(token)
                    self.life[incarnation(record)] = (self.step, self.now)
                case Refused(token, error):
                    assert isinstance(token, int)
                    assert isinstance(error, Conflict | Busy | Cancelled)
                    self.answer(token)
                case Probe(probe_id, record):
                    assert probe_id not in self.probes
                    assert incarnation(record) in self.life
                    self.probes[probe_id] = incarnation(record)
                case Changed(change):
                    self.follow(change, replaced)
        assert not replaced

    def follow(self, change: PresenceChange, replaced: list[Incarnation]) -> None:
        record = change.node
        known = self.listed.get(record.node_id)
        if change.change == "joined":
            assert known is None
            assert record.state == "live"
            self.listed[record.node_id] = record
            return
        assert known is not None
        assert incarnation(known) == incarnation(record)
        if change.change == "left":
            assert known == record
            del self.listed[record.node_id]
            _, heard_at = self.life[incarnation(record)]
            assert (change.reason == "expired") <= (self.now >= heard_at + TTL)
            if change.reason == "replaced":
                replaced.append(incarnation(record))
            else:
                del self.life[incarnation(record)]
        else:
            expected = {"suspect": ("live", "suspect"), "back": ("suspect", "live")}
            assert (known.state, record.state) == expected[change.change]
            self.listed[record.node_id] = record

    def no_replaced_owner_had_shown_life(
        self, token: int, winner: NodeRecord, replaced: list[Incarnation]
    ) -> None:
        asked_in, _ = self.asked[token]
        for owner in replaced:
            if owner == incarnation(winner):
                continue
            heard_in, _ = self.life.pop(owner)
            assert heard_in < asked_in

    def answer(self, token: int) -> None:
        assert token not in self.answered
        self.answered.add(token)
        del self.asked[token]

    @invariant()
    def a_subscriber_to_presence_knows_the_listing(self) -> None:
        nodes = {node.node_id: node for node in self.directory.nodes()}
        assert {node_id: incarnation(node) for node_id, node in nodes.items()} == {
            node_id: incarnation(node) for node_id, node in self.listed.items()
        }
        for node_id, node in nodes.items():
            assert node.endpoints == self.listed[node_id].endpoints
            assert node.state == self.listed[node_id].state
            # A repeated hello may change the rest without an announcement.
            self.listed[node_id] = node
        assert set(map(incarnation, nodes.values())) == set(self.life)

    @invariant()
    def an_id_and_an_address_have_one_owner(self) -> None:
        nodes = self.directory.nodes()
        assert len({node.node_id for node in nodes}) == len(nodes) <= MAX_NODES
        assert nodes == sorted(nodes, key=lambda node: (node.kind, node.node_id))
        claimed = [place for node in nodes for place in set(node.endpoints.values())]
        assert len(set(claimed)) == len(claimed)

    def teardown(self) -> None:
        """Whoever asked is answered once probes have run out."""
        self.now += PROBE
        self.step += 1
        self.watch(self.directory.expire(self.now))
        assert not self.asked
        assert not self.directory._waiting
        assert not self.directory._probes


TestDirectoryMachine = DirectoryMachine.TestCase
TestDirectoryMachine.settings = settings(deadline=None, max_examples=100, stateful_step_count=40)
