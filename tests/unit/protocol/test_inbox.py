"""The queue in front of a slow reader: bounded, in order, the newest of each state, all counted."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from labmesh.protocol.inbox import Inbox


def test_what_fits_comes_out_in_the_order_of_arrival() -> None:
    inbox = Inbox[int](3)
    for number in (1, 2, 3):
        inbox.put(number, key="a")
    assert len(inbox) == 3
    assert inbox.pop() == 1
    assert inbox.take() == [2, 3]
    assert inbox.take() == []
    assert (inbox.conflated, inbox.lost) == (0, 0)


def test_an_empty_queue_has_no_oldest_item() -> None:
    with pytest.raises(KeyError):
        Inbox[int](1).pop()


def test_a_full_queue_keeps_the_newest_of_each_state() -> None:
    inbox = Inbox[str](4)
    for key in "aabb":
        inbox.put(f"{key}{len(inbox)}", key=key)
    inbox.put("a4", key="a")
    assert inbox.take() == ["b3", "a4"]
    assert (inbox.conflated, inbox.lost) == (3, 0)


def test_items_without_a_key_are_never_replaced() -> None:
    inbox = Inbox[str](3)
    inbox.put("a0", key="a")
    inbox.put("dataset 1")
    inbox.put("dataset 2")
    inbox.put("a1", key="a")
    assert inbox.take() == ["dataset 1", "dataset 2", "a1"]
    assert (inbox.conflated, inbox.lost) == (1, 0)


def test_where_nothing_can_be_replaced_the_oldest_goes() -> None:
    inbox = Inbox[str](2)
    inbox.put("a", key="a")
    inbox.put("dataset 1")
    inbox.put("dataset 2")
    inbox.put("dataset 3")
    assert inbox.take() == ["dataset 2", "dataset 3"]
    assert (inbox.conflated, inbox.lost) == (0, 2)


def test_a_state_that_was_taken_replaces_nothing() -> None:
    inbox = Inbox[str](2)
    inbox.put("a0", key="a")
    assert inbox.pop() == "a0"
    inbox.put("a1", key="a")
    inbox.put("b0", key="b")
    assert inbox.take() == ["a1", "b0"]
    inbox.put("a2", key="a")
    inbox.put("dataset 1")
    inbox.put("dataset 2")
    assert inbox.take() == ["dataset 1", "dataset 2"]
    assert (inbox.conflated, inbox.lost) == (0, 1)


def test_a_queue_without_room_loses_everything_and_says_so() -> None:
    inbox = Inbox[int](0)
    inbox.put(1)
    inbox.put(2, key="a")
    assert len(inbox) == 0
    assert inbox.lost == 2


def test_with_room_for_each_key_many_states_that_wait_are_no_reason_to_skip() -> None:
    inbox = Inbox[int](2, of_each=3)
    for number in range(3):
        for key in range(100):
            inbox.put(number, key=str(key))
    assert (len(inbox), inbox.conflated, inbox.lost) == (300, 0, 0)
    inbox.put(3, key="0")
    assert inbox.take() == [2] * 99 + [3]
    assert (inbox.conflated, inbox.lost) == (201, 0)
    for number in range(4):
        inbox.put(number)
    assert inbox.take() == [2, 3], "what has no key has no more room than before"


def test_what_cannot_be_replaced_may_have_more_room_than_states() -> None:
    inbox = Inbox[int](2, most=5)
    for number in range(4):
        inbox.put(number, key="a")
    assert (len(inbox), inbox.conflated) == (2, 2)
    for number in range(4):
        inbox.put(number)
    assert (len(inbox), inbox.conflated, inbox.lost) == (5, 3, 0)
    inbox.put(4)
    assert inbox.take() == [0, 1, 2, 3, 4]
    assert inbox.lost == 1


def test_bytes_are_limited_like_items_and_what_is_lost_for_them_is_handed_back() -> None:
    inbox = Inbox[str](10, max_bytes=100)
    assert inbox.put("a0", key="a", size=40) == ()
    assert inbox.put("event 1", size=30) == ()
    assert inbox.put("a1", key="a", size=30) == ()
    assert inbox.put("event 2", size=40) == [], "the older state made room"
    assert (len(inbox), inbox.conflated, inbox.lost) == (3, 1, 0)
    assert inbox.put("event 3", size=60) == ["event 1", "a1"]
    assert inbox.put("too large", size=101) == ["event 2", "event 3", "too large"]
    assert (len(inbox), inbox.conflated, inbox.lost) == (0, 1, 5)
    inbox.put("event 4", size=100)
    assert inbox.pop() == "event 4"
    inbox.put("event 5", size=100)
    assert inbox.take() == ["event 5"]
    assert inbox.put("event 6", size=100) == (), "what was taken is counted no more"


def test_what_is_remembered_about_keys_is_bounded_by_the_queue() -> None:
    inbox = Inbox[int](10)
    for number in range(1000):
        inbox.put(number, key=str(number))
        inbox.put(number, key="again and again")
    assert len(inbox) == 10
    assert len(inbox._newest) <= 10
    assert len(inbox._superseded) <= 10
    inbox.take()
    assert (inbox._newest, inbox._superseded) == ({}, set())


class Simple:
    """The same queue, written to be read."""

    def __init__(self, limit: int, of_each: int, most: int, max_bytes: int) -> None:
        self.limit = limit
        self.of_each = of_each
        self.most = most
        self.max_bytes = max_bytes
        #: each takes as many bytes as its number says
        self.items: list[tuple[str | None, int]] = []
        self.conflated = self.lost = 0

    def put(self, item: int, key: str | None) -> list[int]:
        self.items.append((key, item))
        if len(self.items) <= self.room() and self.fits():
            return []
        keys = [key for key, _ in self.items]
        kept = [
            each
            for index, each in enumerate(self.items)
            if each[0] is None or each[0] not in keys[index + 1 :]
        ]
        self.conflated += len(self.items) - len(kept)
        self.items = kept
        lost = []
        while len(self.items) > max(self.room(), self.most) or not self.fits():
            lost.append(self.items.pop(0)[1])
        self.lost += len(lost)
        return lost

    def fits(self) -> bool:
        return sum(item for _, item in self.items) <= self.max_bytes

    def room(self) -> int:
        keys = {key for key, _ in self.items if key is not None}
        return max(self.limit, self.of_each * len(keys))


@given(
    limit=st.integers(1, 5),
    of_each=st.integers(0, 3),
    most=st.integers(0, 9),
    max_bytes=st.integers(0, 300),
    moves=st.lists(st.sampled_from(["a", "b", "c", None, "pop", "take"]), max_size=60),
)
def test_it_does_what_the_simple_one_does(
    limit: int, of_each: int, most: int, max_bytes: int, moves: list[str | None]
) -> None:
    inbox = Inbox[int](limit, of_each=of_each, most=most, max_bytes=max_bytes)
    simple = Simple(limit, of_each, most, max_bytes)
    for number, move in enumerate(moves):
        if move == "take":
            assert inbox.take() == [item for _, item in simple.items]
            simple.items = []
        elif move == "pop":
            if simple.items:
                assert inbox.pop() == simple.items.pop(0)[1]
        else:
            assert list(inbox.put(number, key=move, size=number)) == simple.put(number, move)
        assert len(inbox) == len(simple.items)
        assert (inbox.conflated, inbox.lost) == (simple.conflated, simple.lost)
