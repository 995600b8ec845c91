"""Two nodes that claim one id or one address."""

from __future__ import annotations

import pytest
from tests.support.records import bank, joined, left, probe, refusal, relay

from labmesh.errors import Cancelled, Conflict, NotFound
from labmesh.protocol.directory import Directory, Probe, Refused, Registered
from labmesh.protocol.messages import Epoch, NodeId

TTL = 30.0
PROBE = 1.0

ID, E1, E2 = NodeId("Inst-0"), Epoch("e1"), Epoch("e2")


@pytest.fixture
def directory() -> Directory:
    return Directory(ttl_s=TTL, suspect_after=3, probe_s=PROBE)


# ── two nodes, one id ───────────────────────────────────────────────────────────────────────────


def test_a_live_holder_keeps_its_id(directory: Directory) -> None:
    directory.hello(relay(epoch="e1"), "holder", 0.0)
    effects = directory.hello(relay(epoch="e2", port=9), "newcomer", 1.0)
    assert effects == [Probe(1, relay(epoch="e1"))]
    assert directory.next_deadline() == 2.0
    error = refusal(directory.probe_answered(1, True, 1.1), "newcomer")
    assert isinstance(error, Conflict)
    assert str(error) == (
        "id Inst-0 is taken by a live relay (host 'lab-3', pid 4242, tcp://10.0.0.3:5801); "
        "choose another id (relay_id) or stop the other one"
    )
    assert error.detail == {
        "node_id": "Inst-0",
        "kind": "relay",
        "host": "lab-3",
        "pid": 4242,
        "endpoint": "tcp://10.0.0.3:5801",
    }
    assert directory.nodes() == [relay(epoch="e1")]


def test_a_holder_on_an_unknown_host_is_still_named(directory: Directory) -> None:
    directory.hello(relay(host=""), None, 0.0)
    effects = directory.hello(relay(epoch="e2"), "newcomer", 0.0)
    effects = directory.probe_answered(probe(effects).probe_id, True, 0.0)
    assert "(host unknown, pid 4242, " in str(refusal(effects, "newcomer"))


def test_a_host_name_cannot_forge_the_text_of_a_refusal(directory: Directory) -> None:
    directory.hello(relay(host="x\n\u202eall fine"), None, 0.0)
    effects = directory.hello(relay(epoch="e2"), "newcomer", 0.0)
    effects = directory.probe_answered(probe(effects).probe_id, True, 0.0)
    assert r"'x\n\u202eall fine'" in str(refusal(effects, "newcomer"))


@pytest.mark.parametrize("settle", ["refused", "silent"])
def test_a_dead_holder_is_replaced_at_once(directory: Directory, settle: str) -> None:
    directory.hello(relay(epoch="e1"), "holder", 0.0)
    directory.hello(relay(epoch="e2"), "newcomer", 1.0)
    if settle == "refused":
        effects = directory.probe_answered(1, False, 1.25)
    else:
        assert directory.expire(1.999) == []
        effects = directory.expire(2.0)
    assert effects == [
        left(relay(epoch="e1"), "replaced"),
        Registered("newcomer", relay(epoch="e2")),
        joined(relay(epoch="e2")),
    ]
    assert directory.nodes() == [relay(epoch="e2")]


def test_the_registration_of_a_winner_begins_when_it_wins(directory: Directory) -> None:
    directory.hello(relay(epoch="e1"), None, 0.0)
    directory.hello(relay(epoch="e2"), None, 1.0)
    directory.probe_answered(1, False, 1.5)
    assert directory.next_deadline() == 1.5 + 15.0


def test_a_holder_whose_ttl_has_passed_needs_no_probe(directory: Directory) -> None:
    directory.hello(relay(epoch="e1"), None, 0.0)
    assert directory.hello(relay(epoch="e2"), "newcomer", TTL) == [
        left(relay(epoch="e1"), "expired"),
        Registered("newcomer", relay(epoch="e2")),
        joined(relay(epoch="e2")),
    ]


def test_a_relay_and_a_bank_cannot_share_an_id(directory: Directory) -> None:
    directory.hello(bank("x"), None, 0.0)
    probe_id = probe(directory.hello(relay("x", epoch="e2"), "newcomer", 0.0)).probe_id
    error = refusal(directory.probe_answered(probe_id, True, 0.1), "newcomer")
    assert "id x is taken by a live bank" in str(error)
    assert error.detail["kind"] == "bank"


def test_a_beat_of_the_holder_answers_for_its_probe(directory: Directory) -> None:
    directory.hello(relay(epoch="e1"), None, 0.0)
    directory.hello(relay(epoch="e2"), "newcomer", 1.0)
    assert isinstance(refusal(directory.heartbeat(ID, E1, 1.5), "newcomer"), Conflict)
    assert directory.probe_answered(1, False, 1.6) == []
    assert directory.expire(2.0) == []
    assert directory.nodes() == [relay(epoch="e1")]


def test_a_repeated_hello_of_the_holder_answers_for_its_probe(directory: Directory) -> None:
    directory.hello(relay(epoch="e1"), None, 0.0)
    directory.hello(relay(epoch="e2"), "newcomer", 1.0)
    effects = directory.hello(relay(epoch="e1"), "holder", 1.5)
    assert isinstance(refusal(effects, "newcomer"), Conflict)
    assert Registered("holder", relay(epoch="e1")) in effects


def test_the_beat_of_the_newcomer_does_not_answer_for_the_holder(directory: Directory) -> None:
    directory.hello(relay(epoch="e1"), None, 0.0)
    directory.hello(relay(epoch="e2"), "newcomer", 1.0)
    with pytest.raises(NotFound):
        directory.heartbeat(ID, E2, 1.5)
    assert Registered("newcomer", relay(epoch="e2")) in directory.expire(2.0)


def test_a_holder_that_says_goodbye_makes_room_at_once(directory: Directory) -> None:
    directory.hello(relay(epoch="e1"), None, 0.0)
    directory.hello(relay(epoch="e2"), "newcomer", 1.0)
    assert directory.goodbye(ID, E1, 1.1) == [
        left(relay(epoch="e1"), "goodbye"),
        Registered("newcomer", relay(epoch="e2")),
        joined(relay(epoch="e2")),
    ]
    assert directory.probe_answered(1, True, 1.2) == []


def test_a_holder_that_expires_while_it_is_probed_makes_room(directory: Directory) -> None:
    directory.hello(relay(epoch="e1"), None, 0.0)
    directory.hello(relay(epoch="e2"), "newcomer", TTL - 0.5)
    effects = directory.expire(TTL)
    assert effects[-2:] == [Registered("newcomer", relay(epoch="e2")), joined(relay(epoch="e2"))]


def test_an_answer_to_no_probe_changes_nothing(directory: Directory) -> None:
    directory.hello(relay(), None, 0.0)
    assert directory.probe_answered(7, False, 1.0) == []
    assert directory.nodes() == [relay()]


def test_of_two_relays_that_start_at_once_the_first_wins(directory: Directory) -> None:
    assert directory.hello(relay(epoch="e1", port=1), "a", 0.0)[0] == Registered(
        "a", relay(epoch="e1", port=1)
    )
    probe_id = probe(directory.hello(relay(epoch="e2", port=2), "b", 0.0)).probe_id
    assert isinstance(refusal(directory.probe_answered(probe_id, True, 0.01), "b"), Conflict)


def test_several_newcomers_for_a_dead_id_cost_one_probe_and_have_one_winner(
    directory: Directory,
) -> None:
    directory.hello(relay(epoch="e1", port=1), None, 0.0)
    assert probe(directory.hello(relay(epoch="e2", port=2), "first", 1.0))
    assert directory.hello(relay(epoch="e3", port=3), "second", 1.1) == []
    assert directory.hello(relay(epoch="e4", port=4), "third", 1.2) == []
    effects = directory.expire(2.0)
    assert effects[:3] == [
        left(relay(epoch="e1", port=1), "replaced"),
        Registered("first", relay(epoch="e2", port=2)),
        joined(relay(epoch="e2", port=2)),
    ]
    for loser in ("second", "third"):
        assert "tcp://10.0.0.3:2" in str(refusal(effects, loser))
    assert directory.nodes() == [relay(epoch="e2", port=2)]


def test_several_newcomers_for_a_live_id_all_lose(directory: Directory) -> None:
    directory.hello(relay(epoch="e1"), None, 0.0)
    directory.hello(relay(epoch="e2"), "first", 1.0)
    directory.hello(relay(epoch="e3"), "second", 1.1)
    effects = directory.probe_answered(1, True, 1.2)
    assert [each.token for each in effects if isinstance(each, Refused)] == ["first", "second"]


def test_a_newcomer_that_comes_back_is_probed_for_anew(directory: Directory) -> None:
    directory.hello(relay(epoch="e1"), None, 0.0)
    directory.hello(relay(epoch="e2"), "once", 1.0)
    directory.probe_answered(1, True, 1.1)
    assert directory.hello(relay(epoch="e2"), "twice", 2.0) == [Probe(2, relay(epoch="e1"))]


# ── two nodes, one address ──────────────────────────────────────────────────────────────────────


def test_a_live_holder_keeps_its_address(directory: Directory) -> None:
    directory.hello(relay("Inst-0", port=5801), None, 0.0)
    effects = directory.hello(relay("Inst-1", port=5801), "newcomer", 1.0)
    effects = directory.probe_answered(probe(effects).probe_id, True, 1.1)
    assert str(refusal(effects, "newcomer")) == (
        "address tcp://10.0.0.3:5801 is taken by the live relay Inst-0 "
        "(host 'lab-3', pid 4242, tcp://10.0.0.3:5801); "
        "choose another port (rpc_bind) or stop the other one"
    )
    assert [each.node_id for each in directory.nodes()] == ["Inst-0"]


def test_a_bank_is_told_which_of_its_ports_is_taken(directory: Directory) -> None:
    directory.hello(relay(endpoint="tcp://10.0.0.9:5901"), None, 0.0)
    effects = directory.hello(bank(port=5900), "newcomer", 1.0)
    effects = directory.probe_answered(probe(effects).probe_id, True, 1.1)
    error = refusal(effects, "newcomer")
    assert "address tcp://10.0.0.9:5901 is taken by the live relay Inst-0" in str(error)
    assert "(retrieve_bind)" in str(error)


def test_the_address_of_a_dead_holder_is_taken_over(directory: Directory) -> None:
    directory.hello(relay("Inst-0", port=5801), None, 0.0)
    directory.hello(relay("Inst-1", port=5801), "newcomer", 1.0)
    directory.expire(2.0)
    assert directory.nodes() == [relay("Inst-1", port=5801)]


@pytest.mark.parametrize("spelling", ["tcp://LAB-3.example:5801", "tcp://lab-3.Example:5801"])
def test_two_spellings_of_one_address_are_one(directory: Directory, spelling: str) -> None:
    directory.hello(relay("Inst-0", endpoint="tcp://lab-3.example:5801"), None, 0.0)
    assert probe(directory.hello(relay("Inst-1", endpoint=spelling), None, 1.0))


def test_a_bank_may_serve_both_sides_on_one_address(directory: Directory) -> None:
    record = bank(endpoints={"ingest": "tcp://10.0.0.9:1", "retrieve": "tcp://10.0.0.9:1"})
    directory.hello(record, None, 0.0)
    assert directory.nodes() == [record]
    assert directory.goodbye(record.node_id, record.epoch, 1.0) == [left(record, "goodbye")]


def test_a_holder_that_moves_to_a_taken_address_keeps_its_registration_meanwhile(
    directory: Directory,
) -> None:
    directory.hello(relay("a", port=1), None, 0.0)
    directory.hello(relay("b", port=2), None, 0.0)
    moving = directory.hello(relay("a", port=2), "moving", 1.0)
    assert moving == [Probe(1, relay("b", port=2))]
    assert directory.nodes() == [relay("a", port=1), relay("b", port=2)]
    # Its own beat proves nothing about the other one.
    assert directory.heartbeat(NodeId("a"), E1, 1.5) == []
    assert directory.expire(2.0) == [
        left(relay("a", port=1), "replaced"),
        left(relay("b", port=2), "replaced"),
        Registered("moving", relay("a", port=2)),
        joined(relay("a", port=2)),
    ]


def test_a_holder_that_may_not_move_stays_where_it_was(directory: Directory) -> None:
    directory.hello(relay("a", port=1), None, 0.0)
    directory.hello(relay("b", port=2), None, 0.0)
    directory.hello(relay("a", port=2), "moving", 1.0)
    assert isinstance(refusal(directory.probe_answered(1, True, 1.1), "moving"), Conflict)
    assert directory.nodes() == [relay("a", port=1), relay("b", port=2)]


# ── an id of one and an address of another ──────────────────────────────────────────────────────


@pytest.fixture
def contested(directory: Directory) -> Directory:
    """``x`` and ``y`` are registered; a newcomer wants the id of x and the port of y."""
    directory.hello(relay("x", epoch="e1", port=1), None, 0.0)
    directory.hello(relay("y", epoch="e1", port=2), None, 0.0)
    effects = directory.hello(relay("x", epoch="e2", port=2), "newcomer", 1.0)
    assert effects == [
        Probe(1, relay("x", epoch="e1", port=1)),
        Probe(2, relay("y", epoch="e1", port=2)),
    ]
    return directory


@pytest.mark.parametrize(("dead", "alive", "named"), [(1, 2, "live relay y"), (2, 1, "id x")])
def test_one_live_holder_of_two_is_enough_to_refuse(
    contested: Directory, dead: int, alive: int, named: str
) -> None:
    assert contested.probe_answered(dead, False, 1.1) == []
    error = refusal(contested.probe_answered(alive, True, 1.2), "newcomer")
    assert named in str(error)
    # The silent one was not removed on behalf of a newcomer that lost.
    assert [each.node_id for each in contested.nodes()] == ["x", "y"]
    assert contested.next_deadline() == 15.0


def test_both_holders_are_replaced_when_both_are_dead(contested: Directory) -> None:
    assert contested.probe_answered(2, False, 1.1) == []
    assert contested.probe_answered(1, False, 1.2) == [
        left(relay("x", epoch="e1", port=1), "replaced"),
        left(relay("y", epoch="e1", port=2), "replaced"),
        Registered("newcomer", relay("x", epoch="e2", port=2)),
        joined(relay("x", epoch="e2", port=2)),
    ]
    assert contested.nodes() == [relay("x", epoch="e2", port=2)]


def test_a_holder_found_dead_can_still_defend_itself_until_the_other_is_settled(
    contested: Directory,
) -> None:
    assert contested.probe_answered(1, False, 1.1) == []
    effects = contested.heartbeat(NodeId("x"), E1, 1.2)
    assert isinstance(refusal(effects, "newcomer"), Conflict)
    assert contested.probe_answered(2, False, 1.3) == []


def test_a_holder_found_dead_is_probed_again_for_a_later_newcomer(contested: Directory) -> None:
    contested.probe_answered(1, False, 1.1)
    later = contested.hello(relay("x", epoch="e3", port=3), "later", 1.2)
    assert later == [Probe(3, relay("x", epoch="e1", port=1))]
    # The later one needs one settled holder only, and so is the first to be entitled.
    effects = contested.probe_answered(3, False, 1.3)
    assert Registered("later", relay("x", epoch="e3", port=3)) in effects
    assert "id x is taken" in str(refusal(effects, "newcomer"))
    assert contested.nodes() == [relay("x", epoch="e3", port=3), relay("y", epoch="e1", port=2)]


def test_the_loser_is_told_at_once_also_when_the_holder_had_left(contested: Directory) -> None:
    contested.hello(relay("x", epoch="e3", port=3), "simple", 1.1)
    effects = contested.goodbye(NodeId("x"), E1, 1.2)
    assert Registered("simple", relay("x", epoch="e3", port=3)) in effects
    assert isinstance(refusal(effects, "newcomer"), Conflict)


def test_who_registers_a_free_claim_meanwhile_has_it(contested: Directory) -> None:
    contested.goodbye(NodeId("x"), E1, 1.1)
    effects = contested.hello(relay("x", epoch="e3", port=3), "quick", 1.2)
    assert Registered("quick", relay("x", epoch="e3", port=3)) in effects
    effects = contested.expire(2.0)
    assert "id x is taken" in str(refusal(effects, "newcomer"))
    assert [each.node_id for each in contested.nodes()] == ["x", "y"]


def test_who_waited_for_a_holder_that_another_newcomer_replaced_comes_in_too(
    contested: Directory,
) -> None:
    contested.probe_answered(2, False, 1.1)
    assert probe(contested.hello(relay("y", epoch="e9", port=9), "heir", 1.2))
    effects = contested.probe_answered(1, False, 1.3)
    assert Registered("newcomer", relay("x", epoch="e2", port=2)) in effects
    assert Registered("heir", relay("y", epoch="e9", port=9)) in effects
    assert contested.expire(2.5) == []


def test_a_long_chain_of_takeovers_is_settled_in_one_go(directory: Directory) -> None:
    """Each newcomer wants the id of one node and the port of the next."""
    links = 500
    for link in range(links + 1):
        directory.hello(relay(f"n{link}", epoch="old", port=1 + link), None, 0.0)
    for link in range(links):
        wanted = relay(f"n{link}", epoch="new", port=2 + link)
        probes = [each for each in directory.hello(wanted, link, 0.1) if isinstance(each, Probe)]
        directory.probe_answered(probes[-1].probe_id, False, 0.1)
    effects = directory.expire(1.1)
    winners = [each.token for each in effects if isinstance(each, Registered)]
    assert winners == list(range(links))


# ── hellos that are repeated or taken back while they wait ──────────────────────────────────────


def test_a_hello_repeated_while_it_waits_is_answered_once_and_keeps_its_place(
    directory: Directory,
) -> None:
    directory.hello(relay(epoch="e1", port=1), None, 0.0)
    directory.hello(relay(epoch="e2", port=2), "asked", 1.0)
    directory.hello(relay(epoch="e3", port=3), "rival", 1.1)
    effects = directory.hello(relay(epoch="e2", port=2, title="new"), "asked again", 1.2)
    assert isinstance(refusal(effects, "asked"), Cancelled)
    effects = directory.expire(2.0)
    assert Registered("asked again", relay(epoch="e2", port=2, title="new")) in effects
    assert isinstance(refusal(effects, "rival"), Conflict)


def test_a_waiting_newcomer_that_asks_for_another_address_begins_anew(
    directory: Directory,
) -> None:
    directory.hello(relay("y", port=1), None, 0.0)
    directory.hello(relay("x", port=1), "asked", 1.0)
    effects = directory.hello(relay("x", port=2), "asked again", 1.2)
    assert isinstance(refusal(effects, "asked"), Cancelled)
    assert Registered("asked again", relay("x", port=2)) in effects
    assert directory.expire(2.0) == []
    assert [each.node_id for each in directory.nodes()] == ["x", "y"]


def test_a_newcomer_that_says_goodbye_while_it_waits_does_not_come_in(
    directory: Directory,
) -> None:
    directory.hello(relay(epoch="e1"), None, 0.0)
    directory.hello(relay(epoch="e2"), "newcomer", 1.0)
    error = refusal(directory.goodbye(ID, E2, 1.1), "newcomer")
    assert isinstance(error, Cancelled)
    assert "goodbye before its registration was settled" in str(error)
    assert directory.expire(2.0) == []
    assert directory.nodes() == [relay(epoch="e1")]
