from __future__ import annotations

import math
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest

from labmesh.errors import ProtocolError
from labmesh.protocol.messages import Condition
from labmesh.protocol.query import condition, conditions_of, moment

NOON = datetime(2026, 11, 22, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "field", "op", "value"),
    [
        ("temperature<4", "meta.temperature", "<", 4),
        (" temperature <= 4.5 ", "meta.temperature", "<=", 4.5),
        ("temperature>-1e3", "meta.temperature", ">", -1000.0),
        ("n>=2", "meta.n", ">=", 2),
        ("sample.id=A1", "meta.sample.id", "==", "A1"),
        ("meta.sample.id==A1", "meta.sample.id", "==", "A1"),
        ("sample=A*", "meta.sample", "like", "A*"),
        ('sample="A*"', "meta.sample", "==", "A*"),
        ("sample='007'", "meta.sample", "==", "007"),
        ("sample=007", "meta.sample", "==", 7),
        ("sample=", "meta.sample", "==", ""),
        ("sample!=A*", "meta.sample", "!=", "A*"),
        ("note~a=b", "meta.note", "in", "a=b"),
        ("note~7", "meta.note", "in", "7"),
        ("on=TRUE", "meta.on", "==", True),
        ("on!=false", "meta.on", "!=", False),
        ("x=none", "meta.x", "==", None),
        ("x=null", "meta.x", "==", None),
        ("relay=Inst-*", "relay_id", "like", "Inst-*"),
        ("relay_id=7", "relay_id", "==", "7"),
        ("name!=true", "name", "!=", "true"),
        ("id=scan-1", "dataset_id", "==", "scan-1"),
        ("tag!=bad", "tags", "!=", "bad"),
        ("kind=npy", "kind", "==", "npy"),
        ("meta.kind=npy", "meta.kind", "==", "npy"),
        ("size>1.5GB", "size", ">", 1_500_000_000),
        ("size>=10 KiB", "size", ">=", 10_240),
        ("size<3b", "size", "<", 3),
        ("size>100", "size", ">", 100),
        ("size>big", "size", ">", "big"),
        ("size>1.2.3kB", "size", ">", "1.2.3kB"),
        ("created>100", "created", ">", 100.0),
        ("created<2026-11-22T12:00Z", "created", "<", NOON.timestamp()),
    ],
)
def test_a_condition_is_read_as_people_write_it(text: str, field: str, op: Any, value: Any) -> None:
    found = condition(text)
    assert found == Condition(field=field, op=op, value=value)
    assert type(found.value) is type(value)


@pytest.mark.parametrize("text", ["", "temperature", "<4", "=x", "created>2h", "created>nan-1"])
def test_what_is_no_condition_says_how_one_is_written(text: str) -> None:
    with pytest.raises(ProtocolError, match=r"temperature<4|'since'"):
        condition(text)


class Float32(float):
    """What numpy's numbers look like."""


def test_arguments_are_conditions() -> None:
    found = conditions_of(
        sample="A1",
        sample__id="A*",
        T__lt=Float32(4),
        T__ge=2,
        on=True,
        none__ne=None,
        note__in="cold",
        text__like="a*",
        relay="Inst-*",
        name="scan",
        size__gt=3,
        created__ge=NOON,
        created__lt="2026-11-22T12:00Z",
        created__eq=5,
        lt=1,
    )
    assert [(each.field, each.op, each.value) for each in found] == [
        ("meta.sample", "==", "A1"),
        # In Python a pattern of a key of the metadata is asked for by name.
        ("meta.sample.id", "==", "A*"),
        ("meta.T", "<", 4.0),
        ("meta.T", ">=", 2),
        ("meta.on", "==", True),
        ("meta.none", "!=", None),
        ("meta.note", "in", "cold"),
        ("meta.text", "like", "a*"),
        ("relay_id", "like", "Inst-*"),
        ("name", "==", "scan"),
        ("size", ">", 3),
        ("created", ">=", NOON.timestamp()),
        ("created", "<", NOON.timestamp()),
        ("created", "==", 5),
        ("meta.lt", "==", 1),
    ]
    assert type(found[2].value) is float
    with pytest.raises(ProtocolError, match="sample is compared with a list"):
        conditions_of(sample=["A1", "A2"])


def test_a_moment_is_ago_a_date_or_a_number() -> None:
    assert moment("30s", 1000.0) == 970
    assert [moment(text, 1e6) for text in ("2h", " 1.5 h ", "3d", "1w", "5min", "5m")] == [
        1e6 - seconds for seconds in (7200, 5400, 259_200, 604_800, 300, 300)
    ]
    assert moment("2026-11-22T13:00+01:00", 0) == NOON.timestamp()
    assert moment(NOON, 0) == NOON.timestamp()
    assert moment(date(2026, 11, 22), 0) == moment("2026-11-22", 0)
    assert moment(5, 0) == 5.0
    local = datetime(2026, 11, 22)
    assert moment("2026-11-22", 0) == moment(local, 0) == local.timestamp()
    for wrong in ("", "soon", "2 fortnights", "2026-13-01", math.nan, True):
        with pytest.raises(ProtocolError, match="2026-11-22"):
            moment(wrong, 0)
    far = datetime.min.replace(tzinfo=UTC) + timedelta(0)
    assert moment(far, 0) < 0
    with pytest.raises(ProtocolError, match="out of the range"):
        moment(datetime.min, 0)
