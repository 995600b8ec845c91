"""A callback for datasets: what it is handed, once each, and how far it has come."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

from msgspec.structs import asdict

from labmesh.errors import StorageError
from labmesh.events.listening import Subscription
from labmesh.protocol.dataset_cursor import DatasetCursor, FindBegin, Place, Question
from labmesh.protocol.messages import DatasetRecord
from labmesh.storage.cursor_file import CursorFile

__all__ = ["DatasetSubscription"]

log = logging.getLogger(__name__)

#: Records that wait here; others wait at their banks.
_QUEUE = 2000
#: How long quick callbacks are called one after the other before others get their turn.
_TURN_S = 0.001
#: A cursor that cannot be saved is saved again after this, then less often.
_SAVE_AGAIN_S, _SAVE_AGAIN_MAX_S = 0.1, 2.0


class DatasetSubscription(Subscription):
    """Hands each dataset over once, in each bank's order of commits, on the loop that made this.

    With a cursor, what is about to be handed over is on the disk before the callback is called, and
    that it was handed over after the callback has ended, whether it raised or not. A task that a
    plain function returns is part of it. So a dataset is repeated only where nobody knows how far
    its callback came, and then ``repeated`` is true in its record.

    :param lookback_s: seconds ago since when datasets are new.
    :param ask: takes a question for a bank. Its answer goes to :attr:`cursor` (or to
        :meth:`began`), and :meth:`look` is called then.
    """

    def __init__(
        self,
        callback: Callable[..., object],
        *,
        lookback_s: float,
        file: CursorFile | None,
        ask: Callable[[DatasetSubscription, Question], None],
    ) -> None:
        self._lookback_s = lookback_s
        self._began = time.monotonic()
        self._file = file
        self._ask = ask
        #: what is on the disk, as far as is known
        self._on_disk = b""
        self._waits_for_tasks = file is not None
        #: what it has taken; call :meth:`look` after each change
        self.cursor = DatasetCursor(None if file is None else file.saved.places(), queue=_QUEUE)
        super().__init__(callback, "dataset")

    @property
    def lost(self) -> int:
        """Datasets of banks that give no numbers, which found no room."""
        return self.cursor.lost

    @property
    def age_s(self) -> float:
        """How long ago its datasets begin."""
        return self._lookback_s + time.monotonic() - self._began

    def look(self) -> None:
        """The cursor has changed: what it wants is asked, what it has is handed over."""
        if self.ended:
            return
        for each in self.cursor.due():
            self._ask(self, each)
        self._arrived.set()

    def wants(self, question: Question) -> bool:
        """Whether an answer is still waited for."""
        return not self.ended and self.cursor.is_open(question)

    def began(self, question: FindBegin, place: Place) -> None:
        """Where a bank's datasets begin is found."""
        self.cursor.began(question, place)
        if self._file is not None:
            self._file.saved.reach(question.bank_id, self.cursor.place(question.bank_id) or place)

    async def _run(self) -> None:
        try:
            while True:
                await self._arrived.wait()
                self._arrived.clear()
                since = time.monotonic()
                while (record := self.cursor.next()) is not None:
                    self.look()
                    await self._hand_over(record)
                    if self._task.cancelling() or time.monotonic() - since > _TURN_S:
                        await asyncio.sleep(0)
                        since = time.monotonic()
                if self._file is not None:
                    await self._save(self._file)
        finally:
            if self._file is not None:
                self._let_go(self._file)

    async def _hand_over(self, record: DatasetRecord) -> None:
        repeated = False
        if self._file is not None:
            repeated = self._file.saved.begin(record)
            await self._save(self._file)
        await self._call(({**asdict(record), "repeated": repeated},))
        if self._file is not None:
            # On the disk with the beginning of the next one, or when none is left.
            self._file.saved.end(record)

    async def _save(self, file: CursorFile) -> None:
        """Return when it is on the disk, however long that takes: nothing is handed over before."""
        pause_s = _SAVE_AGAIN_S
        while (content := file.encoded()) != self._on_disk:
            try:
                await asyncio.to_thread(file.save, content)
            except StorageError as exc:
                if self._warnings.due(time.monotonic()) is not None:
                    log.warning("%s waits: %s", self.name, exc)
            else:
                self._on_disk = content
                return
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, _SAVE_AGAIN_MAX_S)

    def _let_go(self, file: CursorFile) -> None:
        """On the loop, though it takes a moment: when this has ended, the file is free."""
        try:
            if (content := file.encoded()) != self._on_disk:
                file.save(content)
        except StorageError as exc:
            log.warning("%s: %s", self.name, exc)
        finally:
            file.close()
