"""@expose and @hidden: what the author of a driver says about its methods and values."""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest

from labmesh import expose, hidden
from labmesh.errors import ConfigError, UnknownMethod
from labmesh.instruments.exposure import MethodTable
from labmesh.protocol.messages import MethodInfo


def logged(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    return wrapper


class Meter:
    """A multimeter."""

    @expose(read_only=True, idempotent=True, timeout=30)
    def measure(self) -> float:
        return 1.5

    @expose(idempotent=True)
    def set_range(self, volts: float) -> None: ...

    @expose
    def trigger(self) -> None: ...

    def plain(self) -> None: ...

    @expose(read_only=True)
    async def settled(self) -> bool:
        return True

    @expose(read_only=True)
    def scan(self, points: int) -> Iterator[int]:
        yield from range(points)

    @expose(timeout=2.5)
    async def stream(self) -> AsyncIterator[int]:
        yield 1

    @expose(read_only=True)
    @staticmethod
    def model() -> str:
        return "M-1"

    @classmethod
    @expose(read_only=True)
    def options(cls) -> list[str]:
        return []

    half = expose(read_only=True)(functools.partialmethod(set_range, 0.5))

    @logged
    @expose(read_only=True)
    def wrapped(self) -> None: ...

    @hidden
    def calibrate(self) -> None: ...


def described(driver: object, **options: Any) -> dict[str, MethodInfo]:
    return {each.name: each for each in MethodTable.of(driver, **options).describe()}


def test_marks_are_told_and_bound() -> None:
    table = MethodTable.of(Meter())
    measure = {each.name: each for each in table.describe()}["measure"]
    assert (measure.read_only, measure.idempotent, measure.timeout_s) == (True, True, 30.0)
    call = table.bind("measure")
    assert (call.read_only, call.idempotent, call.timeout_s, call.yields) == (
        True,
        True,
        30.0,
        False,
    )
    assert call.run() == 1.5


def test_what_is_not_said_is_not_so() -> None:
    meter = described(Meter())
    for name in ("trigger", "plain"):
        each = meter[name]
        assert (each.read_only, each.idempotent, each.timeout_s) == (False, False, 0.0)
    call = MethodTable.of(Meter()).bind("plain")
    assert (call.read_only, call.idempotent, call.timeout_s) == (False, False, 0.0)


def test_read_only_does_not_make_a_method_idempotent() -> None:
    assert described(Meter())["options"].read_only
    assert not described(Meter())["options"].idempotent
    assert described(Meter())["set_range"].idempotent
    assert not described(Meter())["set_range"].read_only


def test_every_kind_of_method_can_be_marked() -> None:
    meter = described(Meter())
    marked = {name for name, each in meter.items() if each.read_only}
    assert marked == {"measure", "settled", "scan", "model", "options", "half", "wrapped"}
    table = MethodTable.of(Meter())
    assert table.bind("model").run() == "M-1"
    assert table.bind("options").run() == []


def test_a_method_that_yields_says_so() -> None:
    table = MethodTable.of(Meter())
    assert {each.name for each in table.describe() if each.yields} == {"scan", "stream"}
    scan = table.bind("scan", [3])
    assert scan.yields
    assert list(scan.run()) == [0, 1, 2]
    assert not table.bind("measure").yields


def test_generators_of_every_kind_yield() -> None:
    class Counter:
        def __call__(self) -> Iterator[int]:
            yield 1

    class Scanner:
        counted = Counter()
        half = functools.partialmethod(lambda self: (yield), ())

        @staticmethod
        def static() -> Iterator[int]:
            yield 1

        @classmethod
        def of_class(cls) -> Iterator[int]:
            yield 1

    assert all(each.yields for each in MethodTable.of(Scanner()).describe())


def test_a_hidden_method_is_unknown() -> None:
    table = MethodTable.of(Meter())
    assert "calibrate" not in table
    with pytest.raises(UnknownMethod, match="Meter has no method 'calibrate'"):
        table.bind("calibrate")


# ── inheritance ─────────────────────────────────────────────────────────────────────────────────


class Better(Meter):
    def measure(self) -> float:
        return 2.5

    @expose(timeout=5)
    def set_range(self, volts: float) -> None: ...

    def calibrate(self) -> None: ...


def test_an_overriding_method_has_the_marks_of_what_it_overrides() -> None:
    measure = described(Better())["measure"]
    assert (measure.read_only, measure.idempotent, measure.timeout_s) == (True, True, 30.0)
    assert MethodTable.of(Better()).bind("measure").run() == 2.5
    assert "calibrate" not in described(Better())


def test_marks_of_its_own_replace_all_inherited_ones() -> None:
    set_range = described(Better())["set_range"]
    assert (set_range.idempotent, set_range.timeout_s) == (False, 5.0)


def test_expose_shows_what_a_base_class_has_hidden() -> None:
    class Open(Better):
        @expose
        def calibrate(self) -> None: ...

    assert "calibrate" in described(Open())


def test_marking_a_partial_method_leaves_the_method_that_it_was_made_from_alone() -> None:
    assert described(Meter())["half"].read_only
    assert not described(Meter())["set_range"].read_only


# ── poll and safe_state ─────────────────────────────────────────────────────────────────────────


def test_a_safe_state_counts_only_when_it_needs_no_arguments() -> None:
    class Supply:
        def safe_state(self) -> None: ...

    class Odd:
        def safe_state(self, channel: int) -> None: ...

    assert MethodTable.of(Supply()).has_safe_state
    assert "safe_state" in described(Supply())
    assert not MethodTable.of(Odd()).has_safe_state
    assert not MethodTable.of(Meter()).has_safe_state


def test_hidden_poll_and_safe_state_are_not_described_and_still_there_for_the_relay() -> None:
    class Discreet:
        @hidden
        def poll(self) -> int:
            return 1

        @hidden
        def safe_state(self) -> str:
            return "off"

    table = MethodTable.of(Discreet())
    assert table.describe() == []
    assert table.has_poll
    assert table.has_safe_state
    assert table.bind("poll").run() == 1
    assert table.bind("safe_state").run() == "off"


# ── read-only by configuration ──────────────────────────────────────────────────────────────────


class Foreign:
    """A driver that nobody of this laboratory may change."""

    voltage = property(lambda self: 1.0)

    def get_field(self) -> float:
        return 1.0

    def get_current(self) -> float:
        return 1.0

    def set_current(self, value: float) -> None: ...

    def identify(self) -> str:
        return "F"


def test_patterns_of_the_configuration_mark_methods_read_only() -> None:
    table = MethodTable.of(Foreign(), read_only=("get_*", "identify"))
    marked = [each.name for each in table.describe() if each.read_only]
    assert marked == ["get_current", "get_field", "identify"]
    assert table.bind("get_field").read_only
    assert not table.bind("set_current", [1]).read_only


def test_a_pattern_keeps_the_other_marks() -> None:
    set_range = described(Meter(), read_only=["set_range"])["set_range"]
    assert (set_range.read_only, set_range.idempotent) == (True, True)


@pytest.mark.parametrize(
    ("pattern", "text"),
    [
        ("get_feild", "matches no method of Foreign; did you mean 'get_field'"),
        ("identity*", "matches no method of Foreign; did you mean 'identify'"),
        ("zzz", "its methods: get_current, get_field, identify, set_current"),
        ("GET_*", "matches no method"),
        ("voltage", "it is a value, and reading a value is read-only anyway"),
    ],
)
def test_a_pattern_that_matches_nothing_is_an_error_that_names_what_is_near(
    pattern: str, text: str
) -> None:
    with pytest.raises(ConfigError, match=text) as caught:
        MethodTable.of(Foreign(), read_only=[pattern])
    assert str(caught.value).startswith(f"read_only = {pattern!r} ")


def test_a_pattern_for_a_driver_without_methods_is_an_error() -> None:
    with pytest.raises(ConfigError, match="its methods: none"):
        MethodTable.of(type("Bare", (), {})(), read_only=["get_*"])


# ── misuse ──────────────────────────────────────────────────────────────────────────────────────


def test_a_mark_above_a_class_says_where_it_belongs() -> None:
    with pytest.raises(TypeError, match=r"@expose stands above the class Meter: write @expose\("):
        expose(Meter)
    with pytest.raises(TypeError, match="@hidden stands above the class Meter: write @hidden "):
        hidden(Meter)


def test_a_mark_on_what_is_no_method_says_where_it_belongs() -> None:
    with pytest.raises(TypeError, match="@expose was given a bool: write @expose"):
        expose(True)  # type: ignore[call-overload]
    with pytest.raises(TypeError, match="@hidden was given a str"):
        hidden("measure")
    with pytest.raises(TypeError, match="a builtin_function_or_method cannot carry @expose"):
        expose(len)
    with pytest.raises(TypeError, match="a method cannot carry @hidden"):
        hidden(Meter().measure)


def test_a_mark_above_a_cached_property_marks_it() -> None:
    class Meter:
        @expose(timeout=3)
        @functools.cached_property
        def serial(self) -> str:
            return "SN-1"

    assert MethodTable.of(Meter()).bind("serial", access="get").timeout_s == 3.0


def test_a_mark_above_a_setter_says_that_it_belongs_below() -> None:
    class Supply:
        @property
        def voltage(self) -> float:
            return 0.0

        @voltage.setter
        def voltage(self, value: float) -> None: ...

    with pytest.raises(TypeError, match=r"write it below @property or below the \.setter"):
        expose(vars(Supply)["voltage"])
    with pytest.raises(TypeError, match="directly above the def"):
        hidden(property(None, lambda self, value: None))


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        (
            {"read_only": "yes"},
            TypeError,
            r"read_only is True or False, not 'yes': write @expose\(r",
        ),
        ({"idempotent": 1}, TypeError, "idempotent is True or False, not 1"),
        (
            {"timeout": "30"},
            TypeError,
            r"timeout is seconds, not '30': write @expose\(timeout=30\)",
        ),
        ({"timeout": True}, TypeError, "timeout is seconds, not True"),
        ({"timeout": 0}, ValueError, "timeout is more than 0 seconds, not 0"),
        ({"timeout": -1.5}, ValueError, "timeout is more than 0 seconds"),
        ({"timeout": float("nan")}, ValueError, "timeout is more than 0 seconds"),
        ({"timeout": float("inf")}, ValueError, "timeout is more than 0 seconds"),
    ],
)
def test_marks_of_a_wrong_type_say_what_to_write(
    options: dict[str, Any], error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text):
        expose(**options)
