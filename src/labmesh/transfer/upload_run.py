"""One upload: the loop around its machine, through every break."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass

import msgspec

from labmesh.content import Source
from labmesh.errors import (
    Busy,
    ChecksumMismatch,
    Conflict,
    LabmeshError,
    LinkLost,
    NoAnswer,
    NotSent,
    ProtocolError,
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
from labmesh.protocol.upload_sender import Chunk, UploadSender
from labmesh.transfer.patience import Patience
from labmesh.transfer.running_digest import RunningDigest
from labmesh.transport.link import Link
from labmesh.transport.pending import Pending

__all__ = ["TRANSIENT", "WHOLE_BYTES", "Progress", "UploadRun", "UploadSettings"]

log = logging.getLogger(__name__)

#: Called with the bytes that are safe so far, and the size (None: not known yet).
Progress = Callable[[int, int | None], None]

#: Up to this size a dataset goes in one message.
WHOLE_BYTES = 256 * 2**10
#: What a try again may mend.
TRANSIENT = (LinkLost, NoAnswer, Busy)

#: Read at a time from what can be read again; a hop to a thread costs as much as 100 kB.
_READ_BYTES = 4 * 2**20
#: Bytes that were sent and wait to be hashed.
_UNHASHED_BYTES = 8 * 2**20
#: A commit waits for a disk: so many seconds, and longer for what is large.
_COMMIT_S, _COMMIT_BYTES_PER_S = 60.0, 20e6
_ABORT_S = 1.0
#: After so long the log says why there is no bank.
_SAY_S = 1.5


@dataclass(frozen=True)
class UploadSettings:
    """How patient an upload is.

    It ends after more than ``retries`` tries in a row that brought nothing, and not before
    ``retries * timeout_s`` seconds without progress: 50 s by default.

    :param timeout_s: seconds that one step may take.
    :param retries: breaks in a row, without a byte of progress between them, that it survives.
    :param chunk_bytes: bytes sent at a time (the bank may ask for fewer).
    """

    timeout_s: float = 10.0
    retries: int = 5
    chunk_bytes: int = 1_000_000

    def __post_init__(self) -> None:
        if self.timeout_s <= 0 or self.retries < 0 or self.chunk_bytes < 1:
            raise ValueError(
                "an upload needs a timeout above 0 s, 0 or more retries, chunks of 1 byte or more; "
                f"not {self.timeout_s}, {self.retries}, {self.chunk_bytes}"
            )

    @property
    def whole_bytes(self) -> int:
        """Up to this size a dataset is sent in one message."""
        return min(self.chunk_bytes, WHOLE_BYTES)


class UploadRun:
    """One upload over one link.

    :param executor: two threads: one reads while the other hashes.
    """

    def __init__(
        self,
        link: Link,
        source: Source,
        start: UploadStart,
        settings: UploadSettings,
        executor: Executor,
        progress: Progress | None,
    ) -> None:
        self._link = link
        self._source = source
        self._start = msgspec.structs.replace(start, size=source.size)
        self._settings = settings
        self._progress = progress
        self._patience = Patience(settings.retries, settings.retries * settings.timeout_s)
        self._sender = UploadSender(
            size=source.size, seekable=source.seekable, chunk_bytes=settings.chunk_bytes
        )
        #: the most that was ever acknowledged
        self._reached = 0
        self._digest = RunningDigest(executor)
        self._is_small = source.size is not None and source.size <= settings.whole_bytes
        self._whole: bytes | memoryview | None = None
        #: read of the source, and not fed to the sender yet
        self._ahead = memoryview(b"")
        #: of the stored dataset of this id, once the source has turned out to be the same
        self._stored_sha256: str | None = None
        self._under_way: deque[Pending] = deque()

    async def run(self, *, keep: bool = False) -> DatasetRecord:
        """Upload; returns the record once it is durable.

        :param keep: whoever interrupts this goes on with it later: the bank is not told to forget.
        """
        while True:
            try:
                return await self._attempt()
            except TRANSIENT as exc:
                error: LabmeshError = exc
            except Conflict as exc:
                if await self._is_the_stored_one(exc):
                    continue
                if not self._may_start_again(exc):
                    raise
                error = exc
            except BaseException:
                if not keep:
                    await self._give_up()
                raise
            finally:
                self._drop_requests()
            await self._wait_after(error)

    async def _wait_after(self, error: LabmeshError) -> None:
        """Pause before the next try; raises when there is none."""
        pause_s = self._patience.pause_s(error)
        if pause_s is None:
            reached = self._sender.acknowledged
            raise type(error)(
                f"the upload of {self._start.dataset_id} broke off at byte {reached}, and "
                f"{self._patience.failures} tries did not help: {error}",
                **{**error.detail, "dataset_id": self._start.dataset_id},
            ) from error
        log.warning("upload of %s: %s; trying again", self._start.dataset_id, error)
        await asyncio.sleep(pause_s)

    async def _attempt(self) -> DatasetRecord:
        await self._reach_bank()
        if self._is_small:
            try:
                return await self._send_whole()
            except TooLarge:
                # This bank takes less in one message, or none of it in any form: it will say so.
                self._is_small = False
                if self._source.seekable:
                    await self._source.seek(0)
        return await self._send_in_chunks()

    async def _reach_bank(self) -> None:
        timeout_s = self._settings.timeout_s
        try:
            await self._link.wait_up(min(_SAY_S, timeout_s))
        except NotSent as exc:
            if timeout_s <= _SAY_S:
                raise
            log.warning("upload of %s waits: %s", self._start.dataset_id, exc)
            await self._link.wait_up(timeout_s - _SAY_S)

    # ── small ones ──────────────────────────────────────────────────────────────────────────────

    async def _send_whole(self) -> DatasetRecord:
        start = self._start
        if self._whole is None:
            self._whole = await self._read_whole()
            self._digest.add(0, self._whole)
        sha256 = await self._digest.hexdigest()
        request = UploadWhole(
            id="-",
            dataset_id=start.dataset_id,
            sha256=sha256,
            relay_id=start.relay_id,
            name=start.name,
            kind=start.kind,
            meta=start.meta,
            parents=start.parents,
            tags=start.tags,
            provenance=start.provenance,
        )
        timeout_s = max(self._settings.timeout_s, _COMMIT_S)
        answer = await self._link.request(request, Committed, timeout=timeout_s, body=self._whole)
        record = self._sender.committed(answer, dataset_id=start.dataset_id, sha256=sha256)
        self._tell(record.size)
        return record

    async def _read_whole(self) -> bytes | memoryview:
        size = self._source.size
        assert size is not None
        pieces: list[bytes | memoryview] = []
        left = size
        while left:
            piece = await self._source.read(left)
            if len(piece) == 0:
                raise ChecksumMismatch(
                    f"the source ended after {size - left} of the {size} bytes declared; did it "
                    "change meanwhile? Upload it again"
                )
            pieces.append(memoryview(piece).cast("B"))
            left -= len(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    # ── large ones ──────────────────────────────────────────────────────────────────────────────

    async def _send_in_chunks(self) -> DatasetRecord:
        # Once all was read, the digest shows that a stored dataset of this id is this one: the
        # answer to an earlier commit may have been lost.
        ended = self._sender.ended and self._digest.reached == self._sender.position
        sha256 = await self._digest.hexdigest() if ended else self._stored_sha256
        start = msgspec.structs.replace(self._start, sha256=sha256)
        answer = await self._link.request(
            start, (UploadGranted, Committed), timeout=self._settings.timeout_s
        )
        if isinstance(answer, Committed):
            digest = await self._digest.hexdigest()
            return self._sender.committed(answer, dataset_id=start.dataset_id, sha256=digest)
        assert isinstance(answer, UploadGranted)
        position = self._sender.granted(answer)
        if position is not None:
            await self._move_to(position)
        await self._send_all()
        return await self._commit()

    async def _move_to(self, position: int) -> None:
        """Where the bank wants to go on; its digest needs also what an earlier process sent."""
        self._ahead = memoryview(b"")
        if self._source.seekable:
            await self._source.seek(self._digest.reached)
        await self._hash_on(position)
        if self._source.seekable:
            await self._source.seek(position)

    async def _hash_on(self, end: int) -> None:
        """Read the source from where it stands, without sending it; at most up to ``end``."""
        while self._digest.reached < end:
            piece = await self._source.read(min(_READ_BYTES, end - self._digest.reached))
            if len(piece) == 0:
                return
            self._digest.add(self._digest.reached, piece)
            await self._digest.room(_UNHASHED_BYTES)

    async def _send_all(self) -> None:
        while not self._sender.complete:
            await self._read()
            while (chunk := self._sender.next_chunk()) is not None:
                self._under_way.append(self._sent(chunk))
            if not self._under_way and not self._sender.complete and not self._sender.wants():
                raise ProtocolError(
                    "the bank answered every chunk, but did not store all that was sent to it; try "
                    "another bank or version"
                )
            if self._under_way and (not self._sender.wants() or self._under_way[0].future.done()):
                first = self._under_way.popleft()
                self._sender.stored(await self._link.reply_to(first, ChunkStored))
                self._tell(self._sender.acknowledged)

    async def _read(self) -> None:
        """Feed the sender one piece, when it wants one."""
        size = self._sender.wants()
        if not size:
            return
        offset = self._sender.position
        if not self._ahead:
            self._ahead = memoryview(await self._source.read(self._ahead_of(offset, size)))
            if not len(self._ahead):
                self._sender.end()
                return
        piece, self._ahead = self._ahead[:size], self._ahead[size:]
        self._digest.add(offset, piece)
        await self._digest.room(_UNHASHED_BYTES)
        self._sender.feed(offset, piece)

    def _ahead_of(self, offset: int, size: int) -> int:
        """How much to read where ``size`` is wanted. What comes slowly is sent as it comes."""
        if not self._source.seekable or self._source.size is None:
            return size
        return min(max(size, _READ_BYTES), self._source.size - offset)

    def _sent(self, chunk: Chunk) -> Pending:
        return self._link.begin(
            UploadChunk(
                id="-",
                dataset_id=self._start.dataset_id,
                session=self._start.session,
                offset=chunk.offset,
            ),
            timeout=self._settings.timeout_s,
            body=chunk.piece,
        )

    async def _commit(self) -> DatasetRecord:
        sha256 = await self._digest.hexdigest()
        size = self._sender.position
        answer = await self._link.request(
            UploadCommit(
                id="-",
                dataset_id=self._start.dataset_id,
                session=self._start.session,
                size=size,
                sha256=sha256,
            ),
            Committed,
            timeout=max(self._settings.timeout_s, _COMMIT_S + size / _COMMIT_BYTES_PER_S),
        )
        return self._sender.committed(answer, dataset_id=self._start.dataset_id, sha256=sha256)

    def _tell(self, done: int) -> None:
        # What is sent once more is no progress: it might go on for ever.
        if done > self._reached:
            self._reached = done
            self._patience.moved()
        if self._progress is not None:
            self._progress(done, self._source.size)

    # ── breaks ──────────────────────────────────────────────────────────────────────────────────

    async def _is_the_stored_one(self, exc: Conflict) -> bool:
        """The id is taken. Read on to see whether it is by this very content."""
        size = exc.detail.get("size")
        read_before = self._digest.reached or self._stored_sha256 is not None
        if not isinstance(size, int) or read_before or self._source.size not in (None, size):
            return False
        await self._hash_on(size + 1)
        self._stored_sha256 = await self._digest.hexdigest()
        known = (self._digest.reached, self._stored_sha256)
        return known == (size, exc.detail.get("sha256"))

    def _may_start_again(self, exc: Conflict) -> bool:
        """The bank was restarted, and knows nothing of this upload or less than was sent."""
        return "sha256" not in exc.detail and self._sender.position > 0

    def _drop_requests(self) -> None:
        """Forget what is under way: the bank will say where it stands."""
        self._sender.lost()
        for pending in self._under_way:
            self._link.forget(pending)
        self._under_way.clear()

    async def _give_up(self) -> None:
        """Have the bank forget the upload at once, where it can still be told."""
        if self._is_small or not self._link.up:
            return
        abort = UploadAbort(id="-", dataset_id=self._start.dataset_id, session=self._start.session)
        try:
            await self._link.request(abort, Done, timeout=_ABORT_S)
        except LabmeshError as exc:
            log.debug("upload of %s was not aborted: %s", self._start.dataset_id, exc)
