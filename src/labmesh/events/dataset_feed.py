"""Datasets as a client hears of them: each is handed once to each callback.

What is missing is asked of the bank's list: after a gap in its announcements, after the link to the
broker was away, when a bank comes back, and when a callback that was slow is ready for more.
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from os import PathLike
from typing import Any, Protocol, TypeVar

import msgspec

from labmesh.errors import LabmeshError, ProtocolError
from labmesh.events.dataset_listening import DatasetSubscription
from labmesh.events.healing import Gap
from labmesh.protocol.codec import decode_value
from labmesh.protocol.dataset_cursor import AskAfter, FindBegin, Place, Question
from labmesh.protocol.messages import (
    Condition,
    DatasetPage,
    DatasetRecord,
    ListDatasets,
    Reply,
    Request,
    SearchDatasets,
)
from labmesh.protocol.topics import split
from labmesh.storage.cursor_file import CursorFile
from labmesh.transport.subscriber import Lost, Received

__all__ = ["AskBank", "DatasetFeed"]

log = logging.getLogger(__name__)

R = TypeVar("R", bound=Reply)

#: A bank that does not answer is asked again after this, then less often, with jitter.
_AGAIN_S, _AGAIN_MAX_S = 0.1, 2.0
#: Where datasets begin is looked for among so many of the newest, then by a search.
_NEWEST = 20
#: When it has not answered for so long, somebody should know.
_TELL_S = 5.0


class AskBank(Protocol):
    """One question to the retrieve socket of a bank."""

    def __call__(self, bank_id: str, request: Request, reply: type[R]) -> Awaitable[R]:
        """:raises LabmeshError: there is no answer."""


class DatasetFeed:
    """The datasets of all banks, on the running loop.

    :param spawn: makes a task that the client owns.
    :param tell_gap: told of announcements that were lost, once their datasets are here.
    """

    def __init__(
        self,
        ask_bank: AskBank,
        spawn: Callable[[Coroutine[Any, Any, Any], str], object],
        tell_gap: Callable[[Gap], None],
    ) -> None:
        self._ask_bank = ask_bank
        self._spawn = spawn
        self._tell_gap = tell_gap
        self._subscriptions: set[DatasetSubscription] = set()
        self._banks: set[str] = set()
        #: the last dataset that was heard of at each bank since it is known to be there
        self._heard: dict[str, Place] = {}
        self._gaps: dict[str, list[Lost]] = {}

    # ── who listens ─────────────────────────────────────────────────────────────────────────────

    def subscribe(
        self,
        callback: Callable[[dict[str, Any]], object],
        *,
        cursor: str | PathLike[str] | None = None,
        since: float | None = None,
    ) -> DatasetSubscription:
        """Call ``callback(record)`` for each new dataset.

        :param cursor: the file from which it goes on.
        :param since: POSIX seconds of this machine; by default now. A cursor that is there knows
            better.
        :raises ConfigError: the cursor cannot be used.
        :raises Conflict: somebody else uses it.
        """
        now = time.time()
        begun = now if since is None else since
        # A short read, on the loop: whoever gives a bad cursor is to be told here and now.
        file = None if cursor is None else CursorFile(cursor, begun=begun)
        if file is not None:
            begun = file.saved.begun
        subscription = DatasetSubscription(
            callback, lookback_s=max(0.0, now - begun), file=file, ask=self._ask
        )
        self._subscriptions.add(subscription)
        subscription.on_end(lambda: self._subscriptions.discard(subscription))
        begins_now = since is None and (file is None or file.is_new)
        for each in self._banks:
            heard = self._heard.get(each) if begins_now else None
            subscription.cursor.here(each, heard=heard)
        subscription.look()
        return subscription

    async def close(self) -> None:
        """End every callback."""
        subscriptions = list(self._subscriptions)
        for each in subscriptions:
            each.cancel()
        for each in subscriptions:
            await each.closed()

    # ── what happens ────────────────────────────────────────────────────────────────────────────

    def directory(self, banks: Iterable[str]) -> None:
        """These banks are there, and something of any of them may have been missed."""
        known = set(banks)
        for each in self._banks - known:
            self.gone(each)
        for each in known:
            self.here(each)

    def changed(self, bank_id: str, change: str) -> None:
        """The broker announces a change of a bank's presence."""
        if change == "left":
            self.gone(bank_id)
        elif change != "suspect":
            self.here(bank_id)

    def here(self, bank_id: str) -> None:
        """A bank is there, or is back."""
        self._banks.add(bank_id)
        # It may have begun anew: then what was heard before says nothing.
        self._heard.pop(bank_id, None)
        for each in self._subscriptions:
            each.cursor.here(bank_id)
            each.look()

    def gone(self, bank_id: str) -> None:
        """A bank has left."""
        self._banks.discard(bank_id)
        self._heard.pop(bank_id, None)
        for each in self._subscriptions:
            each.cursor.gone(bank_id)

    def take(self, bank_id: str, received: Received) -> None:
        """A bank announces a dataset.

        :raises ProtocolError: the announcement makes no sense.
        """
        record = msgspec.convert(decode_value(received.payload), DatasetRecord)
        if record.bank_id != bank_id:
            raise ProtocolError(f"bank {bank_id} announced a dataset of bank {record.bank_id}")
        self._know([record])
        for each in self._subscriptions:
            each.cursor.announced(record, received.event.epoch)
            each.look()

    def _know(self, records: Iterable[DatasetRecord]) -> None:
        """These are no news to whoever subscribes from now on."""
        for record in records:
            known = self._heard.get(record.bank_id)
            if record.bank_id in self._banks and (
                known is None or known.sequence < record.sequence
            ):
                self._heard[record.bank_id] = Place.of(record)

    def lost(self, lost: Lost) -> None:
        """Announcements of a bank did not come."""
        _, bank_id = split(lost.topic)
        if not self._subscriptions or bank_id not in self._banks:
            self._tell_gap(Gap.of(lost))
            return
        self._gaps.setdefault(bank_id, []).append(lost)
        for each in self._subscriptions:
            each.cursor.missed(bank_id)
            each.look()

    # ── what is asked ───────────────────────────────────────────────────────────────────────────

    def _ask(self, subscription: DatasetSubscription, question: Question) -> None:
        self._spawn(self._pursue(subscription, question), f"datasets of {question.bank_id}")

    async def _pursue(self, subscription: DatasetSubscription, question: Question) -> None:
        """Ask until there is an answer, or nobody wants it any more."""
        began, pause_s, is_told = time.monotonic(), _AGAIN_S, False
        while subscription.wants(question):
            try:
                await self._answer(subscription, question)
            except LabmeshError as exc:
                is_late = time.monotonic() - began > _TELL_S
                level = logging.WARNING if is_late and not is_told else logging.DEBUG
                is_told |= is_late
                log.log(level, "datasets of %s wait until it answers: %s", question.bank_id, exc)
            else:
                subscription.look()
                self._tell_gaps(question.bank_id)
                return
            await asyncio.sleep(pause_s * random.uniform(0.5, 1.0))
            pause_s = min(2 * pause_s, _AGAIN_MAX_S)

    async def _answer(self, subscription: DatasetSubscription, question: Question) -> None:
        match question:
            case FindBegin():
                place = await self._find_begin(subscription, question)
                if subscription.wants(question):
                    subscription.began(question, place)
            case AskAfter():
                request = ListDatasets(id="-", after=question.after, limit=question.limit)
                page = await self._ask_bank(question.bank_id, request, DatasetPage)
                for each in page.records:
                    _check(each, question.bank_id)
                self._know(page.records)
                subscription.cursor.listed(
                    question, page.records, more=page.more, highest=page.highest
                )

    async def _find_begin(self, subscription: DatasetSubscription, question: FindBegin) -> Place:
        """The place behind which the first dataset comes that is new.

        When that was is told by the bank's clock, and from there by how long ago it is here: clocks
        of laboratory computers differ.
        """
        bank_id = question.bank_id
        request = ListDatasets(id="-", limit=_NEWEST, newest_first=True)
        newest = await self._ask_bank(bank_id, request, DatasetPage)
        begun = (newest.time or time.time()) - subscription.age_s
        if question.after_created is not None:
            begun = math.nextafter(question.after_created, math.inf)
        new = [each.sequence for each in newest.records if each.created >= begun]
        if newest.more and len(new) == len(newest.records):
            # It is further back than these. What comes meanwhile has higher numbers than it.
            since = Condition(field="created", op=">=", value=begun)
            search = SearchDatasets(id="-", where=[since], descending=False, limit=1)
            found = await self._ask_bank(bank_id, search, DatasetPage)
            new += [each.sequence for each in found.records]
        for each in newest.records:
            if not new or each.sequence < min(new):
                return Place.of(each)
        return Place(sequence=min(new, default=1) - 1)

    def _tell_gaps(self, bank_id: str) -> None:
        """What was lost is here, for everybody who listens."""
        if all(each.cursor.is_current(bank_id) for each in self._subscriptions):
            for lost in self._gaps.pop(bank_id, []):
                self._tell_gap(Gap.of(lost, recovered=lost.missed))


def _check(record: DatasetRecord, bank_id: str) -> None:
    if record.bank_id != bank_id:
        raise ProtocolError(f"bank {bank_id} listed a dataset of bank {record.bank_id}")
