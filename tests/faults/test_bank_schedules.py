"""In whatever order, how often and how garbled chunks come, no wrong content is ever stored.

The figures (FD14), a minute::

    python -m pytest -m soak -s tests/faults/test_bank_schedules.py
"""

from __future__ import annotations

import hashlib
import random
from collections import Counter, deque

import pytest

from labmesh.errors import LabmeshError, StorageError
from labmesh.protocol.messages import (
    DatasetId,
    UploadAbort,
    UploadChunk,
    UploadCommit,
    UploadStart,
)
from labmesh.protocol.upload import UploadLimits, UploadReceiver
from labmesh.protocol.upload_steps import Discard, Finish, Open, Step, Write
from labmesh.storage.base import Part
from labmesh.storage.memory import MemoryBlobStore

LIMITS = UploadLimits(chunk_bytes=12, window=3, max_dataset_bytes=100)
SCAN = DatasetId("scan")


def test_some_schedules_of_chunks() -> None:
    _schedules(1_500, seed=14)


@pytest.mark.soak
@pytest.mark.timeout(600)
def test_100000_schedules_of_chunks() -> None:
    _schedules(100_000, seed=15)


def _schedules(count: int, seed: int) -> None:
    """FD14."""
    ends: Counter[str] = Counter()
    for number in range(count):
        schedule = _Schedule(random.Random(f"{seed}-{number}"))
        try:
            ends[schedule.run()] += 1
        except AssertionError as error:
            raise AssertionError(f"schedule {seed}-{number}") from error
    print(f"FD14: {count} schedules, seed {seed} / wrong content 0 / {dict(sorted(ends.items()))}")
    assert {"stored at once", "stored when completed", "refused for its bytes"} <= set(ends)


class _Schedule:
    """One upload: its chunks are repeated, left out, cut elsewhere, garbled, and disordered."""

    def __init__(self, chance: random.Random) -> None:
        self._chance = chance
        self._content = chance.randbytes(chance.randrange(97))
        self._garbled = chance.random() < 0.25
        self._size = len(self._content) if chance.random() < 0.5 else None
        self._bank = _Shell(chance)

    def run(self) -> str:
        """Every chunk, then what is missing; how it ended."""
        self._bank.request(self._start())
        for offset, piece in self._pieces():
            self._bank.request(self._chunk(offset), piece)
            if self._chance.random() < 0.1:
                self._bank.request(self._commit())
            if self._chance.random() < 0.02:
                self._bank.request(self._chance.choice([self._start(), self._abort()]))
        self._bank.work(all_of_it=True)
        if self._stored():
            return "stored at once"
        self._complete()
        if self._stored():
            return "stored when completed"
        # Of unknown size it takes bytes from beyond the end too, and then no commit of fewer.
        assert self._garbled or (self._size is None and self._bank.received > len(self._content))
        # The true bytes are taken when it starts anew.
        self._bank.request(self._abort())
        self._complete()
        assert self._stored()
        return "refused for its bytes"

    def _complete(self) -> None:
        """Start again, and send what the bank has not got, in order."""
        self._bank.request(self._start())
        self._bank.work(all_of_it=True)
        while (offset := self._bank.received) < len(self._content):
            self._bank.request(self._chunk(offset), self._content[offset : offset + 12])
            self._bank.work(all_of_it=True)
            assert self._bank.received > offset
        self._bank.request(self._commit())
        self._bank.work(all_of_it=True)

    def _stored(self) -> bool:
        sha256 = hashlib.sha256(self._content).hexdigest()
        try:
            stored = self._bank.store.read(sha256, 0, len(self._content))
        except StorageError:
            assert not self._bank.finished
            return False
        # Not by a digest, which the store compared itself.
        assert stored == self._content
        assert self._bank.finished == [self._content]
        return True

    def _pieces(self) -> list[tuple[int, bytes]]:
        chance, content = self._chance, self._content
        step = chance.randint(1, 12)
        pieces: list[tuple[int, bytes]] = []
        for offset in range(0, len(content), step):
            pieces += [(offset, content[offset : offset + step])] * chance.choice([0, 1, 1, 1, 2])
        for _ in range(chance.randrange(5)):
            offset = chance.randrange(len(content) + 6)
            # Beyond the end there is something as well.
            pieces.append((offset, (content + b"?" * 20)[offset : offset + chance.randrange(14)]))
        for _ in range(len(pieces) if chance.random() < 0.3 else chance.randrange(4)):
            # All of them anywhere, which a bank refuses for the most part; or a few.
            if pieces:
                pieces.insert(chance.randrange(len(pieces)), pieces.pop())
        if self._garbled:
            pieces = [(offset, self._garble(piece)) for offset, piece in pieces]
        return pieces

    def _garble(self, piece: bytes) -> bytes:
        if not piece or self._chance.random() < 0.5:
            return piece
        return bytes([piece[0] ^ 1]) + piece[1:]

    def _start(self) -> UploadStart:
        return UploadStart(id="s", dataset_id=SCAN, session="my-own-token", size=self._size)

    def _chunk(self, offset: int) -> UploadChunk:
        return UploadChunk(id="c", dataset_id=SCAN, session="my-own-token", offset=offset)

    def _abort(self) -> UploadAbort:
        return UploadAbort(id="a", dataset_id=SCAN, session="my-own-token")

    def _commit(self) -> UploadCommit:
        sha256 = hashlib.sha256(self._content).hexdigest()
        return UploadCommit(
            id="e",
            dataset_id=SCAN,
            session="my-own-token",
            size=len(self._content),
            sha256=sha256,
        )


class _Shell:
    """A bank's shell whose disk does the steps later, and which keeps a copy of the bytes."""

    def __init__(self, chance: random.Random) -> None:
        self._chance = chance
        self._receiver = UploadReceiver("bank-0", LIMITS)
        self._queue: deque[tuple[Step, bytes]] = deque()
        self._parts: dict[int, Part] = {}
        self._copies: dict[int, bytearray] = {}
        self.store = MemoryBlobStore()
        self.finished: list[bytes] = []
        #: bytes of the open upload
        self.received = 0

    def request(self, request: object, piece: bytes = b"") -> None:
        """Take one, or refuse it; then the disk works for a while."""
        try:
            step = self._decide(request, piece)
        except LabmeshError:
            step = None
        if isinstance(step, Step):
            self._queue.append((step, piece))
        self.work()

    def work(self, *, all_of_it: bool = False) -> None:
        """Do some of the steps that wait."""
        while self._queue and (all_of_it or self._chance.random() < 0.7):
            step, piece = self._queue.popleft()
            try:
                self._receiver.check(step)
                self._perform(step, piece)
            except LabmeshError:
                discard = self._receiver.failed(step.key)
                if discard is not None:
                    self._perform(discard, b"")
            else:
                self._receiver.performed(step, 0.0)

    def _decide(self, request: object, piece: bytes) -> object:
        if self.finished:
            return None  # as the catalogue says
        match request:
            case UploadStart():
                return self._receiver.start(request, None, 0.0)
            case UploadChunk():
                return self._receiver.chunk(request, len(piece), 0.0)
            case UploadCommit():
                return self._receiver.commit(request, None, 0.0, 0.0)
            case UploadAbort():
                return self._receiver.abort(request)
        raise AssertionError(request)

    def _perform(self, step: Step, piece: bytes) -> None:
        number = step.key.number
        match step.effect:
            case Open(size):
                self._parts[number] = self.store.begin(size)
                self._copies[number] = bytearray()
            case Write(offset, size):
                assert (offset, size) == (len(self._copies[number]), len(piece))
                self._parts[number].write(offset, piece)
                self._copies[number] += piece
            case Finish(record):
                self._parts[number].finish(record.size, record.sha256)
                self.finished.append(bytes(self._copies[number]))
            case Discard():
                if number in self._parts:
                    self._parts.pop(number).discard()
                    del self._copies[number]
        self.received = len(self._copies.get(number, b""))
