"""Topics: built, taken apart, published, matched and subscribed to."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from labmesh.errors import ProtocolError
from labmesh.protocol import topics
from labmesh.protocol.ids import check_id


def is_id(text: str) -> bool:
    try:
        return bool(check_id(text))
    except ProtocolError:
        return False


IDS = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,20}", fullmatch=True).filter(is_id)


@given(st.sampled_from(topics.FAMILIES), IDS)
def test_a_topic_comes_apart_into_what_it_was_made_of(family: str, node_id: str) -> None:
    made = topics.topic(family, node_id)
    assert made == f"{family}.{node_id}"
    assert topics.split(made) == (family, node_id)
    assert topics.split(made.encode()) == (family, node_id)


def test_an_id_may_have_dots() -> None:
    assert topics.split("state.rack.2.psu") == ("state", "rack.2.psu")


@pytest.mark.parametrize(
    "bad",
    [
        "",
        "state",
        "state.",
        ".psu-1",
        "State.psu-1",
        "stat.psu-1",
        "$sys.psu-1",
        "state.../x",
        "state.a..b",
        "state.con",
        "state.psu-1\n",
        "state.*",
        "\x00state.psu-1",
        "\x01state.psu-1",
        "state." + "x" * 129,
        "x" * 65_536,
        "state.\u00e9",
        b"state.\xff\xfe",
        b"\xff",
    ],
)
def test_what_is_no_topic_is_refused_in_a_short_ascii_line(bad: str | bytes) -> None:
    with pytest.raises(ProtocolError) as refused:
        topics.split(bad)
    said = str(refused.value)
    assert said.isprintable()
    assert said.isascii()
    assert len(said) < 400


def test_a_topic_is_not_made_of_a_bad_family_or_id() -> None:
    with pytest.raises(ProtocolError, match="'stat' is unknown; use state"):
        topics.topic("stat", "psu-1")
    with pytest.raises(ProtocolError, match="'xyz' is unknown; use state, event, dataset, log"):
        topics.topic("xyz", "psu-1")
    with pytest.raises(ProtocolError, match="the id in a topic 'a b' has a character"):
        topics.topic("state", "a b")


def test_nodes_and_the_broker_share_no_family() -> None:
    assert set(topics.FAMILIES) == set(topics.NODE_FAMILIES) | set(topics.BROKER_FAMILIES)
    assert not set(topics.NODE_FAMILIES) & set(topics.BROKER_FAMILIES)
    assert {each for kind in topics.FAMILIES_OF.values() for each in kind} == set(
        topics.NODE_FAMILIES
    )


@pytest.mark.parametrize("family", topics.NODE_FAMILIES)
def test_nodes_publish_their_families(family: str) -> None:
    assert topics.publishable(f"{family}.psu-1")
    assert topics.publishable(f"{family}.psu-1".encode())


@pytest.mark.parametrize(
    "forbidden",
    [
        "presence.psu-1",
        "mark.token",
        "$sys.x",
        "state.",
        "state",
        "state.psu-1\n",
        "state.*",
        "state.psu 1",
        "xstate.psu-1",
        "\x01state.psu-1",
        "state." + "x" * 129,
        b"state.\xff",
        b"",
    ],
)
def test_nodes_publish_nothing_else(forbidden: str | bytes) -> None:
    assert not topics.publishable(forbidden)


@pytest.mark.parametrize(
    ("pattern", "node_id", "named"),
    [
        ("psu-1", "psu-1", True),
        ("psu-1", "psu-10", False),
        ("psu-1", "PSU-1", False),
        ("psu-1", "psu-1\n", False),
        ("psu.1", "psu-1", False),
        ("Inst-*", "Inst-0", True),
        ("Inst-*", "Inst-", True),
        ("Inst-*", "inst-0", False),
        ("*", "anything.at-all", True),
        ("psu-?", "psu-1", True),
        ("psu-?", "psu-10", False),
        ("psu-[12]", "psu-2", True),
        ("psu-[!12]", "psu-2", False),
        ("", "psu-1", False),
    ],
)
def test_patterns_name_ids_as_a_shell_does(pattern: str, node_id: str, named: bool) -> None:
    assert topics.matches(pattern, node_id) is named


def test_a_subscription_is_a_prefix() -> None:
    assert topics.subscription("state") == "state."
    assert topics.subscription("state", "psu-1") == "state.psu-1"
    assert topics.subscription("state", "Inst-*") == "state.Inst-"
    assert topics.subscription("dataset", "*") == "dataset."
    assert topics.subscription("log", "psu-[12]?") == "log.psu-"


@pytest.mark.parametrize("pattern", ["", "psu 1", "../*", "\u00e9*", "x" * 129])
def test_no_subscription_is_made_for_a_pattern_that_begins_like_no_id(pattern: str) -> None:
    with pytest.raises(ProtocolError, match="names no id"):
        topics.subscription("state", pattern)


def test_no_subscription_is_made_for_an_unknown_family() -> None:
    with pytest.raises(ProtocolError, match="'states' is unknown; use state"):
        topics.subscription("states")


@given(IDS, st.integers(0, 10))
def test_a_subscription_brings_every_id_that_its_pattern_names(node_id: str, kept: int) -> None:
    pattern = node_id[:kept] + "*"
    assert topics.matches(pattern, node_id)
    assert f"state.{node_id}".startswith(topics.subscription("state", pattern))
