"""Uploads as the sender sees them, counted in byte offsets. The other half is in upload."""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

from labmesh.errors import ChecksumMismatch, Conflict, ProtocolError, StorageError
from labmesh.protocol.messages import ChunkStored, Committed, DatasetRecord, UploadGranted

__all__ = ["KEEP_BYTES", "Chunk", "UploadSender"]

#: A bank makes every 16 MiB of an upload of unknown size durable before it acknowledges more.
KEEP_BYTES = 32 * 2**20


class Chunk(NamedTuple):
    """Bytes to send in one :class:`UploadChunk`."""

    offset: int
    piece: memoryview


class UploadSender:
    """The sending side of one upload: what to read, what to send, what to keep.

    The shell starts, and after ``lost()`` starts again, by UploadStart, whose answer it gives to
    ``granted()``. It reads ``wants()`` bytes of the source and gives them to ``feed()``, sends what
    ``next_chunk()`` offers, tells of acknowledgements by ``stored()``, of a broken link or a
    refusal by ``lost()``. It commits when ``complete`` is true. It tells only of replies to what it
    sent since the last grant.

    Pieces are kept until they are acknowledged, at most ``window`` chunks of them; those of a
    source that cannot seek until they are durable, at most ``keep_bytes``. So an upload survives
    every break, and every restart of the bank, also where no byte can be read twice.

    :param size: of the whole source; None: until ``end()`` is told.
    :param seekable: the source can be moved back.
    :param chunk_bytes: of a chunk, at most; the bank may grant less.
    :param window: chunks that are under way, at most; the bank may grant less.
    :param keep_bytes: what is held in memory for a source that cannot seek; when the bank has not
        made so much durable, nothing more is read.
    """

    def __init__(
        self,
        *,
        size: int | None,
        seekable: bool,
        chunk_bytes: int = 2**20,
        window: int = 8,
        keep_bytes: int = KEEP_BYTES,
    ) -> None:
        self._size = size
        self._seekable = seekable
        self._own_chunk_bytes = chunk_bytes
        self._own_window = window
        self._keep_bytes = keep_bytes
        self._chunk_bytes = self._window = 0
        self._granted = False
        self._ended = size == 0
        self._kept: deque[Chunk] = deque()
        self._acknowledged = self._durable = self._sent = self._position = 0
        #: where the chunks that are under way end
        self._under_way: deque[int] = deque()

    @property
    def position(self) -> int:
        """Where in the source the next piece begins."""
        return self._position

    @property
    def acknowledged(self) -> int:
        """Everything before it is stored."""
        return self._acknowledged

    @property
    def ended(self) -> bool:
        """The source was read to its end, ``position``; so its digest is known, and belongs into
        the next start: then a commit whose answer was lost is answered again.
        """
        return self._ended

    @property
    def complete(self) -> bool:
        """Everything is sent and acknowledged: time to commit ``position`` bytes."""
        return self._granted and self._ended and self._acknowledged == self._position

    @property
    def kept_bytes(self) -> int:
        """Bytes that are held in memory."""
        return self._position - self._kept[0].offset if self._kept else 0

    def granted(self, grant: UploadGranted) -> int | None:
        """Start or go on from ``grant.offset``.

        Returns the offset to which the source must be moved before it is fed from; None where it
        stays. A source that cannot seek is only ever moved forward, by reading.

        :raises StorageError: the bank lost bytes that the source cannot give again.
        :raises ProtocolError: the grant makes no sense.
        """
        offset = grant.offset
        self._check_grant(grant)
        kept_from = self._kept[0].offset if self._kept else self._position
        if offset < kept_from and not self._seekable:
            raise StorageError(
                f"the bank has only the first {offset} bytes, and this source cannot go back "
                f"before byte {kept_from}; upload again, from bytes or a file",
                offset=offset,
            )
        self._chunk_bytes = min(self._own_chunk_bytes, grant.chunk_bytes)
        self._window = min(self._own_window, grant.window)
        self._granted = True
        self._under_way.clear()
        self._acknowledged = self._sent = offset
        if kept_from <= offset <= self._position:
            self._release()
            return None
        self._kept.clear()
        self._position = offset
        self._ended = offset == self._size
        return offset

    def wants(self) -> int:
        """How many bytes to read from the source now; 0: none."""
        if not self._granted or self._ended:
            return 0
        if self._position - self._acknowledged >= self._window * self._chunk_bytes:
            return 0
        if self.kept_bytes >= self._keep_bytes and not self._seekable:
            return 0
        if self._size is None:
            return self._chunk_bytes
        return min(self._chunk_bytes, self._size - self._position)

    def feed(self, offset: int, piece: bytes | bytearray | memoryview) -> None:
        """Take the next bytes of the source, read at ``offset``. They must not change afterwards.

        :raises ValueError: the source was moved since; read again at ``position``.
        :raises ChecksumMismatch: the source is longer than its declared size.
        """
        if offset != self._position:
            raise ValueError(f"the source continues at {self._position}, not at {offset}")
        view = memoryview(piece).cast("B")
        position = self._position + len(view)
        if self._size is not None and position > self._size:
            raise ChecksumMismatch(
                f"the source has more than the {self._size} bytes declared; did it change "
                "meanwhile? Upload it again"
            )
        if view:
            self._kept.append(Chunk(self._position, view))
        self._position = position
        self._ended = self._ended or position == self._size

    def end(self) -> None:
        """The source has no more bytes.

        :raises ChecksumMismatch: it ended before its declared size.
        """
        if self._size not in (None, self._position):
            raise ChecksumMismatch(
                f"the source ended after {self._position} of the {self._size} bytes declared; did "
                "it change meanwhile? Upload it again"
            )
        self._ended = True

    def next_chunk(self) -> Chunk | None:
        """The next bytes to send; None: wait for acknowledgements, or feed."""
        if not self._granted or len(self._under_way) >= self._window:
            return None
        for offset, piece in self._kept:
            skip = self._sent - offset
            if skip < len(piece):
                chunk = Chunk(self._sent, piece[skip : skip + self._chunk_bytes])
                self._sent += len(chunk.piece)
                self._under_way.append(self._sent)
                return chunk
        return None

    def stored(self, reply: ChunkStored) -> None:
        """Take an acknowledgement; a late one says nothing new.

        :raises ProtocolError: it is of bytes that were never sent.
        """
        if reply.offset > self._sent:
            raise ProtocolError(
                f"the bank acknowledged {reply.offset} bytes of {self._sent} that were sent"
            )
        self._acknowledged = max(self._acknowledged, reply.offset)
        # A bank may not call durable what it has not even acknowledged.
        self._durable = max(self._durable, min(reply.durable, self._acknowledged))
        self._release()

    def lost(self) -> None:
        """The link broke, or the bank refused a chunk: nothing more until it is granted again."""
        self._granted = False

    def committed(self, reply: Committed, *, dataset_id: str, sha256: str) -> DatasetRecord:
        """The stored record, when it is of what was sent.

        :raises Conflict: the bank stored something else under this id.
        """
        record = reply.record
        if (record.dataset_id, record.sha256) != (dataset_id, sha256):
            raise Conflict(
                f"the bank answered with dataset {record.dataset_id} of SHA-256 {record.sha256}, "
                f"not with {dataset_id} of {sha256}; upload under another id"
            )
        return record

    def _check_grant(self, grant: UploadGranted) -> None:
        if grant.chunk_bytes < 1 or grant.window < 1:
            raise ProtocolError("the bank granted an upload without room for a chunk")
        end = self._position if self._ended else self._size
        if end is not None and grant.offset > end:
            raise ProtocolError(f"the bank has {grant.offset} bytes of a dataset of {end}")

    def _release(self) -> None:
        while self._under_way and self._under_way[0] <= self._acknowledged:
            self._under_way.popleft()
        safe = self._acknowledged if self._seekable else self._durable
        while self._kept and self._kept[0].offset + len(self._kept[0].piece) <= safe:
            self._kept.popleft()
