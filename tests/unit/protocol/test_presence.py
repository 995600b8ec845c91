"""What is told of joining and leaving to a client of two brokers."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from labmesh.protocol.messages import NodeRecord, PresenceChange
from labmesh.protocol.presence import UNSEEN, PresenceTold

ONE = NodeRecord(
    node_id="psu-1", kind="relay", epoch="e1", endpoints={"rpc": "tcp://10.0.0.1:5850"}
)
AGAIN = replace(ONE, epoch="e2")
SILENT = replace(ONE, state="suspect")
OTHER = replace(ONE, node_id="psu-2")


def news(told: PresenceTold, *changes: tuple[NodeRecord, str]) -> list[bool]:
    """Of each announcement, whether it is news."""
    return [told.is_news(PresenceChange(node=node, change=change)) for node, change in changes]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ([(ONE, "joined"), (ONE, "joined")], [True, False]),
        ([(ONE, "joined"), (ONE, "left"), (ONE, "left"), (ONE, "joined")], [1, 1, 0, 1]),
        ([(ONE, "joined"), (SILENT, "suspect"), (SILENT, "suspect")], [1, 1, 0]),
        ([(ONE, "joined"), (SILENT, "suspect"), (ONE, "back"), (ONE, "back")], [1, 1, 1, 0]),
        # One broker tells of a restart; then the other one does, late.
        (
            [(ONE, "joined"), (ONE, "left"), (AGAIN, "joined"), (ONE, "left"), (AGAIN, "joined")],
            [1, 1, 1, 0, 0],
        ),
        ([(ONE, "joined"), (AGAIN, "joined"), (ONE, "left")], [1, 1, 0]),
        ([(ONE, "left"), (SILENT, "suspect"), (ONE, "back")], [0, 0, 0]),
        ([(ONE, "joined"), (OTHER, "joined"), (ONE, "left"), (OTHER, "left")], [1, 1, 1, 1]),
    ],
)
def test_each_change_is_told_once(changes: list[tuple[NodeRecord, str]], expected: list) -> None:
    assert news(PresenceTold(), *changes) == [bool(each) for each in expected]


def test_who_is_on_the_first_list_was_there_before() -> None:
    told = PresenceTold()
    told.begin([ONE])
    told.begin([])
    assert news(told, (ONE, "joined"), (ONE, "left")) == [False, True]


@pytest.mark.parametrize(
    ("before", "listed", "expected"),
    [
        ([], [], []),
        ([ONE], [ONE], []),
        ([ONE], [], [("psu-1", "e1", "left", UNSEEN)]),
        ([], [ONE], [("psu-1", "e1", "joined", "")]),
        ([ONE], [AGAIN], [("psu-1", "e1", "left", UNSEEN), ("psu-1", "e2", "joined", "")]),
        ([ONE], [SILENT], [("psu-1", "e1", "suspect", "")]),
        ([SILENT], [ONE], [("psu-1", "e1", "back", "")]),
        ([], [SILENT], [("psu-1", "e1", "joined", ""), ("psu-1", "e1", "suspect", "")]),
        ([ONE, OTHER], [OTHER], [("psu-1", "e1", "left", UNSEEN)]),
    ],
)
def test_what_no_announcement_told_the_list_does(
    before: list[NodeRecord], listed: list[NodeRecord], expected: list[tuple[str, ...]]
) -> None:
    told = PresenceTold()
    told.begin(before)
    changes = told.differences(listed)
    found = [(each.node.node_id, each.node.epoch, each.change, each.reason) for each in changes]
    assert found == expected
    assert [each.node.state for each in changes if each.change == "joined"] == [
        "live" for each in expected if each[2] == "joined"
    ]
    assert told.differences(listed) == []
