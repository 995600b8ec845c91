"""Which datasets need not be kept any longer: the retention rules of a bank.

For each dataset the first rule that matches counts, and no other. A rule keeps a dataset while
either of its reasons holds: it is younger than ``keep_s``, or it is among the newest ``keep_last``
that the rule is for. A rule with neither keeps for ever, which makes exceptions to those behind it.
A dataset with the tag ``keep`` is never touched, and does not count for ``keep_last``.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from msgspec import Struct

from labmesh.protocol.messages import DatasetRecord
from labmesh.protocol.search import matcher

__all__ = ["KEEP_TAG", "Expired", "Rule", "expired"]

#: No rule touches a dataset with this tag.
KEEP_TAG = "keep"

_DAY_S = 86_400


class Rule(Struct, frozen=True, kw_only=True):
    """Patterns with ``*`` and ``?`` say which datasets it is for, ``keep_*`` how long they stay."""

    relay: str = "*"
    name: str = "*"
    kind: str = "*"
    #: one of the tags has to match; empty: tags do not matter
    tag: str = ""
    keep_s: float | None = None
    keep_last: int | None = None

    def matches(self, record: DatasetRecord) -> bool:
        """Whether it is for this dataset."""
        return (
            matcher(self.relay)(record.relay_id)
            and matcher(self.name)(record.name)
            and matcher(self.kind)(record.kind)
            and (not self.tag or any(map(matcher(self.tag), record.tags)))
        )


class Expired(NamedTuple):
    """A dataset that may go, and why, for people."""

    record: DatasetRecord
    reason: str


def expired(records: Iterable[DatasetRecord], rules: Sequence[Rule], now: float) -> list[Expired]:
    """The datasets that no rule keeps any longer, in the order of ``records``.

    :param records: in the order of their sequences, such as page after page.
    :param now: POSIX seconds.
    """
    #: of each rule: the newest that it is for, so far
    newest: list[deque[DatasetRecord]] = [deque() for _ in rules]
    found: list[Expired] = []
    for record in records:
        number = _first_match(record, rules)
        if number is None:
            continue
        rule = rules[number]
        newest[number].append(record)
        if len(newest[number]) > (rule.keep_last or 0):
            older = newest[number].popleft()
            if _is_over(older, rule, now):
                found.append(Expired(older, _reason(number, rule)))
    return sorted(found, key=lambda each: each.record.sequence)


def _first_match(record: DatasetRecord, rules: Sequence[Rule]) -> int | None:
    if KEEP_TAG in record.tags:
        return None
    return next((number for number, rule in enumerate(rules) if rule.matches(record)), None)


def _is_over(record: DatasetRecord, rule: Rule, now: float) -> bool:
    """Whether its time is over; it is not among the newest."""
    if rule.keep_s is None:
        return rule.keep_last is not None
    return now - record.created > rule.keep_s


def _reason(number: int, rule: Rule) -> str:
    reasons = []
    if rule.keep_s is not None:
        reasons.append(f"older than {rule.keep_s / _DAY_S:g} days")
    if rule.keep_last is not None:
        reasons.append(f"not among the newest {rule.keep_last}")
    return f"rule {number + 1}: {' and '.join(reasons)}"
