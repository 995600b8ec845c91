"""Functions made from what a relay tells: signature, docstring, and what changed."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from labmesh.blocking.methods import Driver, changes, remote_method, signature_from
from labmesh.instruments.exposure import MethodTable
from labmesh.instruments.simulated import Oscilloscope, PowerSupply, Thermometer
from labmesh.protocol.messages import Description, MethodInfo, ValueInfo, ValueLimits


def described(driver: str = "PowerSupply", **methods: str) -> Driver:
    """A driver with these methods and signatures."""
    return Driver.of(
        Description(
            id="1",
            node_id="Inst-0",
            epoch="e1",
            driver=driver,
            methods=[MethodInfo(name=each, signature=text) for each, text in methods.items()],
        )
    )


@pytest.mark.parametrize(
    "text",
    [
        "()",
        "(value: float) -> float",
        "(a, /, b, c=1, *, d: int = 2, e) -> None",
        "(*args: float, **kwargs)",
        "(unit: Literal['C', 'F', 'K'] = 'C') -> NDArray[np.float64] | list[float]",
        "(shape: tuple[int, ...] = (1, 2), wait: float | None = None)",
        "(limit=..., mode=Mode.FAST, key=lambda)".replace("lambda", "sorted"),
    ],
)
def test_a_signature_reads_like_the_drivers_own(text: str) -> None:
    assert str(signature_from(text)) == text
    assert signature_from(text) == signature_from(text)
    assert hash(signature_from("(a: int)")) == hash(signature_from("(a: int)"))


def test_plain_defaults_are_values() -> None:
    parameters = signature_from("(gain: float = 2.5, names=['a'], mode=Mode.FAST)").parameters
    assert parameters["gain"].default == 2.5
    assert parameters["names"].default == ["a"]
    assert repr(parameters["mode"].default) == "Mode.FAST"


def test_each_driver_that_is_shipped_is_shown_as_it_is() -> None:
    for driver in (PowerSupply(), Thermometer(), Oscilloscope()):
        for each in MethodTable.of(driver).describe():
            shown = str(signature_from(each.signature))
            assert shown.replace("'", '"') == each.signature.replace("'", '"')


@pytest.mark.parametrize(
    "text",
    [
        "(...)",
        "",
        "(a, a)",
        "(): pass\nimport os\nif os",
        "(a=1, b)",
        "(" * 3000,
        "(x=" + "[" * 300 + "]" * 300 + ")",
        "(x=\0)",
        "(x={[]: 1})",
        ") -> None",
    ],
)
def test_what_cannot_be_read_takes_anything_and_is_never_run(text: str) -> None:
    signature = signature_from(text)
    assert isinstance(signature, inspect.Signature)
    if text != "(x={[]: 1})":
        assert str(signature) == "(*args, **kwargs)"


@given(st.text(max_size=60))
def test_any_text_gives_a_signature(text: str) -> None:
    assert isinstance(signature_from(text), inspect.Signature)


def test_a_method_looks_like_the_drivers_and_passes_its_arguments_on() -> None:
    calls: list[Any] = []

    def invoke(*call: Any) -> str:
        calls.append(call)
        return "done"

    driver = Driver.of(
        Description(
            id="1",
            node_id="Inst-0",
            epoch="e1",
            driver="PowerSupply",
            methods=[MethodInfo(name="set_voltage", signature="(value: float)", doc="In volts.")],
        )
    )
    method = remote_method(driver, "set_voltage", invoke)
    assert method(2.5, slew=1) == "done"
    assert calls == [("set_voltage", [2.5], {"slew": 1})]
    assert (method.__name__, method.__doc__) == ("set_voltage", "In volts.")
    assert method.__qualname__ == "PowerSupply.set_voltage"
    assert str(inspect.signature(method)) == "(value: float)"


# ── changes ─────────────────────────────────────────────────────────────────────────────────────


def test_the_same_driver_has_no_changes() -> None:
    assert changes(described(on="()", set="(x)"), described(set="(x)", on="()")) == []


def test_each_kind_of_change_is_told() -> None:
    before = described(on="()", off="()", set="(x)")
    after = described("Supply2", on="()", ramp="()", set="(x, y)")
    assert changes(before, after) == [
        "the driver is Supply2, it was PowerSupply",
        "gone: off",
        "new: ramp",
        "set(x, y) was set(x)",
    ]


def with_values(*values: ValueInfo) -> Driver:
    return Driver.of(
        Description(
            id="1",
            node_id="Inst-0",
            epoch="e1",
            driver="PowerSupply",
            methods=[MethodInfo(name="on")],
            values=list(values),
        )
    )


def test_changes_of_values_are_told_as_well() -> None:
    volts = ValueInfo(name="voltage", type="float", limits=ValueLimits(unit="V"))
    before = with_values(volts, ValueInfo(name="serial"))
    after = with_values(replace(volts, settable=True), ValueInfo(name="current"))
    assert changes(before, before) == []
    assert changes(before, after) == [
        "gone: serial",
        "new: current",
        "voltage: float (V, settable) was voltage: float (V, read-only)",
    ]


def test_a_method_hides_a_value_of_its_name() -> None:
    assert with_values(ValueInfo(name="on"), ValueInfo(name="off")).names == ["on", "off"]
