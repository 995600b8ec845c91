"""A sender and a bank, joined by a wire that drops, repeats and reorders."""

from __future__ import annotations

import hashlib
from collections import deque
from contextlib import suppress
from typing import TypeAlias

import msgspec
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from tests.support.pair import Fate, Wire

from labmesh.errors import LabmeshError, StorageError
from labmesh.protocol.messages import (
    ChunkStored,
    Committed,
    DatasetId,
    DatasetRecord,
    Failure,
    Reply,
    Request,
    UploadChunk,
    UploadCommit,
    UploadGranted,
    UploadStart,
)
from labmesh.protocol.upload import UploadLimits, UploadReceiver
from labmesh.protocol.upload_sender import UploadSender
from labmesh.protocol.upload_steps import Discard, Finish, Open, Step, UploadKey, Write
from labmesh.storage.base import Part
from labmesh.storage.memory import MemoryBlobStore, MemoryCatalog

Asked: TypeAlias = tuple[Request, bytes]

LIMITS = UploadLimits(chunk_bytes=8, window=3)
DATASET = DatasetId("scan-1")


class Bank:
    """A bank's shell without a network; its disk is as slow as it is told to be."""

    def __init__(self, requests: Wire[Asked], replies: Wire[Reply]) -> None:
        self.requests, self.replies = requests, replies
        self.blobs, self.catalog = MemoryBlobStore(), MemoryCatalog()
        self.restart()

    def restart(self) -> None:
        """Killed and started again: of what was not committed it has what was durable."""
        self.blobs.close()
        self.receiver = UploadReceiver("bank-0", LIMITS)
        self.parts: dict[UploadKey, Part] = {}
        self.queue: deque[tuple[Step, Asked]] = deque()
        for part in self.blobs.unfinished():
            start = msgspec.msgpack.decode(part.note, type=UploadStart)
            self.parts[self.receiver.adopt(start, part.size, 0.0)] = part

    def sync(self) -> None:
        """Bring what was written to disk."""
        for part in self.parts.values():
            with suppress(StorageError):  # its upload has ended
                part.sync()

    def receive(self) -> bool:
        asked = self.requests.take()
        if asked is None:
            return False
        try:
            answer = self._decide(*asked)
        except LabmeshError as error:
            self._refuse(asked[0], error)
        else:
            if isinstance(answer, Step):
                self.queue.append((answer, asked))
            else:
                self.replies.put(answer)
        return True

    def work(self) -> bool:
        """Take one step from the queue; False: there is none."""
        if not self.queue:
            return False
        step, (request, body) = self.queue.popleft()
        try:
            self.receiver.check(step)
            reply = self._perform(step, request, body)
        except LabmeshError as error:
            discard = self.receiver.failed(step.key)
            if discard is not None:
                self._perform(discard, request, b"")
            self._refuse(request, error)
        else:
            self.receiver.performed(step, 0.0)
            self.replies.put(reply)
        return True

    def _decide(self, request: Request, body: bytes) -> Step | Committed:
        match request:
            case UploadStart():
                return self.receiver.start(request, self.catalog.get(DATASET), 0.0)
            case UploadChunk():
                return self.receiver.chunk(request, len(body), 0.0)
            case UploadCommit():
                return self.receiver.commit(request, self.catalog.get(DATASET), 0.0, 0.0)
        raise AssertionError(request)

    def _perform(self, step: Step, request: Request, body: bytes) -> Reply:
        match step.effect:
            case Open(size):
                self.parts[step.key] = self.blobs.begin(size, msgspec.msgpack.encode(request))
            case Write(offset):
                self.parts[step.key].write(offset, body)
            case Finish(record):
                self.parts[step.key].finish(record.size, record.sha256)
                return Committed(id=request.id, record=self.catalog.add(record))
            case Discard():
                self.parts[step.key].discard()
        if isinstance(step.reply, ChunkStored):
            return replace(step.reply, durable=self.parts[step.key].durable)
        return step.reply or Failure(id=request.id, code=500, name="internal")

    def _refuse(self, request: Request, error: LabmeshError) -> None:
        self.replies.put(Failure(id=request.id, code=error.code, name=error.name, text=error.text))


class Relay:
    """An uploader's shell without a network."""

    def __init__(
        self, content: bytes, *, seekable: bool, size_known: bool, requests: Wire[Asked]
    ) -> None:
        self.content = content
        self.requests = requests
        self.size = len(content) if size_known else None
        self.sender = UploadSender(size=self.size, seekable=seekable, chunk_bytes=7, window=5)
        self.seekable = seekable
        self.calls = 0
        self.open_calls: set[str] = set()
        self.read_to = 0
        self.was_read = False
        self.record: DatasetRecord | None = None
        self.begin()

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    def begin(self) -> None:
        """Give up what is open, and start again."""
        self.sender.lost()
        self.open_calls.clear()
        self.was_read = self.was_read or self.sender.ended
        known = self.sha256 if self.was_read else None
        start = UploadStart(
            id=self._call(),
            dataset_id=DATASET,
            session="a-session-token",
            size=self.size,
            sha256=known,
        )
        self.requests.put((start, b""))

    def receive(self, reply: Reply) -> None:
        if reply.id not in self.open_calls:
            return
        self.open_calls.discard(reply.id)
        match reply:
            case UploadGranted():
                moved_to = self.sender.granted(reply)
                assert moved_to is None or self.seekable or moved_to >= self.read_to
            case ChunkStored():
                self.sender.stored(reply)
            case Committed():
                self.record = self.sender.committed(reply, dataset_id=DATASET, sha256=self.sha256)
            case _:
                self.begin()

    def send(self) -> None:
        while size := self.sender.wants():
            offset = self.sender.position
            self.sender.feed(offset, self.content[offset : offset + size])
            self.read_to = max(self.read_to, self.sender.position)
            if self.sender.position == len(self.content):
                self.sender.end()
        while (chunk := self.sender.next_chunk()) is not None:
            request = UploadChunk(
                id=self._call(), dataset_id=DATASET, session="a-session-token", offset=chunk.offset
            )
            self.requests.put((request, bytes(chunk.piece)))
        if self.sender.complete and not self.open_calls:
            commit = UploadCommit(
                id=self._call(),
                dataset_id=DATASET,
                session="a-session-token",
                size=self.sender.position,
                sha256=self.sha256,
            )
            self.requests.put((commit, b""))

    def _call(self) -> str:
        self.calls += 1
        self.open_calls.add(str(self.calls))
        return str(self.calls)


def run(relay: Relay, bank: Bank, disk: list[int], restarts: set[int], syncs: set[int]) -> None:
    """Let both work until the upload ends; ``disk``: steps that the bank takes a turn."""
    pace = iter(disk)
    for turn in range(10_000):
        if relay.record is not None:
            return
        if turn in syncs:
            bank.sync()
        if turn in restarts:
            bank.restart()
        relay.send()
        progress = bank.receive()
        for _ in range(next(pace, 3)):
            progress = bank.work() or progress
        while (reply := bank.replies.take()) is not None:
            progress = True
            relay.receive(reply)
        if not progress and not bank.queue:
            relay.begin()  # the deadline of what is open has passed
    raise AssertionError("the upload does not end")


FATES = st.lists(st.sampled_from(Fate), max_size=40)


@given(
    content=st.binary(max_size=120),
    to_bank=FATES,
    to_relay=FATES,
    disk=st.lists(st.integers(0, 4), max_size=60),
    restarts=st.sets(st.integers(0, 40), max_size=3),
    syncs=st.sets(st.integers(0, 40), max_size=6),
    seekable=st.booleans(),
    size_known=st.booleans(),
)
def test_over_a_bad_wire_the_bank_has_exactly_what_was_sent_or_the_sender_is_told(
    content: bytes,
    to_bank: list[Fate],
    to_relay: list[Fate],
    disk: list[int],
    restarts: set[int],
    syncs: set[int],
    seekable: bool,
    size_known: bool,
) -> None:
    requests: Wire[Asked] = Wire(to_bank)
    bank = Bank(requests, Wire(to_relay))
    relay = Relay(content, seekable=seekable, size_known=size_known, requests=requests)
    # No restart loses a byte, also of a source that cannot go back.
    run(relay, bank, disk, restarts, syncs)
    assert relay.record is not None
    assert bank.blobs.read(relay.record.sha256, 0, len(content)) == content
    for stored in bank.catalog.page().records:
        assert bank.blobs.read(stored.sha256, 0, stored.size) == content
