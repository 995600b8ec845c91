"""Ids: what is one, what is refused and how it is said, and near misses."""

from __future__ import annotations

from typing import Annotated

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Meta

from labmesh.errors import ProtocolError
from labmesh.protocol.ids import ID_RULE, check_id, closest, did_you_mean, shown
from labmesh.protocol.messages import ID_PATTERN

WireId = Annotated[str, Meta(pattern=ID_PATTERN, max_length=128)]


@pytest.mark.parametrize(
    "text",
    [
        "a",
        "7",
        "Inst-0",
        "psu_1",
        "scan.2024-05-01.npy",
        "a-",
        "a_",
        "x" * 128,
        "console",
        "com10",
        "com",
        "nul-1",
        "my.con",
    ],
)
def test_an_id_is_returned_as_it_is(text: str) -> None:
    assert check_id(text) == text


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "is empty"),
        ("x" * 129, "has 129 characters"),
        (" ", "not allowed"),
        ("a b", "not allowed"),
        ("a/b", "not allowed"),
        ("a\\b", "not allowed"),
        ("a\0b", "not allowed"),
        ("psu-1\n", "not allowed"),
        ("\uff41", "not allowed"),  # full-width a
        ("a\u202eb", "not allowed"),  # right-to-left override
        ("caf\u00e9", "not allowed"),
        ("a:b", "not allowed"),
        ("*", "not allowed"),
        ("../x", "not allowed"),
        ("..", "begins with '.'"),
        (".", "begins with '.'"),
        (".hidden", "begins with '.'"),
        ("-x", "begins with '-'"),
        ("_x", "begins with '_'"),
        ("a..b", "'..'"),
        ("a.", "ends in '.'"),
        ("CON", "Windows device"),
        ("con.txt", "Windows device"),
        ("nul.tar.gz", "Windows device"),
        ("Com1", "Windows device"),
        ("LPT9", "Windows device"),
        ("aux", "Windows device"),
        ("prn.", "ends in '.'"),
    ],
)
def test_a_refusal_says_what_and_why_and_gives_the_rule(text: str, reason: str) -> None:
    with pytest.raises(ProtocolError) as refused:
        check_id(text, "relay id")
    said = str(refused.value)
    assert said.startswith("relay id ")
    assert reason in said
    assert ID_RULE in said
    assert said.isprintable()
    assert said.isascii()
    assert len(said) < 400


@pytest.mark.parametrize("value", [None, 5, {"id": "x" * 10_000}, ["a"], b"psu-1"])
def test_what_is_not_text_is_named_by_its_type_alone(value: object) -> None:
    with pytest.raises(
        ProtocolError, match=rf"^id is a {type(value).__name__}, not text"
    ) as refused:
        check_id(value)
    assert len(str(refused.value)) < 300


@given(st.text(alphabet="aZ09._-/ \n\u00e9", max_size=12) | st.text(max_size=130))
def test_what_the_rule_takes_the_wire_takes(text: str) -> None:
    try:
        check_id(text)
    except ProtocolError:
        return
    assert msgspec.convert(text, WireId) == text


@given(st.text(alphabet="aZ09._-/ ", max_size=130))
def test_what_the_wire_refuses_the_rule_refuses(text: str) -> None:
    try:
        msgspec.convert(text, WireId)
    except msgspec.ValidationError:
        with pytest.raises(ProtocolError):
            check_id(text)


def test_text_from_outside_is_shown_on_one_ascii_line_and_cut_short() -> None:
    assert shown("a\nb\u202e") == r"'a\nb\u202e'"
    assert shown("x" * 40) == f"'{'x' * 40}'"
    assert shown("x" * 41) == f"'{'x' * 40}'..."
    assert shown("abcdef", 3) == "'abc'..."


def test_the_closest_names_come_best_first_and_ignore_case() -> None:
    known = ["Inst-0", "Inst-1", "bank-0", "cryostat"]
    assert closest("inst-0", known)[0] == "Inst-0"
    assert closest("INST-1", known)[0] == "Inst-1"
    assert closest("kryostat", known) == ["cryostat"]
    assert closest("zzz", known) == []


def test_at_most_three_names_are_close_even_when_they_differ_in_case_only() -> None:
    assert closest("psu", ["psu", "PSU", "Psu", "pSu"]) == ["psu", "PSU", "Psu"]


def test_a_very_long_name_is_compared_by_its_beginning() -> None:
    assert closest("a" * 1_000_000, ["a" * 128]) == ["a" * 128]


def test_did_you_mean_is_a_question_or_nothing() -> None:
    assert did_you_mean("kryostat", ["cryostat"]) == "did you mean 'cryostat'?"
    assert did_you_mean("psu-1", ["psu-2", "psu-3"]) == "did you mean 'psu-3' or 'psu-2'?"
    assert did_you_mean("zzz", ["cryostat"]) == ""
