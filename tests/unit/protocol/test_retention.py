from __future__ import annotations

import pytest
from tests.support.storage_contract import record_of

from labmesh.protocol.messages import DatasetRecord
from labmesh.protocol.retention import Rule, expired

DAY_S = 86_400
NOW = 100 * DAY_S


def dataset(number: int, **facts: object) -> DatasetRecord:
    """Of day ``number``."""
    fields = {"sequence": number, "created": number * DAY_S, "name": f"scan-{number}", **facts}
    return record_of(f"d{number}", **fields)


DAYS = [dataset(day) for day in range(90, 100)]


def numbers(records: list[DatasetRecord], *rules: Rule) -> list[int]:
    return [each.record.sequence for each in expired(records, rules, NOW)]


@pytest.mark.parametrize(
    ("rules", "gone"),
    [
        ([], []),
        ([Rule()], []),
        ([Rule(keep_s=5 * DAY_S)], [90, 91, 92, 93, 94]),
        ([Rule(keep_last=3)], [90, 91, 92, 93, 94, 95, 96]),
        ([Rule(keep_last=0)], list(range(90, 100))),
        ([Rule(keep_s=0)], list(range(90, 100))),
        # Either reason keeps.
        ([Rule(keep_s=5 * DAY_S, keep_last=3)], [90, 91, 92, 93, 94]),
        ([Rule(keep_s=5 * DAY_S, keep_last=7)], [90, 91, 92]),
        ([Rule(keep_last=20)], []),
        # The first rule that matches counts, also when it keeps for ever.
        ([Rule(name="scan-9?"), Rule(keep_s=0)], []),
        ([Rule(name="scan-91"), Rule(keep_s=5 * DAY_S)], [90, 92, 93, 94]),
        ([Rule(name="SCAN-*", keep_s=0)], []),
        # keep_last counts what falls to the rule itself.
        ([Rule(name="scan-99"), Rule(keep_last=1)], list(range(90, 98))),
    ],
)
def test_what_no_rule_keeps_has_expired(rules: list[Rule], gone: list[int]) -> None:
    assert numbers(DAYS, *rules) == gone


def test_a_rule_is_for_a_relay_a_kind_and_a_tag() -> None:
    records = [
        dataset(1, relay_id="Inst-0", kind="npy", tags=["raw", "day"]),
        dataset(2, relay_id="Inst-1", kind="npy", tags=["raw"]),
        dataset(3, relay_id="Inst-0", kind="text", tags=["raw"]),
        dataset(4, relay_id="Inst-0", kind="npy"),
    ]
    assert numbers(records, Rule(relay="Inst-0", keep_s=0)) == [1, 3, 4]
    assert numbers(records, Rule(kind="n*", keep_s=0)) == [1, 2, 4]
    assert numbers(records, Rule(tag="r?w", keep_s=0)) == [1, 2, 3]
    assert numbers(records, Rule(relay="*0", kind="npy", tag="day", keep_s=0)) == [1]


def test_what_is_tagged_keep_is_never_touched_nor_counted() -> None:
    records = [*DAYS[:9], dataset(99, tags=["x", "keep"])]
    assert numbers(records, Rule(keep_last=2)) == list(range(90, 97))
    assert numbers(records, Rule(tag="keep", keep_s=0)) == []


def test_the_reason_says_which_rule_and_what_it_would_have_kept() -> None:
    rules = [Rule(kind="none"), Rule(keep_s=1.5 * DAY_S, keep_last=1)]
    assert [each.reason for each in expired(DAYS[:1], rules, NOW)] == []
    reasons = {each.reason for each in expired(DAYS, rules, NOW)}
    assert reasons == {"rule 2: older than 1.5 days and not among the newest 1"}
    assert expired(DAYS, [Rule(keep_last=9)], NOW)[0].reason == "rule 1: not among the newest 9"


def test_expired_ones_of_several_rules_come_in_the_order_of_sequences() -> None:
    rules = [Rule(name="*[02468]"), Rule(name="scan-9?", keep_last=4), Rule(keep_s=0)]
    mixed = [dataset(n, name=f"{'scan' if n % 2 else 'other'}-{n}") for n in range(90, 100)]
    # A bracket is a plain character.
    assert numbers(mixed, *rules) == [90, 91, 92, 94, 96, 98]
