from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from labmesh.protocol.alarms import Alarms


def test_without_alarms_there_is_no_first() -> None:
    assert Alarms[str]().first() is None


def test_the_earliest_comes_first_and_stays_until_it_is_moved() -> None:
    alarms = Alarms[str]()
    alarms.set("b", 2.0)
    alarms.set("a", 1.0)
    assert alarms.first() == (1.0, "a")
    assert alarms.first() == (1.0, "a")
    alarms.set("a", 3.0)
    assert alarms.first() == (2.0, "b")
    alarms.drop("b")
    assert alarms.first() == (3.0, "a")
    alarms.drop("a")
    assert alarms.first() is None


def test_an_alarm_can_move_to_an_earlier_time() -> None:
    alarms = Alarms[str]()
    alarms.set("a", 5.0)
    alarms.set("a", 4.0)
    assert alarms.first() == (4.0, "a")


def test_a_key_that_was_dropped_and_set_again_rings_at_its_new_time_only() -> None:
    alarms = Alarms[str]()
    alarms.set("a", 1.0)
    alarms.drop("a")
    alarms.set("a", 2.0)
    assert alarms.first() == (2.0, "a")


def test_memory_is_bounded_by_the_keys_however_often_alarms_move() -> None:
    alarms = Alarms[str]()
    for beat in range(10_000):
        alarms.set("a", float(beat))
        alarms.set("b", float(beat))
    assert len(alarms._heap) <= 2 * 2 + 64
    assert alarms.first() == (9999.0, "a")


_moves = st.lists(st.tuples(st.sampled_from("abcd"), st.none() | st.integers(0, 9)), max_size=200)


@settings(deadline=None, max_examples=50)
@given(_moves)
def test_it_is_a_table_of_which_the_smallest_is_read(moves: list[tuple[str, int | None]]) -> None:
    alarms, table = Alarms[str](), dict[str, float]()
    for key, time in moves:
        if time is not None:
            alarms.set(key, time)
            table[key] = time
        elif key in table:
            alarms.drop(key)
            del table[key]
        assert alarms.first() == min(((at, each) for each, at in table.items()), default=None)
