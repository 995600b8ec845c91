from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from labmesh.protocol.event_frame import joined
from labmesh.protocol.events import LastValues, Seen, Sequencer, Tracker
from labmesh.protocol.messages import Event, LastEvent

TOPIC = "state.Inst-0"

OLD = Seen(new=False, missed=0)
NEW = Seen(new=True, missed=0)


def event(sequence: int, epoch: str = "e1", time: float = 0.0) -> Event:
    return Event(publisher="Inst-0", epoch=epoch, sequence=sequence, time=time)


def lost(count: int, first: int) -> Seen:
    """New, after so many that never arrived, of which the first had this sequence."""
    return Seen(new=True, missed=count, first=first)


# ── publisher ───────────────────────────────────────────────────────────────────────────────────


def test_a_publisher_counts_each_topic_from_one() -> None:
    sequencer = Sequencer("Inst-0", "e1")
    sequences = [sequencer.next(topic, 0.0).sequence for topic in ("a", "a", "b", "a")]
    assert sequences == [1, 2, 1, 3]
    assert sequencer.last() == {"a": 3, "b": 1}


def test_an_event_says_who_when_and_what() -> None:
    made = Sequencer("Inst-0", "e1").next("state.Inst-0", 12.5, "state_error")
    assert made == Event(publisher="Inst-0", epoch="e1", sequence=1, time=12.5, kind="state_error")
    assert Sequencer("Inst-0", "e1").next("state.Inst-0", 12.5).kind == "state"
    assert Sequencer("Inst-0", "e1").next("state.Inst-0", 12.5, interval_s=0.5).interval_s == 0.5


# ── subscriber: one epoch ───────────────────────────────────────────────────────────────────────


def test_a_late_joiner_has_lost_nothing() -> None:
    assert Tracker().seen(TOPIC, event(41)) == NEW


def test_events_in_order_are_new_and_repeats_are_not() -> None:
    tracker = Tracker()
    seen = [tracker.seen(TOPIC, event(sequence)) for sequence in (1, 2, 2, 1, 3)]
    assert seen == [NEW, NEW, OLD, OLD, NEW]


def test_lost_events_are_counted() -> None:
    tracker = Tracker()
    tracker.seen(TOPIC, event(5))
    assert tracker.seen(TOPIC, event(9)) == lost(3, 6)
    assert tracker.seen(TOPIC, event(10)) == NEW


def test_a_huge_jump_is_a_gap_like_any_other() -> None:
    tracker = Tracker()
    tracker.seen(TOPIC, event(1))
    assert tracker.seen(TOPIC, event(2**53)) == lost(2**53 - 2, 2)


def test_topics_are_counted_apart() -> None:
    tracker = Tracker()
    tracker.seen("state.a", event(1))
    tracker.seen("state.b", event(7))
    assert tracker.seen("state.a", event(2)) == NEW
    assert tracker.seen("state.b", event(8)) == NEW


def test_a_forgotten_topic_begins_anew() -> None:
    tracker = Tracker()
    tracker.seen(TOPIC, event(5))
    tracker.forget(TOPIC)
    assert tracker.seen(TOPIC, event(1)) == NEW
    tracker.forget("state.unknown")
    tracker.seen("presence.a", event(5))
    tracker.forget_all("presence.")
    assert tracker.seen("presence.a", event(1)) == NEW
    assert tracker.seen(TOPIC, event(3)) == lost(1, 2), "others go on"


def test_topics_that_nobody_listens_to_any_more_begin_anew() -> None:
    tracker = Tracker()
    for topic in ("state.a", "state.b", "event.a"):
        tracker.seen(topic, event(1))
    tracker.keep_only(("state.b", "event."))
    assert tracker.seen("state.a", event(9)) == NEW
    assert tracker.seen("state.b", event(9)) == lost(7, 2)
    assert tracker.seen("event.a", event(9)) == lost(7, 2)


def test_the_topic_unheard_for_longest_is_forgotten_first() -> None:
    tracker = Tracker(max_topics=2)
    tracker.seen("a", event(1))
    tracker.seen("b", event(1))
    tracker.seen("a", event(2))
    tracker.seen("c", event(1))
    assert tracker.seen("a", event(2)) == OLD
    assert tracker.seen("b", event(1)) == NEW


# ── subscriber: restarts ────────────────────────────────────────────────────────────────────────


def test_a_restarted_publisher_begins_anew_without_a_gap() -> None:
    tracker = Tracker()
    tracker.seen(TOPIC, event(7, "e1", 10.0))
    assert tracker.seen(TOPIC, event(3, "e2", 11.0)) == NEW
    assert tracker.seen(TOPIC, event(5, "e2", 12.0)) == lost(1, 4)


def test_a_restart_counts_even_if_the_clock_went_back() -> None:
    tracker = Tracker()
    tracker.seen(TOPIC, event(7, "e1", 5000.0))
    assert tracker.seen(TOPIC, event(1, "e2", 1000.0)) == NEW


def test_the_backlog_of_an_earlier_epoch_is_dropped() -> None:
    tracker = Tracker()
    tracker.seen(TOPIC, event(1, "e1", 1.0))
    tracker.seen(TOPIC, event(1, "e2", 60.0))
    for late in range(2, 50):
        assert tracker.seen(TOPIC, event(late, "e1", 1.0 + late)) == OLD
    assert tracker.seen(TOPIC, event(2, "e2", 61.0)) == NEW


def test_two_publishers_of_one_topic_do_not_take_turns() -> None:
    tracker = Tracker()
    tracker.seen(TOPIC, event(1, "holder", 0.0))
    tracker.seen(TOPIC, event(1, "impostor", 0.5))
    turns = [
        (
            tracker.seen(TOPIC, event(beat, "holder", float(beat))).new,
            tracker.seen(TOPIC, event(beat, "impostor", beat + 0.5)).new,
        )
        for beat in range(2, 100)
    ]
    assert set(turns) == {(False, True)}


def test_the_true_publisher_is_heard_again_when_the_impostor_fell_silent() -> None:
    tracker = Tracker()
    tracker.seen(TOPIC, event(20, "holder", 100.0))
    assert tracker.seen(TOPIC, event(1, "impostor", 100.5)) == NEW
    assert tracker.seen(TOPIC, event(21, "holder", 101.0)) == OLD
    assert tracker.seen(TOPIC, event(30, "holder", 110.5)) == OLD
    # Events 21 to 30 were never delivered: they are missing, whoever dropped them.
    assert tracker.seen(TOPIC, event(31, "holder", 110.75)) == lost(10, 21)
    assert tracker.seen(TOPIC, event(2, "impostor", 111.0)) == OLD


def test_the_last_eight_epochs_are_remembered() -> None:
    tracker = Tracker()
    for restart in range(10):
        assert tracker.seen(TOPIC, event(1, f"e{restart}", float(restart))) == NEW
    assert [tracker.seen(TOPIC, event(2, f"e{late}")).new for late in range(1, 9)] == [False] * 8
    assert tracker.seen(TOPIC, event(2, "e9", 10.0)) == NEW
    assert tracker.seen(TOPIC, event(2, "e0")).new


def test_an_epoch_that_was_followed_again_is_remembered_no_shorter_than_others() -> None:
    tracker = Tracker()
    for restart, time in [(0, 0.0), (1, 1.0), (2, 2.0), (0, 20.0)]:
        assert tracker.seen(TOPIC, event(int(time) + 1, f"e{restart}", time)).new
    for restart in range(3, 10):
        tracker.seen(TOPIC, event(1, f"e{restart}", 20.0 + restart))
    assert tracker.seen(TOPIC, event(22, "e0", 21.0)) == OLD
    assert tracker.seen(TOPIC, event(3, "e1", 2.0)) == NEW


# ── subscriber: the end of a stream ─────────────────────────────────────────────────────────────


def test_what_was_lost_at_the_end_is_known_from_the_publishers_count() -> None:
    tracker = Tracker()
    tracker.seen(TOPIC, event(5))
    assert tracker.tail(TOPIC, "e1", 7) == Seen(new=False, missed=2, first=6)
    assert tracker.tail(TOPIC, "e1", 7) == OLD, "told once"
    assert tracker.seen(TOPIC, event(8)) == NEW
    assert tracker.seen(TOPIC, event(7)) == OLD, "counted as lost: it comes no more"


def test_a_count_that_says_nothing_new_is_no_loss() -> None:
    tracker = Tracker()
    assert tracker.tail(TOPIC, "e1", 9) == OLD, "a late joiner has lost nothing"
    tracker.seen(TOPIC, event(5))
    assert tracker.tail(TOPIC, "e1", 5) == OLD
    assert tracker.tail(TOPIC, "e0", 9) == OLD, "of another life"


def test_snapshots_ahead_of_the_count_are_not_lost() -> None:
    tracker = Tracker()
    tracker.seen(TOPIC, event(5))
    tracker.seen(TOPIC, event(8), snapshot=True)
    assert tracker.tail(TOPIC, "e1", 9) == Seen(new=False, missed=3, first=6)


# ── subscriber: snapshots ───────────────────────────────────────────────────────────────────────


def test_a_snapshot_shows_a_late_joiner_the_last_state() -> None:
    tracker = Tracker()
    assert tracker.seen(TOPIC, event(9), snapshot=True) == NEW
    assert tracker.seen(TOPIC, event(9)) == OLD
    assert tracker.seen(TOPIC, event(10)) == NEW


def test_events_on_their_way_before_the_first_snapshot_are_old() -> None:
    tracker = Tracker()
    tracker.seen(TOPIC, event(9), snapshot=True)
    assert tracker.seen(TOPIC, event(8)) == OLD
    assert tracker.seen(TOPIC, event(10)) == NEW


@pytest.mark.parametrize("sequence", [4, 5])
def test_a_snapshot_of_what_was_seen_is_not_delivered(sequence: int) -> None:
    tracker = Tracker()
    tracker.seen(TOPIC, event(5))
    assert tracker.seen(TOPIC, event(sequence), snapshot=True) == OLD


def test_a_snapshot_is_no_gap_but_hides_none_either() -> None:
    """After an outage: 6 to 8 are lost, 9 was fetched, the stream goes on with 10."""
    tracker = Tracker()
    tracker.seen(TOPIC, event(5))
    assert tracker.seen(TOPIC, event(9), snapshot=True) == NEW
    assert tracker.seen(TOPIC, event(10)) == lost(3, 6)
    assert tracker.seen(TOPIC, event(11)) == NEW


def test_what_a_snapshot_overtook_is_neither_delivered_nor_lost() -> None:
    tracker = Tracker()
    tracker.seen(TOPIC, event(5))
    tracker.seen(TOPIC, event(8), snapshot=True)
    assert [tracker.seen(TOPIC, event(late)) for late in (6, 7, 8)] == [OLD] * 3
    assert tracker.seen(TOPIC, event(9)) == NEW


def test_what_was_lost_before_an_overtaken_event_is_told_with_the_next_new_one() -> None:
    tracker = Tracker()
    tracker.seen(TOPIC, event(5))
    tracker.seen(TOPIC, event(9), snapshot=True)
    assert tracker.seen(TOPIC, event(8)) == OLD
    assert tracker.seen(TOPIC, event(11)) == lost(3, 6)


def test_each_snapshot_ahead_of_the_stream_counts_as_received() -> None:
    tracker = Tracker()
    tracker.seen(TOPIC, event(1))
    for fetched in (4, 6, 6, 8):
        tracker.seen(TOPIC, event(fetched), snapshot=True)
    assert tracker.seen(TOPIC, event(5)) == OLD
    assert tracker.seen(TOPIC, event(10)) == lost(len([2, 3, 7, 9]), 2)


def test_snapshots_fetched_while_the_stream_is_dead_do_not_pile_up() -> None:
    tracker = Tracker()
    tracker.seen(TOPIC, event(1))
    for fetched in range(2, 1000):
        tracker.seen(TOPIC, event(fetched), snapshot=True)
    assert len(tracker._topics[TOPIC].current.ahead) == 64


def test_a_snapshot_of_a_restarted_publisher_is_new() -> None:
    tracker = Tracker()
    tracker.seen(TOPIC, event(7, "e1", 10.0))
    assert tracker.seen(TOPIC, event(3, "e2", 20.0), snapshot=True) == NEW
    assert tracker.seen(TOPIC, event(8, "e1", 11.0)) == OLD
    assert tracker.seen(TOPIC, event(4, "e2", 21.0)) == NEW


@pytest.mark.parametrize("time", [9.0, 10.0])
def test_a_snapshot_of_an_unknown_earlier_epoch_does_not_come_back(time: float) -> None:
    tracker = Tracker()
    tracker.seen(TOPIC, event(1, "e2", 10.0))
    assert tracker.seen(TOPIC, event(99, "e1", time), snapshot=True) == OLD
    assert tracker.seen(TOPIC, event(2, "e2", 11.0)) == NEW


def test_a_snapshot_is_compared_with_the_newest_that_was_delivered_live_or_fetched() -> None:
    tracker = Tracker()
    tracker.seen(TOPIC, event(1, "e2", 10.0))
    tracker.seen(TOPIC, event(5, "e2", 50.0), snapshot=True)
    assert tracker.seen(TOPIC, event(99, "e1", 20.0), snapshot=True) == OLD


def test_a_snapshot_never_revives_a_retired_epoch() -> None:
    tracker = Tracker()
    tracker.seen(TOPIC, event(1, "e1", 0.0))
    tracker.seen(TOPIC, event(1, "e2", 1.0))
    assert tracker.seen(TOPIC, event(2, "e1", 1e6), snapshot=True) == OLD


# ── subscriber: any wire ────────────────────────────────────────────────────────────────────────

#: Positions in a stream of 30, each arriving live or as a snapshot, in any order, with repeats.
_arrivals = st.lists(st.tuples(st.integers(1, 30), st.booleans()), max_size=60)


@given(_arrivals)
def test_whatever_arrives_nothing_is_delivered_twice_or_backwards(
    arrivals: list[tuple[int, bool]],
) -> None:
    tracker, delivered = Tracker(), list[int]()
    for sequence, snapshot in arrivals:
        seen = tracker.seen(TOPIC, event(sequence), snapshot=snapshot)
        assert not (snapshot and seen.missed)
        assert seen.new or not seen.missed
        if seen.new:
            delivered.append(sequence)
    assert delivered == sorted(set(delivered))


#: A stream of which some events are lost, and after some of which the last value is fetched.
_wire = st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60)


@given(_wire)
def test_every_lost_event_is_counted_exactly_once(wire: list[tuple[bool, bool]]) -> None:
    tracker = Tracker()
    received, missed = {1}, 0
    tracker.seen(TOPIC, event(1))
    for sequence, (arrives, fetched) in enumerate(wire, start=2):
        if arrives:
            missed += tracker.seen(TOPIC, event(sequence)).missed
        if fetched:
            tracker.seen(TOPIC, event(sequence), snapshot=True)
        if arrives or fetched:
            received.add(sequence)
    end = len(wire) + 2
    missed += tracker.seen(TOPIC, event(end)).missed
    assert missed == len(set(range(1, end)) - received)


# ── broker ──────────────────────────────────────────────────────────────────────────────────────


def everything(memory: LastValues, prefix: str = "", max_bytes: int = 128 * 1024) -> list[str]:
    """The topics of all pages."""
    topics: list[str] = []
    more = True
    while more:
        events, more = memory.page(prefix, topics[-1] if topics else "", max_bytes)
        topics += [each.topic for each in events]
    return topics


def keep(memory: LastValues, topic: bytes, header: bytes, payload: bytes) -> int:
    """Its bytes."""
    frame = joined(topic, header, payload)
    memory.keep(topic, frame)
    return len(frame)


def test_the_last_event_of_each_state_topic_is_kept() -> None:
    memory = LastValues()
    keep(memory, b"state.b", b"h1", b"p1")
    keep(memory, b"state.a", b"h2", b"p2")
    keep(memory, b"state.b", b"h3", b"p3")
    assert memory.page("", "") == (
        [
            LastEvent(topic="state.a", header=b"h2", payload=b"p2"),
            LastEvent(topic="state.b", header=b"h3", payload=b"p3"),
        ],
        False,
    )


@pytest.mark.parametrize("topic", [b"event.a", b"dataset.a", b"state", b"state.\xff", b""])
def test_other_families_and_what_is_no_topic_are_not_kept(topic: bytes) -> None:
    memory = LastValues()
    keep(memory, topic, b"h", b"p")
    assert memory.page("", "") == ([], False)


def test_a_page_can_be_narrowed_to_a_prefix() -> None:
    memory = LastValues()
    for topic in (b"state.Inst-1", b"state.Inst-2", b"state.psu"):
        keep(memory, topic, b"h", b"p")
    assert everything(memory, "state.Inst-") == ["state.Inst-1", "state.Inst-2"]
    assert everything(memory, "state.none") == []


def test_pages_hold_at_most_so_many_bytes_and_together_everything_once() -> None:
    memory = LastValues()
    topics = [f"state.{number:03}" for number in range(100)]
    for topic in topics:
        keep(memory, topic.encode(), b"h" * 10, b"p" * 28)
    events, more = memory.page("", "", max_bytes=150)
    assert [each.topic for each in events] == topics[:3]
    assert more
    assert everything(memory, max_bytes=150) == topics
    assert memory.page("", topics[-1]) == ([], False)


def test_the_last_page_says_that_there_are_no_more() -> None:
    memory = LastValues()
    keep(memory, b"state.a", b"h", b"p")
    assert memory.page("", "", max_bytes=12)[1] is False


def test_an_event_larger_than_a_page_is_a_page_of_its_own() -> None:
    memory = LastValues()
    for topic in (b"state.a", b"state.b", b"state.c"):
        keep(memory, topic, b"h", b"p" * 1000)
    events, more = memory.page("", "", max_bytes=10)
    assert [each.topic for each in events] == ["state.a"]
    assert more
    assert everything(memory, max_bytes=10) == ["state.a", "state.b", "state.c"]


def test_beyond_its_topics_it_forgets_the_one_silent_for_longest() -> None:
    memory = LastValues(max_topics=2)
    for topic in (b"state.a", b"state.b", b"state.a", b"state.c"):
        keep(memory, topic, b"h", b"p")
    assert everything(memory) == ["state.a", "state.c"]


def test_beyond_its_bytes_it_forgets_the_ones_silent_for_longest() -> None:
    memory = LastValues(max_bytes=100)
    for topic in (b"state.a", b"state.b", b"state.c"):
        keep(memory, topic, b"h" * 10, b"p" * 13)
    assert everything(memory) == ["state.a", "state.b", "state.c"]
    keep(memory, b"state.d", b"h" * 10, b"p" * 63)
    assert everything(memory) == ["state.d"]


def test_replaced_values_take_no_room() -> None:
    memory = LastValues(max_bytes=100)
    keep(memory, b"state.b", b"h", b"p")
    for _ in range(1000):
        keep(memory, b"state.a", b"h" * 10, b"p" * 60)
    assert everything(memory) == ["state.a", "state.b"]


def test_an_event_beyond_all_limits_is_not_kept_nor_is_the_older_one() -> None:
    memory = LastValues(max_bytes=100)
    keep(memory, b"state.a", b"h", b"old")
    keep(memory, b"state.b", b"h", b"p")
    keep(memory, b"state.a", b"h", b"p" * 100)
    assert everything(memory) == ["state.b"]
    keep(memory, b"state.a", b"h" * 10, b"p" * 68)
    assert everything(memory) == ["state.a", "state.b"]


def test_the_state_of_a_node_that_left_is_forgotten() -> None:
    memory = LastValues()
    for topic in (b"state.psu", b"state.psu.2", b"state.psu-1"):
        keep(memory, topic, b"h", b"p")
    memory.forget_node("psu")
    memory.forget_node("unknown")
    assert everything(memory) == ["state.psu-1", "state.psu.2"]
