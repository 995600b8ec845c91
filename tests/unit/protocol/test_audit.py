"""The lines of an audit journal: their form, their chain, and what a check of them finds."""

from __future__ import annotations

import hashlib
import json
import zlib
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from labmesh.protocol.audit import (
    BEGINNING,
    MAX_PARAMETERS,
    Chain,
    Entry,
    Line,
    Tally,
    Wanted,
    clean_text,
    hash_of,
    journal_entry,
    read_line,
    short_parameters,
)
from labmesh.protocol.audit_check import Checker, Verdict

FILE = "relay-psu-1.jsonl"


def entry(number: int = 0, **fields: Any) -> Entry:
    told = {
        "time": 1000.0 + number,
        "what": "call",
        "user": "client:ana#12",
        "method": f"m{number}",
    }
    return Entry(**{**told, **fields})


def journal(count: int) -> list[bytes]:
    """So many lines, each with its end."""
    chain = Chain()
    return [
        chain.add(entry(number, parameters=short_parameters([number]))) for number in range(count)
    ]


def check(content: bytes, **options: Any) -> Verdict:
    checker = Checker(**options)
    *lines, rest = content.split(b"\n")
    for row, line in enumerate(lines, 1):
        checker.take(line, FILE, row)
    if rest:
        checker.torn(rest, FILE, len(lines) + 1)
    return checker.end()


def kinds(verdict: Verdict) -> list[tuple[str, int]]:
    return [(each.kind, each.row) for each in verdict.faults]


def forged(line: bytes, **fields: Any) -> bytes:
    """A line whose content somebody changed, with a checksum that fits."""
    read = read_line(line.rstrip(b"\n"))
    assert isinstance(read, Line)
    return Chain(read.n - 1, read.prev).add(msgspec.structs.replace(read.entry, **fields))


# ── lines ───────────────────────────────────────────────────────────────────────────────────────


def test_a_line_is_json_that_names_the_hash_of_the_one_before() -> None:
    first, second = journal(2)
    assert json.loads(first)["prev"] == BEGINNING
    assert json.loads(second)["prev"] == hashlib.sha256(first[:-1]).hexdigest()
    assert json.loads(second)["n"] == 2
    read = read_line(second[:-1])
    assert isinstance(read, Line)
    assert read.entry == entry(1, parameters=msgspec.Raw(b"[1]"))
    assert read.hash == hash_of(second[:-1])


def test_what_is_no_line_says_why() -> None:
    chain = Chain()
    line = chain.add(entry())[:-1]
    assert "form" in str(read_line(b""))
    assert "form" in str(read_line(b"{}"))
    assert "checksum" in str(read_line(line.replace(b'"call"', b'"cell"')))
    other = msgspec.json.encode({"time": "noon", "what": "call"})
    head = b'{"n":1,"prev":"%s",%s' % (BEGINNING.encode(), other[1:-1])
    assert "not what labmesh writes" in str(
        read_line(b'%s,"crc":"%08x"}' % (head, zlib.crc32(head)))
    )


# ── parameters ──────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("args", "kwargs", "shown"),
    [
        ([], {}, None),
        ([1, 2.5, True, None, "a"], {}, [1, 2.5, True, None, "a"]),
        ([], {"value": 5}, {"value": 5}),
        ([1], {"slew": 2}, {"args": [1], "kwargs": {"slew": 2}}),
        (
            [float("nan"), 2**80, b"abc"],
            {},
            ["nan", "<a number of more than 64 bits>", "<3 bytes>"],
        ),
        ([np.zeros((2, 3)), 1j], {}, ["<ndarray 2x3>", "<complex>"]),
        ([[[[[1]]]]], {}, [[[["<1 items>"]]]]),
        (["\ud800"], {}, ["?"]),
        ([(1, {"a": [2]})], {}, [[1, {"a": [2]}]]),
    ],
)
def test_parameters_are_shown_plainly(args: list[Any], kwargs: dict[str, Any], shown: Any) -> None:
    assert json.loads(bytes(short_parameters(args, kwargs))) == shown


def test_long_parameters_are_cut_and_tell_their_size() -> None:
    long = json.loads(bytes(short_parameters(["x" * 5000])))
    assert long[0].endswith("… (5000 characters)")
    many = json.loads(bytes(short_parameters([list(range(10_000))])))
    assert many[0][-1] == "<10000 items>"
    wide = json.loads(
        bytes(short_parameters(kwargs={f"key-{each}": "v" * 9 for each in range(99)}))
    )
    assert wide["begin"].startswith('{"key-0":')
    assert wide["bytes"] > MAX_PARAMETERS
    quotes = short_parameters(['"' * 160] * 9)
    assert len(bytes(quotes)) <= MAX_PARAMETERS
    tree = short_parameters([[[1] * 60] * 60, {str(each): [each] for each in range(9)}])
    assert len(bytes(tree)) <= MAX_PARAMETERS


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=60,
)


@settings(max_examples=25)
@given(st.lists(values), st.dictionaries(st.text(), values))
def test_any_parameters_fit_and_are_json(args: list[Any], kwargs: dict[str, Any]) -> None:
    raw = bytes(short_parameters(args, kwargs))
    assert len(raw) <= MAX_PARAMETERS
    json.loads(raw)
    assert isinstance(read_line(Chain().add(entry(parameters=msgspec.Raw(raw)))[:-1]), Line)


def test_texts_are_cut() -> None:
    assert clean_text("abc", 3) == "abc"
    assert clean_text("abcd", 3) == "ab…"


# ── the check ───────────────────────────────────────────────────────────────────────────────────


def test_a_whole_journal_is_whole() -> None:
    lines = journal(5)
    verdict = check(b"".join(lines))
    assert (verdict.n, verdict.lines, verdict.faults, verdict.notes) == (5, 5, (), ())
    assert verdict.hash == hash_of(lines[-1][:-1])
    assert check(b"").n == 0


def test_what_somebody_did_to_a_journal_is_named() -> None:
    a, b, c, d, e = journal(5)
    cases: list[tuple[bytes, list[tuple[str, int]]]] = [
        (a + b.replace(b"ana", b"bob") + c + d, [("changed", 2)]),
        (a + forged(b, user="client:bob#34") + c + d, [("changed", 3)]),
        (a + b + e, [("removed", 3)]),
        (a + b + b"{}\n" + c, [("changed", 3)]),
        (a + b + b + c, [("inserted", 3)]),
        (a + b + forged(b, user="x") + c, [("inserted", 3), ("changed", 4)]),
        (a + c + b + d, [("removed", 2), ("inserted", 3), ("removed", 4)]),
        (b + c, [("beginning", 1)]),
        (b"{}\n" + b, [("changed", 1)]),
        (b"{}\n" + c, [("changed", 1), ("removed", 2)]),
        (a + b"{}\n" + b"{}\n" + d, [("changed", 2), ("changed", 3), ("removed", 4)]),
        (a + b"\n" + b, [("changed", 2)]),
        (a + b[:-1], [("torn", 2)]),
        (a + b[:-20], [("torn", 2)]),
    ]
    for content, found in cases:
        assert kinds(check(content)) == found, content


def test_a_part_of_a_journal_may_begin_anywhere() -> None:
    _, b, c, d = journal(4)
    verdict = check(b + c, whole=False)
    assert not verdict.faults
    assert "begins with line 2" in verdict.notes[0]
    assert kinds(check(b"{}\n" + d, whole=False)) == [("changed", 1)]


def test_a_missing_end_shows_by_a_hash_that_was_kept() -> None:
    lines = journal(4)
    third, last = (hash_of(each[:-1]) for each in lines[2:])
    verdict = check(b"".join(lines), heads=[third, last])
    assert not verdict.faults
    assert verdict.notes == (
        f"line 3 has the hash {third}",
        f"line 4 has the hash {last}",
    )
    assert not check(b"".join(lines[:3])).faults
    cut = check(b"".join(lines[:3]), heads=[last])
    assert kinds(cut) == [("cut", 0)]
    assert "behind line 3" in cut.faults[0].text


def torn_journal() -> tuple[bytes, bytes, bytes, bytes]:
    """Two lines, half a line, and the line that says so, after a crash."""
    chain = Chain()
    a, b = chain.add(entry(1)), chain.add(entry(2))
    after = chain.hash
    half = b'{"n":3,"prev":"12'
    chain.skip(half)
    told = chain.add(journal_entry(5.0, "torn", after=after, bytes=len(half)))
    return a, b, half + b"\n", told + chain.add(entry(4))


def test_a_line_that_a_crash_tore_is_no_fault_once_the_next_start_has_noted_it() -> None:
    a, b, half, rest = torn_journal()
    verdict = check(a + b + half + rest)
    assert not verdict.faults
    assert "kept as it is" in verdict.notes[0]
    assert verdict.n == 5
    assert kinds(check(a + b + half + rest.replace(b'"torn"', b'"open"')))[0] == ("changed", 3)
    assert kinds(check(a + b + half[1:] + rest)) == [("changed", 3)]
    assert kinds(check(a + half + rest)) == [("changed", 2), ("removed", 3)]
    told = rest.splitlines(keepends=True)[0]
    for parameters in (b"[1]", b'{"after":"12"}', b"{}"):
        lie = forged(told, parameters=msgspec.Raw(parameters))
        assert kinds(check(a + b + half + lie)) == [("changed", 3)]


@given(st.integers(1, 6), st.data())
def test_any_changed_byte_of_any_line_is_found(count: int, data: st.DataObject) -> None:
    content = b"".join(journal(count))
    place = data.draw(st.integers(0, len(content) - 1))
    other = data.draw(st.integers(0, 255).filter(lambda each: each != content[place]))
    assert check(content[:place] + bytes([other]) + content[place + 1 :]).faults


@given(st.integers(1, 6), st.data())
def test_any_changed_byte_of_a_journal_with_a_crash_in_it_is_found(
    count: int, data: st.DataObject
) -> None:
    content = b"".join(torn_journal())
    place = data.draw(st.integers(0, len(content) - 1))
    other = data.draw(st.integers(0, 255).filter(lambda each: each != content[place]))
    assert check(content[:place] + bytes([other]) + content[place + 1 :]).faults


@given(st.integers(2, 8), st.data())
def test_any_line_that_is_changed_with_care_removed_or_moved_is_found(
    count: int, data: st.DataObject
) -> None:
    lines = journal(count)
    place = data.draw(st.integers(0, count - 2))
    forgery = [*lines]
    forgery[place] = forged(lines[place], user="somebody else")
    removed = lines[:place] + lines[place + 1 :]
    moved = [*lines]
    moved[place], moved[place + 1] = moved[place + 1], moved[place]
    for content in (forgery, removed, moved):
        assert check(b"".join(content)).faults


# ── what comes often, what is looked for ────────────────────────────────────────────────────────


def test_the_first_of_a_kind_are_told_and_the_others_counted() -> None:
    tally = Tally(2, window_s=60, kinds=2)
    assert [tally.takes(("ana", "set"), 0.0) for _ in range(5)] == [True, True, False, False, False]
    assert tally.takes(("bob", "set"), 1.0)
    assert tally.takes(("eve", "set"), 1.0)  # with all others: there are too many kinds
    assert tally.due(59.0) == []
    assert tally.due(60.0) == [(("ana", "set"), 3)]
    assert tally.takes(("ana", "set"), 61.0)
    assert tally.all_due() == []


def test_lines_are_found_by_who_what_when_and_where() -> None:
    one = entry(
        node="relay psu-1",
        user="client:ana#1f3a",
        method="batch",
        methods=("set_voltage",),
        outcome="refused",
    )
    for wanted, fits in [
        (Wanted(), True),
        (Wanted(node="psu-*"), True),
        (Wanted(node="relay"), True),
        (Wanted(node="bank"), False),
        (Wanted(user="ana"), True),
        (Wanted(user="client:ana"), True),
        (Wanted(user="1f3a"), True),
        (Wanted(user="an"), False),
        (Wanted(method="set_*"), True),
        (Wanted(method="get_*"), False),
        (Wanted(since=1000.0), True),
        (Wanted(since=1001.0), False),
        (Wanted(refused=True), True),
    ]:
        assert wanted.fits(one) is fits, wanted
    assert not Wanted(refused=True).fits(entry())
