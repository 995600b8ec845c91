"""Events in front of a reader that stands still: bounded, in order, and no loss untold."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from labmesh.protocol.arrivals import Arrivals, Lost, Received
from labmesh.protocol.messages import Event

SIZE = Received("event.a", Event(publisher="a", epoch="e1", sequence=1, time=0.0), b"").size


def event(topic: str, sequence: int, *, epoch: str = "e1", kind: str = "x") -> Received:
    header = Event(publisher="a", epoch=epoch, sequence=sequence, time=0.0, kind=kind)
    return Received(topic, header, b"")


def test_what_fits_comes_in_the_order_of_arrival() -> None:
    arrivals = Arrivals()
    items = [event("event.a", 1), Lost("event.a", "e1", 2, 4, 3), event("event.a", 5)]
    arrivals.put(items[0])
    arrivals.put_lost(items[1])
    arrivals.put(items[2])
    assert len(arrivals) == 3
    assert arrivals.take() == items
    assert arrivals.take() == []
    assert (arrivals.conflated, arrivals.lost, arrivals.untold) == (0, 0, 0)


def test_only_states_are_replaced_by_newer_ones_whatever_their_kind() -> None:
    states, events = Arrivals(), Arrivals()
    for sequence in range(1, 15_001):
        states.put(event("state.a", sequence, kind="tick"))
        events.put(event("event.a", sequence, kind="state"))
    assert states.take()[-1] == event("state.a", 15_000, kind="tick")
    assert states.conflated > 0
    assert states.lost == 0
    assert [each.event.sequence for each in events.take()] == list(range(1, 15_001))


def test_what_finds_no_room_is_one_loss_before_the_rest_of_its_topic() -> None:
    arrivals = Arrivals(max_bytes=3 * SIZE)
    for sequence in range(1, 101):
        arrivals.put(event("event.a", sequence))
    assert len(arrivals) == 4
    assert arrivals.take() == [
        Lost("event.a", "e1", 1, 97, 97),
        *(event("event.a", sequence) for sequence in (98, 99, 100)),
    ]
    assert arrivals.lost == 97
    arrivals.put(event("event.a", 101))
    assert arrivals.take() == [event("event.a", 101)], "a loss is told once"


def test_a_loss_on_the_way_and_one_for_want_of_room_are_one() -> None:
    arrivals = Arrivals(max_bytes=2 * SIZE)
    arrivals.put(event("event.a", 1))
    arrivals.put_lost(Lost("event.a", "e1", 2, 9, 8))
    for sequence in (10, 11, 12):
        arrivals.put(event("event.a", sequence))
    assert arrivals.take() == [
        Lost("event.a", "e1", 1, 10, 10),
        event("event.a", 11),
        event("event.a", 12),
    ]


def test_losses_of_each_incarnation_and_topic_are_told_apart() -> None:
    arrivals = Arrivals(max_bytes=0)
    for epoch in ("e1", "e2"):
        arrivals.put(event("event.a", 1, epoch=epoch))
    arrivals.put(event("event.b", 7))
    assert arrivals.take() == [
        Lost("event.a", "e1", 1, 1, 1),
        Lost("event.a", "e2", 1, 1, 1),
        Lost("event.b", "e1", 7, 7, 1),
    ]


def test_losses_that_follow_each_other_take_the_room_of_one() -> None:
    arrivals = Arrivals(max_bytes=3 * SIZE)
    arrivals.put(event("event.b", 1))
    for sequence in range(1, 1001):
        arrivals.put_lost(Lost("event.a", "e1", sequence, sequence, 1))
    arrivals.put_lost(Lost("event.a", "e2", 1, 5, 5))
    assert arrivals.take() == [
        event("event.b", 1),
        Lost("event.a", "e1", 1, 1000, 1000),
        Lost("event.a", "e2", 1, 5, 5),
    ]


def test_losses_between_states_take_the_room_of_one_as_well() -> None:
    arrivals = Arrivals(max_bytes=3 * SIZE)
    arrivals.put(event("event.b", 1))
    for sequence in range(2, 2002, 2):
        arrivals.put_lost(Lost("state.a", "e1", sequence, sequence, 1))
        arrivals.put(event("state.a", sequence + 1))
    assert arrivals.take() == [
        event("event.b", 1),
        Lost("state.a", "e1", 2, 2000, 1000),
        event("state.a", 2001),
    ]


def test_a_loss_that_finds_no_room_itself_is_told_all_the_same() -> None:
    arrivals = Arrivals(max_bytes=SIZE - 1)
    arrivals.put_lost(Lost("event.a", "e1", 2, 9, 8))
    arrivals.put_lost(Lost("event.a", "e1", 10, 11, 2))
    assert arrivals.take() == [Lost("event.a", "e1", 2, 11, 10)]


def test_losses_of_countless_topics_are_counted() -> None:
    arrivals = Arrivals(max_bytes=0, max_losses=2)
    for topic in ("event.a", "event.b", "event.c", "event.a", "event.d"):
        arrivals.put(event(topic, 1))
    arrivals.put_lost(Lost("event.e", "e1", 1, 5, 5))
    assert [(each.topic, each.missed) for each in arrivals.take()] == [
        ("event.a", 2),
        ("event.b", 1),
    ]
    assert arrivals.untold == 7
    arrivals.put(event("event.c", 2))
    assert arrivals.take() == [Lost("event.c", "e1", 2, 2, 1)]


@given(
    room=st.integers(0, 8),
    moves=st.lists(
        st.tuples(st.sampled_from(["event.a", "event.b", "log.a", "take"]), st.integers(0, 3)),
        max_size=80,
    ),
)
def test_every_sequence_is_delivered_or_told_once_and_in_order(
    room: int, moves: list[tuple[str, int]]
) -> None:
    """Each move is an event, or that many that are lost on the way and then one."""
    arrivals = Arrivals(max_bytes=room * SIZE)
    sent: dict[str, int] = {}
    reached: dict[str, int] = {}

    def read() -> None:
        for item in arrivals.take():
            first = reached.get(item.topic, 0) + 1
            if isinstance(item, Lost):
                assert (item.first, item.missed) == (first, item.last - first + 1)
                reached[item.topic] = item.last
            else:
                assert item.event.sequence == first
                reached[item.topic] = first

    for topic, missing in moves:
        if topic == "take":
            read()
            continue
        last = sent.get(topic, 0)
        if missing:
            arrivals.put_lost(Lost(topic, "e1", last + 1, last + missing, missing))
        sent[topic] = last + missing + 1
        arrivals.put(event(topic, sent[topic]))
    read()
    assert reached == sent
