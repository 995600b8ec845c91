"""The method table: what of a driver can be called, with which arguments."""

from __future__ import annotations

import enum
import functools
import inspect
import logging
import math
import typing
from collections.abc import Callable
from typing import Annotated, Any, NewType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from labmesh import expose
from labmesh.errors import BadArguments, ConfigError, UnknownMethod
from labmesh.instruments.exposure import MethodTable, call_arguments
from labmesh.instruments.signatures import Parameters


class Supply:
    """A power supply."""

    model = "PS-1"

    def __init__(self) -> None:
        self.voltage = 0.0
        self.on_change = lambda: None

    def set_voltage(self, value: float, *, slew: float = 1.0) -> float:
        """Set the voltage in V."""
        self.voltage = value * slew
        return self.voltage

    def poll(self) -> dict[str, float]:
        return {"voltage": self.voltage}

    @property
    def current(self) -> float:
        raise AssertionError("a property was read")

    def _calibrate(self) -> None:
        raise AssertionError("a private method was called")


def names(driver: object) -> list[str]:
    return [each.name for each in MethodTable.of(driver).describe()]


# ── what is exposed ─────────────────────────────────────────────────────────────────────────────


def test_public_methods_are_exposed_and_nothing_else() -> None:
    assert names(Supply()) == ["poll", "set_voltage"]


def test_a_bound_call_runs_the_method_on_the_driver() -> None:
    supply = Supply()
    call = MethodTable.of(supply).bind("set_voltage", [2.0], {"slew": 0.5})
    assert supply.voltage == 0.0
    assert call.run() == 1.0
    assert supply.voltage == 1.0
    assert call.method == "set_voltage"


class EveryKind:
    def plain(self, a: int) -> Any:
        return "plain", a

    @staticmethod
    def static(a: int) -> Any:
        return "static", a

    @classmethod
    def of_class(cls, a: int) -> Any:
        return cls.__name__, a

    async def coroutine(self, a: int) -> Any:
        return "coroutine", a

    half = functools.partialmethod(plain, 7)

    @functools.lru_cache  # noqa: B019 (a cached method is what is tested)
    def cached(self, a: int) -> Any:
        return "cached", a

    @functools.singledispatchmethod
    def generic(self, a: int) -> Any:
        return "generic", a

    class _Callable:
        def __call__(self, a: int) -> Any:
            return "object", a

    instance = _Callable()
    builtin = math.sqrt


def test_every_kind_of_method_can_be_called() -> None:
    table = MethodTable.of(EveryKind())
    run = {each.name: each.signature for each in table.describe()}
    assert set(run) == {
        *("builtin", "cached", "coroutine", "generic", "half"),
        *("instance", "of_class", "plain", "static"),
    }
    assert table.bind("plain", [1]).run() == ("plain", 1)
    assert table.bind("static", [1]).run() == ("static", 1)
    assert table.bind("of_class", [1]).run() == ("EveryKind", 1)
    assert table.bind("half").run() == ("plain", 7)
    assert table.bind("cached", [1]).run() == ("cached", 1)
    assert table.bind("generic", [1]).run() == ("generic", 1)
    assert table.bind("instance", [1]).run() == ("object", 1)
    assert table.bind("builtin", [9]).run() == 3.0
    coroutine = table.bind("coroutine", [1]).run()
    assert inspect.iscoroutine(coroutine)
    coroutine.close()
    for method in ("plain", "static", "of_class", "cached", "generic", "instance", "coroutine"):
        with pytest.raises(BadArguments):
            table.bind(method, [1, 2])


class NotMethods:
    Nested = type("Nested", (), {})
    factory = staticmethod(dict)
    Reading = dict[str, float]
    Volts = NewType("Volts", float)
    module = math
    number = 3
    none = None

    class _CallableProperty:
        def __get__(self, instance: object, owner: type) -> Any:
            raise AssertionError("a descriptor was read")

        def __set__(self, instance: object, value: object) -> None: ...

        def __call__(self) -> None: ...

    parameter = _CallableProperty()

    @functools.cached_property
    def lazy(self) -> int:
        raise AssertionError("a property was read")


def test_classes_types_values_and_properties_are_not_methods() -> None:
    assert names(NotMethods()) == []


def test_names_that_are_no_public_identifiers_are_left_out() -> None:
    longest = "m" * 64
    kind = type(
        "Odd",
        (),
        {
            name: lambda self: None
            for name in (longest, longest + "m", "a b", "", "_x", "__call__", "9")
        },
    )
    assert names(kind()) == [longest]


def test_a_subclass_overrides_and_can_take_a_method_away() -> None:
    class Safe(Supply):
        set_voltage = None  # type: ignore[assignment]

        def poll(self) -> dict[str, float]:
            return {"voltage": -1.0}

    table = MethodTable.of(Safe())
    assert "set_voltage" not in table
    assert len(table) == 1
    assert table.bind("poll").run() == {"voltage": -1.0}


def test_an_attribute_of_the_instance_neither_appears_nor_shadows() -> None:
    supply = Supply()
    supply.poll = lambda: {"voltage": 99.0}  # type: ignore[method-assign]
    table = MethodTable.of(supply)
    assert "on_change" not in table
    assert table.bind("poll").run() == {"voltage": 0.0}


def test_slots_and_inheritance_work() -> None:
    class Base:
        __slots__ = ("level",)

        def read(self) -> int:
            return 1

    class Probe(Base):
        __slots__ = ("gain",)

    assert names(Probe()) == ["read"]
    assert MethodTable.of(Probe()).bind("read").run() == 1


def test_neither_the_build_nor_a_call_touches_the_attributes_of_the_driver() -> None:
    class Jealous(Supply):
        """Every look at it is an error."""

        def __getattribute__(self, name: str) -> Any:
            raise AssertionError(f"{name} was looked up")

        def answer(self) -> int:
            return 42

    table = MethodTable.of(Jealous())
    assert table.bind("answer").run() == 42
    for name in ("voltage", "model", "current", "on_change", "nothing", "__class__"):
        with pytest.raises(UnknownMethod):
            table.bind(name)


def test_a_method_that_cannot_be_bound_is_left_out_and_named_in_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Stubborn:
        def __get__(self, instance: object, owner: type) -> Any:
            raise OSError("no hardware")

        def __call__(self) -> None: ...

    class Driver:
        broken = Stubborn()

        def works(self) -> None: ...

    with caplog.at_level(logging.WARNING):
        assert names(Driver()) == ["works"]
    assert "Driver.broken is left out" in caplog.text


@pytest.mark.parametrize(
    ("driver", "text"),
    [
        (Supply, r"Supply is a class, not a driver object: make one with Supply\(\.\.\.\)"),
        (math, "a module cannot be a driver"),
        (None, "None cannot be a driver"),
        ({"set_voltage": print}, "a dict cannot be a driver"),
        (lambda: None, "a function cannot be a driver"),
        (len, "a builtin_function_or_method cannot be a driver"),
        ("psu:Supply", "a str cannot be a driver"),
        ((each for each in ()), "a generator that has not run"),
    ],
)
def test_what_is_no_driver_object_is_refused(driver: object, text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        MethodTable.of(driver)


def test_a_subclass_of_a_builtin_is_a_driver() -> None:
    class Registers(dict[int, int]):
        def peek(self, address: int) -> int:
            return self[address]

    table = MethodTable.of(Registers({7: 5}))
    assert table.bind("peek", [7]).run() == 5
    # dict.pop is written in C and shows no signature: its arguments are its own affair.
    assert table.bind("pop", [7]).run() == 5


def test_poll_counts_only_when_it_needs_no_arguments() -> None:
    class Odd:
        def poll(self, channel: int) -> None: ...

    class Silent:
        def read(self) -> None: ...

    assert MethodTable.of(Supply()).has_poll
    assert not MethodTable.of(Odd()).has_poll
    assert not MethodTable.of(Silent()).has_poll


# ── unknown methods ─────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "method",
    [
        *("", " ", "a.b", "_calibrate", "__init__", "__class__", "__getattribute__"),
        *("__setattr__", "__reduce_ex__", "voltage", "model", "on_change", "mro"),
        *("m" * 10_000, "🔌", "\N{KELVIN SIGN}", "set_voltage ", 5, None, ["poll"], {}),
    ],
)
def test_anything_else_is_an_unknown_method(method: Any) -> None:
    with pytest.raises(UnknownMethod) as caught:
        MethodTable.of(Supply()).bind(method)
    assert "Supply has no method" in str(caught.value)
    assert len(str(caught.value)) < 300
    assert caught.value.executed is False


def test_a_kelvin_sign_is_not_the_letter_k() -> None:
    class Bath:
        def K(self) -> int:
            return 300

    table = MethodTable.of(Bath())
    assert table.bind("K").run() == 300
    with pytest.raises(UnknownMethod):
        table.bind("\N{KELVIN SIGN}")


def test_an_unknown_method_names_the_closest_and_all_when_they_are_few() -> None:
    with pytest.raises(UnknownMethod) as caught:
        MethodTable.of(Supply()).bind("set_volts")
    assert str(caught.value) == (
        "Supply has no method 'set_volts'; did you mean 'set_voltage'? "
        "(its methods: poll, set_voltage)"
    )
    assert caught.value.detail == {"method": "set_volts", "closest": ["set_voltage"]}


def test_an_unknown_method_of_a_large_driver_says_where_the_list_is() -> None:
    kind = type("Large", (), {f"method_{i}": lambda self: None for i in range(40)})
    with pytest.raises(UnknownMethod, match=r"`labmesh show` lists its 40 methods"):
        MethodTable.of(kind()).bind("zzz")


def test_an_unknown_method_of_a_driver_without_any_says_so() -> None:
    with pytest.raises(UnknownMethod, match="no public methods at all"):
        MethodTable.of(NotMethods()).bind("poll")


# ── arguments ───────────────────────────────────────────────────────────────────────────────────


class Arguments:
    def one(self, value: float) -> None: ...

    def only(self, position: int, /, *, keyword: int) -> None: ...

    def extra(self, first: int, *rest: int, **settings: int) -> dict[str, int]:
        return settings

    @staticmethod
    def receiver(self: int = 0) -> None: ...


@pytest.mark.parametrize(
    ("method", "args", "kwargs", "parameter", "sentence"),
    [
        ("one", [], {}, "value", "'value' must be given"),
        ("one", [1, 2], {}, "", "2 positional arguments were given, and it takes at most 1"),
        ("one", [], {"volue": 1}, "volue", "no parameter 'volue'; did you mean 'value'?"),
        ("one", [], {"zzz": 1}, "zzz", "it has no parameter 'zzz'; it is called"),
        ("one", [1], {"value": 1}, "value", "'value' is given twice"),
        ("one", [], {"self": 1}, "self", "no parameter 'self'"),
        ("one", [1], {"__class__": 1}, "__class__", "no parameter '__class__'"),
        ("one", [0] * 100_000, {}, "", "100000 positional arguments"),
        ("one", [], {"k" * 10_000: 1}, "k" * 63 + "…", "no parameter 'kkk"),
        ("only", [], {"keyword": 1}, "position", "'position' must be given"),
        ("only", [], {}, "position", "'position' and 'keyword' must be given"),
        ("only", [1], {}, "keyword", "'keyword' must be given"),
        ("only", [], {"position": 1, "keyword": 1}, "position", "cannot be given by name"),
        ("extra", [], {}, "first", "'first' must be given"),
        ("extra", [1], {"first": 1}, "first", "given twice"),
        ("extra", [1], {"self": 1}, "self", "no parameter 'self'"),
        ("extra", [1], {"cls": 1}, "cls", "no parameter 'cls'"),
        ("extra", [1], {"__x": 1}, "__x", "no parameter '__x'"),
        ("extra", [1], {"a b": 1}, "a b", "no parameter 'a b'"),
        ("extra", [1], {5: 1}, "5", "no parameter '5'"),
        ("receiver", [], {"self": 1}, "self", "no parameter 'self'"),
    ],
)
def test_arguments_that_do_not_fit_are_named(
    method: str, args: list[Any], kwargs: dict[str, Any], parameter: str, sentence: str
) -> None:
    with pytest.raises(BadArguments) as caught:
        MethodTable.of(Arguments()).bind(method, args, kwargs)
    text = str(caught.value)
    assert text.startswith(f"Arguments.{method}: ")
    assert sentence in text
    assert f"it is called as {method}(" in text
    assert len(text) < 2100
    assert caught.value.detail == {"method": method, "parameter": parameter}
    assert caught.value.executed is False


def test_free_keywords_reach_the_driver() -> None:
    call = MethodTable.of(Arguments()).bind("extra", [1, 2], {"gain": 3, "_x": 4})
    assert call.run() == {"gain": 3, "_x": 4}


def test_a_method_without_a_signature_takes_anything_but_its_receiver() -> None:
    table = MethodTable.of(type("Bag", (dict,), {})())
    assert {each.name: each.signature for each in table.describe()}["pop"] == "(...)"
    table.bind("pop", [1, 2, 3], {"anything": 1})
    with pytest.raises(BadArguments):
        table.bind("pop", [], {"self": 1})


def _functions() -> st.SearchStrategy[Callable[..., Any]]:
    """Functions of up to four parameters of every kind, as Python's own parser allows them."""

    @st.composite
    def build(draw: st.DrawFn) -> Callable[..., Any]:
        before = draw(st.integers(0, 2))
        middle = draw(st.integers(0, 2))
        defaults = draw(st.integers(0, before + middle))
        parts: list[str] = []
        for i in range(before + middle):
            parts.append("abcd"[i] + ("=0" if i >= before + middle - defaults else ""))
            if i == before - 1:
                parts.append("/")
        after = [
            name + draw(st.sampled_from(["", "=0"])) for name in "ef"[: draw(st.integers(0, 2))]
        ]
        if draw(st.booleans()):
            parts += ["*rest", *after]
        elif after:
            parts += ["*", *after]
        if draw(st.booleans()):
            parts.append("**free")
        scope: dict[str, Any] = {}
        exec(f"def f({', '.join(parts)}): ...", scope)
        function = scope["f"]
        assert callable(function)
        return function  # type: ignore[no-any-return]

    return build()


@given(
    function=_functions(),
    args=st.lists(st.just(0), max_size=5),
    kwargs=st.dictionaries(st.sampled_from("abcdefg"), st.just(0), max_size=4),
)
def test_the_check_agrees_with_python(
    function: Callable[..., Any], args: list[int], kwargs: dict[str, int]
) -> None:
    parameters = Parameters(inspect.signature(function))
    try:
        function(*args, **kwargs)
    except TypeError:
        assert not parameters.fit(args, kwargs)
        _, sentence = parameters.complaint(args, kwargs)
        assert sentence
    else:
        assert parameters.fit(args, kwargs)


# ── descriptions ────────────────────────────────────────────────────────────────────────────────


class Coupling(enum.Enum):
    AC = 1


class Unprintable:
    def __repr__(self) -> str:
        raise OSError("the instrument was asked for its identity")


def test_a_description_has_name_signature_and_doc() -> None:
    table = MethodTable.of(Supply())
    poll, set_voltage = table.describe()
    assert table.driver_name == "Supply"
    assert table.doc == "A power supply."
    assert poll.signature == "() -> dict[str, float]"
    assert set_voltage.signature == "(value: float, *, slew: float = 1.0) -> float"
    assert set_voltage.doc == "Set the voltage in V."


def test_a_method_without_a_docstring_has_that_of_the_one_that_it_overrides() -> None:
    class Quiet(Supply):
        def set_voltage(self, value: float, *, slew: float = 1.0) -> float:
            return 0.0

    table = MethodTable.of(Quiet())
    assert [each.doc for each in table.describe()] == ["", "Set the voltage in V."]
    assert table.doc == ""


@pytest.mark.parametrize(
    ("default", "text"),
    [
        (None, "None"),
        (-1.5, "-1.5"),
        ("CH1", "'CH1'"),
        ("x" * 100, "..."),
        ((1, 2), "(1, 2)"),
        ([Unprintable()], "..."),
        ({}, "{}"),
        ({"a": Unprintable()}, "..."),
        (Coupling.AC, "Coupling.AC"),
        (math.sqrt, "sqrt"),
        (Unprintable, "Unprintable"),
        (Unprintable(), "..."),
    ],
)
def test_a_default_is_shown_when_it_is_short_and_safe(default: object, text: str) -> None:
    def method(x=default) -> None: ...  # type: ignore[no-untyped-def]

    method.__annotations__.clear()
    assert Parameters(inspect.signature(method)).text == f"(x={text})"


def test_annotations_are_shown_as_they_were_written() -> None:
    def method(value: Annotated[float, "V"], points: int = 3) -> Any: ...

    # The annotations of this file are text; they are shown without quotes around them.
    assert method.__annotations__["return"] == "Any"
    text = Parameters(inspect.signature(method)).text
    assert text == "(value: float, points: int = 3) -> Any"


def test_a_signature_that_cannot_be_shown_is_left_open() -> None:
    def method(value: float) -> None: ...

    method.__annotations__["value"] = Unprintable()
    parameters = Parameters(inspect.signature(method))
    assert parameters.text == "(...)"
    assert not parameters.fit([], {})


def test_a_signature_longer_than_a_message_allows_is_left_open() -> None:
    signature = inspect.Signature(
        [
            inspect.Parameter(f"parameter_number_{i}", inspect.Parameter.KEYWORD_ONLY)
            for i in range(300)
        ]
    )
    assert Parameters(signature).text == "(...)"


# ── call(method, params) ────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("params", "args", "kwargs"),
    [
        (None, [], {}),
        ({}, [], {}),
        ([], [], {}),
        ((), [], {}),
        ({"value": 2.5}, [], {"value": 2.5}),
        ([1, 2], [1, 2], {}),
        ((1, None), [1, None], {}),
        ([None], [None], {}),
        ([{"a": 1}], [{"a": 1}], {}),
        (False, [False], {}),
        (0, [0], {}),
        ("", [""], {}),
        ("abc", ["abc"], {}),
        (b"", [b""], {}),
        (2.5, [2.5], {}),
    ],
)
def test_parameters_become_arguments(params: Any, args: list[Any], kwargs: dict[str, Any]) -> None:
    assert call_arguments(params) == (args, kwargs)


def test_no_parameters_are_no_arguments() -> None:
    assert call_arguments() == ([], {})


def test_the_arguments_are_not_the_callers_own_containers() -> None:
    args, kwargs = [1], {"a": 1}
    assert call_arguments(args)[0] is not args
    assert call_arguments(kwargs)[1] is not kwargs


def test_keywords_are_text() -> None:
    with pytest.raises(BadArguments, match="its keys are names, not int") as caught:
        call_arguments({"a": 1, 5: 2})
    assert caught.value.detail == {"parameter": "5"}


def test_a_signature_shows_types_and_leaves_units_to_the_description() -> None:
    class Lamp:
        def dim(self, level: Annotated[float, "%"] = 1.0) -> Annotated[list[int], "lx"]:
            return [int(level)]

        def fade(self, steps: list[typing.Annotated[float, "%"]]) -> Annotated[float, "s"] | None:
            return steps[0]

    shown = {each.name: each.signature for each in MethodTable.of(Lamp()).describe()}
    assert shown == {
        "dim": "(level: float = 1.0) -> list[int]",
        "fade": "(steps: list[float]) -> float | None",
    }


def test_annotations_that_are_no_python_are_shown_as_they_are() -> None:
    class Odd:
        def run(self, value): ...  # type: ignore[no-untyped-def]

    Odd.run.__annotations__["value"] = "Annotated["
    Odd.run.__annotations__["return"] = Annotated[int, "s"]
    [method] = MethodTable.of(Odd()).describe()
    assert method.signature == "(value: Annotated[) -> int"


# ── what a journal is told ──────────────────────────────────────────────────────────────────────


class Safe:
    """A driver with secrets."""

    @expose(redact=["pin", "codes", "more"])
    def open(self, door: int, pin: str = "", *codes: str, note: str = "", **more: str) -> None:
        """Some of it is secret."""

    @property
    def combination(self) -> str:
        """A value."""
        return ""

    @combination.setter
    @expose(redact=["numbers"])
    def combination(self, numbers: str) -> None:
        """Set it."""


def test_what_is_redacted_is_not_shown_however_it_is_given() -> None:
    table = MethodTable.of(Safe())
    mask = "<not shown>"
    assert table.shown_arguments("open", [1, "p", "c"], {"note": "n", "x": "y"}) == (
        [1, mask, mask],
        {"note": "n", "x": mask},
    )
    assert table.shown_arguments("open", [1], {"pin": "p"}) == ([1], {"pin": mask})
    assert table.shown_arguments("combination", ["1-2-3"], {}, "set") == ([mask], {})
    assert table.shown_arguments("no_such", ["a"], {}) == (["a"], {})


def test_a_misspelt_name_to_redact_is_refused() -> None:
    class Typo:
        @expose(redact=["pim"])
        def open(self, pin: str) -> None:
            """Its author meant pin."""

    with pytest.raises(ConfigError, match="redact names 'pim', and no parameter of open"):
        MethodTable.of(Typo())
    with pytest.raises(TypeError, match="redact is a list of names"):
        expose(redact="pin")
