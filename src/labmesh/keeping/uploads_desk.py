"""The uploads of a bank: what arrives at its ingest socket, and what is done about it."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine
from typing import Any, assert_never

import msgspec
from msgspec.structs import replace

from labmesh.errors import LabmeshError, Stopping, StorageError
from labmesh.keeping.bank_states import LastStates
from labmesh.keeping.bank_threads import BankThreads
from labmesh.keeping.upload_ends import UploadEnds
from labmesh.keeping.upload_turns import Item, Turn, leave, write_all
from labmesh.protocol.ids import check_id
from labmesh.protocol.messages import (
    ChunkStored,
    Committed,
    DatasetRecord,
    Reply,
    Request,
    UploadAbort,
    UploadChunk,
    UploadCommit,
    UploadStart,
    UploadWhole,
)
from labmesh.protocol.meta import check_meta
from labmesh.protocol.upload import UploadLimits, UploadReceiver
from labmesh.protocol.upload_steps import Discard, Finish, Open, Step, Store, UploadKey, Write
from labmesh.storage.base import BlobStore, Catalog, Part
from labmesh.transport.answering import Answer, Later, Origin
from labmesh.transport.large_memory import keep_freed_memory

__all__ = ["UploadsDesk"]

log = logging.getLogger(__name__)

#: Written bytes are made durable on the way when there are so many, or after so many seconds.
_SYNC_BYTES, _SYNC_S = 64 * 2**20, 1.0
#: The same for a sender that does not know its size: it may have to keep what is not durable.
_STREAM_SYNC_BYTES, _STREAM_SYNC_S = 8 * 2**20, 0.25
#: More than this is never acknowledged to such a sender before it is durable.
_STREAM_AHEAD_BYTES = 16 * 2**20
_MAX_PROVENANCE_BYTES = 64 * 2**10


class UploadsDesk:
    """Takes uploads into a store and a catalogue, on the running loop.

    The steps of one upload are done in the order of their arrival; those of different uploads
    overlap. While chunks arrive, what was written is made durable beside.

    :param states: the last states of the mesh, for the provenance.
    :param on_stored: called after each commit, once it is durable.
    """

    def __init__(
        self,
        bank_id: str,
        store: BlobStore,
        catalog: Catalog,
        threads: BankThreads,
        *,
        limits: UploadLimits,
        states: LastStates,
        on_stored: Callable[[DatasetRecord], None],
    ) -> None:
        self._bank_id = bank_id
        self._store = store
        self._catalog = catalog
        self._threads = threads
        self._ends = UploadEnds(store, catalog)
        self._receiver = UploadReceiver(bank_id, limits)
        self._states = states
        self._on_stored = on_stored
        self._turns: dict[UploadKey, Turn] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._moved = asyncio.Event()
        self._stopping = False
        keep_freed_memory()

    def __len__(self) -> int:
        return len(self._receiver)

    # ── life ────────────────────────────────────────────────────────────────────────────────────

    async def adopt(self) -> None:
        """Offer what an earlier process left to those who began it."""
        for part in await self._threads.run("catalog", self._store.unfinished):
            try:
                start = msgspec.msgpack.decode(part.note, type=UploadStart)
                stored = await self._threads.run("catalog", self._catalog.get, start.dataset_id)
                if stored is not None:
                    # It was, and the bank ended before it forgot the part.
                    await self._threads.run("commit", part.discard)
                    continue
                key = self._receiver.adopt(start, part.size, time.monotonic())
            except (msgspec.MsgspecError, LabmeshError) as exc:
                log.warning("an unfinished upload cannot be continued, and is dropped: %s", exc)
                await self._threads.run("commit", part.discard)
            else:
                log.info("upload of %s can go on at byte %d", start.dataset_id, part.size)
                self._turns[key] = Turn(part)

    async def expire(self) -> None:
        """Drop the uploads that their senders gave up; for ever."""
        while True:
            self._moved.clear()
            deadline = self._receiver.next_deadline()
            try:
                async with asyncio.timeout(
                    None if deadline is None else max(0.0, deadline - time.monotonic())
                ):
                    await self._moved.wait()
            except TimeoutError:
                for step in self._receiver.expire(time.monotonic()):
                    log.warning("upload of %s was given up by its sender", step.key.dataset_id)
                    await self._perform(step)

    async def finish(self) -> None:
        """Take nothing new, and do what has arrived."""
        self._stopping = True
        while workers := [turn.worker for turn in self._turns.values() if turn.worker is not None]:
            await asyncio.wait(workers)

    async def close(self) -> None:
        """End what is under way; what was written and is durable can be continued later."""
        self._stopping = True
        for turn in self._turns.values():
            if turn.timer is not None:
                turn.timer.cancel()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        parts = [turn.part for turn in self._turns.values() if turn.part is not None]
        await asyncio.gather(*(self._threads.run("sync", leave, part) for part in parts))
        self._turns.clear()

    # ── requests ────────────────────────────────────────────────────────────────────────────────

    def handle(self, request: Request, body: memoryview | None, origin: Origin) -> Answer | Later:
        """Answer one request of the ingest socket."""
        if self._stopping:
            raise Stopping(f"bank {self._bank_id} is stopping; go on when it is back")
        now = time.monotonic()
        match request:
            case UploadChunk():
                size = 0 if body is None else len(body)
                chunk = self._receiver.chunk(request, size, now)
                if self._receiver.is_stream(chunk.key):
                    return self._stream_chunk(chunk, body)
                return self._in_turn(chunk, body)
            case UploadWhole():
                assert body is not None
                return self._whole(request, body, origin)
            case UploadStart():
                return self._start(request, origin)
            case UploadCommit():
                return self._commit(request)
            case UploadAbort():
                step = self._receiver.abort(request)
                return self._done(step) if isinstance(step, Step) else step
            case _:
                raise AssertionError(f"{type(request).__name__} is not for ingest")

    async def _start(self, request: UploadStart, origin: Origin) -> Answer:
        check_id(request.dataset_id, "dataset id")
        if not self._receiver.is_open(request.dataset_id):
            request = await self._enriched(request, origin)
        stored = await self._threads.run("catalog", self._ends.whole_one, request.dataset_id)
        step = self._receiver.start(request, stored, time.monotonic())
        if isinstance(step, Committed):
            return step
        if isinstance(step.effect, Open):
            note = msgspec.msgpack.encode(request)
            await self._perform(step, memoryview(note))
            return step.reply
        return await self._done(step)

    async def _whole(self, request: UploadWhole, body: memoryview, origin: Origin) -> Answer:
        check_id(request.dataset_id, "dataset id")
        request = await self._enriched(request, origin)
        step = self._receiver.whole(request, len(body), time.monotonic(), time.time())
        record = await self._perform(step, body)
        assert record is not None
        return Committed(id=request.id, record=record)

    async def _stream_chunk(self, step: Step, body: memoryview | None) -> Answer:
        reply: ChunkStored = await self._in_turn(step, body)
        turn = self._turns.get(step.key)
        if turn is None or turn.part is None:
            return step.reply
        part = turn.part
        while turn.part is part and reply.offset - part.durable > _STREAM_AHEAD_BYTES:
            await turn.moved.wait()
        if turn.part is None:
            raise StorageError(f"the upload of {step.key.dataset_id} has failed; start again")
        return replace(reply, durable=part.durable)

    async def _commit(self, request: UploadCommit) -> Answer:
        stored = await self._look_up(request.dataset_id)
        step = self._receiver.commit(request, stored, time.monotonic(), time.time())
        if isinstance(step, Committed):
            return step
        record = await self._perform(step)
        assert record is not None
        return Committed(id=request.id, record=record)

    async def _done(self, step: Step) -> Answer:
        await self._perform(step)
        return step.reply

    async def _look_up(self, dataset_id: str) -> DatasetRecord | None:
        return await self._threads.run("catalog", self._catalog.get, dataset_id)

    async def _enriched(self, request: Any, origin: Origin) -> Any:
        """A request to begin, with what the bank itself knows of its origin."""
        check_meta(request.provenance, _MAX_PROVENANCE_BYTES)
        refusal = self._store.refusal()
        if refusal:
            raise StorageError(
                f"bank {self._bank_id} takes nothing for now: {refusal}; what it has can be read. "
                "Try again once that is mended, or use another bank"
            )
        known: dict[str, Any] = {"bank": self._bank_id, "started": time.time()}
        if origin.user:
            known["uploaded_by"] = origin.user
        known["states_at_start"], missing = await self._states.now()
        if missing:
            known["states_missing"] = missing
        return replace(request, provenance={**request.provenance, **known})

    # ── turns ───────────────────────────────────────────────────────────────────────────────────

    async def _perform(self, step: Step, body: memoryview | None = None) -> DatasetRecord | None:
        """Do a step in its turn; the record that it stored. What it raises has ended the upload."""
        outcome = await self._in_turn(step, body)
        return outcome if isinstance(outcome, DatasetRecord) else None

    def _in_turn(self, step: Step, body: memoryview | None) -> asyncio.Future[Any]:
        """The same, not awaited: of the record, or of the answer to a chunk."""
        turn = self._turns.setdefault(step.key, Turn())
        item = Item(step, body)
        turn.queue.append(item)
        if turn.worker is None:
            turn.worker = self._spawn(self._work(step.key, turn), step.key)
        return item.done

    def _spawn(self, work: Coroutine[Any, Any, None], key: UploadKey) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(
            work, name=f"{self._bank_id}: upload {key.dataset_id}"
        )
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _work(self, key: UploadKey, turn: Turn) -> None:
        items: list[Item] = []
        try:
            while turn.queue:
                items = turn.take()
                await self._do(key, turn, items)
        finally:
            turn.worker = None
            for item in [*items, *turn.queue]:
                item.fail(Stopping(f"bank {self._bank_id} stopped before this was done"))
            self._moved.set()
            if turn.part is None and not turn.queue:
                self._turns.pop(key, None)

    async def _do(self, key: UploadKey, turn: Turn, items: list[Item]) -> None:
        live = []
        for item in items:
            try:
                self._receiver.check(item.step)
                live.append(item)
            except LabmeshError as exc:
                item.fail(exc)
        try:
            record = await self._effect(key, turn, live) if live else None
        except Exception as exc:
            # Whatever it is, it ends this upload, and whoever asked is told.
            for item in live:
                item.fail(exc)
            await self._end(key, turn)
            return
        now = time.monotonic()
        for item in live:
            self._receiver.performed(item.step, now)
            item.end(record or _told(turn.part, item.step))
        if record is not None:
            log.info("stored %s (%d bytes)", record.dataset_id, record.size)
            self._on_stored(record)
        self._consider_sync(key, turn)

    async def _effect(self, key: UploadKey, turn: Turn, items: list[Item]) -> DatasetRecord | None:
        effect, body = items[0].step.effect, items[0].body
        match effect:
            case None | Write():
                pieces = [
                    (item.step.effect.offset, item.body)
                    for item in items
                    if isinstance(item.step.effect, Write) and item.body is not None
                ]
                if pieces:
                    await self._threads.run("write", write_all, turn.part, pieces)
            case Open():
                await self._replace(effect.instead_of)
                note = b"" if body is None else bytes(body)
                turn.part = await self._threads.run("write", self._store.begin, effect.size, note)
            case Store():
                await self._replace(effect.instead_of)
                return await self._threads.run(
                    "commit", self._ends.store_whole, effect.record, body
                )
            case Finish():
                if turn.syncing is not None:
                    await asyncio.wait([turn.syncing])
                record = await self._committed(effect.record)
                part, turn.part = turn.part, None
                return await self._threads.run("commit", self._ends.finish, part, record)
            case Discard():
                await self._discard(turn)
            case _:
                assert_never(effect)
        return None

    async def _committed(self, record: DatasetRecord) -> DatasetRecord:
        states, missing = await self._states.now()
        known: dict[str, Any] = {"committed": time.time(), "states_at_commit": states}
        if missing:
            known["states_missing"] = missing
        return replace(record, provenance={**record.provenance, **known})

    async def _replace(self, former: UploadKey | None) -> None:
        turn = None if former is None else self._turns.pop(former, None)
        if turn is not None:
            await self._discard(turn)

    async def _end(self, key: UploadKey, turn: Turn) -> None:
        self._receiver.failed(key)
        await self._discard(turn)

    async def _discard(self, turn: Turn) -> None:
        part, turn.part = turn.part, None
        if turn.timer is not None:
            turn.timer.cancel()
        turn.moved.set()
        if part is not None:
            await self._threads.run("commit", part.discard)

    # ── durability on the way ───────────────────────────────────────────────────────────────────

    def _consider_sync(self, key: UploadKey, turn: Turn) -> None:
        """Make what was written durable, now or soon."""
        part = turn.part
        if part is None or turn.syncing is not None or part.size == part.durable:
            return
        is_stream = self._receiver.is_stream(key)
        if part.size - part.durable >= (_STREAM_SYNC_BYTES if is_stream else _SYNC_BYTES):
            self._begin_sync(key, turn)
        elif turn.timer is None:
            turn.timer = asyncio.get_running_loop().call_later(
                _STREAM_SYNC_S if is_stream else _SYNC_S, self._begin_sync, key, turn
            )

    def _begin_sync(self, key: UploadKey, turn: Turn) -> None:
        if turn.timer is not None:
            turn.timer.cancel()
            turn.timer = None
        if turn.part is not None and turn.syncing is None and not self._stopping:
            turn.syncing = self._spawn(self._sync(key, turn, turn.part), key)

    async def _sync(self, key: UploadKey, turn: Turn, part: Part) -> None:
        try:
            await self._threads.run("sync", part.sync)
        except StorageError as exc:
            log.warning("upload of %s has failed: %s", key.dataset_id, exc)
            await self._end(key, turn)
        finally:
            turn.syncing = None
            moved, turn.moved = turn.moved, asyncio.Event()
            moved.set()
        self._consider_sync(key, turn)


def _told(part: Part | None, step: Step) -> Reply | None:
    """The answer to a chunk, with what is durable by now."""
    if part is None or not isinstance(step.reply, ChunkStored):
        return step.reply
    return replace(step.reply, durable=part.durable)
