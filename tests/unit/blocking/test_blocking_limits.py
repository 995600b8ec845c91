"""Units, limits and marks, in words."""

from __future__ import annotations

import pytest

from labmesh.blocking.limits import limits_text, method_doc, method_marks, value_marks
from labmesh.protocol.messages import MethodInfo, ValueInfo, ValueLimits


@pytest.mark.parametrize(
    ("limits", "text"),
    [
        (ValueLimits(), ""),
        (ValueLimits(unit="°C"), "°C"),
        (ValueLimits(unit="V", lowest=0, highest=30), "V, 0 to 30"),
        (ValueLimits(lowest=1), "at least 1"),
        (ValueLimits(unit="Hz", highest=1.25e9), "Hz, at most 1250000000"),
        (ValueLimits(choices=["'C'", "'F'"]), "one of 'C', 'F'"),
        (
            ValueLimits(choices=[str(number) for number in range(20)]),
            "one of 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11 and 8 more",
        ),
    ],
)
def test_limits(limits: ValueLimits, text: str) -> None:
    assert limits_text(limits) == text


def test_a_docstring_ends_with_units_and_limits() -> None:
    volts = ValueLimits(unit="V", lowest=0, highest=30)
    method = MethodInfo(
        name="set_voltage",
        doc="Set the output voltage.\n",
        limits={"return": ValueLimits(unit="V"), "value": volts, "wait": ValueLimits()},
    )
    assert method_doc(method) == (
        "Set the output voltage.\n\nUnits and limits\n    value: V, 0 to 30\n    returns: V"
    )
    assert method_doc(MethodInfo(name="on", limits={"value": volts})) == (
        "Units and limits\n    value: V, 0 to 30"
    )


def test_a_docstring_without_limits_stays_as_it_is() -> None:
    assert method_doc(MethodInfo(name="on", doc="Switch it on.")) == "Switch it on."
    assert method_doc(MethodInfo(name="on", limits={"value": ValueLimits()})) == ""


def test_marks_of_methods() -> None:
    assert method_marks(MethodInfo(name="on")) == []
    marked = MethodInfo(name="scan", read_only=True, idempotent=True, yields=True, timeout_s=30)
    assert method_marks(marked) == ["read-only", "yields", "idempotent", "at most 30 s"]


def test_marks_of_values() -> None:
    volts = ValueLimits(unit="V")
    assert value_marks(ValueInfo(name="v", limits=volts, settable=True)) == ["V", "settable"]
    assert value_marks(ValueInfo(name="v")) == ["read-only"]
    assert value_marks(ValueInfo(name="v", gettable=False, settable=True)) == ["write-only"]
