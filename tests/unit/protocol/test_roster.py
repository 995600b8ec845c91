"""A client's copy of the directory: lists and announcements that overtake each other."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.records import bank, relay

from labmesh.errors import NotFound, ProtocolError
from labmesh.protocol.messages import NodeRecord, PresenceChange
from labmesh.protocol.roster import Roster, about, nobody


def joined(record: NodeRecord) -> PresenceChange:
    return PresenceChange(node=record, change="joined")


def left(record: NodeRecord) -> PresenceChange:
    return PresenceChange(node=record, change="left", reason="goodbye")


def filled(*records: NodeRecord) -> Roster:
    roster = Roster()
    roster.listed(roster.ask(), list(records))
    return roster


def test_a_list_replaces_what_was_known_and_is_sorted() -> None:
    roster = filled(relay("old"))
    roster.listed(roster.ask(), [relay("psu"), bank("bank-0"), relay("Inst-0")])
    assert [each.node_id for each in roster.nodes()] == ["bank-0", "Inst-0", "psu"]
    assert roster.get("old") is None
    assert roster.get("psu") == relay("psu")


def test_announcements_are_followed() -> None:
    roster = filled(relay("psu"))
    silent = msgspec.structs.replace(relay("psu"), state="suspect")
    roster.announced(PresenceChange(node=silent, change="suspect"))
    assert roster.get("psu") == silent
    roster.announced(joined(relay("scope")))
    roster.announced(left(relay("psu")))
    roster.announced(left(relay("psu")))
    assert roster.nodes() == [relay("scope")]


def test_a_node_that_joined_while_an_older_list_was_on_its_way_is_kept() -> None:
    roster = filled()
    ticket = roster.ask()
    roster.announced(joined(relay("psu")))
    roster.listed(ticket, [])
    assert roster.nodes() == [relay("psu")]


def test_a_list_that_does_not_come_changes_nothing() -> None:
    roster = filled(relay("psu"))
    ticket = roster.ask()
    roster.announced(joined(relay("scope")))
    roster.failed(ticket)
    assert roster.nodes() == [relay("psu"), relay("scope")]


def test_a_list_with_a_record_of_no_use_changes_nothing() -> None:
    roster = Roster()
    roster.listed(roster.ask(), [relay("Inst-0")])
    ticket = roster.ask()
    with pytest.raises(ProtocolError, match="rpc"):
        roster.listed(ticket, [relay("Inst-1"), relay("Inst-2", endpoints={})])
    assert [each.node_id for each in roster.nodes()] == ["Inst-0"]


def test_who_reads_in_another_thread_has_a_list_that_does_not_change() -> None:
    roster = filled(relay("psu"))
    seen = roster.nodes()
    roster.announced(left(relay("psu")))
    assert seen == [relay("psu")]


@given(st.data())
def test_when_all_has_arrived_it_is_what_the_broker_has(data: st.DataObject) -> None:
    """A broker's history, a list taken at any moment of it, in any order that can happen."""
    ids = st.sampled_from(["psu", "scope"])
    history = data.draw(st.lists(st.tuples(ids, st.booleans()), max_size=8))
    taken_at = data.draw(st.integers(0, len(history)))
    asked_at = data.draw(st.integers(0, taken_at))  # announcements heard before asking
    heard_at = data.draw(st.integers(asked_at, len(history)))  # and before the list came
    truth: dict[str, NodeRecord] = {}
    listed: list[NodeRecord] = []
    changes = []
    for number, (node_id, present) in enumerate(history):
        if number == taken_at:
            listed = list(truth.values())
        record = relay(node_id, epoch=f"e{number}")
        if present:
            truth[node_id] = record
        else:
            truth.pop(node_id, None)
        changes.append(joined(record) if present else left(record))
    if taken_at == len(history):
        listed = list(truth.values())

    roster = Roster()
    for change in changes[:asked_at]:
        roster.announced(change)
    ticket = roster.ask()
    for change in changes[asked_at:heard_at]:
        roster.announced(change)
    roster.listed(ticket, listed)
    for change in changes[heard_at:]:
        roster.announced(change)
    assert {each.node_id: each for each in roster.nodes()} == truth


# ── errors and facts ────────────────────────────────────────────────────────────────────────────


def test_an_unknown_id_is_told_what_is_close_and_who_is_silent() -> None:
    silent = msgspec.structs.replace(relay("scope"), state="suspect")
    error = nobody("relay", "Inst-1", [bank(), relay("Inst-0"), silent], 2.0)
    assert isinstance(error, KeyError)
    assert str(error) == (
        "no relay 'Inst-1' registered within 2 s (did you mean 'Inst-0'?); the broker is fine, and "
        "lists Inst-0, scope (silent)"
    )
    assert error.detail == {"known": ["Inst-0", "scope"]}


def test_on_an_empty_network_it_lists_nobody() -> None:
    error = nobody("relay", "psu", [bank()], 0.5)
    assert str(error) == (
        "no relay 'psu' registered within 0.5 s; the broker is fine, and lists none"
    )


def test_where_any_would_do_it_says_how_to_start_one() -> None:
    with pytest.raises(NotFound, match="start one with 'labmesh bank'"):
        raise nobody("bank", None, [relay()], 8.0)


def test_facts_about_a_node() -> None:
    assert about(relay("psu", title="PowerSupply", software="labmesh 0.1.0")) == {
        "state": "live",
        "title": "PowerSupply",
        "host": "lab-3",
        "pid": 4242,
        "epoch": "e1",
        "software": "labmesh 0.1.0",
    }
