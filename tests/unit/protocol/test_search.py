from __future__ import annotations

import math
from typing import Any

import pytest
from msgspec.structs import replace
from tests.support.storage_contract import record_of

from labmesh.errors import ProtocolError
from labmesh.protocol.messages import Condition, DatasetRecord, SearchDatasets
from labmesh.protocol.search import checked, facts, matcher, searchable

RECORD = replace(
    record_of(
        "scan-42",
        size=1000,
        created=5.0,
        relay_id="Inst-0",
        name="Kühl-Sweep",
        kind="npy",
        tags=["good", "raw"],
        parents=["scan-41"],
    ),
    meta={
        "T": 4.2,
        "on": True,
        "none": None,
        "nan": math.nan,
        "huge": 10**400,
        "low": -(10**400),
        "large": 2**64,
        "sample": {"id": "A1", "sizes": [1, 20], "parts": [{"n": "x"}, {"n": "y"}]},
        "text": "cut\0here",
        "k" * 300: 1,
    },
)


def search_of(*where: Condition, **facts: Any) -> SearchDatasets:
    return SearchDatasets(id="1", where=list(where), **facts)


def meets(record: DatasetRecord, field: str, op: Any, value: Any) -> bool:
    return checked(search_of(Condition(field=field, op=op, value=value))).meets(record)


HOLDS = [
    ("relay_id", "==", "Inst-0"),
    ("relay_id", "!=", "inst-0"),
    ("name", "like", "K?hl-*"),
    ("name", "in", "SWEEP"),
    ("name", ">", "Kalt"),
    ("kind", "<=", "npy"),
    ("dataset_id", "like", "*"),
    ("tags", "==", "raw"),
    ("tags", "!=", "bad"),
    ("size", ">=", 1000),
    ("created", "<", 5.5),
    ("meta.T", "==", 4.2),
    ("meta.T", ">", 4),
    ("meta.on", "==", True),
    ("meta.on", "!=", 1),
    ("meta.none", "==", None),
    ("meta.missing", "!=", 5),
    ("meta.nan", "!=", math.nan),
    ("meta.huge", ">", 2**64),
    ("meta.huge", "==", math.inf),
    ("meta.low", "<", 0),
    ("meta.large", "==", 2**64),
    ("meta.large", ">", 2**63),
    ("meta.sample.id", "==", "A1"),
    # Each element of a list is a value of it.
    ("meta.sample.sizes", "==", 20),
    ("meta.sample.sizes", "<", 2),
    ("meta.sample.parts.n", "==", "y"),
    ("meta.text", "==", "cut\0here"),
]
FAILS = [
    ("relay_id", "==", "inst-0"),
    ("name", "like", "kühl-*"),
    ("name", "like", "K[ü]hl-*"),
    ("name", "in", "warm"),
    ("tags", "!=", "raw"),
    ("size", ">", 1000),
    ("meta.T", "==", "4.2"),
    ("meta.T", "<", 4),
    ("meta.T", "in", "4"),
    ("meta.on", "==", 1),
    ("meta.none", "==", False),
    ("meta.missing", "==", None),
    ("meta.nan", "==", math.nan),
    ("meta.nan", "<", 1),
    ("meta.sample", "==", "A1"),
    ("meta.sample.sizes", "!=", 20),
    ("meta.text", "==", "cut"),
    ("meta." + "k" * 251, "==", 1),
]


def test_conditions_hold_for_values_of_their_kind() -> None:
    assert [each for each in HOLDS if not meets(RECORD, *each)] == []
    assert [each for each in FAILS if meets(RECORD, *each)] == []


@pytest.mark.parametrize(
    ("field", "op", "value", "text"),
    [
        ("relay", "==", "x", "did you mean 'relay_id'"),
        ("temperature", "==", 4, "meta.KEY"),
        ("meta", "==", 4, "meta.KEY"),
        ("size", "==", "10", "compared with a number, not with '10'"),
        ("created", "<", None, "compared with a number, not with None"),
        ("size", "==", True, "compared with a number"),
        ("name", "==", 5, "compared with a text, not with 5"),
        ("meta.T", "like", 5, "needs text, not 5"),
        ("meta.T", "in", None, "needs text"),
        ("meta.T", "<", True, "has no order"),
        ("meta.T", ">=", None, "has no order"),
    ],
)
def test_a_condition_that_makes_no_sense_says_what_does(
    field: str, op: Any, value: Any, text: str
) -> None:
    with pytest.raises(ProtocolError, match=text):
        checked(search_of(Condition(field=field, op=op, value=value)))


def test_words_tags_and_parents_must_all_be_there() -> None:
    for facts_of_search in (
        {"text": "SCAN a1"},
        {"text": "kühl ood CUT"},
        {"text": "  \n"},
        {"tags": ["raw", "good"]},
        {"parent": "scan-41"},
    ):
        assert checked(search_of(**facts_of_search)).meets(RECORD)
    for facts_of_search in (
        {"text": "scan warm"},
        {"text": "Inst-0"},
        {"text": "goodraw"},
        {"tags": ["raw", "bad"]},
        {"parent": "scan-4"},
    ):
        assert not checked(search_of(**facts_of_search)).meets(RECORD)


def test_what_is_looked_at_has_bounds() -> None:
    def values(meta: dict[str, Any]) -> int:
        return sum(name.startswith("meta.") for name, _ in facts(replace(RECORD, meta=meta)))

    assert values({"list": list(range(1000))}) == 100
    assert values({str(number): number for number in range(3000)}) == 2000
    assert values({"after": [[1] * 100] * 100, "more": 1}) == 2000
    long = replace(RECORD, meta={"text": "x" * 5000})
    assert len(searchable(long)) < 4100


def test_a_cursor_goes_on_behind_what_was_seen() -> None:
    records = [
        replace(
            RECORD, sequence=number, name="ba"[number % 2], size=number // 2, created=number / 3
        )
        for number in range(1, 8)
    ]
    records[0] = replace(records[0], created=math.nan)
    for sort in ("sequence", "created", "size", "name"):
        for descending in (False, True):
            query = search_of(sort=sort, descending=descending)
            order = sorted(records, key=checked(query).place, reverse=descending)
            for number, record in enumerate(order):
                after = checked(query).after(record)
                search = checked(replace(query, after=after))
                behind = [each for each in order if search.follows(each)]
                assert behind == order[number + 1 :]
            assert all(map(checked(query).follows, records))


@pytest.mark.parametrize(
    "after",
    [
        "x",
        "sequence+5:5",
        "name-5:x",
        "sequence-x:1",
        "sequence-1:x",
        "sequence-" + "9" * 30 + ":1",
    ],
)
def test_a_cursor_of_another_search_is_refused(after: str) -> None:
    with pytest.raises(ProtocolError, match="'after'"):
        checked(search_of(after=after))
    for key in ("x", "nan"):
        with pytest.raises(ProtocolError, match="had as 'next'"):
            checked(search_of(sort="created", after=f"created-1:{key}"))


def test_a_pattern_takes_no_exponential_time() -> None:
    assert not matcher("*a" * 30 + "b")("a" * 4000)
