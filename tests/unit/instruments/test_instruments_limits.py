"""Units, ranges and choices, as far as annotations say them."""

from __future__ import annotations

import enum
import functools
import inspect
from typing import TYPE_CHECKING, Annotated, Any, Literal, NewType, Optional

import msgspec
import pytest

from labmesh.instruments.exposure import MethodTable
from labmesh.instruments.limits import as_range, choices_of, limits_of, type_text
from labmesh.protocol.messages import Description, MethodInfo, ValueLimits

if TYPE_CHECKING:
    from decimal import Decimal


class Coupling(enum.Enum):
    AC = "ac"
    DC = "dc"


class Gain(enum.IntEnum):
    LOW = 1
    HIGH = 10


class Unit:
    def __init__(self, unit: object) -> None:
        self.unit = unit


class Between:
    """As annotated_types.Interval has them."""

    def __init__(self, ge: Any = None, gt: Any = None, le: Any = None, lt: Any = None) -> None:
        self.ge, self.gt, self.le, self.lt = ge, gt, le, lt


class Hostile:
    """Whatever is asked of it, it fails."""

    def __getattribute__(self, name: str) -> Any:
        raise OSError(f"{name} was looked up")

    def __repr__(self) -> str:
        raise OSError("it was printed")

    def __eq__(self, other: object) -> bool:
        raise OSError("it was compared")

    __hash__ = None  # type: ignore[assignment]


Volts = NewType("Volts", Annotated[float, "V"])  # type: ignore[valid-newtype]
VOLT = ValueLimits(unit="V")


@pytest.mark.parametrize(
    ("annotation", "limits"),
    [
        (float, ValueLimits()),
        (None, ValueLimits()),
        (inspect.Signature.empty, ValueLimits()),
        ("Annotated[float, 'V']", ValueLimits()),
        (Annotated[float, "V"], VOLT),
        (Annotated[float, "V", "the second text is no unit"], VOLT),
        (Annotated[float, ""], ValueLimits()),
        (Annotated[float, Unit("V")], VOLT),
        (Annotated[float, Unit(5)], ValueLimits()),
        (Annotated[float, "x" * 100], ValueLimits(unit="x" * 64)),
        (Annotated[float, "\ud800"], ValueLimits(unit="\\ud800")),
        (Annotated[float, msgspec.Meta(ge=0, le=30)], ValueLimits(lowest=0, highest=30)),
        (Annotated[float, msgspec.Meta(gt=-1.5), "V"], ValueLimits(unit="V", lowest=-1.5)),
        (Annotated[float, Between(gt=0, lt=5)], ValueLimits(lowest=0, highest=5)),
        (Annotated[float, Between(ge=0), Between(le=9)], ValueLimits(lowest=0, highest=9)),
        (Annotated[float, Between(0, None, 9), Between(2, None, 7)], as_range(2, 7)),
        (Annotated[Annotated[float, "V", Between(ge=0)], Between(ge=2)], as_range(2, None, "V")),
        (Annotated[float, Between(ge="a", le=float("inf"))], ValueLimits()),
        (Annotated[float, Between(ge=True, le=10**400)], ValueLimits()),
        (Annotated[float, "V"] | None, VOLT),
        (Optional[Annotated[float, "V"]], VOLT),  # noqa: UP045 (the older way to write it)
        (Volts, VOLT),
        (Literal["AC", "DC"], ValueLimits(choices=["'AC'", "'DC'"])),
        (Literal[1, True, None], ValueLimits(choices=["1", "True", "None"])),
        (Annotated[Literal[1, 10], "V"], ValueLimits(unit="V", choices=["1", "10"])),
        (Coupling, ValueLimits(choices=["'ac'", "'dc'"])),
        (Gain, ValueLimits(choices=["1", "10"])),
        (list[Annotated[float, "V"]], ValueLimits()),
    ],
)
def test_an_annotation_says_unit_range_and_choices(annotation: Any, limits: ValueLimits) -> None:
    assert limits_of(annotation) == limits


def test_hostile_annotations_say_nothing_and_hide_no_others() -> None:
    assert limits_of(Hostile()) == ValueLimits()
    assert limits_of(Annotated[float, Hostile(), "V"]) == VOLT
    assert type_text(Hostile()) == ""


def test_a_real_range_of_another_package_is_read_alike() -> None:
    annotated_types = pytest.importorskip("annotated_types")
    within = annotated_types.Interval(ge=0, lt=5)
    assert limits_of(Annotated[float, within]) == as_range(0, 5)
    assert limits_of(Annotated[float, annotated_types.Gt(2)]) == as_range(2, None)
    assert limits_of(Annotated[float, annotated_types.Unit("V")]) == VOLT


def test_an_annotation_that_holds_itself_says_nothing() -> None:
    class Endless:
        @property
        def __value__(self) -> Endless:
            return self

    assert limits_of(Endless()) == ValueLimits()


def test_choices_that_cannot_be_shown_whole_are_not_shown_at_all() -> None:
    assert choices_of(range(256)) == [str(each) for each in range(256)]
    assert choices_of(range(257)) == []
    assert choices_of(["AC", "x" * 100]) == []
    assert choices_of([1, Hostile()]) == []
    assert choices_of([(1, 2)]) == []


@pytest.mark.parametrize(
    ("annotation", "text"),
    [
        (inspect.Signature.empty, ""),
        (float, "float"),
        (None, "None"),
        (Any, ""),
        (Annotated[float, "V"], "float"),
        (dict[str, float], "dict[str, float]"),
        ("Decimal", "Decimal"),
        (float | None, "float | None"),
        ("x" * 1000, "x" * 256),
        ("\ud800", "\\ud800"),
    ],
)
def test_a_type_is_shown_as_python_writes_it(annotation: Any, text: str) -> None:
    assert type_text(annotation) == text


# ── in descriptions ─────────────────────────────────────────────────────────────────────────────


class Supply:
    class Range(enum.Enum):
        LOW = 1

    def set_voltage(
        self,
        value: Annotated[float, "V", msgspec.Meta(ge=0, le=30)],
        *,
        slew: Annotated[float, "V/s"],
    ) -> Annotated[float, "V"]:
        return value

    def set_mode(self, mode: Literal["CV", "CC"], plain: int = 0) -> None: ...

    def set_range(self, within: Range) -> None: ...

    def set_exact(self, value: Decimal, unit: Annotated[str, "V"]) -> None: ...

    @property
    def exact(self) -> Decimal:
        raise AssertionError("a property was read")

    half = functools.partialmethod(set_voltage, 0.5)

    @functools.lru_cache  # noqa: B019 (a wrapped method is what is tested)
    def wrapped(self, volts: Annotated[float, "V"]) -> None: ...

    @staticmethod
    def static(volts: Annotated[float, "V"]) -> None: ...


def described(driver: object) -> dict[str, MethodInfo]:
    return {each.name: each for each in MethodTable.of(driver).describe()}


def test_parameters_and_results_of_methods_have_units_and_limits() -> None:
    supply = described(Supply())
    assert supply["set_voltage"].limits == {
        "value": as_range(0, 30, "V"),
        "slew": ValueLimits(unit="V/s"),
        "return": VOLT,
    }
    assert supply["set_mode"].limits == {"mode": ValueLimits(choices=["'CV'", "'CC'"])}
    assert supply["set_range"].limits == {"within": ValueLimits(choices=["1"])}
    assert supply["wrapped"].limits == supply["static"].limits == {"volts": VOLT}


def test_what_a_partial_method_has_filled_in_is_not_told() -> None:
    assert set(described(Supply())["half"].limits) == {"slew", "return"}


def test_an_annotation_for_type_checkers_only_is_text_and_hides_no_other() -> None:
    assert described(Supply())["set_exact"].limits == {"unit": VOLT}
    (exact,) = MethodTable.of(Supply()).values()
    assert exact.type == "Decimal"


def test_hostile_annotations_and_docs_neither_break_the_build_nor_the_message() -> None:
    class Nasty:
        def method(self, value: float) -> None: ...

        @property
        def value(self) -> float:
            return 1.0

        method.__annotations__.update(value=Hostile(), **{"return": Annotated[int, Hostile()]})
        value.fget.__annotations__["return"] = Hostile()  # type: ignore[union-attr]
        method.__doc__ = "lone \ud800 surrogate"

        def other(self, value: object) -> None: ...

        other.__annotations__["value"] = "Lone\ud800Surrogate"

    table = MethodTable.of(Nasty())
    description = Description(
        id="1",
        node_id="n",
        epoch="e",
        driver=table.driver_name,
        methods=table.describe(),
        values=table.values(),
    )
    again = msgspec.msgpack.decode(msgspec.msgpack.encode(description), type=Description)
    assert again == description
    assert again.methods[0].doc == "lone \\ud800 surrogate"
    assert again.methods[1].signature == "(value: Lone\\ud800Surrogate) -> None"


def test_limits_are_told_and_not_enforced() -> None:
    assert MethodTable.of(Supply()).bind("set_voltage", [99.0], {"slew": 1}).run() == 99.0
