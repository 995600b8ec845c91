"""Datasets that wait at a relay for a bank. What is stored here outlives a kill and a power cut."""

from __future__ import annotations

import hashlib
import logging
import threading
import time
from pathlib import Path
from typing import NamedTuple

from msgspec.structs import replace

from labmesh.errors import Damaged, ProtocolError, StorageError
from labmesh.protocol.messages import UploadStart
from labmesh.protocol.spooling import Place, SpoolEntry, decode_entry
from labmesh.storage.fileops import FileOps, read_file
from labmesh.storage.spool_folder import PLACES, SpoolFolder
from labmesh.storage.spool_incoming import Incoming, Spooled

__all__ = ["Incoming", "Spool", "SpoolFacts", "Spooled"]

log = logging.getLogger(__name__)

#: A longer dataset, or one of unknown length, is described before its first byte, so that what is
#: left of it after a kill is not without a name.
_DESCRIBED_BYTES = 2**20
_READ_BYTES = 2**20
_INTERRUPTED = "its relay ended before all of it had come in; this is what was stored of it"
_NAMELESS = "nothing else is known of it"


class SpoolFacts(NamedTuple):
    """How full a spool is."""

    waiting: int
    waiting_bytes: int
    #: POSIX seconds (UTC) since which the oldest one waits; None: none waits
    oldest: float | None
    #: how many were put aside, by place
    aside: dict[Place, int]
    used_bytes: int


class Spool:
    """The datasets in one folder. Its methods block on the disk; any thread may call them.

    :param limit_bytes: all that datasets may take in it, also those put aside.
    :raises ConfigError: the folder cannot be used, or another relay uses it.
    """

    def __init__(self, root: Path, limit_bytes: int, ops: FileOps | None = None) -> None:
        self._folder = SpoolFolder(root, limit_bytes, ops or FileOps())
        #: guards what follows; nobody waits for a disk under it
        self._lock = threading.Lock()
        self._waiting: dict[int, Spooled] = {}
        self._incoming: set[Incoming] = set()
        self._aside: dict[Place, int] = dict.fromkeys(PLACES, 0)
        self._last = 0
        #: what the start has put aside, a sentence each
        self.found: list[str] = []
        try:
            with self._folder.errors("read its spool"):
                self._load()
        except BaseException:
            self.close()
            raise

    @property
    def root(self) -> Path:
        """The folder."""
        return self._folder.root

    @property
    def limit_bytes(self) -> int:
        """What it may hold."""
        return self._folder.limit_bytes

    def close(self) -> None:
        """Let go of the folder; what is being written is found by the next start. Twice is fine."""
        self._folder.close()

    # ── what comes in ───────────────────────────────────────────────────────────────────────────

    def begin(self, start: UploadStart, bank: str = "") -> Incoming:
        """Begin to store a dataset; ``start.size`` is None where its length is not known yet.

        :param bank: the bank that it is for; empty: any.
        :raises NoSpace: it would not fit.
        :raises StorageError: the disk refused.
        """
        folder = self._folder
        folder.check_open()
        folder.take_room(start.size or 0)
        with self._lock:
            self._last += 1
            number = self._last
        entry = SpoolEntry(start=start, bank=bank, began=time.time())
        try:
            with folder.errors("store this dataset"):
                if start.size is None or start.size > _DESCRIBED_BYTES:
                    folder.write_entry(number, entry)
                fd = folder.ops.open(folder.path(number, "data"), "create")
        except BaseException:
            folder.give_room(start.size or 0)
            raise
        incoming = Incoming(folder, number, entry, fd, self._came_to_its_end)
        with self._lock:
            self._incoming.add(incoming)
        return incoming

    def sync_incoming(self) -> None:
        """Make durable what came a second ago, so that a stream may pause."""
        with self._lock:
            incoming = list(self._incoming)
        for each in incoming:
            try:
                each.sync_if_due()
            except StorageError as exc:
                log.warning("%s", exc)  # its next write fails, and tells its sender

    def _came_to_its_end(self, incoming: Incoming, whole: Spooled | None, aside: bool) -> None:
        with self._lock:
            self._incoming.discard(incoming)
            if whole is not None:
                self._waiting[whole.number] = whole
            self._aside["incomplete"] += aside

    # ── what waits ──────────────────────────────────────────────────────────────────────────────

    def waiting(self) -> list[Spooled]:
        """Every whole dataset, oldest first."""
        with self._lock:
            return [self._waiting[number] for number in sorted(self._waiting)]

    def facts(self) -> SpoolFacts:
        """How full it is. It does not touch the disk."""
        with self._lock:
            waiting = list(self._waiting.values())
            aside = dict(self._aside)
        return SpoolFacts(
            waiting=len(waiting),
            waiting_bytes=sum(each.size for each in waiting),
            oldest=min((each.entry.ended for each in waiting), default=None),
            aside=aside,
            used_bytes=self._folder.used_bytes,
        )

    def verify(self, spooled: Spooled) -> None:
        """Read all of it, and compare it with what was stored.

        :raises Damaged: it is something else, or gone.
        """
        ops = self._folder.ops
        sha256, size = hashlib.sha256(), 0
        try:
            fd = ops.open(spooled.path, "read")
            try:
                while piece := ops.read(fd, size, _READ_BYTES):
                    sha256.update(piece)
                    size += len(piece)
            finally:
                ops.close(fd)
        except OSError as exc:
            raise Damaged(f"it cannot be read: {exc.strerror or exc}") from exc
        if (size, sha256.hexdigest()) != (spooled.size, spooled.entry.start.sha256):
            raise Damaged(
                f"its {size} bytes have SHA-256 {sha256.hexdigest()}; stored were {spooled.size} "
                f"bytes of {spooled.entry.start.sha256}"
            )

    def bind(self, spooled: Spooled, bank_id: str) -> Spooled:
        """Note durably, before a byte is sent, which bank may have it; empty: none has.

        :raises StorageError: the disk refused.
        """
        with self._folder.step("note the bank of a dataset"):
            if bank_id:
                self._folder.write_bank(spooled.number, bank_id)
            else:
                self._folder.forget_bank(spooled.number)
        bound = spooled._replace(begun_at=bank_id)
        with self._lock:
            self._waiting[spooled.number] = bound
        return bound

    def sent(self, spooled: Spooled) -> None:
        """A bank has it, durably: it goes.

        :raises StorageError: the disk refused; it is sent again, which harms nothing.
        """
        with self._folder.step("remove a dataset that a bank has"):
            self._folder.remove(spooled.number)
        with self._lock:
            self._waiting.pop(spooled.number, None)
        self._folder.give_room(spooled.size)

    def put_aside(self, spooled: Spooled, place: Place, reason: str) -> Path:
        """It is not sent, for this reason, and kept; returns the folder where it is.

        :raises StorageError: the disk refused; it waits on.
        """
        entry = replace(spooled.entry, aside=place, reason=reason)
        with self._folder.step("put a dataset aside"):
            self._folder.write_entry(spooled.number, entry)
            folder = self._folder.move_aside(spooled.number, entry, place, reason)
        with self._lock:
            self._waiting.pop(spooled.number, None)
            self._aside[place] += 1
        return folder

    # ── the start ───────────────────────────────────────────────────────────────────────────────

    def _load(self) -> None:
        numbers = self._folder.numbers()
        self._last = max(numbers, default=0)
        for place in PLACES:
            sizes = self._folder.aside(place)
            self._last = max(self._last, *sizes, 0)
            self._folder.take_room(sum(sizes.values()), at_start=True)
            # One that is being moved there still has its entry in the folder: counted below.
            self._aside[place] = len(sizes.keys() - numbers.keys())
        for number in sorted(numbers):
            self._load_one(number, numbers[number])

    def _load_one(self, number: int, suffixes: set[str]) -> None:
        folder = self._folder
        size = folder.size(number)
        if "sent" in suffixes or ("json" not in suffixes and not size):
            folder.clear_away(number)
        elif "json" not in suffixes:
            self._aside_at_start(number, None, "incomplete", f"{_INTERRUPTED}; {_NAMELESS}", size)
        else:
            try:
                entry = decode_entry(read_file(folder.ops, folder.path(number, "json")))
            except ProtocolError as exc:
                self._aside_at_start(number, None, "damaged", str(exc), size)
            else:
                self._load_entry(number, entry, size)

    def _load_entry(self, number: int, entry: SpoolEntry, size: int) -> None:
        folder = self._folder
        if entry.aside:
            self._aside_at_start(number, entry, entry.aside, entry.reason, size)
        elif not entry.is_whole and not size:
            folder.remove(number)
        elif not entry.is_whole:
            self._aside_at_start(number, entry, "incomplete", _INTERRUPTED, size)
        elif size != entry.start.size:
            text = f"it has {size} bytes, and had {entry.start.size}"
            self._aside_at_start(number, entry, "damaged", text, size)
        else:
            folder.take_room(size, at_start=True)
            path, bank = folder.path(number, "data"), folder.read_bank(number)
            self._waiting[number] = Spooled(number, entry, path, bank)

    def _aside_at_start(
        self, number: int, entry: SpoolEntry | None, place: Place, reason: str, size: int
    ) -> None:
        self._folder.take_room(size, at_start=True)
        if entry is not None and not entry.aside:
            entry = replace(entry, aside=place, reason=reason)
            self._folder.write_entry(number, entry)
        where = self._folder.move_aside(number, entry, place, reason)
        self._aside[place] += 1
        name = "a dataset" if entry is None else entry.start.dataset_id
        self.found.append(f"{name} is {place}, and kept in {where}: {reason}")
