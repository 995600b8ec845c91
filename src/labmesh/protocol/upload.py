"""Uploads as the bank sees them, counted in byte offsets. The other half is in upload_sender.

A repeat of stored bytes is acknowledged, a gap is refused with the offset that is wanted. After any
break the sender starts again with the same session token and continues where the bank is; also
after a restart of the bank, which adopts what an earlier process left.
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass

from labmesh.errors import Busy, ChecksumMismatch, Conflict, Forbidden, ProtocolError
from labmesh.protocol.ids import check_id
from labmesh.protocol.messages import (
    ChunkStored,
    Committed,
    DatasetRecord,
    Done,
    Reply,
    UploadAbort,
    UploadChunk,
    UploadCommit,
    UploadGranted,
    UploadStart,
    UploadWhole,
)
from labmesh.protocol.meta import check_meta
from labmesh.protocol.upload_limits import (
    MAX_CHUNK_BYTES,
    UploadLimits,
    check_same,
    not_open,
    taken_by_another,
)
from labmesh.protocol.upload_records import begun_as, check_ids, record_of
from labmesh.protocol.upload_steps import (
    Discard,
    Effect,
    Finish,
    Open,
    Step,
    Store,
    UploadKey,
    Write,
)

__all__ = [
    "MAX_CHUNK_BYTES",
    "UploadLimits",
    "UploadReceiver",
]

#: Resumptions of one upload that may wait behind a full window.
_SPARE_STEPS = 4


@dataclass(slots=True)
class _Upload:
    key: UploadKey
    start: UploadStart
    #: when something last happened
    active: float
    #: bytes accepted; those of steps that wait are not written yet
    received: int = 0
    unwritten: int = 0
    #: steps handed out and not performed
    waiting: int = 0
    finishing: bool = False


class UploadReceiver:
    """The uploads that are open at a bank; one a dataset id, owned by the bearer of its token.

    ``stored`` is the catalog's record of the id, looked up by the shell. It may be out of date by
    the time of the call: a catalog creates an id only once, and has the last word.

    A request is refused by an error, and then nothing has changed.
    """

    def __init__(self, bank_id: str, limits: UploadLimits | None = None) -> None:
        self._bank_id = bank_id
        self._limits = limits or UploadLimits()
        self._uploads: dict[str, _Upload] = {}
        self._count = 0

    def __len__(self) -> int:
        return len(self._uploads)

    def unwritten_bytes(self, dataset_id: str) -> int:
        """Bytes of an open upload that were accepted and are not written yet."""
        upload = self._uploads.get(dataset_id)
        return upload.unwritten if upload is not None else 0

    def is_open(self, dataset_id: str) -> bool:
        """Whether an upload of this id is open."""
        return dataset_id in self._uploads

    def is_stream(self, key: UploadKey) -> bool:
        """Whether its sender does not know the size, and so may be unable to send bytes again."""
        upload = self._live(key)
        return upload is not None and upload.start.size is None

    def adopt(self, start: UploadStart, size: int, now: float) -> UploadKey:
        """Offer an upload that an earlier process of this bank left, with its first ``size`` bytes.

        :raises ProtocolError: such an upload cannot be.
        :raises Conflict: another upload of this id is open.
        """
        check_id(start.dataset_id, "dataset id")
        if start.size is not None and size > start.size:
            raise ProtocolError(f"{size} bytes are there of a dataset of {start.size}")
        if start.dataset_id in self._uploads:
            raise taken_by_another(start.dataset_id)
        return self._open(start, now, received=size).key

    def start(
        self, request: UploadStart, stored: DatasetRecord | None, now: float
    ) -> Step | Committed:
        """Begin or resume. A reply stands for itself: nothing is to be done, nothing is open.

        :raises Conflict: the id is stored with content that is not known to be the same, or
            another sender's upload of it is open.
        :raises TooLarge: the size or meta is over the limit.
        :raises Busy: all uploads that the bank takes are open, or this one is being committed.
        """
        check_ids(request)
        upload = self._uploads.get(request.dataset_id)
        if upload is not None and _same_token(upload.start.session, request.session):
            return self._resume(upload, request, now)
        if upload is None and stored is not None:
            record = check_same(stored, request.size, request.sha256)
            return Committed(id=request.id, record=record)
        replaced = self._check_new(upload, request, request.size or 0, now)
        upload = self._open(request, now)
        return self._step(upload, Open(request.size, replaced), self._grant(request, 0), now)

    def whole(self, request: UploadWhole, size: int, now: float, created: float) -> Step:
        """A dataset of ``size`` bytes that came in one message.

        :raises TooLarge: the body or meta is over the limit.
        :raises Conflict: another sender's upload of this id is open.
        :raises Busy: all uploads that the bank takes are open, or this id is being committed.
        """
        check_ids(request)
        upload = self._uploads.get(request.dataset_id)
        if upload is not None:
            _refuse_while_finishing(upload)
        self._limits.check_body(size)
        replaced = self._check_new(upload, request, size, now)
        start = begun_as(request, size)
        upload = self._open(start, now, received=size)
        upload.finishing = True
        record = record_of(start, size, request.sha256, created, self._bank_id)
        return self._step(upload, Store(record, replaced), None, now)

    def _check_new(
        self, former: _Upload | None, request: UploadStart | UploadWhole, size: int, now: float
    ) -> UploadKey | None:
        """Refuse an upload that cannot begin; the key of a quiet one whose place it takes."""
        if former is not None and (former.waiting or not self._is_quiet(former, now)):
            raise taken_by_another(request.dataset_id)
        limits = self._limits
        limits.check_size(size)
        check_meta(request.meta, limits.max_meta_bytes)
        if len(self._uploads) >= limits.max_sessions:
            being_sent = sum(not self._is_quiet(each, now) for each in self._uploads.values())
            if being_sent >= limits.max_sessions:
                raise Busy(f"the bank has {being_sent} uploads open, its limit; try again soon")
        return None if former is None else former.key

    def _open(self, start: UploadStart, now: float, received: int = 0) -> _Upload:
        self._count += 1
        key = UploadKey(start.dataset_id, self._count)
        upload = _Upload(key, start, now, received)
        self._uploads[start.dataset_id] = upload
        return upload

    def _resume(self, upload: _Upload, request: UploadStart, now: float) -> Step:
        _refuse_while_finishing(upload)
        if request.size != upload.start.size:
            raise Conflict(
                f"the upload of {request.dataset_id} was begun with size {upload.start.size}, not "
                f"{request.size}; abort it first, or upload under another id",
                dataset_id=request.dataset_id,
            )
        self._check_window(upload, _SPARE_STEPS)
        return self._step(upload, None, self._grant(request, upload.received), now)

    def chunk(self, request: UploadChunk, size: int, now: float) -> Step:
        """Take a chunk of ``size`` bytes.

        :raises Conflict: with ``offset``: the one that is wanted; without: no upload of this id is
            open, start it (again).
        :raises Forbidden: the upload belongs to another sender.
        :raises TooLarge: the chunk or the dataset is over its limit, or over the declared size.
        :raises Busy: the sender ignores its window, or has said that it is done.
        """
        upload = self._owned(request)
        _refuse_while_finishing(upload)
        end = request.offset + size
        self._limits.check_chunk(size, end, upload.start.size)
        self._check_window(upload)
        if end <= upload.received:
            return self._step(upload, None, ChunkStored(id=request.id, offset=upload.received), now)
        if request.offset != upload.received:
            raise Conflict(
                f"the upload of {request.dataset_id} continues at byte {upload.received}, not at "
                f"{request.offset}; send from there",
                dataset_id=request.dataset_id,
                offset=upload.received,
            )
        upload.received = end
        upload.unwritten += size
        write = Write(request.offset, size)
        return self._step(upload, write, ChunkStored(id=request.id, offset=end), now)

    def commit(
        self,
        request: UploadCommit,
        stored: DatasetRecord | None,
        now: float,
        created: float,
    ) -> Step | Committed:
        """The sender says that this was all; ``created`` is the time of day in POSIX seconds.

        :raises ChecksumMismatch: another size was received or declared; ``offset`` is the received.
        :raises Conflict: no upload of this id is open, or other content is stored under it.
        :raises Forbidden: the upload belongs to another sender.
        """
        if request.dataset_id not in self._uploads and stored is not None:
            record = check_same(stored, request.size, request.sha256)
            return Committed(id=request.id, record=record)
        upload = self._owned(request)
        _refuse_while_finishing(upload)
        declared = upload.start.size
        if request.size != upload.received or declared not in (None, request.size):
            raise ChecksumMismatch(
                f"{upload.received} bytes arrived of dataset {request.dataset_id}, where "
                f"{request.size} were to be stored and {declared} declared; send what is missing",
                dataset_id=request.dataset_id,
                offset=upload.received,
            )
        upload.finishing = True
        record = record_of(upload.start, request.size, request.sha256, created, self._bank_id)
        return self._step(upload, Finish(record), None, now)

    def abort(self, request: UploadAbort) -> Step | Done:
        """Forget an upload; one that is not open is forgotten already.

        :raises Forbidden: the upload belongs to another sender.
        """
        if request.dataset_id not in self._uploads:
            return Done(id=request.id)
        upload = self._owned(request)
        _refuse_while_finishing(upload)
        del self._uploads[request.dataset_id]
        return Step(upload.key, Discard(), Done(id=request.id))

    def check(self, step: Step) -> None:
        """May the step be performed still?

        :raises Conflict: its upload has failed or was aborted since.
        """
        if self._live(step.key) is None and not isinstance(step.effect, Discard):
            raise not_open(step.key.dataset_id)

    def performed(self, step: Step, now: float) -> None:
        """The step was performed, its reply is about to be sent."""
        upload = self._live(step.key)
        if upload is None:
            return
        upload.waiting -= 1
        upload.active = now
        if isinstance(step.effect, Write):
            upload.unwritten -= step.effect.size
        elif isinstance(step.effect, Finish | Store):
            del self._uploads[step.key.dataset_id]

    def failed(self, key: UploadKey) -> Step | None:
        """A step could not be performed: its upload ends. Returns what is left to do."""
        if self._live(key) is None:
            return None
        del self._uploads[key.dataset_id]
        return Step(key, Discard(), None)

    def expire(self, now: float) -> list[Step]:
        """End the uploads of which nothing was heard for ``idle_s``, and of the quiet ones those
        beyond ``max_quiet``.
        """
        limits = self._limits
        idle = self._idle()
        kept = len(idle) - limits.max_quiet
        ended = [
            upload
            for place, upload in enumerate(idle)
            if upload.active + (limits.quiet_s if place < kept else limits.idle_s) <= now
        ]
        for upload in ended:
            del self._uploads[upload.key.dataset_id]
        return [Step(upload.key, Discard(), None) for upload in ended]

    def next_deadline(self) -> float | None:
        """When :meth:`expire` next wants to be called."""
        idle = self._idle()
        if not idle:
            return None
        deadline = idle[0].active + self._limits.idle_s
        if len(idle) > self._limits.max_quiet:
            return min(deadline, idle[0].active + self._limits.quiet_s)
        return deadline

    def _idle(self) -> list[_Upload]:
        """Those that wait for their senders, the quietest first. (While steps wait it is the bank
        that is slow, not the sender.)
        """
        idle = [upload for upload in self._uploads.values() if upload.waiting == 0]
        return sorted(idle, key=lambda upload: upload.active)

    def _is_quiet(self, upload: _Upload, now: float) -> bool:
        return upload.waiting == 0 and upload.active + self._limits.quiet_s <= now

    def _live(self, key: UploadKey) -> _Upload | None:
        upload = self._uploads.get(key.dataset_id)
        return upload if upload is not None and upload.key == key else None

    def _owned(self, request: UploadChunk | UploadCommit | UploadAbort) -> _Upload:
        upload = self._uploads.get(request.dataset_id)
        if upload is None:
            raise not_open(request.dataset_id)
        if not _same_token(upload.start.session, request.session):
            raise Forbidden(
                f"the upload of {request.dataset_id} belongs to another sender; upload under "
                "another id",
                dataset_id=request.dataset_id,
            )
        return upload

    def _check_window(self, upload: _Upload, spare: int = 0) -> None:
        if upload.waiting >= self._limits.window + spare:
            raise Busy(
                f"{upload.waiting} requests of the upload of {upload.key.dataset_id} wait for the "
                f"bank's disk; the window is {self._limits.window} chunks: wait for answers",
                dataset_id=upload.key.dataset_id,
            )

    def _step(
        self, upload: _Upload, effect: Effect | None, reply: Reply | None, now: float
    ) -> Step:
        upload.waiting += 1
        upload.active = now
        return Step(upload.key, effect, reply)

    def _grant(self, request: UploadStart, offset: int) -> UploadGranted:
        limits = self._limits
        return UploadGranted(
            id=request.id, offset=offset, chunk_bytes=limits.chunk_bytes, window=limits.window
        )


def _same_token(ours: str, theirs: str) -> bool:
    if not ours:
        return False
    return hmac.compare_digest(
        ours.encode("utf-8", "surrogatepass"), theirs.encode("utf-8", "surrogatepass")
    )


def _refuse_while_finishing(upload: _Upload) -> None:
    if upload.finishing:
        raise Busy(
            f"dataset {upload.key.dataset_id} is being committed; start it again in a moment to "
            "learn how that ended",
            dataset_id=upload.key.dataset_id,
        )
