"""What a client listens to, and which subscriptions it needs for that."""

from __future__ import annotations

import pytest

from labmesh.errors import ProtocolError
from labmesh.protocol.interests import MAX_PREFIXES, Changes, Interests


def changes(begin: set[str] = frozenset(), end: set[str] = frozenset()) -> Changes:  # type: ignore[assignment]
    return Changes(frozenset(begin), frozenset(end))


def test_a_subscription_lasts_from_the_first_listener_to_the_last() -> None:
    interests = Interests()
    assert interests.add("state", "psu-1") == changes({"state.psu-1"})
    assert interests.add("state", "psu-1") == changes()
    assert interests.add("state", "psu-1*") == changes(), "the same prefix"
    assert interests.remove("state", "psu-1") == changes()
    assert interests.remove("state", "psu-1*") == changes()
    assert interests.remove("state", "psu-1") == changes(end={"state.psu-1"})
    assert interests.in_force("state") == frozenset()


def test_what_comes_and_nobody_asked_for_is_told_apart() -> None:
    interests = Interests()
    assert not interests.wants("state", "psu-1")
    interests.add("state", "psu-1")
    interests.add("state", "dmm-?")
    wanted = {each: interests.wants("state", each) for each in ("psu-1", "psu-10", "dmm-3", "dmm")}
    assert wanted == {"psu-1": True, "psu-10": False, "dmm-3": True, "dmm": False}
    assert not interests.wants("event", "psu-1")
    interests.add("state")
    assert interests.wants("state", "psu-10")


def test_who_wants_a_whole_family_needs_nothing_else_of_it() -> None:
    interests = Interests()
    interests.add("state", "psu-1")
    interests.add("event", "psu-1")
    assert interests.add("state") == changes({"state."}, {"state.psu-1"})
    assert interests.add("state", "psu-2") == changes()
    assert interests.remove("state") == changes({"state.psu-1", "state.psu-2"}, {"state."})
    assert interests.in_force("event") == {"event.psu-1"}
    assert interests.in_force("log") == frozenset()


def test_many_topics_of_a_family_become_the_family_and_do_not_flutter() -> None:
    interests = Interests()
    topics = {f"state.psu-{number}" for number in range(MAX_PREFIXES)}
    for number in range(MAX_PREFIXES):
        assert interests.add("state", f"psu-{number}") == changes({f"state.psu-{number}"})
    assert interests.add("state", "dmm") == changes({"state."}, topics)
    assert interests.remove("state", "dmm") == changes()
    for number in range(MAX_PREFIXES // 2 + 1, MAX_PREFIXES):
        assert interests.remove("state", f"psu-{number}") == changes()
    left = {f"state.psu-{number}" for number in range(MAX_PREFIXES // 2)}
    assert interests.remove("state", f"psu-{MAX_PREFIXES // 2}") == changes(left, {"state."})


def test_what_names_no_id_changes_nothing() -> None:
    interests = Interests()
    for family, pattern in (("state", "psu 1"), ("state", ""), ("stat", "psu-1")):
        with pytest.raises(ProtocolError):
            interests.add(family, pattern)
    assert interests.in_force("state") == frozenset()
