"""One download: the loop around its machine, through every break."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor

from labmesh.content import Sink
from labmesh.protocol.download import Download, Range
from labmesh.protocol.messages import DatasetRecord, Fetch, Fetched
from labmesh.transfer.patience import Patience
from labmesh.transfer.upload_run import TRANSIENT, Progress
from labmesh.transport.large_memory import keep_freed_memory

__all__ = ["AskFetch", "download"]

log = logging.getLogger(__name__)

#: Sends one Fetch and gives the answer: a link's request, or a client's.
AskFetch = Callable[[Fetch], Awaitable[tuple[Fetched, memoryview | None]]]

Answered = asyncio.Future[tuple[Fetched, memoryview | None]]

#: A bank that a person restarts is away for half a minute.
_PATIENCE_S = 60.0
#: So much is brought to disk beside, while more is on its way: the end would have to wait for it.
_SETTLE_BYTES = 32 * 2**20
#: Pieces that are written in one go: a hop to a thread costs as much as 100 kB.
_TOGETHER = 4


async def download(
    ask: AskFetch,
    record: DatasetRecord,
    sink: Sink,
    *,
    retries: int = 5,
    patience_s: float = _PATIENCE_S,
    progress: Progress | None = None,
) -> None:
    """Fetch a dataset into ``sink``, which keeps it when size and SHA-256 are right, else drops it.

    A sink may have ``settle()``: bring what was written closer to the disk. It is called in another
    thread, beside ``write()``, so that ``keep()`` has less to do; what it cannot do it leaves.

    It goes on behind the bytes that the sink has already. A break is survived: the download ends
    after more than ``retries`` tries in a row without progress, and not before ``patience_s``
    seconds without it.

    :raises ChecksumMismatch: other bytes came than the record promises.
    :raises ConnectionError: the bank was lost for too long.
    """
    keep_freed_memory()
    executor = ThreadPoolExecutor(1, thread_name_prefix="labmesh-download")
    settler = ThreadPoolExecutor(1, thread_name_prefix="labmesh-settle")
    loop = asyncio.get_running_loop()
    run = _Run(ask, record, sink, executor, settler, Patience(retries, patience_s), progress)
    try:
        await run.run()
        await loop.run_in_executor(executor, sink.keep)
    finally:
        try:
            # In the same thread: what is under way there ends first.
            await asyncio.shield(loop.run_in_executor(executor, sink.discard))
        finally:
            # Also when it is cancelled once more meanwhile: the thread does what it was given.
            executor.shutdown(wait=False)
            settler.shutdown(wait=False)


class _Run:
    def __init__(
        self,
        ask: AskFetch,
        record: DatasetRecord,
        sink: Sink,
        executor: ThreadPoolExecutor,
        settler: ThreadPoolExecutor,
        patience: Patience,
        progress: Progress | None,
    ) -> None:
        self._ask = ask
        self._record = record
        self._sink = sink
        self._executor = executor
        self._settler = settler
        self._patience = patience
        self._progress = progress
        self._settling: asyncio.Future[None] | None = None
        self._unsettled = 0

    def _settle(self, size: int) -> None:
        """``size`` more bytes were written."""
        settle = getattr(self._sink, "settle", None)
        if settle is None:
            return
        self._unsettled += size
        if self._unsettled >= _SETTLE_BYTES and (self._settling is None or self._settling.done()):
            self._unsettled = 0
            loop = asyncio.get_running_loop()
            self._settling = loop.run_in_executor(self._settler, settle)

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        begun = self._sink.offset
        if begun > self._record.size:
            begun = 0
            await loop.run_in_executor(self._executor, self._sink.restart)
        machine = Download(self._record.dataset_id, self._record, offset=begun)
        await self._fetch_all(machine)
        digest = await loop.run_in_executor(self._executor, self._sink.digest)
        if begun and digest != self._record.sha256:
            log.warning("what was left of %s was wrong; it is fetched anew", machine.dataset_id)
            await loop.run_in_executor(self._executor, self._sink.restart)
            machine = Download(self._record.dataset_id, self._record)
            await self._fetch_all(machine)
            digest = await loop.run_in_executor(self._executor, self._sink.digest)
        machine.verify(digest)

    async def _fetch_all(self, machine: Download) -> None:
        while not machine.complete:
            try:
                await self._fetch_until_broken(machine)
            except TRANSIENT as exc:
                pause_s = self._patience.pause_s(exc)
                if pause_s is None:
                    raise
                log.warning("download of %s: %s; trying again", machine.dataset_id, exc)
                machine.lost()
                await asyncio.sleep(pause_s)

    async def _fetch_until_broken(self, machine: Download) -> None:
        """What arrived is written in a thread while more is on its way."""
        under_way: deque[Answered] = deque()
        loop = asyncio.get_running_loop()
        try:
            while not machine.complete:
                while (wanted := machine.next_range()) is not None:
                    under_way.append(asyncio.ensure_future(self._ask(_fetch(machine, wanted))))
                pieces = [_taken(machine, await under_way.popleft())]
                # A break that is next comes to light when its turn comes: these are written first.
                while under_way and _is_here(under_way[0]) and len(pieces) < _TOGETHER:
                    pieces.append(_taken(machine, under_way.popleft().result()))
                # Ask for more before writing: the bank reads meanwhile.
                while (wanted := machine.next_range()) is not None:
                    under_way.append(asyncio.ensure_future(self._ask(_fetch(machine, wanted))))
                await loop.run_in_executor(self._executor, _write, self._sink, pieces)
                self._settle(sum(map(len, pieces)))
                self._patience.moved()
                if self._progress is not None:
                    self._progress(machine.written, self._record.size)
        finally:
            for each in under_way:
                each.cancel()
            await asyncio.gather(*under_way, return_exceptions=True)


def _is_here(answered: Answered) -> bool:
    return answered.done() and answered.exception() is None


def _taken(machine: Download, answer: tuple[Fetched, memoryview | None]) -> memoryview:
    reply, body = answer
    piece = body if body is not None else memoryview(b"")
    machine.fetched(reply.offset, len(piece))
    return piece


def _write(sink: Sink, pieces: list[memoryview]) -> None:
    for piece in pieces:
        sink.write(piece)


def _fetch(machine: Download, wanted: Range) -> Fetch:
    return Fetch(id="-", dataset_id=machine.dataset_id, offset=wanted.offset, size=wanted.size)
