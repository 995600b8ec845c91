"""The class that ``labmesh stubs`` writes: valid Python, whatever a driver says of itself."""

from __future__ import annotations

import ast
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from labmesh.cli.annotations import TypeWriter
from labmesh.cli.stub_text import MARK, stub_class, stub_text
from labmesh.protocol.messages import Description, MethodInfo, ValueInfo, ValueLimits

VOLTS = ValueLimits(unit="V", lowest=0, highest=30)


def described(
    methods: list[MethodInfo], values: list[ValueInfo] | None = None, **more: Any
) -> Description:
    fields = {"driver": "PowerSupply", "doc": "A power supply.", **more}
    return Description(
        id="1", node_id="Inst-0", epoch="e1", methods=methods, values=values or [], **fields
    )


SUPPLY = described(
    [
        MethodInfo(
            name="set_voltage",
            signature="(value: float, *, slew: float = None) -> float",
            doc="Set the output voltage.\n\nIn V.",
            limits={"value": VOLTS},
        ),
        MethodInfo(name="trace", signature="(points=10) -> NDArray[np.float64]"),
        MethodInfo(name="scan", signature="(a, b) -> Iterator[float]", yields=True),
        MethodInfo(name="status"),
        MethodInfo(name="list", signature="() -> list[str]"),
    ],
    [
        ValueInfo(name="voltage", type="float", settable=True, doc="At the output.", limits=VOLTS),
        ValueInfo(name="range", type="Range"),
    ],
)


def class_in(text: str) -> ast.ClassDef:
    (found,) = [each for each in ast.parse(text).body if isinstance(each, ast.ClassDef)]
    return found


def test_the_blocking_class() -> None:
    text = stub_text(SUPPLY, module="inst_0")
    assert MARK in text
    assert "    from inst_0 import PowerSupply\n" in text
    assert 'class PowerSupply(labmesh.mesh.Instrument):\n    """A power supply."""' in text
    for part in (
        "        @property\n"
        "        def voltage(self) -> float:\n"
        '            """At the output.\n\n'
        "            (V, 0 to 30, settable)\n"
        '            """\n'
        "            ...\n\n"
        "        @voltage.setter\n"
        "        def voltage(self, value: float) -> None: ...\n",
        "        def set_voltage(self, value: float, *, slew: float | None = None) -> float:\n",
        "            Units and limits\n                value: V, 0 to 30\n",
        "        # the driver's own: trace(points=10) -> NDArray[np.float64]\n"
        "        def trace(self, points: typing.Any = 10) -> typing.Any:\n",
        "        def scan(self, a: typing.Any, b: typing.Any)"
        " -> labmesh.blocking.streams.Stream[float]:\n",
        "        def list(self) -> builtins.list[str]:\n",
        "        # the driver's own: range: Range\n",
        "    # by call() or get() only: status\n",
    ):
        assert part in text
    assert "import builtins\nimport labmesh.blocking.streams\nimport labmesh.mesh\n" in text
    assert class_in(text).name == "PowerSupply"


def test_the_async_class() -> None:
    text = stub_text(SUPPLY, module="inst_0", is_async=True)
    assert "class PowerSupply(labmesh.RelayClient):" in text
    for part in (
        "        async def set_voltage(self, value: float, *,",
        '        # it yields: async for item in psu.stream("scan", [...])\n',
        '        async def get(self, name: typing.Literal["voltage"], *, timeout: float | None '
        "= None) -> float:\n",
        '        async def set(self, name: typing.Literal["voltage"], value: float, *, timeout:',
        "        async def get(self, name: str, *, timeout: float | None = None) -> typing.Any: .",
        "        async def set(self, name: str, value: typing.Any, *, timeout: float | None = No",
    ):
        assert part in text
    assert 'Literal["range"], value' not in text
    class_in(text)


def test_a_driver_without_anything_is_a_class_as_well() -> None:
    for is_async in (False, True):
        text = stub_text(described([], doc=""), module="m", is_async=is_async)
        assert '"""The driver PowerSupply."""' in text
        assert class_in(text).name == "PowerSupply"


@pytest.mark.parametrize(
    ("driver", "name"),
    [
        ("PowerSupply", "PowerSupply"),
        ("list", "ListDriver"),
        ("class", "ClassDriver"),
        ("My Driver", "My_DriverDriver"),
        ("", "Driver"),
        ("labmesh", "LabmeshDriver"),
    ],
)
def test_the_name_of_the_class(driver: str, name: str) -> None:
    assert stub_class(driver) == name
    assert class_in(stub_text(described([], driver=driver), module="m")).name == name


@pytest.mark.parametrize(
    ("annotation", "text"),
    [
        ("float", "float"),
        ("None", "None"),
        ("'float'", "float"),
        ("list[int] | None", "list[int] | None"),
        ("Optional[float]", "float | None"),
        ("typing.Union[int, str, None]", "int | str | None"),
        ("typing.List[float]", "list[float]"),
        ("tuple[int, ...]", "tuple[int, ...]"),
        ("tuple[int, str]", "tuple[int, str]"),
        ("dict[str, list[float]]", "dict[str, list[float]]"),
        ("Literal['C', 'F', 1, -1, True, None]", "typing.Literal['C', 'F', 1, -1, True, None]"),
        ("Annotated[float, 'V']", "float"),
        ("Sequence[float]", "collections.abc.Sequence[float]"),
        ("Mapping", "collections.abc.Mapping[typing.Any, typing.Any]"),
        ("dict | list", "dict[typing.Any, typing.Any] | list[typing.Any]"),
        ("tuple", "tuple[typing.Any, ...]"),
        ("Any", "typing.Any"),
        ("", "typing.Any"),
    ],
)
def test_plain_types_are_kept(annotation: str, text: str) -> None:
    assert TypeWriter().text(annotation) == (text, True)


@pytest.mark.parametrize(
    ("annotation", "text"),
    [
        ("Quantity", "typing.Any"),
        ("NDArray[np.float64] | list[float]", "typing.Any | list[float]"),
        ("list[Quantity]", "list[typing.Any]"),
        ("Literal[Mode.FAST]", "typing.Any"),
        ("Literal[1.5]", "typing.Any"),
        ("list[int, int]", "typing.Any"),
        ("dict[str]", "typing.Any"),
        ("os.system('x')", "typing.Any"),
        ("numpy.list[int]", "typing.Any"),
        ("1 +", "typing.Any"),
        ("(" * 500, "typing.Any"),
    ],
)
def test_anything_else_becomes_any(annotation: str, text: str) -> None:
    assert TypeWriter().text(annotation) == (text, False)


NAMES = st.one_of(
    st.sampled_from(["list", "property", "set", "class", "typing", "voltage", "any", "float"]),
    st.text(max_size=12),
)
TEXTS = st.one_of(
    st.text(max_size=40),
    st.sampled_from(['"""', "\\", 'ends with "', "\x1b[2J\r\n\x0c", "a\n\n  b\n", '\\"""']),
)
SIGNATURES = st.one_of(
    st.text(max_size=30),
    st.sampled_from(
        [
            "()",
            "(a, /, b: int = 1, *args: float, c: str, d=None, **more: Any) -> None",
            "(a: 'x\"y' = 'it\\'s', b: Literal['\"\"\"'] = '\"\"\"')",
            "(value: float = float('nan'), mode=Mode.FAST, big=" + "9" * 100 + ")",
        ]
    ),
)


@given(
    st.lists(st.tuples(NAMES, SIGNATURES, TEXTS, st.booleans()), max_size=4),
    st.lists(st.tuples(NAMES, TEXTS, TEXTS, st.booleans(), st.booleans()), max_size=4),
    NAMES,
    st.booleans(),
)
@example([], [], "ﬀ", False)  # Python reads it as two letters
def test_whatever_a_driver_says_the_text_is_python(
    methods: list[tuple[str, str, str, bool]],
    values: list[tuple[str, str, str, bool, bool]],
    driver: str,
    is_async: bool,
) -> None:
    description = described(
        [MethodInfo(name=n, signature=s, doc=d, yields=y) for n, s, d, y in methods],
        [
            ValueInfo(name=n, type=t, doc=d, gettable=g or not s, settable=s)
            for n, t, d, g, s in values
        ],
        driver=driver,
        doc=driver,
    )
    text = stub_text(description, module="m", is_async=is_async)
    assert class_in(text).name == stub_class(driver)
    assert all(each.isprintable() or each == "\n" for each in text)
