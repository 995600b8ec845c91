"""Uploads and downloads: the loop around the machines, for relays, banks and clients."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import secrets
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import msgspec

from labmesh.content import Content, Piece, Sink, Source, open_source
from labmesh.errors import Busy, Conflict, LabmeshError, LinkLost, NoAnswer, ProtocolError
from labmesh.protocol.addresses import parse_connect
from labmesh.protocol.download import Download, Range
from labmesh.protocol.ids import check_id
from labmesh.protocol.messages import (
    ChunkStored,
    Committed,
    DatasetId,
    DatasetRecord,
    Done,
    Fetch,
    Fetched,
    UploadAbort,
    UploadChunk,
    UploadCommit,
    UploadGranted,
    UploadStart,
)
from labmesh.protocol.upload_sender import Chunk, UploadSender
from labmesh.transport.keys import Security
from labmesh.transport.link import Link
from labmesh.transport.sockets import Sockets

__all__ = ["Progress", "UploadSettings", "download", "upload", "upload_dataset"]

log = logging.getLogger(__name__)

#: Called with the bytes that are safe so far, and the size (None: not known yet).
Progress = Callable[[int, int | None], None]
#: Sends one Fetch and gives the answer: a link's request, or a client's.
AskFetch = Callable[[Fetch], Awaitable[tuple[Fetched, memoryview | None]]]

_BACKOFF_S, _BACKOFF_MAX_S = 0.1, 2.0
#: A commit waits for a disk: so many seconds, and longer for what is large.
_COMMIT_S, _COMMIT_BYTES_PER_S = 60.0, 20e6
_ABORT_S = 1.0
_TRANSIENT = (LinkLost, NoAnswer, Busy)


@dataclass(frozen=True)
class UploadSettings:
    """How patient an upload is.

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


async def upload_dataset(
    ingest: str,
    content: Content,
    *,
    relay_id: str = "",
    meta: Mapping[str, Any] | None = None,
    name: str = "",
    dataset_id: str | None = None,
    timeout: float = 10.0,
    retries: int = 5,
    chunk: int = 1_000_000,
    progress: Progress | None = None,
    security: Security | None = None,
) -> str:
    """Store a dataset in the bank at ``ingest``; returns its id once it is verified and on disk.

    :param ingest: the bank's ingest endpoint, such as ``tcp://127.0.0.1:5761``.
    :param content: bytes, a path, a binary file, or an (async) iterator of bytes.
    :param meta: what is worth knowing about it; plain values.
    :param dataset_id: its id; by default a new one, which begins with date and time (UTC).
    :param timeout: seconds that one step may take.
    :param retries: breaks in a row, without progress between them, that are survived.
    :param chunk: bytes sent at a time.
    :raises ConnectionError: the bank could not be reached.
    :raises TimeoutError: it did not answer.
    :raises Conflict: the id is taken by other content, which is kept.
    :raises NoSpace: the bank is full.
    """
    sockets = Sockets(security or Security.resolve(), "upload")
    try:
        record = await upload(
            sockets,
            str(parse_connect(ingest)),
            content,
            settings=UploadSettings(timeout, retries, chunk),
            relay_id=relay_id,
            name=name,
            meta=meta,
            dataset_id=dataset_id,
            progress=progress,
        )
    finally:
        sockets.close_all()
    return record.dataset_id


async def upload(
    sockets: Sockets,
    endpoint: str,
    content: Content,
    *,
    settings: UploadSettings,
    relay_id: str = "",
    name: str = "",
    kind: str = "bytes",
    meta: Mapping[str, Any] | None = None,
    dataset_id: str | None = None,
    progress: Progress | None = None,
) -> DatasetRecord:
    """:func:`upload_dataset` with a node's sockets; returns the record."""
    start = UploadStart(
        id="-",
        dataset_id=DatasetId(check_id(dataset_id or new_dataset_id(), "dataset id")),
        session=secrets.token_hex(16),
        relay_id=relay_id,
        name=name,
        kind=kind,
        meta=dict(meta or {}),
    )
    executor = ThreadPoolExecutor(1, thread_name_prefix="labmesh-upload")
    try:
        source = await open_source(content, executor)
        try:
            link = Link(sockets, endpoint, where="the bank")
            try:
                return await _Upload(link, source, start, settings, executor, progress).run()
            finally:
                link.close()
        finally:
            source.close()
    finally:
        executor.shutdown(wait=False)


def new_dataset_id() -> str:
    """A fresh id: date and time (UTC), and chance."""
    return f"{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}-{secrets.token_hex(4)}"


class _Upload:
    """One upload over one link, through every break."""

    def __init__(
        self,
        link: Link,
        source: Source,
        start: UploadStart,
        settings: UploadSettings,
        executor: ThreadPoolExecutor,
        progress: Progress | None,
    ) -> None:
        self._link = link
        self._source = source
        self._start = msgspec.structs.replace(start, size=source.size)
        self._settings = settings
        self._executor = executor
        self._progress = progress
        self._sender = UploadSender(
            size=source.size, seekable=source.seekable, chunk_bytes=settings.chunk_bytes
        )
        self._sha256 = hashlib.sha256()
        self._hashed = 0
        #: of the stored dataset of this id, once the source has turned out to be the same
        self._stored_sha256: str | None = None
        self._under_way: deque[asyncio.Task[ChunkStored]] = deque()

    async def run(self) -> DatasetRecord:
        failures, reached = 0, 0
        while True:
            try:
                return await self._attempt()
            except _TRANSIENT as exc:
                error: LabmeshError = exc
            except Conflict as exc:
                if await self._is_the_stored_one(exc):
                    continue
                if not self._may_start_again(exc):
                    raise
                error = exc
            except BaseException:
                await self._give_up()
                raise
            finally:
                await self._drop_requests()
            failures = 1 if self._sender.acknowledged > reached else failures + 1
            reached = self._sender.acknowledged
            if failures > self._settings.retries:
                raise type(error)(
                    f"the upload of {self._start.dataset_id} broke off at byte {reached}, and "
                    f"{failures} tries did not help: {error}",
                    **{**error.detail, "dataset_id": self._start.dataset_id},
                ) from error
            log.warning("upload of %s: %s; trying again", self._start.dataset_id, error)
            await asyncio.sleep(min(_BACKOFF_S * 2**failures, _BACKOFF_MAX_S))

    async def _is_the_stored_one(self, exc: Conflict) -> bool:
        """The id is taken. Read on to see whether it is by this very content."""
        size = exc.detail.get("size")
        read_before = self._hashed or self._stored_sha256 is not None
        if not isinstance(size, int) or read_before or self._source.size not in (None, size):
            return False
        loop = asyncio.get_running_loop()
        while self._hashed <= size:
            piece = await self._source.read(self._settings.chunk_bytes)
            if len(piece) == 0:
                break
            await loop.run_in_executor(self._executor, self._hash, self._hashed, piece)
        self._stored_sha256 = self._sha256.hexdigest()
        return (self._hashed, self._stored_sha256) == (size, exc.detail.get("sha256"))

    def _may_start_again(self, exc: Conflict) -> bool:
        """The bank was restarted, and knows nothing of this upload or less than was sent."""
        return "sha256" not in exc.detail and self._sender.position > 0

    async def _attempt(self) -> DatasetRecord:
        timeout_s = self._settings.timeout_s
        await self._link.wait_up(timeout_s)
        # Once all was read, the digest shows that a stored dataset of this id is this one: the
        # answer to an earlier commit may have been lost.
        sha256 = self._sha256.hexdigest() if self._sender.ended else self._stored_sha256
        start = msgspec.structs.replace(self._start, sha256=sha256)
        answer = await self._link.request(start, (UploadGranted, Committed), timeout=timeout_s)
        if isinstance(answer, Committed):
            return self._sender.committed(
                answer, dataset_id=start.dataset_id, sha256=self._sha256.hexdigest()
            )
        assert isinstance(answer, UploadGranted)
        position = self._sender.granted(answer)
        if position is not None:
            await self._source.seek(position)
        await self._send_all()
        return await self._commit()

    async def _send_all(self) -> None:
        while not self._sender.complete:
            await self._read()
            while (chunk := self._sender.next_chunk()) is not None:
                self._under_way.append(asyncio.ensure_future(self._send(chunk)))
            if not self._under_way and not self._sender.complete and not self._sender.wants():
                raise ProtocolError(
                    "the bank answered every chunk, but did not store all that was sent to it; try "
                    "another bank or version"
                )
            if self._under_way and (not self._sender.wants() or self._under_way[0].done()):
                self._sender.stored(await self._under_way.popleft())
                if self._progress is not None:
                    self._progress(self._sender.acknowledged, self._source.size)

    async def _read(self) -> None:
        """Feed the sender one piece, when it wants one."""
        size = self._sender.wants()
        if not size:
            return
        offset = self._sender.position
        piece = await self._source.read(size)
        if len(piece) == 0:
            self._sender.end()
            return
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self._executor, self._hash, offset, piece)
        self._sender.feed(offset, piece)

    def _hash(self, offset: int, piece: Piece) -> None:
        """Each byte once, also where a source was moved back."""
        new = memoryview(piece)[max(0, self._hashed - offset) :]
        self._sha256.update(new)
        self._hashed += len(new)

    async def _send(self, chunk: Chunk) -> ChunkStored:
        return await self._link.request(
            UploadChunk(
                id="-",
                dataset_id=self._start.dataset_id,
                session=self._start.session,
                offset=chunk.offset,
            ),
            ChunkStored,
            timeout=self._settings.timeout_s,
            body=chunk.piece,
        )

    async def _commit(self) -> DatasetRecord:
        sha256 = self._sha256.hexdigest()
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

    async def _drop_requests(self) -> None:
        """Forget what is under way: the bank will say where it stands."""
        self._sender.lost()
        for task in self._under_way:
            task.cancel()
        await asyncio.gather(*self._under_way, return_exceptions=True)
        self._under_way.clear()

    async def _give_up(self) -> None:
        """Have the bank forget the upload at once, where it can still be told."""
        if not self._link.up:
            return
        abort = UploadAbort(id="-", dataset_id=self._start.dataset_id, session=self._start.session)
        try:
            await self._link.request(abort, Done, timeout=_ABORT_S)
        except LabmeshError as exc:
            log.debug("upload of %s was not aborted: %s", self._start.dataset_id, exc)


async def download(
    ask: AskFetch,
    record: DatasetRecord,
    sink: Sink,
    *,
    retries: int = 5,
    progress: Progress | None = None,
) -> None:
    """Fetch a dataset into ``sink``, which keeps it when size and SHA-256 are right, else drops it.

    :raises ChecksumMismatch: other bytes came than the record promises.
    :raises ConnectionError: the bank was lost, and ``retries`` tries in a row did not help.
    """
    executor = ThreadPoolExecutor(1, thread_name_prefix="labmesh-download")
    loop = asyncio.get_running_loop()
    try:
        machine = Download(record.dataset_id, record)
        await _fetch_all(ask, machine, sink, executor, retries, progress)
        digest = await loop.run_in_executor(executor, sink.digest)
        machine.verify(digest)
        await loop.run_in_executor(executor, sink.keep)
    finally:
        await asyncio.shield(loop.run_in_executor(executor, sink.discard))
        executor.shutdown(wait=False)


async def _fetch_all(
    ask: AskFetch,
    machine: Download,
    sink: Sink,
    executor: ThreadPoolExecutor,
    retries: int,
    progress: Progress | None,
) -> None:
    failures, reached = 0, 0
    while not machine.complete:
        try:
            await _fetch_until_broken(ask, machine, sink, executor, progress)
        except _TRANSIENT as exc:
            failures = 1 if machine.written > reached else failures + 1
            reached = machine.written
            if failures > retries:
                raise
            log.warning("download of %s: %s; trying again", machine.record.dataset_id, exc)
            machine.lost()
            await asyncio.sleep(min(_BACKOFF_S * 2**failures, _BACKOFF_MAX_S))


async def _fetch_until_broken(
    ask: AskFetch,
    machine: Download,
    sink: Sink,
    executor: ThreadPoolExecutor,
    progress: Progress | None,
) -> None:
    under_way: deque[asyncio.Future[tuple[Fetched, memoryview | None]]] = deque()
    loop = asyncio.get_running_loop()
    try:
        while not machine.complete:
            while (wanted := machine.next_range()) is not None:
                under_way.append(asyncio.ensure_future(ask(_fetch(machine, wanted))))
            reply, body = await under_way.popleft()
            piece = body if body is not None else memoryview(b"")
            machine.fetched(reply.offset, len(piece))
            await loop.run_in_executor(executor, sink.write, piece)
            if progress is not None:
                progress(machine.written, machine.record.size)
    finally:
        for each in under_way:
            each.cancel()
        await asyncio.gather(*under_way, return_exceptions=True)


def _fetch(machine: Download, wanted: Range) -> Fetch:
    return Fetch(
        id="-", dataset_id=machine.record.dataset_id, offset=wanted.offset, size=wanted.size
    )
