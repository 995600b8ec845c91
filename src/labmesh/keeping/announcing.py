"""Tells the mesh of each dataset at least once, in the order of their commits."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

import msgspec

from labmesh.errors import ProtocolError, StorageError
from labmesh.keeping.bank_threads import BankThreads
from labmesh.protocol.messages import DatasetRecord
from labmesh.storage.base import Catalog

__all__ = ["Announcer"]

log = logging.getLogger(__name__)

_MARK = "announced"
_PAGE = 100
#: Whoever lost the broker has it back so long after the first who did: retries are 2 s apart.
_EVERYBODY_BACK_S = 3.0
#: The mark is stored no more often than this: what it saves is repeats.
_MARK_S = 1.0
#: When the mark was lost, so many of the newest datasets are announced once more.
_TAIL = 1000
_RETRY_S = 5.0


class Announcer:
    """Publishes the records that the catalogue has, from the last announced one on.

    It remembers in the catalogue how far it came. A kill, or a time without a broker, costs repeats
    and never an announcement: subscribers hear of a dataset once, however often it is announced.

    :param publish: sends one event; False: the broker is away.
    """

    def __init__(
        self, catalog: Catalog, threads: BankThreads, publish: Callable[[object], bool]
    ) -> None:
        self._catalog = catalog
        self._threads = threads
        self._publish = publish
        self._wake = asyncio.Event()
        self._broken = False
        self._announced = 0
        self._marked = 0
        #: up to where datasets were announced when the mark was looked at last
        self._to_mark = 0
        self._mark_at = 0.0
        #: what was announced while some may not have been listening: the last of it that all heard
        self._sure = 0
        #: when it is all announced again from there on
        self._again_at: float | None = None
        #: sequence of the newest record that is known to be there
        self.newest = 0

    @property
    def waiting(self) -> int:
        """Datasets that are not announced yet, about."""
        return max(0, self.newest - self._announced)

    def stored(self, record: DatasetRecord) -> None:
        """A dataset was committed."""
        self.newest = max(self.newest, record.sequence)
        self._wake.set()

    def events_up(self) -> None:
        """The broker takes events (again)."""
        self._broken = True
        self._wake.set()

    async def run(self) -> None:
        """Announce, for ever."""
        await self._begin()
        while True:
            try:
                async with asyncio.timeout(self._patience_s()):
                    await self._wake.wait()
            except TimeoutError:
                log.debug("nothing new: it is time for the mark, or to announce again")
            self._wake.clear()
            try:
                await self._turn()
            except StorageError as exc:
                log.warning("datasets wait to be announced: %s", exc)
                await asyncio.sleep(_RETRY_S)
                self._wake.set()

    def _patience_s(self) -> float | None:
        """How long there is nothing to do, unless something new comes."""
        if self._again_at is not None:
            return max(0.0, self._again_at - time.monotonic())
        return _MARK_S if self._marked != self._announced else None

    async def _turn(self) -> None:
        self._announced = await self._announce_from(self._announced)
        if self._broken:
            self._broken = False
            # Subscribers may find the broker again later than this bank does.
            self._again_at = time.monotonic() + _EVERYBODY_BACK_S
        if self._again_at is None:
            self._sure = self._announced
        elif time.monotonic() >= self._again_at:
            self._again_at = None
            self._sure = await self._announce_from(self._sure)
            self._announced = max(self._announced, self._sure)
        if time.monotonic() >= self._mark_at:
            await self._store_mark()

    async def _store_mark(self) -> None:
        """What was sent a while ago is on its way, also if this process is killed now."""
        if self._to_mark > self._marked:
            await self._threads.run("catalog", self._catalog.set_mark, _MARK, self._to_mark)
            self._marked = self._to_mark
        self._to_mark = self._announced
        self._mark_at = time.monotonic() + _MARK_S

    async def _begin(self) -> None:
        def look() -> tuple[int, int]:
            return self._catalog.mark(_MARK), self._catalog.last_sequence()

        mark, self.newest = await self._threads.run("catalog", look)
        if not 0 < mark <= self.newest:
            mark = max(0, self.newest - _TAIL)
        self._announced = self._sure = self._marked = self._to_mark = mark
        self._wake.set()

    async def _announce_from(self, sequence: int) -> int:
        """Announce what follows; returns up to where a broker took it."""
        while True:
            page = await self._threads.run("catalog", self._catalog.page, sequence, _PAGE)
            for record in page.records:
                if not self._say(record):
                    return sequence
                sequence = record.sequence
            if not page.more:
                self.newest = max(self.newest, sequence)
                return sequence

    def _say(self, record: DatasetRecord) -> bool:
        try:
            return self._publish(msgspec.to_builtins(record))
        except ProtocolError:
            # Its meta is too large or too deep for an event. It is stored, so it is announced;
            # whoever wants its meta asks for the record.
            return self._publish(msgspec.to_builtins(msgspec.structs.replace(record, meta={})))
