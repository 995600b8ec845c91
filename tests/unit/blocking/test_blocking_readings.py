"""Readings between two threads: order, end, and what a slow reader missed."""

from __future__ import annotations

import gc
import threading
from dataclasses import replace

import pytest

from labmesh.blocking.readings import Mailbox, Readings
from labmesh.errors import NoAnswer
from labmesh.events.reading import Gaps, Reading


def reading(sequence: int, relay_id: str = "Inst-0", epoch: str = "e1") -> Reading:
    return Reading(
        relay_id=relay_id, value={"n": sequence}, time=1.0, epoch=epoch, sequence=sequence
    )


class Source:
    """Something that can be told to stop."""

    def __init__(self) -> None:
        self.cancelled = 0

    def cancel(self) -> None:
        self.cancelled += 1


def test_readings_come_in_order_with_the_names_of_the_state() -> None:
    mailbox = Mailbox()
    mailbox.put(reading(1))
    mailbox.put(reading(2))
    mailbox.close()
    got = list(Readings(mailbox, Source(), what="Inst-0"))
    assert [each["n"] for each in got] == [1, 2]
    assert [each.missed for each in got] == [0, 0]
    assert dict(got[0]) == {"n": 1}
    assert "n" in got[0]
    assert "m" not in got[0]


def test_a_slow_reader_gets_the_newest_and_is_told_how_many_it_missed() -> None:
    mailbox = Mailbox(limit=3)
    mailbox.put(reading(1))
    first = mailbox.take(0)
    for sequence in range(2, 12):
        mailbox.put(reading(sequence))
        mailbox.put(reading(sequence, "scope-0"))
    mailbox.close()
    got = list(Readings(mailbox, Source(), what="*"))
    assert first is not None
    psu = [first, *(each for each in got if each.relay_id == "Inst-0")]
    assert psu[-1].sequence == 11
    assert len(got) <= 3
    assert sum(each.missed + 1 for each in psu) == 11


def test_what_a_slow_reader_leaves_is_limited_in_bytes_too() -> None:
    mailbox = Mailbox()
    for sequence in range(1, 10):
        for relay_id in ("Inst-0", "scope-0"):
            mailbox.put(replace(reading(sequence, relay_id), size=30 * 2**20))
    mailbox.close()
    got = list(Readings(mailbox, Source(), what="*"))
    assert [(each.relay_id, each.sequence) for each in got] == [("Inst-0", 9), ("scope-0", 9)]


def test_a_restarted_relay_counts_anew() -> None:
    gaps = Gaps()
    told = [gaps.told(reading(5)), gaps.told(reading(8)), gaps.told(reading(3, epoch="e2"))]
    assert [each.missed for each in told] == [0, 2, 0]


def test_without_a_reading_in_time_it_is_a_timeout() -> None:
    readings = Readings(Mailbox(), Source(), what="Inst-0", timeout=0.01)
    with pytest.raises(NoAnswer, match=r"no state of Inst-0 within 0\.01 s"):
        next(readings)
    assert isinstance(NoAnswer(), TimeoutError)


def test_a_reader_that_waits_is_woken_by_a_reading_and_by_the_end() -> None:
    mailbox = Mailbox()
    got: list[Reading] = []
    waits = threading.Event()

    def read() -> None:
        waits.set()
        got.extend(Readings(mailbox, Source(), what="Inst-0"))

    thread = threading.Thread(target=read)
    thread.start()
    waits.wait()
    mailbox.put(reading(1))
    mailbox.close()
    thread.join(10)
    assert not thread.is_alive()
    assert [each.sequence for each in got] == [1]


def test_behind_its_end_nothing_is_taken_in() -> None:
    mailbox = Mailbox()
    mailbox.close()
    mailbox.put(reading(1))
    assert mailbox.take(0) is None


def test_closing_it_stops_the_source_and_ends_the_iteration() -> None:
    source = Source()
    with Readings(Mailbox(), source, what="Inst-0") as readings:
        assert repr(readings) == "<Readings of Inst-0>"
    assert source.cancelled == 1
    assert list(readings) == []


def test_leaving_a_loop_stops_the_source() -> None:
    source = Source()
    mailbox = Mailbox()
    mailbox.put(reading(1))
    for _ in Readings(mailbox, source, what="Inst-0"):
        break
    gc.collect()
    assert source.cancelled == 1
