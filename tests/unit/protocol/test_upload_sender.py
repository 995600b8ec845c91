from __future__ import annotations

import copy

import pytest
from tests.support.storage_contract import record_of

from labmesh.errors import ChecksumMismatch, Conflict, ProtocolError, StorageError
from labmesh.protocol.messages import ChunkStored, Committed, UploadGranted
from labmesh.protocol.upload_sender import Chunk, UploadSender

CONTENT = bytes(range(100))


def grant(offset: int = 0, chunk_bytes: int = 10, window: int = 3) -> UploadGranted:
    return UploadGranted(id="s", offset=offset, chunk_bytes=chunk_bytes, window=window)


def stored(offset: int, durable: int | None = None) -> ChunkStored:
    """Written, and on disk up to ``durable``; None: all of it."""
    return ChunkStored(id="c", offset=offset, durable=offset if durable is None else durable)


def read(sender: UploadSender, content: bytes = CONTENT) -> None:
    """Feed what the sender wants; a source of unknown length tells its end."""
    while size := sender.wants():
        piece = content[sender.position : sender.position + size]
        if not piece:
            sender.end()
            break
        sender.feed(sender.position, piece)


def offered(sender: UploadSender) -> list[tuple[int, bytes]]:
    chunks = []
    while (chunk := sender.next_chunk()) is not None:
        chunks.append((chunk.offset, bytes(chunk.piece)))
    return chunks


def sending(*, size: int | None = 100, seekable: bool = True, sent: int = 30) -> UploadSender:
    """A sender that has ``sent`` bytes under way in chunks of 10."""
    sender = UploadSender(size=size, seekable=seekable, chunk_bytes=10)
    sender.granted(grant(window=sent // 10))
    read(sender)
    assert len(offered(sender)) == sent // 10
    return sender


def test_nothing_is_read_or_sent_before_it_is_granted() -> None:
    sender = UploadSender(size=100, seekable=True)
    assert sender.wants() == 0
    assert sender.next_chunk() is None
    assert not sender.complete


def test_chunks_are_offered_within_the_window() -> None:
    sender = UploadSender(size=100, seekable=True)
    assert sender.granted(grant()) is None
    assert sender.wants() == 10
    read(sender)
    assert sender.kept_bytes == 30
    assert offered(sender) == [(n, CONTENT[n : n + 10]) for n in (0, 10, 20)]
    sender.stored(stored(10))
    assert sender.kept_bytes == 20
    assert sender.next_chunk() is None
    read(sender)
    assert offered(sender) == [(30, CONTENT[30:40])]


def test_one_acknowledgement_counts_for_all_before_it() -> None:
    sender = sending()
    sender.stored(stored(30))
    assert (sender.acknowledged, sender.kept_bytes) == (30, 0)
    sender.stored(stored(20))
    assert sender.acknowledged == 30
    read(sender)
    assert len(offered(sender)) == 3


@pytest.mark.parametrize("size", [100, None])
def test_an_upload_is_complete_when_all_is_acknowledged(size: int | None) -> None:
    sender = UploadSender(size=size, seekable=False, chunk_bytes=40)
    sender.granted(grant(chunk_bytes=1000, window=9))
    read(sender)
    chunks = offered(sender)
    assert [offset for offset, _ in chunks] == [0, 40, 80]
    assert b"".join(piece for _, piece in chunks) == CONTENT
    assert sender.wants() == 0
    sender.stored(stored(80))
    assert sender.ended
    assert not sender.complete
    sender.stored(stored(100))
    assert sender.complete
    assert sender.position == 100


def test_an_empty_source_is_complete_when_it_is_granted() -> None:
    sender = UploadSender(size=0, seekable=True)
    assert not sender.complete
    sender.granted(grant())
    assert sender.wants() == 0
    assert sender.complete


def test_an_empty_stream_is_complete_at_its_end() -> None:
    sender = UploadSender(size=None, seekable=False)
    sender.granted(grant())
    sender.feed(0, b"")
    assert not sender.complete
    sender.end()
    assert sender.complete


def test_the_smaller_of_both_sides_limits_holds() -> None:
    sender = UploadSender(size=100, seekable=True, chunk_bytes=7, window=2)
    sender.granted(grant(chunk_bytes=10, window=100))
    read(sender)
    assert [len(piece) for _, piece in offered(sender)] == [7, 7]


def test_a_piece_larger_than_a_chunk_is_cut() -> None:
    sender = UploadSender(size=25, seekable=True)
    sender.granted(grant())
    sender.feed(0, memoryview(CONTENT)[:25])
    assert offered(sender) == [(0, CONTENT[:10]), (10, CONTENT[10:20]), (20, CONTENT[20:25])]


# ── breaks ──


def test_after_a_break_nothing_is_sent_until_it_is_granted_again() -> None:
    sender = sending(sent=20)
    sender.stored(stored(20))
    sender.lost()
    assert sender.wants() == 0
    assert sender.next_chunk() is None
    assert sender.granted(grant(20)) is None
    read(sender)
    assert [offset for offset, _ in offered(sender)] == [20, 30, 40]


@pytest.mark.parametrize("seekable", [True, False])
@pytest.mark.parametrize("offset", [0, 10, 17, 30])
def test_what_was_not_acknowledged_is_sent_again_from_memory(seekable: bool, offset: int) -> None:
    sender = sending(seekable=seekable)
    sender.lost()
    assert sender.granted(grant(offset)) is None
    assert sender.position == 30
    assert b"".join(piece for _, piece in offered(sender)) == CONTENT[offset:30]
    assert sender.acknowledged == offset
    sender.stored(stored(30))
    assert sender.kept_bytes == 0


def test_a_smaller_grant_after_a_break_cuts_what_is_kept() -> None:
    sender = sending()
    sender.lost()
    sender.granted(grant(10, chunk_bytes=4, window=100))
    assert [offset for offset, _ in offered(sender)] == [10, 14, 18, 20, 24, 28]


def test_a_source_that_can_seek_goes_back_to_where_the_bank_is() -> None:
    sender = sending()
    sender.stored(stored(30))
    sender.lost()
    assert sender.granted(grant(0)) == 0
    assert (sender.position, sender.acknowledged, sender.kept_bytes) == (0, 0, 0)
    read(sender)
    assert offered(sender)[0] == (0, CONTENT[:10])


def test_a_source_that_cannot_seek_says_what_is_lost_and_what_to_do() -> None:
    sender = sending(seekable=False, size=None)
    sender.stored(stored(20))
    sender.lost()
    before = copy.copy(vars(sender))
    with pytest.raises(StorageError) as caught:
        sender.granted(grant(10))
    assert "first 10 bytes" in str(caught.value)
    assert "before byte 20" in str(caught.value)
    assert "upload again" in str(caught.value)
    assert vars(sender) == before


@pytest.mark.parametrize("seekable", [True, False])
def test_a_new_sender_goes_on_where_the_bank_is(seekable: bool) -> None:
    sender = UploadSender(size=100, seekable=seekable)
    assert sender.granted(grant(60)) == 60
    read(sender)
    assert offered(sender)[0] == (60, CONTENT[60:70])


def test_when_the_bank_has_all_already_there_is_nothing_to_read() -> None:
    sender = UploadSender(size=100, seekable=True)
    assert sender.granted(grant(100)) == 100
    assert sender.wants() == 0
    assert sender.complete


def test_an_end_that_was_told_is_known_after_a_break() -> None:
    sender = UploadSender(size=None, seekable=False)
    sender.granted(grant())
    sender.feed(0, CONTENT[:5])
    sender.end()
    sender.lost()
    sender.granted(grant(5))
    assert sender.complete


def test_a_stream_that_went_back_is_read_to_its_end_again() -> None:
    sender = UploadSender(size=None, seekable=True)
    sender.granted(grant())
    sender.feed(0, CONTENT[:5])
    sender.end()
    assert offered(sender) == [(0, CONTENT[:5])]
    sender.stored(stored(5))
    sender.lost()
    assert sender.granted(grant(0)) == 0
    assert not sender.ended
    assert sender.wants() == 10


# ── sources and banks that do not keep their word ──


def test_a_piece_that_was_read_before_the_source_was_moved_is_refused() -> None:
    sender = sending()
    sender.stored(stored(30))
    sender.lost()
    sender.granted(grant(0))
    with pytest.raises(ValueError, match="continues at 0"):
        sender.feed(30, CONTENT[30:40])
    assert sender.position == 0


def test_a_source_longer_than_declared_is_an_error() -> None:
    sender = UploadSender(size=5, seekable=True)
    sender.granted(grant())
    with pytest.raises(ChecksumMismatch, match="more than the 5 bytes"):
        sender.feed(0, CONTENT[:6])
    assert sender.kept_bytes == 0


def test_a_source_shorter_than_declared_is_an_error() -> None:
    sender = UploadSender(size=5, seekable=True)
    sender.granted(grant())
    sender.feed(0, CONTENT[:4])
    with pytest.raises(ChecksumMismatch, match="ended after 4 of the 5"):
        sender.end()
    assert not sender.complete
    sender.feed(4, CONTENT[4:5])
    sender.end()


@pytest.mark.parametrize(
    "nonsense", [grant(101), grant(chunk_bytes=0), grant(chunk_bytes=-1), grant(window=0)]
)
def test_a_grant_that_makes_no_sense_is_refused(nonsense: UploadGranted) -> None:
    sender = UploadSender(size=100, seekable=True)
    with pytest.raises(ProtocolError):
        sender.granted(nonsense)
    assert sender.wants() == 0


def test_a_bank_cannot_have_more_of_a_stream_than_there_was() -> None:
    sender = UploadSender(size=None, seekable=True)
    sender.granted(grant())
    sender.feed(0, CONTENT[:5])
    sender.end()
    sender.lost()
    with pytest.raises(ProtocolError, match="of a dataset of 5"):
        sender.granted(grant(6))


def test_bytes_that_were_not_sent_cannot_be_acknowledged() -> None:
    sender = sending(sent=20)
    with pytest.raises(ProtocolError, match="acknowledged 21 bytes of 20"):
        sender.stored(stored(21))
    assert sender.acknowledged == 0


def test_the_stored_record_must_be_of_what_was_sent() -> None:
    sender = sending()
    record = record_of("scan-1", CONTENT)
    answer = Committed(id="e", record=record)
    sha256 = record.sha256
    assert sender.committed(answer, dataset_id="scan-1", sha256=sha256) == record
    with pytest.raises(Conflict, match="another id"):
        sender.committed(answer, dataset_id="scan-1", sha256="0" * 64)
    with pytest.raises(Conflict, match="another id"):
        sender.committed(answer, dataset_id="scan-2", sha256=sha256)


def test_a_chunk_shares_the_memory_of_its_piece() -> None:
    sender = UploadSender(size=None, seekable=True)
    sender.granted(grant())
    piece = bytearray(b"abc")
    sender.feed(0, piece)
    chunk = sender.next_chunk()
    assert isinstance(chunk, Chunk)
    assert chunk.piece.obj is piece


# ── what is not durable ──


def test_a_source_that_cannot_seek_is_kept_until_it_is_durable() -> None:
    sender = sending(seekable=False, size=None)
    sender.stored(stored(30, durable=10))
    assert (sender.acknowledged, sender.kept_bytes) == (30, 20)
    sender.lost()
    # The bank was killed: it has what was durable, and gets the rest from memory.
    assert sender.granted(grant(10)) is None
    assert sender.position == 30
    read(sender)
    assert b"".join(piece for _, piece in offered(sender)) == CONTENT[10:40]
    sender.stored(stored(40, durable=5))
    assert sender.kept_bytes == 30
    with pytest.raises(ProtocolError):
        sender.stored(stored(500))


def test_no_more_is_called_durable_than_was_acknowledged() -> None:
    sender = sending(seekable=False, size=None)
    sender.stored(stored(10, durable=10_000))
    assert sender.kept_bytes == 20


@pytest.mark.parametrize("seekable", [True, False])
def test_only_a_source_that_cannot_seek_waits_for_durability(seekable: bool) -> None:
    sender = UploadSender(size=None, seekable=seekable, chunk_bytes=10, keep_bytes=40)
    sender.granted(grant())
    while sender.position < 40:
        read(sender)
        for offset, piece in offered(sender):
            sender.stored(stored(offset + len(piece), durable=0))
    assert sender.wants() == (10 if seekable else 0)
    assert sender.kept_bytes == (0 if seekable else 40)
    sender.stored(stored(40, durable=10))
    assert sender.wants() == 10
