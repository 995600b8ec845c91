"""What sends a relay's spool to the banks, for as long as it takes."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any

from labmesh.errors import ChecksumMismatch, Damaged, LabmeshError
from labmesh.protocol.messages import DatasetRecord
from labmesh.protocol.spooling import Place, may_be_elsewhere, retry_s, trouble_of
from labmesh.serving.banks import Bank, Banks
from labmesh.storage.spool import Spool, Spooled

__all__ = ["SpoolSender"]

log = logging.getLogger(__name__)

_SYNC_S = 1.0
#: Uploads one spooled dataset to a bank, and returns when that has it.
Send = Callable[[Spooled, Bank], Awaitable[DatasetRecord]]


class SpoolSender:
    """Sends what waits, oldest first, and removes it once a bank has it.

    What is for a bank that is away, or was begun there, waits for that bank; the rest goes on. What
    no bank will ever take is put aside, and never deleted. It belongs to one loop.

    :param name: the relay's id, for the log.
    """

    def __init__(self, name: str, spool: Spool, banks: Banks, send: Send) -> None:
        self._name = name
        self._spool = spool
        self._banks = banks
        self._send = send
        self._changed = asyncio.Event()
        self._idle = asyncio.Event()
        #: by bank; empty: any. Each sends one dataset after the other
        self._lanes: dict[str, asyncio.Task[None]] = {}
        #: why a lane does not get on
        self._errors: dict[str, str] = {}
        #: of datasets, by number
        self._failures: dict[int, int] = {}
        self._retry_at: dict[int, float] = {}
        self._verified: set[int] = set()
        self._waiters: dict[int, asyncio.Future[None]] = {}
        self._put_aside_for: dict[int, Exception] = {}
        #: what is being sent now: number → dataset id
        self._in_hand: dict[int, str] = {}

    def look(self) -> None:
        """Something was added; on the loop."""
        self._changed.set()

    async def wait_sent(self, spooled: Spooled) -> None:
        """Wait until a bank has it.

        :raises LabmeshError: why it was put aside instead.
        """
        error = self._put_aside_for.get(spooled.number)
        if error is not None:
            raise error
        if any(each.number == spooled.number for each in self._spool.waiting()):
            waiter = self._waiters.get(spooled.number)
            if waiter is None:
                waiter = asyncio.get_running_loop().create_future()
                self._waiters[spooled.number] = waiter
            self.look()
            await asyncio.shield(waiter)

    async def drain(self) -> None:
        """Wait until nothing waits any more."""
        while self._spool.waiting():
            self._idle.clear()
            await self._idle.wait()

    def facts(self) -> dict[str, Any]:
        """How it stands, for the relay's status."""
        facts = self._spool.facts()
        return {
            "folder": str(self._spool.root),
            "datasets": facts.waiting,
            "bytes": facts.waiting_bytes,
            "oldest_age_s": None if facts.oldest is None else max(0.0, time.time() - facts.oldest),
            "sending": sorted(self._in_hand.values()),
            "error": "; ".join(self._errors.values()),
            **{str(place): count for place, count in facts.aside.items()},
            "used_bytes": facts.used_bytes,
            "limit_bytes": self._spool.limit_bytes,
        }

    async def run(self) -> None:
        """Go on until cancelled."""
        for text in self._spool.found:
            log.warning("%s: %s", self._name, text)
        facts = self._spool.facts()
        if facts.waiting:
            text = "%s: %d datasets (%d bytes) wait in the spool %s"
            log.info(text, self._name, facts.waiting, facts.waiting_bytes, self._spool.root)
        async with asyncio.TaskGroup() as group:
            group.create_task(self._sync_streams())
            while True:
                self._changed.clear()
                waiting = self._spool.waiting()
                if not waiting:
                    self._idle.set()
                for spooled in waiting:
                    if spooled.bank not in self._lanes and spooled.number not in self._in_hand:
                        self._lanes[spooled.bank] = group.create_task(self._drain(spooled.bank))
                await self._changed.wait()

    async def _sync_streams(self) -> None:
        while True:
            await asyncio.sleep(_SYNC_S)
            await asyncio.to_thread(self._spool.sync_incoming)

    async def _drain(self, lane: str) -> None:
        """Send what is for one bank."""
        failures = 0
        try:
            while (found := self._next(lane)) is not None:
                spooled, wait_s = found
                if wait_s > 0:
                    await asyncio.sleep(wait_s)
                elif await self._try(spooled, lane):
                    failures = 0
                else:
                    failures += 1
                    await asyncio.sleep(retry_s(failures))
        finally:
            del self._lanes[lane]
            self._changed.set()

    def _next(self, lane: str) -> tuple[Spooled, float] | None:
        """The oldest that may be tried, or the one that is due next, and in how many seconds."""
        now = time.monotonic()
        waiting = [each for each in self._spool.waiting() if each.number not in self._in_hand]
        mine = [each for each in waiting if each.bank == lane]
        if not mine:
            self._errors.pop(lane, None)
            return None
        due = [(max(0.0, self._retry_at.get(each.number, 0.0) - now), each) for each in mine]
        wait_s, spooled = min(due, key=lambda pair: pair[0])
        return spooled, wait_s

    async def _try(self, spooled: Spooled, lane: str) -> bool:
        """Try to send one; False: its bank is in trouble."""
        dataset_id = spooled.entry.start.dataset_id
        self._in_hand[spooled.number] = dataset_id
        try:
            return await self._send_one(spooled, lane)
        except Exception as exc:
            # Whatever goes wrong with one dataset, also by a fault of ours: it is kept, the others
            # go on, and the instrument is served.
            if not isinstance(exc, LabmeshError):
                log.exception("%s: sending %s failed", self._name, dataset_id)
            self._tell(lane, f"{dataset_id}: {exc}")
            return False
        finally:
            del self._in_hand[spooled.number]
            self._changed.set()  # it may be in another lane now

    async def _send_one(self, spooled: Spooled, lane: str) -> bool:
        number = spooled.number
        try:
            if number not in self._verified:
                await asyncio.to_thread(self._spool.verify, spooled)
                self._verified.add(number)
        except Damaged as exc:
            await self._put_aside(spooled, "damaged", exc)
            return True
        try:
            spooled, bank = await self._bank_of(spooled)
            record = await self._send(spooled, bank)
            if record.sha256 != spooled.entry.start.sha256:
                raise ChecksumMismatch(f"{bank.bank_id} got other bytes than those in the spool")
        except Exception as exc:  # of any kind: the rule of what follows knows them all
            return await self._failed(spooled, lane, exc)
        await asyncio.to_thread(self._spool.sent, spooled)
        if self._errors.pop(lane, None) is not None:
            log.info("%s: sending the spool works again", self._name)
        self._forget(number, None)
        return True

    async def _bank_of(self, spooled: Spooled) -> tuple[Spooled, Bank]:
        if spooled.bank:
            return spooled, await self._banks.named(spooled.bank)
        bank = await self._banks.any(spooled.size, sure=True)
        # Before a byte is sent: it stays with a bank that may have it, or one would have it twice.
        bound = await asyncio.to_thread(self._spool.bind, spooled, bank.bank_id)
        return bound, bank

    async def _failed(self, spooled: Spooled, lane: str, exc: Exception) -> bool:
        number, dataset_id = spooled.number, spooled.entry.start.dataset_id
        failures = self._failures[number] = self._failures.get(number, 0) + 1
        trouble = trouble_of(exc, failures)
        if trouble == "refused":
            await self._put_aside(spooled, "refused", exc)
            return True
        self._banks.forget()
        if not isinstance(exc, LabmeshError):
            log.error("%s: sending %s failed", self._name, dataset_id, exc_info=exc)
        self._tell(lane, f"{dataset_id}: {exc}")
        if spooled.begun_at and may_be_elsewhere(exc):
            await asyncio.to_thread(self._spool.bind, spooled, "")
        if trouble == "bank":
            return False
        self._retry_at[number] = time.monotonic() + retry_s(failures)
        return True

    async def _put_aside(self, spooled: Spooled, place: Place, exc: Exception) -> None:
        dataset_id = spooled.entry.start.dataset_id
        where = await asyncio.to_thread(self._spool.put_aside, spooled, place, str(exc))
        log.error("%s: %s is %s, and kept in %s: %s", self._name, dataset_id, place, where, exc)
        self._put_aside_for[spooled.number] = exc
        self._forget(spooled.number, exc)

    def _forget(self, number: int, error: Exception | None) -> None:
        self._failures.pop(number, None)
        self._retry_at.pop(number, None)
        self._verified.discard(number)
        waiter = self._waiters.pop(number, None)
        if waiter is None or waiter.done():
            return
        if error is None:
            waiter.set_result(None)
        else:
            waiter.set_exception(error)
            waiter.exception()  # whoever waited may be gone; the log has it

    def _tell(self, lane: str, text: str) -> None:
        """Say it once, not with every retry."""
        if self._errors.get(lane) != text:
            log.warning("%s: not sent yet: %s; it is kept, and tried again", self._name, text)
        self._errors[lane] = text
