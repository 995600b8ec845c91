from __future__ import annotations

from typing import Any

import pytest
from tests.support.records import back, bank, joined, left, refusal, relay, suspected

from labmesh.errors import Busy, NotFound, ProtocolError
from labmesh.protocol.directory import Directory, Refused, Registered
from labmesh.protocol.messages import Epoch, NodeId, NodeRecord

TTL = 30.0
PROBE = 1.0

ID, E1 = NodeId("Inst-0"), Epoch("e1")


@pytest.fixture
def directory() -> Directory:
    return Directory(ttl_s=TTL, suspect_after=3, probe_s=PROBE)


# ── coming and going ────────────────────────────────────────────────────────────────────────────


def test_an_empty_directory_waits_for_nothing(directory: Directory) -> None:
    assert directory.nodes() == []
    assert directory.next_deadline() is None
    assert directory.expire(1e9) == []


def test_a_newcomer_is_welcomed_and_announced(directory: Directory) -> None:
    assert directory.hello(relay(), "asker", 0.0) == [
        Registered("asker", relay()),
        joined(relay()),
    ]
    assert directory.nodes() == [relay()]


def test_the_listing_is_sorted_by_kind_and_id(directory: Directory) -> None:
    for record in (relay("b", port=1), relay("a", port=2), bank("z"), relay("B", port=3)):
        directory.hello(record, None, 0.0)
    assert [each.node_id for each in directory.nodes()] == ["z", "B", "a", "b"]


def test_a_node_cannot_list_itself_in_another_state(directory: Directory) -> None:
    directory.hello(relay(state="suspect"), "asker", 0.0)
    assert directory.nodes() == [relay(state="live")]


def test_a_repeated_hello_is_welcomed_and_changes_nothing(directory: Directory) -> None:
    directory.hello(relay(), "first", 0.0)
    assert directory.hello(relay(), "second", 1.0) == [Registered("second", relay())]
    assert directory.nodes() == [relay()]
    assert directory.next_deadline() == 1.0 + 15.0


def test_a_repeated_hello_updates_what_is_no_address_silently(directory: Directory) -> None:
    directory.hello(relay(title="old", heartbeat_s=5.0), "first", 0.0)
    new = relay(title="new", heartbeat_s=2.0)
    assert directory.hello(new, "second", 1.0) == [Registered("second", new)]
    assert directory.nodes() == [new]
    assert directory.next_deadline() == 1.0 + 6.0


def test_a_node_that_moved_to_another_address_is_announced_as_replaced(
    directory: Directory,
) -> None:
    directory.hello(relay(port=1), "first", 0.0)
    assert directory.hello(relay(port=2), "second", 1.0) == [
        left(relay(port=1), "replaced"),
        Registered("second", relay(port=2)),
        joined(relay(port=2)),
    ]
    assert directory.nodes() == [relay(port=2)]
    # Its old address is free for somebody else at once.
    assert directory.hello(relay("other", port=1), "third", 1.0)[0] == Registered(
        "third", relay("other", port=1)
    )


def test_a_goodbye_removes_at_once(directory: Directory) -> None:
    directory.hello(relay(), None, 0.0)
    assert directory.goodbye(ID, E1, 1.0) == [left(relay(), "goodbye")]
    assert directory.nodes() == []
    assert directory.next_deadline() is None


def test_the_goodbye_of_a_stranger_or_of_an_old_incarnation_changes_nothing(
    directory: Directory,
) -> None:
    directory.hello(relay(epoch="e2"), None, 0.0)
    assert directory.goodbye(ID, E1, 1.0) == []
    assert directory.goodbye(NodeId("nobody"), E1, 1.0) == []
    assert directory.nodes() == [relay(epoch="e2")]


def test_ten_thousand_joins_and_leaves_leave_nothing_behind(directory: Directory) -> None:
    for cycle in range(10_000):
        directory.hello(relay(f"r{cycle}", port=1 + cycle), None, cycle * 0.001)
        directory.goodbye(NodeId(f"r{cycle}"), E1, cycle * 0.001)
    assert directory.nodes() == []
    assert directory.next_deadline() is None
    assert not directory._owners
    assert len(directory._alarms._heap) <= 64


# ── silence ─────────────────────────────────────────────────────────────────────────────────────


def test_a_silent_node_is_suspect_after_three_beats_and_gone_at_its_ttl(
    directory: Directory,
) -> None:
    directory.hello(relay(heartbeat_s=5.0), None, 100.0)
    assert directory.next_deadline() == 115.0
    assert directory.expire(114.999) == []
    assert directory.expire(115.0) == [suspected(relay())]
    assert directory.nodes() == [relay(state="suspect")]
    assert directory.next_deadline() == 130.0
    assert directory.expire(129.999) == []
    assert directory.expire(130.0) == [left(relay(state="suspect"), "expired")]
    assert directory.nodes() == []


def test_a_beat_brings_a_suspect_back(directory: Directory) -> None:
    directory.hello(relay(heartbeat_s=1.0), None, 0.0)
    directory.expire(3.0)
    assert directory.heartbeat(ID, E1, 4.0) == [back(relay(heartbeat_s=1.0))]
    assert directory.nodes() == [relay(heartbeat_s=1.0)]
    assert directory.next_deadline() == 7.0


def test_a_hello_brings_a_suspect_back(directory: Directory) -> None:
    directory.hello(relay(), None, 0.0)
    directory.expire(15.0)
    assert directory.hello(relay(), "again", 16.0) == [back(relay()), Registered("again", relay())]


def test_a_node_paused_for_less_than_its_ttl_is_never_removed(directory: Directory) -> None:
    directory.hello(relay(), None, 0.0)
    for resumed in range(10, 3600, 10):
        assert directory.expire(resumed) == []
        assert directory.heartbeat(ID, E1, resumed) == []


def test_a_node_that_beats_more_slowly_than_the_ttl_is_never_suspect(directory: Directory) -> None:
    directory.hello(relay(heartbeat_s=3600.0), None, 0.0)
    assert directory.next_deadline() == TTL
    assert directory.expire(TTL) == [left(relay(heartbeat_s=3600.0), "expired")]


def test_after_a_jump_of_time_a_silent_node_just_left(directory: Directory) -> None:
    directory.hello(relay(), None, 0.0)
    directory.hello(bank(), None, 1.0)
    assert directory.expire(1e9) == [left(relay(), "expired"), left(bank(), "expired")]
    assert directory.next_deadline() is None


def test_a_beat_that_waited_while_the_broker_was_stopped_still_counts(
    directory: Directory,
) -> None:
    directory.hello(relay(), None, 0.0)
    assert directory.heartbeat(ID, E1, 60.0) == []
    assert directory.expire(60.0) == []
    assert directory.nodes() == [relay()]


def test_a_repeated_hello_that_waited_while_the_broker_was_stopped_still_counts(
    directory: Directory,
) -> None:
    directory.hello(relay(), None, 0.0)
    assert directory.hello(relay(), "again", 60.0) == [Registered("again", relay())]


def test_a_broker_that_stood_still_excuses_its_nodes(directory: Directory) -> None:
    directory.hello(relay(heartbeat_s=5.0), None, 0.0)
    directory.excuse(100.0)
    assert directory.expire(100.0) == []
    assert directory.next_deadline() == 115.0
    assert directory.expire(130.0) == [left(relay(heartbeat_s=5.0), "expired")]


def test_a_node_that_was_removed_is_told_to_say_hello(directory: Directory) -> None:
    directory.hello(relay(), None, 0.0)
    directory.expire(TTL)
    with pytest.raises(NotFound, match="'Inst-0' is not registered; say hello") as caught:
        directory.heartbeat(ID, E1, TTL)
    assert caught.value.detail == {"node_id": "Inst-0"}
    assert directory.nodes() == []


def test_the_beat_of_a_replaced_incarnation_does_not_count_for_the_new_one(
    directory: Directory,
) -> None:
    directory.hello(relay(epoch="e2"), None, 0.0)
    with pytest.raises(NotFound, match="say hello"):
        directory.heartbeat(ID, E1, 10.0)
    assert directory.next_deadline() == 15.0


def test_a_tiny_heartbeat_interval_cannot_make_the_clock_stand_still(directory: Directory) -> None:
    directory.hello(relay(heartbeat_s=1e-300), None, 1e6)
    directory.expire(1e6)
    assert directory.next_deadline() == 1e6 + TTL
    directory.hello(relay(heartbeat_s=1e-300), None, 1e6)
    assert directory.nodes() == [relay(heartbeat_s=1e-300, state="suspect")]


# ── limits ──────────────────────────────────────────────────────────────────────────────────────


def test_a_full_directory_is_busy_for_newcomers_only() -> None:
    directory = Directory(max_nodes=2)
    directory.hello(relay("a", port=1), None, 0.0)
    directory.hello(relay("b", port=2), None, 0.0)
    (refused,) = directory.hello(relay("c", port=3), "c", 1.0)
    assert isinstance(refused, Refused)
    assert isinstance(refused.error, Busy)
    assert "2 nodes are registered" in str(refused.error)
    assert directory.hello(relay("a", port=1), "a", 1.0) == [Registered("a", relay("a", port=1))]
    assert Registered("a", relay("a", port=9)) in directory.hello(relay("a", port=9), "a", 1.0)
    directory.goodbye(NodeId("b"), E1, 2.0)
    assert Registered("c", relay("c", port=3)) in directory.hello(relay("c", port=3), "c", 2.0)


def test_a_full_directory_has_room_once_somebody_expired() -> None:
    directory = Directory(max_nodes=1, ttl_s=TTL)
    directory.hello(relay("a", port=1), None, 0.0)
    effects = directory.hello(relay("b", port=2), "b", TTL)
    assert effects[:2] == [
        left(relay("a", port=1), "expired"),
        Registered("b", relay("b", port=2)),
    ]


def test_a_full_directory_still_replaces_the_dead() -> None:
    directory = Directory(max_nodes=1)
    directory.hello(relay(epoch="e1"), None, 0.0)
    directory.hello(relay(epoch="e2"), "newcomer", 0.0)
    assert Registered("newcomer", relay(epoch="e2")) in directory.expire(1.0)


def test_the_place_of_one_dead_is_not_given_to_two() -> None:
    """One newcomer claims its address, another its id; both waited for the same answer."""
    directory = Directory(max_nodes=2)
    directory.hello(relay("b", port=9), None, 0.0)
    directory.hello(relay("a", port=1), None, 0.0)
    directory.hello(relay("c", port=1), "c", 0.0)
    directory.hello(relay("a", epoch="e2", port=2), "a", 0.0)
    effects = directory.expire(1.0)
    assert Registered("c", relay("c", port=1)) in effects
    assert isinstance(refusal(effects, "a"), Busy)
    assert [each.node_id for each in directory.nodes()] == ["b", "c"]


def test_the_number_of_newcomers_that_wait_is_limited() -> None:
    directory = Directory(max_nodes=2)
    directory.hello(relay(epoch="e1"), None, 0.0)
    directory.hello(relay(epoch="e2"), "a", 0.0)
    directory.hello(relay(epoch="e3"), "b", 0.0)
    error = refusal(directory.hello(relay(epoch="e4"), "c", 0.0), "c")
    assert isinstance(error, Busy)
    assert "2 newcomers wait" in str(error)


# ── bad input ───────────────────────────────────────────────────────────────────────────────────

BAD_IDS = ["", " ", "../x", "a/b", "a\0b", "\uff41", "a\u202eb", "a" * 300, ".", "..", "CON", "-rf"]
BAD_ENDPOINTS = [
    "file:///etc/passwd",
    "inproc://x",
    "ipc:///tmp/x",
    "tcp://*:1",
    "tcp://10.0.0.3:0",
    "tcp://10.0.0.3:65536",
    "tcp://10.0.0.3:-1",
    "tcp://10.0.0.3:x",
    "tcp://10.0.0.3",
    "tcp://a\nb:1",
    "tcp://user:word@10.0.0.3:1",
    "tcp://" + "a" * 10_000 + ":1",
    "tcp://169.254.169.254:80",
    "",
]


@pytest.fixture
def occupied(directory: Directory) -> Directory:
    """A holder that is about to expire, and a newcomer that waits."""
    directory.hello(relay(epoch="e1"), None, 0.0)
    directory.hello(relay(epoch="e2", port=2), "waiting", 29.5)
    return directory


def refused_as_bad(directory: Directory, record: NodeRecord) -> str:
    """The text of the refusal, which changed nothing."""
    before = directory.nodes(), directory.next_deadline()
    with pytest.raises(ProtocolError) as caught:
        directory.hello(record, "bad", 100.0)
    assert (directory.nodes(), directory.next_deadline()) == before
    assert Registered("waiting", relay(epoch="e2", port=2)) in directory.expire(100.0)
    return str(caught.value)


@pytest.mark.parametrize("node_id", BAD_IDS)
def test_a_bad_id_is_refused_with_the_rule_in_words(occupied: Directory, node_id: str) -> None:
    text = refused_as_bad(occupied, relay(node_id, port=3))
    assert text.startswith("relay_id ")
    assert "the rule: 1 to 128 of A-Z" in text


@pytest.mark.parametrize("endpoint", BAD_ENDPOINTS)
def test_a_bad_endpoint_is_refused_with_an_example(occupied: Directory, endpoint: str) -> None:
    assert "tcp://192.168.1.10:5750" in refused_as_bad(occupied, relay("r", endpoint=endpoint))


def test_a_bad_name_of_an_endpoint_is_refused(occupied: Directory) -> None:
    endpoints = {"rpc": "tcp://10.0.0.3:3", "a\nb": "tcp://10.0.0.3:4"}
    text = refused_as_bad(occupied, relay("r", endpoints=endpoints))
    assert text.startswith("name of an endpoint")


@pytest.mark.parametrize(
    ("record", "missing"),
    [
        (relay("r", endpoints={}), "rpc"),
        (bank("b", endpoints={}), "ingest and retrieve"),
        (bank("b", endpoints={"ingest": "tcp://10.0.0.9:1"}), "retrieve"),
        (bank("b", endpoints={"rpc": "tcp://10.0.0.9:1"}), "ingest and retrieve"),
    ],
)
def test_a_node_without_the_endpoints_of_its_kind_is_refused(
    occupied: Directory, record: NodeRecord, missing: str
) -> None:
    text = refused_as_bad(occupied, record)
    assert f"does not say where its {missing} socket is; bind it first" in text


def test_a_node_may_advertise_more_endpoints_than_it_must(directory: Directory) -> None:
    endpoints = {"rpc": "tcp://10.0.0.3:3", "web": "tcp://10.0.0.3:80"}
    assert directory.hello(relay(endpoints=endpoints), None, 0.0)[0] == Registered(
        None, relay(endpoints=endpoints)
    )


def test_a_node_cannot_claim_the_address_of_the_broker() -> None:
    directory = Directory(own_endpoints=["tcp://Broker.example:5750"])
    with pytest.raises(ProtocolError, match=r"the broker's own address, as its rpc.*\(rpc_bind\)"):
        directory.hello(relay(endpoint="tcp://broker.example:5750"), None, 0.0)
    assert directory.nodes() == []


@pytest.mark.parametrize("record", [relay(), bank(), relay("r", port=1, heartbeat_s=0.5)])
def test_effects_carry_whatever_token_the_shell_uses(record: NodeRecord) -> None:
    token: Any = (b"routing id", "call id")
    (registered, _) = Directory().hello(record, token, 0.0)
    assert isinstance(registered, Registered)
    assert registered.token is token
