"""How datasets leave a relay: by way of its spool, or straight to a bank; from the loop, or from a
thread such as the driver's.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import threading
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

from msgspec.structs import replace

from labmesh.content import Content, Packed, Source, open_source, packed
from labmesh.protocol.messages import DatasetId, DatasetRecord, NodeRecord, UploadStart
from labmesh.protocol.meta import plain_meta
from labmesh.protocol.spooling import check_start
from labmesh.serving.banks import Bank, Banks
from labmesh.serving.spool import SpoolSender
from labmesh.storage.spool import Incoming, Spool, Spooled
from labmesh.transfer import Progress, UploadSettings, new_dataset_id, upload
from labmesh.transport.sockets import Sockets

__all__ = ["RelayUploads"]

log = logging.getLogger(__name__)

T = TypeVar("T")

_PIECE_BYTES = 2**20
_BYTES = (bytes, bytearray, memoryview)


class Lend(Protocol):
    """Runs work for a user, which ends with the node."""

    def __call__(self, work: Coroutine[Any, Any, T], name: str, /) -> Awaitable[T]: ...


class RelayUploads:
    """The uploads of one relay, on the loop that made this.

    :param list_banks: the banks of the directory.
    :param provenance: what the relay knows of a dataset that is taken now; called in the thread
        that uploads.
    :param spool: where datasets wait; None: they go straight to their bank.
    """

    def __init__(
        self,
        relay_id: str,
        sockets: Sockets,
        list_banks: Callable[[], Awaitable[list[NodeRecord]]],
        *,
        settings: UploadSettings,
        provenance: Callable[[], dict[str, Any]],
        lend: Lend,
        spool: Spool | None,
    ) -> None:
        self._relay_id = relay_id
        self._sockets = sockets
        self._banks = Banks(sockets, list_banks)
        self._settings = settings
        self._provenance = provenance
        self._lend = lend
        self._spool = spool
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()
        #: sends the spool; None: there is none
        self.sender: SpoolSender | None = None
        if spool is not None:
            self.sender = SpoolSender(relay_id, spool, self._banks, self._send_spooled)

    async def upload(
        self,
        content: Any,
        *,
        name: str = "",
        meta: Mapping[str, Any] | None = None,
        kind: str | None = None,
        bank: str | None = None,
        dataset_id: str | None = None,
        parents: Iterable[str] = (),
        tags: Iterable[str] = (),
        wait: bool = False,
        progress: Progress | None = None,
        provenance: Mapping[str, Any] | None = None,
    ) -> str:
        """Store a dataset; see :meth:`RelayAgent.upload`."""
        executor = ThreadPoolExecutor(1, thread_name_prefix="labmesh-pack")
        loop = asyncio.get_running_loop()
        known = dict(provenance) if provenance is not None else None
        try:
            if known is None:
                known = await loop.run_in_executor(executor, self._provenance)
            made = await loop.run_in_executor(executor, _packed, content, kind)
            try:
                start = self._start(name, meta, made.kind, dataset_id, parents, tags, known)
                return await self._store_or_send(made.content, start, bank, wait, progress)
            finally:
                await loop.run_in_executor(executor, made.close)
        finally:
            executor.shutdown(wait=False)

    async def _store_or_send(
        self,
        content: Content,
        start: UploadStart,
        bank_id: str | None,
        wait: bool,
        progress: Progress | None,
    ) -> str:
        if self.sender is None:
            bank = await (self._banks.any(None) if bank_id is None else self._banks.named(bank_id))
            await self._send(bank, content, start, progress)
            return start.dataset_id
        spooled = await self._store(content, start, bank_id or "", progress)
        if wait:
            await self.sender.wait_sent(spooled)
        return start.dataset_id

    def upload_from_thread(self, content: Any, **details: Any) -> str:
        """:meth:`upload` for another thread, which it blocks. With a spool, an iterator runs in
        that very thread; without, in one of its own.

        :raises RuntimeError: this is the thread of the loop.
        """
        if threading.get_ident() == self._thread:
            raise RuntimeError("this is the thread of the relay's loop: await relay.upload(...)")
        details.setdefault("provenance", self._provenance())
        if self._spool is not None and _is_iterator(content):
            return self._store_here(content, **details)
        return self._on_loop(self.upload(content, **details))

    def _store_here(
        self,
        pieces: Iterable[Any],
        *,
        provenance: Mapping[str, Any],
        name: str = "",
        meta: Mapping[str, Any] | None = None,
        kind: str | None = None,
        bank: str | None = None,
        dataset_id: str | None = None,
        parents: Iterable[str] = (),
        tags: Iterable[str] = (),
        wait: bool = False,
        progress: Progress | None = None,
    ) -> str:
        assert self._spool is not None
        assert self.sender is not None
        sender = self.sender
        start = self._start(name, meta, kind or "bytes", dataset_id, parents, tags, provenance)
        incoming = self._spool.begin(start, bank or "")
        try:
            for piece in pieces:
                if not isinstance(piece, _BYTES):
                    raise TypeError(f"an upload takes pieces of bytes, not {type(piece).__name__}")
                incoming.write(piece)
                if progress is not None:
                    progress(incoming.size, None)
            spooled = incoming.finish()
        except BaseException as exc:
            _told(exc, incoming, incoming.abandon(_reason(exc), keep=True))
            raise
        self._loop.call_soon_threadsafe(sender.look)
        if wait:
            self._on_loop(sender.wait_sent(spooled))
        return start.dataset_id

    def _on_loop(self, work: Coroutine[Any, Any, T]) -> T:
        async def lent() -> T:
            return await self._lend(work, "upload")

        return asyncio.run_coroutine_threadsafe(lent(), self._loop).result()

    def _start(
        self,
        name: str,
        meta: Mapping[str, Any] | None,
        kind: str,
        dataset_id: str | None,
        parents: Iterable[str],
        tags: Iterable[str],
        provenance: Mapping[str, Any],
    ) -> UploadStart:
        return check_start(
            UploadStart(
                id="-",
                dataset_id=DatasetId(dataset_id or new_dataset_id()),
                session=secrets.token_hex(16),
                relay_id=self._relay_id,
                name=name,
                kind=kind,
                meta=plain_meta(meta or {}),
                parents=[DatasetId(each) for each in parents],
                tags=list(tags),
                provenance=dict(provenance),
            )
        )

    # ── into the spool ──────────────────────────────────────────────────────────────────────────

    async def _store(
        self, content: Content, start: UploadStart, bank: str, progress: Progress | None
    ) -> Spooled:
        assert self._spool is not None
        assert self.sender is not None
        executor = ThreadPoolExecutor(1, thread_name_prefix="labmesh-spool")
        try:
            source = await open_source(content, executor)
            try:
                begin = partial(self._spool.begin, replace(start, size=source.size), bank)
                incoming = await self._loop.run_in_executor(executor, begin)
                return await self._fill(incoming, source, executor, progress)
            finally:
                source.close()
                # Also behind a caller that was cancelled in the last step, which is done all the
                # same.
                self.sender.look()
        finally:
            executor.shutdown(wait=False)

    async def _fill(
        self,
        incoming: Incoming,
        source: Source,
        executor: ThreadPoolExecutor,
        progress: Progress | None,
    ) -> Spooled:
        loop = self._loop
        try:
            while len(piece := await source.read(_PIECE_BYTES)):
                await loop.run_in_executor(executor, incoming.write, piece)
                if progress is not None:
                    progress(incoming.size, source.size)
            return await loop.run_in_executor(executor, incoming.finish)
        except BaseException as exc:
            # Of what has a size, the whole is still where it came from.
            abandon = partial(incoming.abandon, _reason(exc), keep=source.size is None)
            where = await asyncio.shield(loop.run_in_executor(executor, abandon))
            _told(exc, incoming, where)
            raise

    # ── to a bank ───────────────────────────────────────────────────────────────────────────────

    async def _send_spooled(self, spooled: Spooled, bank: Bank) -> DatasetRecord:
        entry = spooled.entry
        times = {"began": entry.began, "ended": entry.ended}
        start = replace(
            entry.start, provenance={**entry.start.provenance, "acquired": times}, size=None
        )
        return await self._send(bank, spooled.path, start, None, session=start.session)

    async def _send(
        self,
        bank: Bank,
        content: Content,
        start: UploadStart,
        progress: Progress | None,
        *,
        session: str | None = None,
    ) -> DatasetRecord:
        """``session``: it is gone on with later when it is interrupted, by whichever process."""
        return await upload(
            self._sockets,
            bank.endpoint,
            content,
            settings=self._settings,
            relay_id=start.relay_id,
            name=start.name,
            kind=start.kind,
            meta=start.meta,
            dataset_id=start.dataset_id,
            parents=start.parents,
            tags=start.tags,
            provenance=start.provenance,
            session=session,
            progress=progress,
        )


def _packed(value: Any, kind: str | None) -> Packed:
    """Text is a path here, and a list is of pieces of bytes."""
    if isinstance(value, str):
        return packed(Path(value), kind)
    if isinstance(value, list | tuple):
        return Packed(value, kind or "bytes")
    return packed(value, kind)


def _is_iterator(content: Any) -> bool:
    """A generator and the like, whose code may mind in which thread it runs; not a file."""
    return isinstance(content, Iterator) and not hasattr(content, "read")


def _reason(exc: BaseException) -> str:
    text = f"{type(exc).__name__}: {exc}".rstrip(": ")
    return f"it was interrupted while it came in ({text}); this is what was stored of it"


def _told(exc: BaseException, incoming: Incoming, where: Path | None) -> None:
    """Whoever learns of the interruption, and the log, learn where the rest is."""
    if where is not None:
        text = f"the first {incoming.size} bytes of {incoming.dataset_id} are kept in {where}"
        exc.add_note(text)
        log.warning("%s was interrupted: %s", incoming.dataset_id, text)
