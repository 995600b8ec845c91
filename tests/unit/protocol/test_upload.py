from __future__ import annotations

import copy
import hashlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.storage_contract import record_of

from labmesh.errors import (
    Busy,
    ChecksumMismatch,
    Conflict,
    Forbidden,
    LabmeshError,
    ProtocolError,
    StorageError,
    TooLarge,
)
from labmesh.protocol.messages import (
    ChunkStored,
    Committed,
    DatasetRecord,
    Done,
    UploadAbort,
    UploadChunk,
    UploadCommit,
    UploadGranted,
    UploadStart,
    UploadWhole,
)
from labmesh.protocol.upload import MAX_CHUNK_BYTES, UploadLimits, UploadReceiver
from labmesh.protocol.upload_steps import (
    Discard,
    Finish,
    Open,
    Step,
    Store,
    UploadKey,
    Write,
)
from labmesh.storage.memory import MemoryBlobStore

LIMITS = UploadLimits(
    max_sessions=3, max_dataset_bytes=1000, chunk_bytes=100, window=2, idle_s=60.0
)
MINE, YOURS = "my-token", "your-token"
CONTENT = bytes(range(250))


@pytest.fixture
def bank() -> UploadReceiver:
    return UploadReceiver("bank-0", LIMITS)


def start(dataset_id: str = "scan-1", session: str = MINE, **fields: Any) -> UploadStart:
    return UploadStart(id="s", dataset_id=dataset_id, session=session, **fields)


def chunk(offset: int, dataset_id: str = "scan-1", session: str = MINE) -> UploadChunk:
    return UploadChunk(id=f"c{offset}", dataset_id=dataset_id, session=session, offset=offset)


def commit(
    content: bytes = CONTENT, session: str = MINE, dataset_id: str = "scan-1"
) -> UploadCommit:
    sha256 = hashlib.sha256(content).hexdigest()
    return UploadCommit(
        id="e", dataset_id=dataset_id, session=session, size=len(content), sha256=sha256
    )


def abort(session: str = MINE, dataset_id: str = "scan-1") -> UploadAbort:
    return UploadAbort(id="a", dataset_id=dataset_id, session=session)


def performed(bank: UploadReceiver, step: Step | Committed | Done, now: float = 0.0) -> Step:
    """A step that its shell has performed."""
    assert isinstance(step, Step)
    bank.check(step)
    bank.performed(step, now)
    return step


def upload(bank: UploadReceiver, written: int = 250, *, size: int | None = None) -> UploadKey:
    """An upload of which ``written`` bytes are stored."""
    key = performed(bank, bank.start(start(size=size), None, 0.0)).key
    for offset in range(0, written, 100):
        performed(bank, bank.chunk(chunk(offset), min(100, written - offset), 0.0))
    return key


def refused(
    bank: UploadReceiver, error: type[LabmeshError], act: Any, *arguments: Any
) -> LabmeshError:
    """The refusal of a request, which must have changed nothing."""
    before = copy.deepcopy(vars(bank))
    with pytest.raises(error) as caught:
        act(*arguments)
    assert vars(bank) == before
    assert type(caught.value) is error
    return caught.value


# ── the straight way ──


def test_an_upload_from_start_to_commit(bank: UploadReceiver) -> None:
    facts: dict[str, Any] = {
        "relay_id": "Inst-0",
        "name": "sweep",
        "kind": "npy",
        "meta": {"sample": "A1"},
    }
    begun = bank.start(start(size=250, **facts), None, 0.0)
    key = UploadKey("scan-1", 1)
    granted = UploadGranted(id="s", offset=0, chunk_bytes=100, window=2)
    assert begun == Step(key, Open(250), granted)
    performed(bank, begun)
    for offset, size in ((0, 100), (100, 100), (200, 50)):
        taken = bank.chunk(chunk(offset), size, 1.0)
        reply = ChunkStored(id=f"c{offset}", offset=offset + size)
        assert taken == Step(key, Write(offset, size), reply)
        performed(bank, taken)
    finish = bank.commit(commit(), None, 2.0, created=1_700_000_000.5)
    record = DatasetRecord(
        dataset_id=commit().dataset_id,
        size=250,
        sha256=commit().sha256,
        bank_id="bank-0",
        created=1_700_000_000.5,
        **facts,
    )
    assert finish == Step(key, Finish(record), None)
    assert len(bank) == 1
    performed(bank, finish)
    assert len(bank) == 0


def test_an_empty_dataset_needs_no_chunk(bank: UploadReceiver) -> None:
    performed(bank, bank.start(start(size=0), None, 0.0))
    finish = bank.commit(commit(b""), None, 0.0, 0.0)
    assert isinstance(performed(bank, finish).effect, Finish)


def test_a_stream_declares_no_size(bank: UploadReceiver) -> None:
    begun = bank.start(start(), None, 0.0)
    assert isinstance(begun, Step)
    assert begun.effect == Open(None)
    performed(bank, begun)
    performed(bank, bank.chunk(chunk(0), 100, 0.0))
    assert isinstance(bank.commit(commit(CONTENT[:100]), None, 0.0, 0.0), Step)


def test_uploads_of_different_ids_do_not_meet(bank: UploadReceiver) -> None:
    upload(bank, 100)
    performed(bank, bank.start(start("scan-2", YOURS), None, 0.0))
    taken = bank.chunk(chunk(0, "scan-2", YOURS), 7, 0.0)
    assert taken.key == UploadKey("scan-2", 2)
    assert bank.chunk(chunk(100), 10, 0.0).key == UploadKey("scan-1", 1)


# ── start and resume ──


def test_the_owner_resumes_at_the_byte_that_is_wanted(bank: UploadReceiver) -> None:
    key = upload(bank, 150)
    resumed = bank.start(start(), None, 1.0)
    granted = UploadGranted(id="s", offset=150, chunk_bytes=100, window=2)
    assert resumed == Step(key, None, granted)


def test_a_resumption_counts_what_waits_for_the_disk_and_is_answered_behind_it(
    bank: UploadReceiver,
) -> None:
    key = upload(bank, 100)
    write = bank.chunk(chunk(100), 50, 0.0)
    resumed = bank.start(start(), None, 0.0)
    assert isinstance(resumed, Step)
    assert resumed.key == write.key == key
    assert isinstance(resumed.reply, UploadGranted)
    assert resumed.reply.offset == 150


def test_a_second_sender_of_an_id_is_refused_while_the_first_is_at_it(
    bank: UploadReceiver,
) -> None:
    upload(bank, 100)
    refusal = refused(bank, Conflict, bank.start, start(session=YOURS), None, 0.0)
    assert "another sender" in str(refusal)
    performed(bank, bank.abort(abort()))
    performed(bank, bank.start(start(session=YOURS), None, 0.0))


def test_of_twenty_senders_of_one_id_one_wins_and_the_same_content_is_done(
    bank: UploadReceiver,
) -> None:
    tokens = [f"token-{number:04d}" for number in range(20)]
    performed(bank, bank.start(start(session=tokens[0]), None, 0.0))
    for token in tokens[1:]:
        refused(bank, Conflict, bank.start, start(session=token), None, 0.0)
    performed(bank, bank.chunk(chunk(0, session=tokens[0]), 100, 0.0))
    content = CONTENT[:100]
    finish = performed(bank, bank.commit(commit(content, tokens[0]), None, 0.0, 0.0))
    assert isinstance(finish.effect, Finish)
    stored = finish.effect.record
    for token in tokens[1:]:
        same = start(session=token, sha256=stored.sha256)
        assert bank.start(same, stored, 0.0) == Committed(id="s", record=stored)
        other = start(session=token, sha256="0" * 64)
        refused(bank, Conflict, bank.start, other, stored, 0.0)


@pytest.mark.parametrize(("size", "same"), [(None, True), (250, True), (251, False)])
def test_starting_what_is_stored_already(
    bank: UploadReceiver, size: int | None, same: bool
) -> None:
    stored = record_of("scan-1", CONTENT)
    request = start(size=size, sha256=stored.sha256)
    if same:
        assert bank.start(request, stored, 0.0) == Committed(id="s", record=stored)
    else:
        refused(bank, Conflict, bank.start, request, stored, 0.0)
    assert len(bank) == 0


def test_an_id_that_is_stored_is_not_begun_without_proof_of_the_same_content(
    bank: UploadReceiver,
) -> None:
    stored = record_of("scan-1", CONTENT)
    refusal = refused(bank, Conflict, bank.start, start(size=250), stored, 0.0)
    assert refusal.detail == {"dataset_id": "scan-1", "size": 250, "sha256": stored.sha256}


def test_an_upload_is_not_resumed_with_another_size(bank: UploadReceiver) -> None:
    upload(bank, 100, size=250)
    refused(bank, Conflict, bank.start, start(size=251), None, 0.0)
    refused(bank, Conflict, bank.start, start(), None, 0.0)
    performed(bank, bank.start(start(size=250), None, 0.0))


def test_only_so_many_uploads_are_open_at_once(bank: UploadReceiver) -> None:
    for number in range(3):
        performed(bank, bank.start(start(f"scan-{number}"), None, 0.0))
    refusal = refused(bank, Busy, bank.start, start("scan-3"), None, 0.0)
    assert refusal.retryable
    performed(bank, bank.abort(abort(dataset_id="scan-1")))
    performed(bank, bank.start(start("scan-3"), None, 0.0))


@pytest.mark.parametrize("bad", ["../../x", "/etc/passwd", "a/b", "..", "", "con.", "-rf", "%2e."])
def test_an_id_that_breaks_the_rule_is_refused(bank: UploadReceiver, bad: str) -> None:
    refused(bank, ProtocolError, bank.start, start(bad), None, 0.0)
    if bad:
        refused(bank, ProtocolError, bank.start, start(relay_id=bad), None, 0.0)


def test_what_is_over_a_limit_is_refused_at_once(bank: UploadReceiver) -> None:
    refused(bank, TooLarge, bank.start, start(size=1001), None, 0.0)
    refused(bank, TooLarge, bank.start, start(meta={"note": "x" * 300_000}), None, 0.0)
    refused(bank, ProtocolError, bank.start, start(meta={"raw": b"\0"}), None, 0.0)
    performed(bank, bank.start(start(size=1000, meta={"note": "x" * 200_000}), None, 0.0))


@pytest.mark.parametrize("wrong", [{"chunk_bytes": 0}, {"window": 0}])
def test_limits_that_allow_nothing_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        UploadLimits(**wrong)
    with pytest.raises(ValueError, match="chunk_bytes"):
        UploadLimits(chunk_bytes=MAX_CHUNK_BYTES + 1)


# ── chunks ──


@pytest.mark.parametrize(("offset", "size"), [(0, 100), (0, 1), (149, 1), (50, 100)])
def test_a_repeat_is_acknowledged_and_not_written(
    bank: UploadReceiver, offset: int, size: int
) -> None:
    key = upload(bank, 150)
    repeat = bank.chunk(chunk(offset), size, 0.0)
    assert repeat == Step(key, None, ChunkStored(id=f"c{offset}", offset=150))


@pytest.mark.parametrize(("offset", "size"), [(151, 10), (2**53, 1), (149, 2), (100, 100)])
def test_a_gap_or_an_overlap_is_refused_with_the_offset_that_is_wanted(
    bank: UploadReceiver, offset: int, size: int
) -> None:
    upload(bank, 150)
    if offset == 2**53:
        refused(bank, TooLarge, bank.chunk, chunk(offset), size, 0.0)
        return
    refusal = refused(bank, Conflict, bank.chunk, chunk(offset), size, 0.0)
    assert refusal.detail["offset"] == 150
    performed(bank, bank.chunk(chunk(150), size, 0.0))


def test_an_empty_chunk_is_refused(bank: UploadReceiver) -> None:
    upload(bank, 100)
    refused(bank, ProtocolError, bank.chunk, chunk(100), 0, 0.0)


def test_a_chunk_over_the_granted_size_is_refused(bank: UploadReceiver) -> None:
    upload(bank, 100)
    refused(bank, TooLarge, bank.chunk, chunk(100), 101, 0.0)


def test_nothing_goes_beyond_the_declared_size(bank: UploadReceiver) -> None:
    upload(bank, 200, size=250)
    refused(bank, TooLarge, bank.chunk, chunk(200), 51, 0.0)
    performed(bank, bank.chunk(chunk(200), 50, 0.0))
    refused(bank, TooLarge, bank.chunk, chunk(250), 1, 0.0)


def test_a_stream_does_not_go_beyond_the_bank_s_limit(bank: UploadReceiver) -> None:
    upload(bank, 1000)
    refused(bank, TooLarge, bank.chunk, chunk(1000), 1, 0.0)


def test_a_sender_that_ignores_its_window_is_refused(bank: UploadReceiver) -> None:
    upload(bank, 0)
    steps = [bank.chunk(chunk(0), 100, 0.0), bank.chunk(chunk(100), 60, 0.0)]
    assert bank.unwritten_bytes("scan-1") == 160
    refused(bank, Busy, bank.chunk, chunk(160), 10, 0.0)
    refused(bank, Busy, bank.chunk, chunk(0), 100, 0.0)
    performed(bank, steps[0])
    assert bank.unwritten_bytes("scan-1") == 60
    bank.chunk(chunk(160), 10, 0.0)
    assert bank.unwritten_bytes("scan-1") == 70
    assert bank.unwritten_bytes("scan-2") == 0


def test_resuming_over_and_over_does_not_fill_the_queue(bank: UploadReceiver) -> None:
    upload(bank, 0)
    for offset in (0, 100):
        bank.chunk(chunk(offset), 100, 0.0)
    for _ in range(4):
        bank.start(start(), None, 0.0)
    refused(bank, Busy, bank.start, start(), None, 0.0)


def test_only_the_bearer_of_the_token_may_send_commit_or_abort(bank: UploadReceiver) -> None:
    upload(bank)
    for token in (YOURS, "", "my-toke", "my-tokenn", "mÿ-token"):
        refused(bank, Forbidden, bank.chunk, chunk(250, session=token), 1, 0.0)
        refused(bank, Forbidden, bank.commit, commit(session=token), None, 0.0, 0.0)
        refused(bank, Forbidden, bank.abort, abort(token))


def test_an_upload_that_is_not_open_is_to_be_started_again(bank: UploadReceiver) -> None:
    refusal = refused(bank, Conflict, bank.chunk, chunk(0), 1, 0.0)
    assert "offset" not in refusal.detail
    refused(bank, Conflict, bank.commit, commit(), None, 0.0, 0.0)


# ── commit ──


@pytest.mark.parametrize("declared", [None, 250])
@pytest.mark.parametrize("size", [0, 249, 251])
def test_a_commit_of_another_size_is_refused_and_the_upload_goes_on(
    bank: UploadReceiver, declared: int | None, size: int
) -> None:
    upload(bank, size=declared)
    other = commit((CONTENT + b"\0")[:size])
    refusal = refused(bank, ChecksumMismatch, bank.commit, other, None, 0.0, 0.0)
    assert refusal.detail["offset"] == 250
    assert isinstance(bank.commit(commit(), None, 0.0, 0.0), Step)


def test_less_than_declared_is_not_committed(bank: UploadReceiver) -> None:
    performed(bank, bank.start(start(size=250), None, 0.0))
    performed(bank, bank.chunk(chunk(0), 100, 0.0))
    short = commit(CONTENT[:100])
    refused(bank, ChecksumMismatch, bank.commit, short, None, 0.0, 0.0)


def test_while_a_dataset_is_committed_everything_else_waits(bank: UploadReceiver) -> None:
    upload(bank)
    finish = bank.commit(commit(), None, 0.0, 0.0)
    refused(bank, Busy, bank.chunk, chunk(0), 100, 0.0)
    refused(bank, Busy, bank.commit, commit(), None, 0.0, 0.0)
    refused(bank, Busy, bank.start, start(), None, 0.0)
    refused(bank, Busy, bank.abort, abort())
    refused(bank, Conflict, bank.start, start(session=YOURS), None, 0.0)
    performed(bank, finish)
    stored = record_of("scan-1", CONTENT)
    assert bank.commit(commit(), stored, 0.0, 0.0) == Committed(id="e", record=stored)


def test_a_commit_that_is_repeated_after_the_answer_was_lost(bank: UploadReceiver) -> None:
    stored = record_of("scan-1", CONTENT)
    assert bank.commit(commit(), stored, 0.0, 0.0) == Committed(id="e", record=stored)
    refused(bank, Conflict, bank.commit, commit(CONTENT[:-1] + b"?"), stored, 0.0, 0.0)


# ── ends ──


def test_an_abort_discards_and_may_be_repeated(bank: UploadReceiver) -> None:
    key = upload(bank)
    assert bank.abort(abort()) == Step(key, Discard(), Done(id="a"))
    assert len(bank) == 0
    assert bank.abort(abort()) == Done(id="a")


def test_steps_that_wait_when_their_upload_is_aborted_are_not_performed(
    bank: UploadReceiver,
) -> None:
    upload(bank, 100)
    write = bank.chunk(chunk(100), 100, 0.0)
    discard = bank.abort(abort())
    begun = bank.start(start(), None, 0.0)
    assert isinstance(begun, Step)
    assert isinstance(discard, Step)
    assert begun.key != write.key
    refused(bank, Conflict, bank.check, write)
    bank.check(discard)
    bank.performed(discard, 0.0)
    bank.performed(write, 0.0)
    assert bank.failed(write.key) is None
    performed(bank, begun)
    performed(bank, bank.chunk(chunk(0), 100, 0.0))


def test_a_step_that_fails_ends_its_upload(bank: UploadReceiver) -> None:
    key = upload(bank, 100)
    first, second = bank.chunk(chunk(100), 50, 0.0), bank.chunk(chunk(150), 50, 0.0)
    assert bank.failed(first.key) == Step(key, Discard(), None)
    assert len(bank) == 0
    refusal = refused(bank, Conflict, bank.check, second)
    assert "start it again" in str(refusal)
    assert bank.failed(second.key) is None
    resumed = bank.start(start(), None, 0.0)
    assert isinstance(resumed, Step)
    assert isinstance(resumed.reply, UploadGranted)
    assert resumed.reply.offset == 0


def test_an_upload_of_which_nothing_is_heard_ends(bank: UploadReceiver) -> None:
    assert bank.next_deadline() is None
    key = upload(bank, 100)
    performed(bank, bank.start(start("scan-2"), None, 5.0), now=10.0)
    assert bank.next_deadline() == 60.0
    assert bank.expire(59.9) == []
    assert bank.expire(60.0) == [Step(key, Discard(), None)]
    assert bank.next_deadline() == 70.0
    refused(bank, Conflict, bank.chunk, chunk(100), 1, 60.0)


def test_each_sign_of_the_sender_keeps_its_upload(bank: UploadReceiver) -> None:
    upload(bank, 100)
    performed(bank, bank.chunk(chunk(100), 10, 50.0), now=50.5)
    assert bank.next_deadline() == 110.5


def test_a_slow_disk_does_not_make_an_upload_expire(bank: UploadReceiver) -> None:
    upload(bank, 100)
    write = bank.chunk(chunk(100), 10, 0.0)
    assert bank.next_deadline() is None
    assert bank.expire(1e9) == []
    performed(bank, write, now=1e9)
    assert bank.next_deadline() == 1e9 + 60.0


# ── any schedule ──


@st.composite
def schedules(draw: st.DrawFn) -> tuple[bytes, list[tuple[int, int]]]:
    """A content, and chunks of it that repeat, overlap, leave gaps and come in any order."""
    content = draw(st.binary(min_size=0, max_size=60))
    step = draw(st.integers(1, 12))
    straight = [(offset, step) for offset in range(0, len(content), step)]
    wild = st.tuples(st.integers(0, len(content) + 5), st.integers(0, 12))
    return content, draw(st.permutations(straight * 2 + draw(st.lists(wild, max_size=12))))


class OneUpload:
    """A receiver, its part, and a shell that performs each step at once."""

    def __init__(self, size: int | None) -> None:
        limits = UploadLimits(chunk_bytes=10, max_dataset_bytes=64)
        self.bank = UploadReceiver("bank-0", limits)
        self.blobs = MemoryBlobStore()
        self.part = self.blobs.begin()
        performed(self.bank, self.bank.start(start(size=size), None, 0.0))

    def send(self, offset: int, body: bytes) -> None:
        before = copy.deepcopy(vars(self.bank))
        try:
            step = self.bank.chunk(chunk(offset), len(body), 0.0)
        except LabmeshError:
            assert vars(self.bank) == before
            return
        if isinstance(step.effect, Write):
            self.part.write(step.effect.offset, body)
        performed(self.bank, step)
        assert step.reply == ChunkStored(id=f"c{offset}", offset=self.part.size)

    def commit(self, content: bytes) -> None:
        performed(self.bank, self.bank.commit(commit(content), None, 0.0, 0.0))
        self.part.finish(len(content), commit(content).sha256)

    def stored(self, content: bytes) -> bytes:
        return self.blobs.read(commit(content).sha256, 0, len(content))


@given(schedule=schedules(), declared=st.booleans())
def test_in_whatever_order_chunks_come_what_is_stored_is_what_was_sent(
    schedule: tuple[bytes, list[tuple[int, int]]], declared: bool
) -> None:
    content, chunks = schedule
    upload = OneUpload(len(content) if declared else None)
    for offset, size in chunks:
        upload.send(offset, content[offset : offset + size])
    while upload.part.size < len(content):
        upload.send(upload.part.size, content[upload.part.size :][:7])
    upload.commit(content)
    assert upload.stored(content) == content


@given(schedule=schedules(), declared=st.booleans())
def test_content_that_is_not_the_committed_is_never_stored(
    schedule: tuple[bytes, list[tuple[int, int]]], declared: bool
) -> None:
    content, chunks = schedule
    upload = OneUpload(len(content) if declared else None)
    sent = content[:-1] + b"?????"
    for offset, size in chunks:
        upload.send(offset, sent[offset : offset + size])
    try:
        upload.commit(content)
    except ChecksumMismatch:
        with pytest.raises(StorageError):
            upload.stored(content)
    else:
        assert upload.stored(content) == content


# ── what an earlier process left ──


def test_an_upload_that_an_earlier_process_left_goes_on_where_it_is_durable(
    bank: UploadReceiver,
) -> None:
    begun = start(size=250, name="sweep", tags=["b", "a", "b"], parents=["scan-0"])
    key = bank.adopt(begun, 100, 0.0)
    assert bank.is_open("scan-1")
    assert not bank.is_stream(key)
    refused(bank, Conflict, bank.start, start(session=YOURS), None, 1.0)
    granted = UploadGranted(id="s", offset=100, chunk_bytes=100, window=2)
    assert performed(bank, bank.start(start(size=250), None, 1.0)) == Step(key, None, granted)
    performed(bank, bank.chunk(chunk(100), 100, 1.0))
    performed(bank, bank.chunk(chunk(200), 50, 1.0))
    finish = performed(bank, bank.commit(commit(), None, 2.0, 5.0))
    assert isinstance(finish.effect, Finish)
    record = finish.effect.record
    assert (record.name, record.tags, record.parents) == ("sweep", ["b", "a"], ["scan-0"])
    assert len(bank) == 0
    assert not bank.is_stream(key)


def test_what_cannot_be_continued_is_not_adopted(bank: UploadReceiver) -> None:
    refused(bank, ProtocolError, bank.adopt, start(size=50), 51, 0.0)
    refused(bank, ProtocolError, bank.adopt, start("../evil"), 10, 0.0)
    key = bank.adopt(start(), 10, 0.0)
    assert bank.is_stream(key)
    refused(bank, Conflict, bank.adopt, start(session=YOURS), 20, 0.0)


# ── in one message ──


def whole(content: bytes = CONTENT[:100], dataset_id: str = "scan-1", **fields: Any) -> UploadWhole:
    sha256 = hashlib.sha256(content).hexdigest()
    return UploadWhole(id="w", dataset_id=dataset_id, sha256=sha256, **fields)


def test_a_small_dataset_is_stored_in_one_step(bank: UploadReceiver) -> None:
    request = whole(relay_id="Inst-0", kind="npy", meta={"n": 1}, provenance={"user": "ana"})
    step = bank.whole(request, 100, 0.0, created=7.0)
    assert isinstance(step.effect, Store)
    record = step.effect.record
    assert (record.size, record.sha256, record.created) == (100, request.sha256, 7.0)
    assert (record.bank_id, record.relay_id, record.kind) == ("bank-0", "Inst-0", "npy")
    assert (record.meta, record.provenance) == ({"n": 1}, {"user": "ana"})
    # Until that is done the id is taken, and nobody can resume it.
    refused(bank, Busy, bank.whole, request, 100, 0.0, 7.0)
    refused(bank, Conflict, bank.start, start(session=""), None, 0.0)
    assert bank.next_deadline() is None
    performed(bank, step)
    assert len(bank) == 0
    again = bank.whole(request, 100, 1.0, 8.0)
    assert bank.failed(again.key) == Step(again.key, Discard(), None)


def test_a_dataset_in_one_message_is_held_to_the_same_limits(bank: UploadReceiver) -> None:
    caught = refused(bank, TooLarge, bank.whole, whole(), 101, 0.0, 0.0)
    assert caught.detail["chunk_bytes"] == 100
    refused(bank, TooLarge, bank.whole, whole(meta={"n": "x" * 300_000}), 9, 0.0, 0.0)
    refused(bank, ProtocolError, bank.whole, whole(dataset_id="a/b"), 9, 0.0, 0.0)
    refused(bank, ProtocolError, bank.whole, whole(relay_id="a/b"), 9, 0.0, 0.0)
    refused(bank, ProtocolError, bank.whole, whole(parents=["a/b"]), 9, 0.0, 0.0)
    upload(bank, 100)
    refused(bank, Conflict, bank.whole, whole(), 100, 0.0, 0.0)
    for number in (2, 3):
        bank.start(start(f"scan-{number}"), None, 0.0)
    refused(bank, Busy, bank.whole, whole(dataset_id="scan-4"), 100, 0.0, 0.0)


# ── quiet senders ──

QUIET = UploadLimits(max_sessions=2, quiet_s=10.0, max_quiet=1, idle_s=100.0)


def test_a_quiet_upload_leaves_its_place_to_others_and_can_go_on() -> None:
    bank = UploadReceiver("bank-0", QUIET)
    quiet = performed(bank, bank.start(start("scan-1"), None, 0.0), 0.0).key
    performed(bank, bank.start(start("scan-2"), None, 5.0), 5.0)
    refused(bank, Busy, bank.start, start("scan-3"), None, 9.0)
    performed(bank, bank.start(start("scan-3"), None, 10.0), 10.0)
    assert performed(bank, bank.start(start("scan-1"), None, 11.0), 11.0).key == quiet


def test_another_sender_may_begin_the_id_of_a_quiet_one_anew() -> None:
    bank = UploadReceiver("bank-0", QUIET)
    former = performed(bank, bank.start(start(), None, 0.0), 0.0).key
    refused(bank, Conflict, bank.start, start(session=YOURS), None, 9.0)
    anew = bank.start(start(session=YOURS), None, 10.0)
    assert isinstance(anew, Step)
    assert anew.effect == Open(None, former)
    refused(bank, Forbidden, bank.chunk, chunk(0), 1, 10.0)
    # While a step of it waits it is the bank that is slow.
    refused(bank, Conflict, bank.start, start(session=MINE), None, 99.0)
    performed(bank, anew, 10.0)
    small = bank.whole(whole(), 100, 20.0, 0.0)
    assert isinstance(small.effect, Store)
    assert small.effect.instead_of == anew.key


def test_of_the_quiet_uploads_those_heard_of_last_are_kept() -> None:
    bank = UploadReceiver("bank-0", QUIET)
    for number in range(3):
        bank.adopt(start(f"scan-{number}"), 1, float(number))
    assert bank.next_deadline() == 10.0
    assert [step.key.dataset_id for step in bank.expire(10.5)] == ["scan-0"]
    assert [step.key.dataset_id for step in bank.expire(11.0)] == ["scan-1"]
    assert bank.next_deadline() == 102.0
    assert bank.expire(101.9) == []
    assert [step.key.dataset_id for step in bank.expire(102.0)] == ["scan-2"]
    assert bank.next_deadline() is None
