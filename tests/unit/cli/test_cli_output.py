"""What commands print, for people and for programs."""

from __future__ import annotations

import io
import json
import math
from datetime import UTC, datetime

import pytest
from rich.console import Console

from labmesh.cli.output import (
    Output,
    TransferProgress,
    age,
    one_line,
    printable,
    shown_state,
    shown_value,
    size,
)

Captured = pytest.CaptureFixture[str]


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (None, "?"),
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (5_000_000, "5.0 MB"),
        (3 * 10**15, "3000.0 TB"),
    ],
)
def test_sizes(count: int | None, text: str) -> None:
    assert size(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "never"),
        (-0.1, "0 ms"),
        (0.0012, "1 ms"),
        (0.25, "0.2 s"),
        (3.21, "3.2 s"),
        (42.4, "42 s"),
        (300, "5 min"),
        (7200, "2.0 h"),
        (90_000, "25 h"),
        (3 * 86_400, "3 d"),
    ],
)
def test_ages(seconds: float | None, text: str) -> None:
    assert age(seconds) == text


def test_control_characters_do_not_reach_a_terminal() -> None:
    assert printable("\x1b[2J\x07ok\u202e") == "\\x1b[2J\\x07ok\\u202e"
    assert printable("a\nb\tc Ω") == "a\nb\tc Ω"
    assert one_line("a\n  b\r\x1b") == "a b \\x1b"


def test_states_are_one_line() -> None:
    state = {"voltage": 2.5000001, "on": True, "mode": "CV", "raw": b"123", "text": "x" * 100}
    line = shown_state(state)
    assert line.startswith("voltage=2.5 on=True mode=CV raw=<3 bytes> text=xxx")
    assert "\n" not in line
    assert len(line) < 130
    assert shown_state(2.5) == "2.5"


def test_arrays_in_a_state_are_their_shape() -> None:
    numpy = pytest.importorskip("numpy")
    assert shown_state({"trace": numpy.zeros((2, 100))}) == "trace=<float64 2x100>"


def test_values() -> None:
    assert shown_value("a\x1bb") == "a\\x1bb"
    assert shown_value({"b": 1, "a": [1, 2]}) == "{'b': 1, 'a': [1, 2]}"


def test_json_has_every_value(capsys: Captured) -> None:
    numpy = pytest.importorskip("numpy")
    moment = datetime(2026, 1, 31, 12, tzinfo=UTC)
    Output(json=True).record(
        {"nan": math.nan, "raw": b"\x00", "at": moment, "trace": numpy.arange(2.0), "$odd": 1}
    )
    (line,) = capsys.readouterr().out.splitlines()
    pairs = json.loads(line)["$map"]
    assert dict(pairs[:3]) == {
        "nan": {"$float": "nan"},
        "raw": {"$bytes": "AA=="},
        "at": {"$datetime": "2026-01-31T12:00:00+00:00"},
    }
    assert pairs[3][1]["$array"]["shape"] == [2]


def test_json_takes_what_is_larger_than_a_message(capsys: Captured) -> None:
    numpy = pytest.importorskip("numpy")
    Output(json=True).record(numpy.zeros(3_000_000))
    assert len(capsys.readouterr().out) > 24_000_000


def test_with_json_only_records_are_printed(capsys: Captured) -> None:
    out = Output(json=True)
    out.line("a")
    out.say("b")
    out.table(("A",), [("1",)])
    assert capsys.readouterr() == ("", "")


def test_quiet_silences_talk_alone(capsys: Captured) -> None:
    out = Output(quiet=True)
    out.line("data")
    out.say("talk")
    out.error("broken", "mend it", exit_code=1)
    captured = capsys.readouterr()
    assert captured.out == "data\n"
    assert captured.err == "error: broken\n  try: mend it\n"


def test_an_error_for_programs_is_one_object(capsys: Captured) -> None:
    Output(json=True).error("broken", "mend it", exit_code=4, name="conflict")
    told = json.loads(capsys.readouterr().err)
    assert told == {
        "error": {"text": "broken", "try": "mend it", "exit_code": 4, "name": "conflict"}
    }


def test_a_table_in_a_pipe_is_not_cut(capsys: Captured) -> None:
    Output().table(("ID", "WHAT"), [("a", "x" * 300), ("[red]b", "y\x1b")])
    head, first, second = capsys.readouterr().out.splitlines()
    assert head == "ID      WHAT"
    assert first == "a       " + "x" * 300
    assert second == "[red]b  y\\x1b"


def test_a_bar_is_shown_for_what_lasts_longer_than_a_second() -> None:
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=80)
    progress = TransferProgress(console, "to bank-0", after_s=3600)
    progress(500, 1000)
    assert screen.getvalue() == ""
    progress = TransferProgress(console, "to bank-0", after_s=0)
    progress(500, 1000)
    progress.close()
    assert "to bank-0" in screen.getvalue()
    assert "0.5/1.0 kB" in screen.getvalue()


def test_a_bar_goes_on_where_an_earlier_attempt_was() -> None:
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=100)
    progress = TransferProgress(console, "from bank-0", after_s=0)
    progress(400, 1000)
    progress(500, 1000)
    progress.close()
    assert progress.first == 400
    assert "0.5/1.0 kB" in screen.getvalue()


def test_no_bar_without_a_terminal(capsys: Captured) -> None:
    with Output().progress("to bank-0") as progress:
        progress(500, None)
    assert capsys.readouterr() == ("", "")
