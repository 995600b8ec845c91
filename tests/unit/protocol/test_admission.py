"""Which subscriptions a broker takes."""

from __future__ import annotations

import pytest

from labmesh.protocol.admission import Admission


@pytest.mark.parametrize(
    "topic", [b"", b"state.", b"log.", b"state.psu-1", b"mark.c.1", b"event.a"]
)
def test_families_and_what_begins_like_a_topic_are_taken(topic: bytes) -> None:
    admission = Admission()
    assert admission.admits(topic)
    assert admission.refused == 0


@pytest.mark.parametrize(
    "topic",
    [b"x", b"stat", b"state", b"other.psu-1", b"state./etc", b"state." + b"a" * 129, b"\xff"],
)
def test_anything_else_is_refused_and_counted(topic: bytes) -> None:
    admission = Admission()
    assert not admission.admits(topic)
    assert (admission.refused, len(admission)) == (1, 0)


def test_there_is_an_end_to_their_number_but_not_for_families_and_marks() -> None:
    admission = Admission(max_topics=2)
    assert admission.admits(b"state.a")
    assert admission.admits(b"state.b")
    assert admission.admits(b"state.b"), "the same one again takes no room"
    assert not admission.admits(b"state.c")
    assert admission.admits(b"state.")
    assert admission.admits(b"mark.client.1")
    admission.ended(b"state.a")
    assert admission.admits(b"state.c")
    assert len(admission) == 3


def test_marks_have_an_end_of_their_own() -> None:
    admission = Admission()
    taken = sum(admission.admits(b"mark.%d" % number) for number in range(2000))
    assert (taken, admission.refused) == (1000, 1000)
    admission.ended(b"mark.7")
    assert admission.admits(b"mark.new")
