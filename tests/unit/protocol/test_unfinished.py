"""Messages that do not end: who is found out, and who is not."""

from __future__ import annotations

from dataclasses import dataclass, field

from labmesh.protocol.unfinished import Unfinished

LIMIT, ALL = 1000, 4000
#: What the heartbeats of a second may be, and one byte more than a connection's share.
BEATS, NOTED = 256, LIMIT // 4 + 1


@dataclass
class Door:
    """A socket, what its connections have brought, and a clock that stands still."""

    machine: Unfinished = field(default_factory=lambda: Unfinished(LIMIT, ALL))
    brought: dict[int, int] = field(default_factory=dict)
    now: float = 0.0

    def come(self, *connections: int) -> None:
        for each in connections:
            self.machine.accepted(each, self.now)
            self.brought[each] = 0

    def bring(self, size: int, *connections: int) -> None:
        for each in connections or self.brought:
            self.brought[each] += size

    def look(self) -> dict[int, int]:
        return self.machine.look(self.brought, self.now)

    def empty(self) -> None:
        self.machine.emptied(self.machine.question)

    def pour(self, *connections: int) -> dict[int, int]:
        """Each brings enough to be noted, then over its limit; the reader finds nothing."""
        self.bring(NOTED, *connections)
        self.look()
        self.bring(LIMIT + 1, *connections)
        self.look()
        self.empty()
        return self.look()


def door(*connections: int) -> Door:
    made = Door()
    made.come(*connections)
    return made


def test_a_message_that_does_not_end_ends_its_connection() -> None:
    one = door(1, 2)
    assert one.pour(1) == {1: LIMIT + 1}
    assert one.machine.suspects == {1}
    one.machine.ended(1)
    assert (len(one.machine), one.machine.suspects) == (1, set())


def test_who_brings_much_in_messages_that_end_is_left_alone() -> None:
    one = door(1)
    for _ in range(20):
        one.bring(LIMIT * 3 // 4)
        one.look()
        one.machine.heard(1)
        one.empty()
        assert one.look() == {}


def test_messages_that_ended_before_anybody_told_are_not_held_against_their_sender() -> None:
    one = door(1)
    one.bring(100 * LIMIT)
    one.look()
    assert one.machine.suspects == {1}
    for _ in range(3):
        one.empty()
        assert one.look() == {}
        assert not one.machine.is_asking


def test_nobody_is_ended_while_the_reader_stands_still() -> None:
    one = door(1)
    one.bring(NOTED)
    one.look()
    one.bring(10 * LIMIT)
    for _ in range(5):
        assert one.look() == {}
        assert one.machine.is_asking
    one.machine.heard(1)
    one.empty()
    assert one.look() == {}


def test_an_answer_to_an_older_question_is_none() -> None:
    one = door(1)
    one.bring(NOTED)
    one.look()
    one.bring(LIMIT + 1)
    one.look()
    one.machine.emptied(one.machine.question - 1)
    assert one.look() == {}
    one.empty()
    assert one.look() == {1: LIMIT + 1}


def test_a_reader_that_is_never_done_has_taken_messages_of_all_in_turn() -> None:
    one = door(1, 2)
    one.bring(NOTED, 1)
    one.look()
    one.bring(LIMIT + 1, 1)
    one.look()
    taken = 0
    while not (found := one.look()):
        one.machine.heard(2)
        taken += 1
    assert found == {1: LIMIT + 1}
    assert taken > 2 * len(one.machine)


def test_what_came_after_the_question_is_asked_about_again() -> None:
    one = door(1)
    one.bring(NOTED)
    one.look()
    one.bring(LIMIT + 1)
    one.look()
    one.bring(500)
    one.empty()
    assert one.look() == {1: LIMIT + 1}


def test_together_they_may_not_have_too_much_and_those_go_that_take_longest() -> None:
    one = door(*range(8))
    share = min(LIMIT, ALL // 8) // 4 + 1
    for each in range(8):
        one.now += 1.0
        one.bring(share + BEATS * 8, each)
        one.look()
    assert one.machine.suspects == set(range(8))
    one.bring(LIMIT)
    one.look()
    one.empty()
    assert list(one.look()) == [0, 1, 2, 3]


def test_heartbeats_are_no_message() -> None:
    one = door(1)
    for _ in range(100):
        one.now += 1.0
        one.bring(BEATS)
        assert one.look() == {}
        assert one.machine.suspects == set()


def test_the_number_of_a_connection_may_come_again() -> None:
    one = door(1)
    one.bring(NOTED)
    one.look()
    one.come(1)
    assert one.machine.suspects == set()
    one.bring(LIMIT * 3 // 4)
    one.look()
    one.machine.ended(1)
    one.machine.ended(1)
    assert one.look() == {}


def test_of_whom_nothing_is_known_at_the_moment_nothing_is_said() -> None:
    one = door(1)
    one.bring(NOTED)
    one.look()
    one.bring(LIMIT + 1)
    one.look()
    one.brought.clear()
    one.empty()
    assert one.look() == {1: LIMIT + 1}
    other = door(1)
    other.brought.clear()
    assert other.look() == {}
