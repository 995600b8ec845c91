"""A bank's own housekeeping: it heals, looks for damage, tidies up, and keeps to its rules."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from labmesh.access.audit import Audit
from labmesh.errors import Damaged, LabmeshError, NotFound, StorageError
from labmesh.keeping.bank_threads import BankThreads
from labmesh.protocol.messages import DatasetRecord, TrashEntry
from labmesh.protocol.retention import Rule, expired
from labmesh.storage.base import BlobStore, Catalog, not_in_trash

__all__ = ["BankUpkeep", "SoundClock", "UpkeepTimes"]

log = logging.getLogger(__name__)

_PAGE = 500
#: A store that refuses writes is tried again so often.
_PROBE_S, _PROBE_MAX_S = 1.0, 30.0
#: How often somebody looks whether the store refuses writes; a failed write tells at once.
_LOOK_S = 1.0
#: An object without a record is an upload's that is just ending, or was left by a crash.
_ORPHAN_S = 86_400.0
#: Between the end of a grace period, or of a rule's term, and its effect.
_TIDY_S = 3600.0
_FIRST_TIDY_S = 60.0
#: More than this between two looks is no drift: somebody set the clock.
_JUMP_S = 3600.0
#: What verifying a dataset costs beside its bytes, as bytes.
_DATASET_COST = 2**20
_SCRUB_MARK = "scrubbed"
#: A scrub of a small store does not read it all at once, nor forget it for weeks.
_SCRUB_PAUSE_MIN_S, _SCRUB_PAUSE_MAX_S = 0.05, 6 * 3600.0


class SoundClock:
    """The time of day, which is believed only while it keeps step with the monotonic clock.

    What goes for ever at a certain date must not go because somebody set the date wrongly.
    """

    def __init__(
        self,
        wall: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._wall = wall
        self._monotonic = monotonic
        #: wall minus monotonic at the first look of those that agree, and when that was
        self._apart: float | None = None
        self._since = 0.0

    def now(self, settle_s: float) -> float | None:
        """POSIX seconds; None until looks have agreed for ``settle_s``, which begins with the
        first one, and again when the clock was set.
        """
        wall, monotonic = self._wall(), self._monotonic()
        moved_s = wall - monotonic - (wall - monotonic if self._apart is None else self._apart)
        if abs(moved_s) > _JUMP_S:
            log.warning(
                "the clock was set by %+.0f s: nothing is deleted because of its age until it has "
                "kept its time for %.0f s; look at it",
                moved_s,
                settle_s,
            )
        if self._apart is None or abs(moved_s) > _JUMP_S:
            self._apart, self._since = wall - monotonic, monotonic
        return wall if monotonic - self._since >= settle_s else None


class UpkeepTimes:
    """The periods of the upkeep, in seconds.

    :param trash_s: how long a deleted dataset can be restored.
    :param scrub_s: in which every dataset is read and verified once; 0: never.
    :param settle_s: for so long the clock must have kept its time, since the bank was started,
        before anything is deleted because of its age; less than ``tidy_s``, so that the second
        round finds it so.
    """

    def __init__(
        self,
        *,
        trash_s: float = 30 * 86_400.0,
        scrub_s: float = 30 * 86_400.0,
        tidy_s: float = _TIDY_S,
        first_tidy_s: float = _FIRST_TIDY_S,
        orphan_s: float = _ORPHAN_S,
        settle_s: float = 0.9 * _TIDY_S,
    ) -> None:
        self.trash_s = trash_s
        self.scrub_s = scrub_s
        self.tidy_s = tidy_s
        self.first_tidy_s = first_tidy_s
        self.orphan_s = orphan_s
        self.settle_s = settle_s


class BankUpkeep:
    """The tasks of a bank that nobody asks for; each runs for ever, and outlives what fails.

    :param rules: which datasets go into the trash by themselves; the first that matches counts.
    """

    def __init__(
        self,
        bank_id: str,
        store: BlobStore,
        catalog: Catalog,
        threads: BankThreads,
        *,
        times: UpkeepTimes,
        rules: Sequence[Rule] = (),
        clock: SoundClock | None = None,
        audit: Audit | None = None,
    ) -> None:
        self._audit = audit
        self._bank_id = bank_id
        self._store = store
        self._catalog = catalog
        self._threads = threads
        self._times = times
        self._rules = tuple(rules)
        self._clock = clock or SoundClock()
        #: SHA-256 of objects that turned out to be damaged, as far as this process knows
        self._damaged: set[str] = set()
        self._scrubbed = 0
        self._tidied_at: float | None = None

    def facts(self) -> dict[str, Any]:
        """For the bank's status."""
        return {
            "read_only": self._store.refusal(),
            "damaged": len(self._damaged),
            "scrubbed_to": self._scrubbed,
            "tidied_s_ago": None if self._tidied_at is None else time.monotonic() - self._tidied_at,
        }

    def found_damage(self, sha256: str) -> None:
        """An object is damaged; it is set aside already."""
        if sha256 not in self._damaged:
            self._damaged.add(sha256)
            log.error("bank %s: object %s is damaged and set aside", self._bank_id, sha256)

    def stored(self, record: DatasetRecord) -> None:
        """A dataset was stored, which mends a damaged object of the same content."""
        self._damaged.discard(record.sha256)

    # ── healing ─────────────────────────────────────────────────────────────────────────────────

    async def probe(self) -> None:
        """While the store refuses writes: find out when it takes them again."""
        said = ""
        pause_s = _PROBE_S
        while True:
            refusal = self._store.refusal()
            if not refusal:
                if said:
                    log.warning("bank %s takes datasets again", self._bank_id)
                said, pause_s = "", _PROBE_S
                await asyncio.sleep(_LOOK_S)
                continue
            if not said:
                log.error("bank %s is read-only: %s", self._bank_id, refusal)
            said = refusal
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, _PROBE_MAX_S)
            try:
                await self._threads.run("upkeep", self._store.probe)
            except StorageError as exc:
                log.debug("bank %s: the probe failed: %s", self._bank_id, exc)

    # ── looking for damage ──────────────────────────────────────────────────────────────────────

    async def scrub(self) -> None:
        """Verify every dataset in turn, at the pace that brings it through in ``scrub_s``."""
        if not self._times.scrub_s:
            return
        self._scrubbed = await self._threads.run("upkeep", self._catalog.mark, _SCRUB_MARK)
        while True:
            pause_s = _SCRUB_PAUSE_MAX_S
            try:
                page = await self._threads.run("upkeep", self._catalog.page, self._scrubbed, 1)
                if page.records:
                    pause_s = await self._scrub_one(page.records[0])
                elif self._scrubbed:
                    log.info("bank %s: every dataset was verified once more", self._bank_id)
                    self._scrubbed = 0
                    pause_s = 0.0 if await self._count() else pause_s
            except StorageError as exc:
                log.warning("bank %s: the scrub waits: %s", self._bank_id, exc)
            await asyncio.sleep(max(pause_s, _SCRUB_PAUSE_MIN_S))

    async def _scrub_one(self, record: DatasetRecord) -> float:
        """Verify one; seconds until the next."""
        try:
            if record.sha256 not in self._damaged:
                await self._threads.run("upkeep", self._store.verify, record.sha256, record.size)
        except Damaged as exc:
            self.found_damage(record.sha256)
            log.error("bank %s: dataset %s is damaged: %s", self._bank_id, record.dataset_id, exc)
        except StorageError as exc:
            log.error("bank %s: dataset %s: %s", self._bank_id, record.dataset_id, exc)
        self._scrubbed = record.sequence
        await self._threads.run("upkeep", self._catalog.set_mark, _SCRUB_MARK, self._scrubbed)
        total = await self._threads.run("upkeep", self._catalog.total_bytes)
        everything = total + _DATASET_COST * await self._count()
        share = (record.size + _DATASET_COST) / max(everything, 1)
        return min(self._times.scrub_s * share, _SCRUB_PAUSE_MAX_S)

    async def _count(self) -> int:
        return await self._threads.run("upkeep", self._catalog.count)

    # ── tidying up ──────────────────────────────────────────────────────────────────────────────

    async def tidy(self) -> None:
        """Apply the rules, empty the trash, remove orphans; every hour."""
        pause_s = self._times.first_tidy_s
        while True:
            await asyncio.sleep(pause_s)
            pause_s = self._times.tidy_s
            if self._store.refusal():
                continue
            try:
                await self.tidy_once()
            except LabmeshError as exc:
                log.warning("bank %s: tidying up has to wait: %s", self._bank_id, exc)

    async def tidy_once(self) -> None:
        """What :meth:`tidy` does every hour."""
        now = self._clock.now(self._times.settle_s)
        if now is not None:
            for work in (self._expire, self._empty_trash):
                await self._threads.run("upkeep", work, now)
        await self._threads.run("upkeep", self._remove_orphans)
        self._tidied_at = time.monotonic()

    def _expire(self, now: float) -> None:
        if not self._rules:
            return
        for record, reason in expired(self._records(), self._rules, now):
            entry = TrashEntry(
                record=record,
                deleted=now,
                purge=now + self._times.trash_s,
                who="retention",
                why=reason,
            )
            self._unless_gone(self._catalog.trash, entry)
            if self._audit is not None:
                self._audit.by_itself("delete", record.dataset_id, reason)
            log.info("bank %s: into the trash: %s (%s)", self._bank_id, record.dataset_id, reason)

    def _records(self) -> Iterator[DatasetRecord]:
        after, more = 0, True
        while more:
            page = self._catalog.page(after, _PAGE)
            yield from page.records
            more = page.more
            after = page.records[-1].sequence if page.records else after

    def _empty_trash(self, now: float) -> None:
        after = ""
        while entries := self._catalog.trashed(after, _PAGE):
            after = entries[-1].record.dataset_id
            for entry in entries:
                if entry.purge <= now:
                    self._purge(entry.record)
                    if self._audit is not None:
                        self._audit.by_itself("purge", entry.record.dataset_id, "its time is over")

    def purge(self, dataset_id: str) -> None:
        """Forget a dataset of the trash for ever, now.

        :raises NotFound: it is not in the trash.
        """
        # Ids of one day differ near their ends, so that few are before it.
        after = dataset_id[:-1]
        while entries := self._catalog.trashed(after, _PAGE):
            after = entries[-1].record.dataset_id
            for entry in entries:
                if entry.record.dataset_id == dataset_id:
                    self._purge(entry.record)
                    return
            if after > dataset_id:
                break
        raise not_in_trash(dataset_id)

    def _purge(self, record: DatasetRecord) -> None:
        self._unless_gone(self._catalog.purge, record.dataset_id)
        log.info("bank %s: %s is gone for ever", self._bank_id, record.dataset_id)
        if not self._catalog.refers(record.sha256):
            # An upload of the same content may be about to add its record: what was stored lately
            # stays, and is looked at again as an orphan.
            self._store.remove(record.sha256, min(self._times.orphan_s, _TIDY_S))

    def _remove_orphans(self) -> None:
        for stored in self._store.objects():
            is_old = stored.age_s > self._times.orphan_s
            if is_old and not self._catalog.refers(stored.sha256):
                self._store.remove(stored.sha256, self._times.orphan_s)
                log.info("bank %s: removed an object without a record", self._bank_id)

    def _unless_gone(self, change: Callable[..., None], argument: object) -> None:
        """Somebody may have deleted, restored or purged it just now."""
        try:
            change(argument)
        except NotFound as exc:
            log.debug("bank %s: %s", self._bank_id, exc)
