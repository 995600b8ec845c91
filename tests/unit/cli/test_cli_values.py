"""What is typed after ``labmesh call`` becomes values."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from labmesh.cli.values import call_values, keyword_values, read_value
from labmesh.errors import ConfigError


@pytest.mark.parametrize(
    ("typed", "value"),
    [
        ("2.5", 2.5),
        ("-3", -3),
        ("1e3", 1000.0),
        ("true", True),
        ("null", None),
        ("[1, 2]", [1, 2]),
        ('{"a": 1}', {"a": 1}),
        ('"2.5"', "2.5"),
        ("on", "on"),
        ("True", "True"),
        ("007", "007"),
        ("", ""),
        ("*IDN?", "*IDN?"),
        ("µV", "µV"),
        ('{"$bytes": "AAE="}', b"\x00\x01"),
    ],
)
def test_json_where_it_is_json_else_text(typed: str, value: Any) -> None:
    read = read_value(typed)
    assert (read, type(read)) == (value, type(value))


def test_what_json_lacks() -> None:
    assert math.isnan(read_value('{"$float": "nan"}'))
    assert read_value("NaN") == "NaN"


def test_json_that_stands_for_no_value_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"\$volt"):
        read_value('{"$volt": 1}')


@given(st.text(st.characters(exclude_characters="$", exclude_categories=["Cs"])))
@example("20000000000000000000")
def test_any_text_is_a_value(text: str) -> None:
    try:
        value = read_value(text)
    except ConfigError:
        # The one kind of value that no message can carry.
        assert text.strip().lstrip("-").isdecimal()
        return
    assert isinstance(value, str) is (value == text or text.strip().startswith('"'))


def test_keywords_and_positions() -> None:
    assert call_values(["1", "points=100", "x", "name=a=b"]) == (
        [1, "x"],
        {"points": 100, "name": "a=b"},
    )


def test_a_text_with_an_equals_sign_is_written_as_json() -> None:
    assert call_values(['"CH1=on"']) == (["CH1=on"], {})
    assert call_values(["CH1:V=1"]) == (["CH1:V=1"], {})


def test_a_keyword_twice_is_refused() -> None:
    with pytest.raises(ConfigError, match="value is given twice"):
        call_values(["value=1", "value=2"])


def test_keywords_alone() -> None:
    assert keyword_values(["port=COM3", "baud=9600"]) == {"port": "COM3", "baud": 9600}
    with pytest.raises(ConfigError, match=r"'COM3' is not name=value"):
        keyword_values(["COM3"])
