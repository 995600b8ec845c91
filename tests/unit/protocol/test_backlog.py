"""For whom too much waits."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from labmesh.protocol.backlog import Backlogs, Sent, Share

LIMIT = 1000


class Peer:
    """A connection that takes so much of each hundred bytes that it is sent."""

    def __init__(self, takes: int, share: int = 100) -> None:
        self.takes, self.share = takes, share
        self.sent = self.taken = 0
        self.of = (0, 0)

    @property
    def waits(self) -> int:
        return self.sent - self.taken

    def step(self) -> Sent:
        self.sent += self.share
        self.taken += min(self.takes, self.waits)
        # What waits at any time, with bytes on their way in it.
        return Sent(self.taken, self.waits + 1 if self.takes else self.waits)


def run(peer: Peer, steps: int, total_a_step: int = 100) -> tuple[int, int] | None:
    """When it was found behind, and with how many bytes."""
    backlogs = Backlogs(LIMIT)
    backlogs.look({7: Sent(0, 0)}, 0, lambda _: Share(peer.of, peer.sent))
    for number in range(1, steps + 1):
        sent = peer.step()
        found = backlogs.look({7: sent}, number * total_a_step, lambda _: Share(peer.of, peer.sent))
        if found:
            return number, found[7]
    return None


def test_who_takes_nothing_is_found_as_soon_as_more_than_the_limit_waits() -> None:
    assert run(Peer(0), 100) == (11, 1100)


def test_who_takes_a_little_is_found_when_more_than_the_limit_waits_for_it() -> None:
    peer = Peer(20)
    found = run(peer, 100)
    assert found is not None
    assert found == (13, peer.waits) == (13, 1040)


@pytest.mark.parametrize("peer", [Peer(100), Peer(10, share=10), Peer(50, share=50)])
def test_who_keeps_up_is_never_found_though_something_waits_at_each_look(peer: Peer) -> None:
    """Of all that passes it may want a part: what others are sent does not wait for it."""
    assert run(peer, 10_000) is None


def test_of_who_wants_a_part_that_part_counts_once_it_seems_to_be_behind() -> None:
    peer = Peer(0, share=10)
    found = run(peer, 1000)
    assert found is not None
    assert peer.waits <= LIMIT
    assert found[0] > 3 * 11


def test_when_nothing_waits_it_is_not_behind() -> None:
    backlogs = Backlogs(LIMIT)
    for number in range(20):
        assert not backlogs.look({7: Sent(0, number % 2)}, number * 400, not_asked)


def not_asked(_: int) -> Share:
    raise AssertionError("nobody is behind")


def looked(share: Callable[[int], Share]) -> dict[int, int]:
    """After 600 of 1000 bytes and a share of 5000: 300 more of all, of which 10 are its own."""
    backlogs = Backlogs(LIMIT)
    backlogs.look({7: Sent(0, 0)}, 0, not_asked)
    backlogs.look({7: Sent(0, 9)}, 600, not_asked)
    assert not backlogs.look({7: Sent(0, 9)}, 600, lambda _: Share((1, 1), 5000))
    assert not backlogs.look({7: Sent(0, 9)}, 900, share)
    return backlogs.look({7: Sent(0, 9)}, 1001, share)


def test_a_share_of_something_else_is_not_compared_with_the_one_before() -> None:
    assert looked(lambda _: Share((1, 1), 5010)) == {}
    assert looked(lambda _: Share((2, 1), 9_999_999)) == {}
    numbers = iter(range(2, 9))
    assert looked(lambda _: Share((next(numbers), 1), 0)) == {7: 1001}


def test_another_connection_of_the_same_number_begins_anew() -> None:
    backlogs = Backlogs(LIMIT)
    backlogs.look({7: Sent(500, 9)}, 0, not_asked)
    backlogs.look({7: Sent(500, 9)}, 900, lambda _: Share((1, 1), 0))
    assert not backlogs.look({7: Sent(3, 9)}, 1800, lambda _: Share((1, 1), 0))
    assert not backlogs.look({}, 2700, not_asked)
    assert not backlogs.look({7: Sent(3, 9)}, 9000, not_asked)
