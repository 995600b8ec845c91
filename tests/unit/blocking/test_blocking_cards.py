"""How things look: tables, cards, ages; and that no text of a stranger can do harm."""

from __future__ import annotations

import time
from typing import Any

import msgspec
import pytest
from tests.support.records import bank, relay

from labmesh.blocking.cards import (
    NODE_HEADINGS,
    InstrumentCard,
    ago,
    byte_size,
    count,
    duration,
    html_table,
    instrument_html,
    instrument_text,
    node_rows,
    plain,
    state_text,
    table,
)
from labmesh.events.reading import Reading
from labmesh.protocol.messages import MethodInfo, ValueInfo, ValueLimits


def reading(value: Any, age_s: float = 40.0, interval_s: float = 60.0) -> Reading:
    """The last state, kept by the broker since ``age_s`` seconds."""
    return Reading("Inst-0", value, time.time() - age_s, "e1", 1, interval_s=interval_s)


CARD = InstrumentCard(
    relay_id="Inst-0",
    driver="PowerSupply",
    doc="A power supply.\n\nMore about it.",
    light="live",
    host="lab-3",
    reading=None,
    methods=[
        MethodInfo(name="set_voltage", signature="(value: float) -> float", doc="Set it.\nNow."),
        MethodInfo(name="scan", read_only=True, yields=True),
        MethodInfo(name="status"),
    ],
    values=[
        ValueInfo(
            name="voltage",
            type="float",
            settable=True,
            doc="At the output.",
            limits=ValueLimits(unit="V", lowest=0, highest=30),
        ),
        ValueInfo(name="serial", type="str"),
        ValueInfo(name="state"),
    ],
    hidden=["status", "state"],
)
ESCAPE = "\x1b[2J"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.001, "0 s"),
        (0.42, "0.42 s"),
        (3.0, "3 s"),
        (9.99, "10 s"),
        (59.4, "59 s"),
        (59.6, "1 min 0 s"),
        (185, "3 min 5 s"),
        (7800, "2 h 10 min"),
        (4 * 86_400 + 3 * 3600 + 5, "4 d 3 h"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_ages() -> None:
    assert ago(3) == "3 s ago"
    assert ago(None) == "never"


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 B"), (999, "999 B"), (1300, "1.3 kB"), (999_600, "1 MB"), (2 * 10**12, "2e+03 GB")],
)
def test_sizes(size: int, text: str) -> None:
    assert byte_size(size) == text


def test_counts() -> None:
    assert [count(number, "relay") for number in (0, 1, 2)] == ["0 relays", "1 relay", "2 relays"]


def test_text_of_others_is_one_printable_line_of_limited_length() -> None:
    assert plain("a\nb\t c") == "a b c"
    assert plain(f"{ESCAPE}red") == "\\x1b[2Jred"
    assert plain("Ω") == "Ω"
    assert plain("x" * 50, 10) == "xxxxxxx..."


def test_states_are_cut_short() -> None:
    assert state_text({"voltage": 2.5, "mode": "CV"}) == "voltage=2.5, mode='CV'"
    assert state_text({}) == "(empty)"
    assert len(state_text({f"channel{number}": number for number in range(200)})) == 200


def test_a_table_has_columns() -> None:
    assert table(("id", "state"), [("Inst-0", "live"), ("b", "")]) == (
        "id      state\nInst-0  live\nb"
    )


def test_relays_come_before_banks() -> None:
    silent = msgspec.structs.replace(relay("psu", title="Supply"), state="suspect")
    assert NODE_HEADINGS[0] == "id"
    assert node_rows([bank("a", title="/data"), silent]) == [
        ("psu", "relay", "suspect", "Supply", "lab-3", "tcp://10.0.0.3:5801"),
        ("a", "bank", "live", "/data", "store", "tcp://10.0.0.9:5900"),
    ]


def test_an_html_table_escapes_its_cells() -> None:
    shown = html_table(("id",), [("<script>",)])
    assert "<script>" not in shown
    assert "&lt;script&gt;" in shown


def test_the_card_of_an_instrument() -> None:
    card = CARD._replace(reading=reading({"voltage": 2.5, "output": True}))
    assert instrument_text(card) == (
        "Inst-0: PowerSupply on lab-3 (live)\n"
        "  A power supply.\n"
        "  state 40 s ago: voltage=2.5, output=True\n"
        "    .voltage: float = 2.5  # V, 0 to 30, settable; At the output.\n"
        "    .serial: str  # read-only\n"
        "    .set_voltage(value: float) -> float  # Set it.\n"
        "    .scan()  # read-only, yields\n"
        "    the driver has these as well, under names that this object uses itself: "
        'call("status"), get("state")'
    )


def test_the_card_of_an_instrument_of_which_little_is_known() -> None:
    card = CARD._replace(
        doc="", reading=None, host="", light="gone", methods=[], values=[], hidden=[]
    )
    assert instrument_text(card) == "Inst-0: PowerSupply (gone)\n  no state received"
    assert "no state received" in instrument_html(card)


def test_a_state_that_is_older_than_three_intervals_is_stale() -> None:
    old = CARD._replace(reading=reading({"voltage": 2.5}, interval_s=0.5))
    assert "state 40 s ago, STALE (one is due each 0.5 s): voltage=2.5" in instrument_text(old)
    assert "STALE" in instrument_html(old)
    for interval_s in (60.0, 0.0):  # 0: not known
        young = CARD._replace(reading=reading({"voltage": 2.5}, interval_s=interval_s))
        assert "STALE" not in instrument_text(young)


def test_a_long_list_is_folded_in_a_notebook() -> None:
    many = [ValueInfo(name=f"channel_{number}") for number in range(30)]
    shown = instrument_html(CARD._replace(values=many))
    assert "<details><summary>30 values</summary>" in shown
    assert "<details open><summary>2 methods</summary>" in shown


def test_the_card_in_a_notebook_shows_the_same_and_escapes_it() -> None:
    shown = instrument_html(CARD)
    for part in (
        "Inst-0: PowerSupply on lab-3 (live)",
        "-&gt; float",
        "V, 0 to 30, settable",
        "read-only, yields",
        "call(&quot;status&quot;)",
    ):
        assert part in shown
    evil = CARD._replace(
        driver="<b>",
        doc="<i>",
        host="<u>",
        methods=[MethodInfo(name="x", signature="(a='<script>')", doc="<i>")],
        values=[ValueInfo(name="y", type="<u>", limits=ValueLimits(unit="<b>:"))],
        hidden=[],
    )
    shown = instrument_html(evil)
    for tag in ("<b>:", "<i>", "<u>", "<script>"):
        assert tag not in shown


def test_a_driver_cannot_repaint_the_terminal() -> None:
    evil = CARD._replace(
        driver=ESCAPE,
        doc=ESCAPE,
        host=ESCAPE,
        reading=reading({ESCAPE: ESCAPE, "y": ESCAPE}),
        methods=[MethodInfo(name="x", signature=f"(a={ESCAPE})", doc=ESCAPE)],
        values=[ValueInfo(name="y", type=ESCAPE, doc=ESCAPE, limits=ValueLimits(unit=ESCAPE))],
    )
    assert "\x1b" not in instrument_text(evil) + instrument_html(evil)
