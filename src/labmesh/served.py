"""The calls that a relay has open, each with the job that runs it."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any, Protocol

from labmesh.errors import Expired, LabmeshError
from labmesh.instruments.exposure import BoundCall
from labmesh.instruments.jobs import BatchJob, Hands, Interrupted, Job, Outcome, StreamJob
from labmesh.instruments.ownership import is_unshared
from labmesh.protocol import batches
from labmesh.protocol.callee import OpenCall, Owner
from labmesh.protocol.codec import Buffer, Codec
from labmesh.protocol.messages import Batch, BatchResult, Call, Item, Message, Result
from labmesh.transport.answering import Origin

__all__ = ["ServedBatch", "ServedCall", "ServedStream"]

#: How often a stream that waits for its reader lets a poll through.
_POLL_S = 0.05
_SCALARS = frozenset({type(None), bool, int, float, str})


class Desk(Protocol):
    """What an open call needs of its desk."""

    lock: threading.RLock

    def end(self, served: ServedCall, outcome: Outcome) -> None: ...

    def say(self, served: ServedCall, frames: list[Buffer]) -> bool: ...

    def check_write(self, owner: Owner, fence: int, now: float) -> None: ...


class _Encoders(threading.local):
    """One for each of the driver's threads."""

    def __init__(self) -> None:
        self.own = Codec(())


_encoders = _Encoders()
_reader = Codec((Result, BatchResult))


class ServedCall(OpenCall):
    """An open call of one method."""

    __slots__ = ("desk", "error", "job", "read_only", "request", "unshared")

    def __init__(
        self, desk: Desk, owner: Owner, origin: Origin, call: Call, bound: BoundCall, now: float
    ) -> None:
        super().__init__(
            owner, origin, call.id, call.method, deadline=now, kept=bool(call.session), now=now
        )
        self.desk = desk
        self.request: Call | Batch = call
        self.read_only = bound.read_only
        self.error: LabmeshError | None = None
        #: nobody else has the buffers of its result
        self.unshared = False
        self.job: Job = self._job(bound)

    def _job(self, bound: BoundCall) -> Job:
        return _CallJob(bound, self)

    def refusal(self, now: float) -> LabmeshError | None:
        """Why it may not begin now; None: it may. In any thread."""
        if now >= self.deadline:
            return Expired(
                f"{self.method} waited in the queue until its deadline passed; it was not run and "
                "will not be"
            )
        if not self.read_only:
            try:
                self.desk.check_write(self.owner, self.request.fence, now)
            except LabmeshError as exc:
                return exc
        return None

    def begin(self, now: float) -> LabmeshError | None:
        """Asked in the driver's thread, right before it runs."""
        error = self.refusal(now)
        if error is None:
            self.begun_at = now
        return error

    def encoded(self, value: Any) -> list[Buffer]:
        """The frames of its result."""
        return self._frames(Result(id=self.id, value=value))

    def _frames(self, message: Message) -> list[Buffer]:
        frames = _encoders.own.encode(message, json=self.origin.json)
        if len(frames) > 1 and not self.unshared:
            # A driver may use its buffers again at once.
            frames[1:] = [bytes(frame) for frame in frames[1:]]
        return frames

    def kept_value(self) -> Any:
        """What it returned, read from the reply that was kept."""
        message = _reader.decode(self.reply or []).message
        return message.outcomes if isinstance(message, BatchResult) else message.value  # type: ignore[attr-defined]

    def reader_is_gone(self) -> None:
        """Nobody takes what it says any more. What it does is done to its end all the same."""


class _Serving:
    """A job whose call is ended in the driver's thread."""

    on_loop = False
    served: ServedCall

    __slots__ = ()

    def refusal(self, now: float) -> LabmeshError | None:
        return self.served.begin(now)

    def prepare(self, value: Any) -> list[Buffer]:
        return self.served.encoded(value)

    def done(self, outcome: Outcome) -> None:
        self.served.desk.end(self.served, outcome)


class _CallJob(_Serving, Job):
    __slots__ = ("served",)

    def __init__(self, bound: BoundCall, served: ServedCall) -> None:
        super().__init__(bound)
        self.served = served

    def execute(self, hands: Hands) -> Any:
        value = hands.settle(self.call.run(), self)
        if type(value) not in _SCALARS:
            self.served.unshared = is_unshared(value)
        return value


class ServedBatch(ServedCall):
    """An open batch."""

    __slots__ = ("entries",)

    def __init__(
        self,
        desk: Desk,
        owner: Owner,
        origin: Origin,
        batch: Batch,
        entries: Sequence[BoundCall],
        now: float,
    ) -> None:
        OpenCall.__init__(
            self, owner, origin, batch.id, "batch", deadline=now, kept=bool(batch.session), now=now
        )
        self.desk = desk
        self.request = batch
        self.entries = entries
        self.read_only = all(each.read_only for each in entries)
        self.error = None
        self.unshared = False
        self.job = _BatchJob(self, batch.keep_going)

    def encoded(self, value: Any) -> list[Buffer]:
        outcomes = [batches.Outcome(each.value, each.error) for each in value]
        written = batches.write_outcomes(outcomes)
        return self._frames(BatchResult(id=self.id, outcomes=written))


class _BatchJob(_Serving, BatchJob):
    __slots__ = ("served",)

    def __init__(self, served: ServedBatch, keep_going: bool) -> None:
        super().__init__(served.entries, keep_going=keep_going, relay_id="")
        self.served = served


class ServedStream(ServedCall):
    """An open call of a method that yields."""

    __slots__ = ("credit", "index")

    def _job(self, bound: BoundCall) -> Job:
        assert isinstance(self.request, Call)
        self.credit = threading.Semaphore(self.request.credit)
        self.index = 0
        return _StreamJob(bound, self)

    def grant(self, items: int) -> None:
        """Its reader can take so many more."""
        self.credit.release(items)

    def reader_is_gone(self) -> None:
        """A generator without a reader is closed, and the driver is free for others."""
        self.job.interrupt()


class _StreamJob(_Serving, StreamJob):
    served: ServedStream

    __slots__ = ("served",)

    def __init__(self, bound: BoundCall, served: ServedStream) -> None:
        super().__init__(bound)
        self.served = served

    def put(self, item: Any, hands: Hands) -> None:
        served = self.served
        hands.pause()
        while not served.credit.acquire(timeout=_POLL_S):
            if self.flag.is_set:
                break
            hands.pause()
        message = Item(id=served.id, index=served.index, value=item)
        served.index += 1
        frames = _encoders.own.encode(message, json=served.origin.json)
        frames[1:] = [bytes(frame) for frame in frames[1:]]
        with served.desk.lock:
            taken = not self.flag.is_set and served.desk.say(served, frames)
        if not taken:
            raise Interrupted("the caller took it back, or is gone")
