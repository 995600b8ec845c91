from __future__ import annotations

import copy
import hashlib
from collections import deque

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.pair import Fate, Wire
from tests.support.storage_contract import record_of

from labmesh.errors import ChecksumMismatch, ProtocolError
from labmesh.protocol.download import Download, Range

CONTENT = bytes(range(95))
RECORD = record_of("scan-1", CONTENT)


def download(offset: int = 0) -> Download:
    return Download("scan-1", RECORD, offset=offset, chunk_bytes=10, window=3)


def asked(machine: Download) -> list[Range]:
    ranges = []
    while (each := machine.next_range()) is not None:
        ranges.append(each)
    return ranges


def test_ranges_are_asked_for_within_the_window_up_to_the_end() -> None:
    machine = download()
    assert asked(machine) == [(0, 10), (10, 10), (20, 10)]
    assert machine.next_range() is None
    machine.fetched(0, 10)
    assert asked(machine) == [(30, 10)]
    ranges = deque([Range(10, 10), Range(20, 10), Range(30, 10)])
    while ranges:
        machine.fetched(*ranges.popleft())
        ranges += asked(machine)
    assert machine.complete
    assert machine.written == 95
    assert machine.next_range() is None
    machine.verify(RECORD.sha256)


def test_the_last_range_ends_with_the_dataset() -> None:
    machine = download(offset=90)
    assert asked(machine) == [(90, 5)]
    machine.fetched(90, 5)
    assert machine.complete


def test_an_empty_dataset_is_complete_at_once() -> None:
    record = record_of("empty", b"")
    machine = Download("empty", record)
    assert machine.complete
    assert machine.next_range() is None
    machine.verify(hashlib.sha256(b"").hexdigest())


def test_a_file_that_was_begun_is_continued() -> None:
    machine = download(offset=42)
    assert machine.written == 42
    # Ranges keep to the multiples of a chunk, which a bank verifies one by one.
    assert asked(machine)[:2] == [(42, 8), (50, 10)]
    assert machine.dataset_id == RECORD.dataset_id
    assert download(offset=95).complete


def test_more_than_the_dataset_has_is_not_continued() -> None:
    with pytest.raises(ChecksumMismatch, match="from the start"):
        download(offset=96)


def test_the_record_of_another_dataset_is_refused() -> None:
    with pytest.raises(ProtocolError, match="not with scan-2"):
        Download("scan-2", RECORD)


@pytest.mark.parametrize(
    ("offset", "size"),
    [(0, 0), (0, 9), (0, 11), (0, 10**9), (10, 10), (1, 10), (-1, 10), (85, 10), (0, -10)],
)
def test_what_was_not_asked_for_is_refused_and_nothing_changes(offset: int, size: int) -> None:
    machine = download()
    asked(machine)
    before = copy.deepcopy(vars(machine))
    with pytest.raises(ProtocolError, match="10 at 0 were to come"):
        machine.fetched(offset, size)
    assert vars(machine) == before
    machine.fetched(0, 10)


def test_an_answer_to_no_question_is_refused() -> None:
    machine = download()
    with pytest.raises(ProtocolError):
        machine.fetched(0, 10)
    for _ in range(3):
        machine.lost()
        for each in asked(machine):
            machine.fetched(*each)
    machine.fetched(*asked(machine)[0])
    assert machine.complete
    with pytest.raises(ProtocolError, match="0 at 95 were to come"):
        machine.fetched(95, 1)
    assert machine.written == 95


def test_after_a_break_it_goes_on_behind_what_was_written() -> None:
    machine = download()
    asked(machine)
    machine.fetched(0, 10)
    machine.lost()
    assert asked(machine) == [(10, 10), (20, 10), (30, 10)]


def test_a_wrong_digest_and_a_missing_byte_are_refused() -> None:
    machine = download(offset=85)
    with pytest.raises(ChecksumMismatch, match="85 of 95 bytes"):
        machine.verify(RECORD.sha256)
    for wanted in asked(machine):
        machine.fetched(*wanted)
    with pytest.raises(ChecksumMismatch, match="nothing was kept"):
        machine.verify("0" * 64)
    machine.verify(RECORD.sha256)


FATES = st.lists(st.sampled_from(Fate), max_size=30)


@given(
    size=st.integers(0, 95),
    to_bank=FATES,
    to_client=FATES,
    window=st.integers(1, 4),
    chunk_bytes=st.integers(5, 40),
)
def test_over_a_bad_wire_the_file_is_what_the_bank_has(
    size: int, to_bank: list[Fate], to_client: list[Fate], window: int, chunk_bytes: int
) -> None:
    content = CONTENT[:size]
    record = record_of("scan-1", content)
    machine = Download("scan-1", record, chunk_bytes=chunk_bytes, window=window)
    questions: Wire[tuple[int, Range]] = Wire(to_bank)
    answers: Wire[tuple[int, int, bytes]] = Wire(to_client)
    file = bytearray()
    #: call id of each open question, in the order asked, and the answers that are here
    waiting: deque[int] = deque()
    arrived: dict[int, tuple[int, bytes]] = {}
    call = 0
    while not machine.complete:
        while (wanted := machine.next_range()) is not None:
            questions.put((call, wanted))
            waiting.append(call)
            call += 1
        while (question := questions.take()) is not None:
            number, (offset, length) = question
            answers.put((number, offset, content[offset : offset + length]))
        while (answer := answers.take()) is not None:
            if answer[0] in waiting:
                arrived[answer[0]] = answer[1:]
        while waiting and waiting[0] in arrived:
            offset, piece = arrived.pop(waiting.popleft())
            machine.fetched(offset, len(piece))
            file += piece
        if waiting:  # no more will come: the deadline of these calls
            machine.lost()
            waiting.clear()
            arrived.clear()
    assert file == content
    machine.verify(hashlib.sha256(file).hexdigest())


HONEST = st.none()
WILD = st.tuples(st.integers(-5, 100), st.integers(0, 40))


@given(answers=st.lists(HONEST | WILD, max_size=40))
def test_whatever_a_bank_sends_no_more_is_written_than_declared(
    answers: list[tuple[int, int] | None],
) -> None:
    machine = download()
    open_ranges: deque[Range] = deque()
    written = 0
    for answer in answers:
        open_ranges += asked(machine)
        offset, size = answer or (open_ranges[0] if open_ranges else (95, 1))
        try:
            machine.fetched(offset, size)
        except ProtocolError:
            continue
        assert (offset, size) == open_ranges.popleft()
        assert offset == written
        written += size
        assert written == machine.written <= RECORD.size
