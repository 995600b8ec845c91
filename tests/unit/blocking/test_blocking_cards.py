"""How things look: tables, cards, ages; and that no text of a stranger can do harm."""

from __future__ import annotations

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

CARD = InstrumentCard(
    relay_id="Inst-0",
    driver="PowerSupply",
    doc="A power supply.\n\nMore about it.",
    light="live",
    host="lab-3",
    state=({"voltage": 2.5, "output": True}, 0.4),
    methods=[("set_voltage", "(value: float) -> float"), ("status", "()")],
    hidden=["status"],
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
    assert instrument_text(CARD) == (
        "Inst-0: PowerSupply on lab-3 (live)\n"
        "  A power supply.\n"
        "  state 0.4 s ago: voltage=2.5, output=True\n"
        "    .set_voltage(value: float) -> float\n"
        "    the driver has these as well, under names that this object uses itself: "
        'call("status")'
    )


def test_the_card_of_an_instrument_of_which_little_is_known() -> None:
    card = CARD._replace(doc="", state=None, host="", light="gone", methods=[], hidden=[])
    assert instrument_text(card) == "Inst-0: PowerSupply (gone)\n  no state received"
    assert "no state received" in instrument_html(card)


def test_the_card_in_a_notebook_shows_the_same_and_escapes_it() -> None:
    shown = instrument_html(CARD)
    for part in ("Inst-0: PowerSupply on lab-3 (live)", "-&gt; float", "call(&quot;status&quot;)"):
        assert part in shown
    evil = CARD._replace(
        driver="<b>", doc="<i>", host="<u>", methods=[("x", "(a='<script>')")], hidden=[]
    )
    shown = instrument_html(evil)
    for tag in ("<b>:", "<i>", "<u>", "<script>"):
        assert tag not in shown


def test_a_driver_cannot_repaint_the_terminal() -> None:
    evil = CARD._replace(
        driver=ESCAPE,
        doc=ESCAPE,
        host=ESCAPE,
        state=({ESCAPE: ESCAPE}, 1.0),
        methods=[("x", f"(a={ESCAPE})")],
    )
    assert "\x1b" not in instrument_text(evil) + instrument_html(evil)
