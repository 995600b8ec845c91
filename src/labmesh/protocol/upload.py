"""Uploads as the bank sees them, counted in byte offsets. The other half is in upload_sender.

A repeat of stored bytes is acknowledged, a gap is refused with the offset that is wanted. After any
break the sender starts again with the same session token and continues where the bank is.
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass

from labmesh.errors import (
    Busy,
    ChecksumMismatch,
    Conflict,
    Forbidden,
    ProtocolError,
    TooLarge,
)
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
)
from labmesh.protocol.meta import MAX_META_BYTES, check_meta
from labmesh.protocol.upload_steps import Discard, Effect, Finish, Open, Step, UploadKey, Write

__all__ = [
    "MAX_CHUNK_BYTES",
    "UploadLimits",
    "UploadReceiver",
]

MAX_CHUNK_BYTES = 8 * 2**20

#: Resumptions of one upload that may wait behind a full window.
_SPARE_STEPS = 4


@dataclass(frozen=True, slots=True)
class UploadLimits:
    """What one bank takes. A session holds at most ``window * chunk_bytes`` in memory."""

    max_sessions: int = 64
    max_dataset_bytes: int = 2**40
    max_meta_bytes: int = MAX_META_BYTES
    chunk_bytes: int = 2**20
    window: int = 8
    idle_s: float = 300.0

    def __post_init__(self) -> None:
        if not 1 <= self.chunk_bytes <= MAX_CHUNK_BYTES:
            raise ValueError(f"chunk_bytes is between 1 and {MAX_CHUNK_BYTES}")
        if self.window < 1:
            raise ValueError("window is at least 1 chunk")


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

    def start(
        self, request: UploadStart, stored: DatasetRecord | None, now: float
    ) -> Step | Committed:
        """Begin or resume. A reply stands for itself: nothing is to be done, nothing is open.

        :raises Conflict: the id is stored with content that is not known to be the same, or
            another sender's upload of it is open.
        :raises TooLarge: the size or meta is over the limit.
        :raises Busy: all uploads that the bank takes are open, or this one is being committed.
        """
        check_id(request.dataset_id, "dataset id")
        if request.relay_id:
            check_id(request.relay_id, "relay id")
        upload = self._uploads.get(request.dataset_id)
        if upload is not None:
            return self._resume(upload, request, now)
        if stored is not None:
            return _already_stored(stored, request.size, request.sha256, request.id)
        return self._begin(request, now)

    def _begin(self, request: UploadStart, now: float) -> Step:
        self._check_size(request.size or 0)
        check_meta(request.meta, self._limits.max_meta_bytes)
        if len(self._uploads) >= self._limits.max_sessions:
            raise Busy(f"the bank has {len(self._uploads)} uploads open, its limit; try again soon")
        self._count += 1
        upload = _Upload(UploadKey(request.dataset_id, self._count), request, now)
        self._uploads[request.dataset_id] = upload
        return self._step(upload, Open(request.size), self._grant(request, 0), now)

    def _resume(self, upload: _Upload, request: UploadStart, now: float) -> Step:
        if not _same_token(upload.start.session, request.session):
            raise Conflict(
                f"dataset {request.dataset_id} is being uploaded by another sender; wait for it, "
                "or upload under another id",
                dataset_id=request.dataset_id,
            )
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
        self._check_chunk(upload, size, end)
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
            return _already_stored(stored, request.size, request.sha256, request.id)
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
        return self._step(upload, Finish(self._record(upload.start, request, created)), None, now)

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
            raise _not_open(step.key.dataset_id)

    def performed(self, step: Step, now: float) -> None:
        """The step was performed, its reply is about to be sent."""
        upload = self._live(step.key)
        if upload is None:
            return
        upload.waiting -= 1
        upload.active = now
        if isinstance(step.effect, Write):
            upload.unwritten -= step.effect.size
        elif isinstance(step.effect, Finish):
            del self._uploads[step.key.dataset_id]

    def failed(self, step: Step) -> Step | None:
        """The step could not be performed: its upload ends. Returns what is left to do."""
        if self._live(step.key) is None:
            return None
        del self._uploads[step.key.dataset_id]
        return Step(step.key, Discard(), None)

    def expire(self, now: float) -> list[Step]:
        """End the uploads of which nothing was heard for ``idle_s``."""
        ended = [upload for upload in self._idle() if upload.active + self._limits.idle_s <= now]
        for upload in ended:
            del self._uploads[upload.key.dataset_id]
        return [Step(upload.key, Discard(), None) for upload in ended]

    def next_deadline(self) -> float | None:
        """When :meth:`expire` next wants to be called."""
        return min((each.active + self._limits.idle_s for each in self._idle()), default=None)

    def _idle(self) -> list[_Upload]:
        # While steps wait it is the bank that is slow, not the sender.
        return [upload for upload in self._uploads.values() if upload.waiting == 0]

    def _live(self, key: UploadKey) -> _Upload | None:
        upload = self._uploads.get(key.dataset_id)
        return upload if upload is not None and upload.key == key else None

    def _owned(self, request: UploadChunk | UploadCommit | UploadAbort) -> _Upload:
        upload = self._uploads.get(request.dataset_id)
        if upload is None:
            raise _not_open(request.dataset_id)
        if not _same_token(upload.start.session, request.session):
            raise Forbidden(
                f"the upload of {request.dataset_id} belongs to another sender; upload under "
                "another id",
                dataset_id=request.dataset_id,
            )
        return upload

    def _check_chunk(self, upload: _Upload, size: int, end: int) -> None:
        if size == 0:
            raise ProtocolError("a chunk has at least one byte; to end an upload, commit it")
        if size > self._limits.chunk_bytes:
            raise TooLarge(
                f"a chunk of {size} bytes is over the limit of {self._limits.chunk_bytes}; send "
                "smaller ones"
            )
        declared = upload.start.size
        if declared is not None and end > declared:
            raise TooLarge(
                f"the chunk reaches byte {end} of a dataset declared with {declared} bytes"
            )
        self._check_size(end)

    def _check_size(self, size: int) -> None:
        limit = self._limits.max_dataset_bytes
        if size > limit:
            raise TooLarge(
                f"a dataset of {size} bytes or more is over the bank's limit of {limit}; split it, "
                "or raise the limit of the bank",
                limit=limit,
            )

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

    def _record(self, start: UploadStart, commit: UploadCommit, created: float) -> DatasetRecord:
        return DatasetRecord(
            dataset_id=start.dataset_id,
            size=commit.size,
            sha256=commit.sha256,
            bank_id=self._bank_id,
            relay_id=start.relay_id,
            name=start.name,
            kind=start.kind,
            created=created,
            meta=start.meta,
        )


def _same_token(ours: str, theirs: str) -> bool:
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


def _not_open(dataset_id: str) -> Conflict:
    return Conflict(
        f"no upload of {dataset_id} is open: it was not started, has failed, expired or ended; "
        "start it again",
        dataset_id=dataset_id,
    )


def _already_stored(
    stored: DatasetRecord, size: int | None, sha256: str | None, request_id: str
) -> Committed:
    if sha256 == stored.sha256 and size in (None, stored.size):
        return Committed(id=request_id, record=stored)
    raise Conflict(
        f"dataset {stored.dataset_id} is already stored; the stored one ({stored.size} bytes, "
        f"SHA-256 {stored.sha256}) is kept: upload under another id",
        dataset_id=stored.dataset_id,
        size=stored.size,
        sha256=stored.sha256,
    )
