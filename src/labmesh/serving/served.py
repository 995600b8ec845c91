"""The calls that a relay has open, each with the job that runs it."""

from __future__ import annotations

import math
import threading
import time
from typing import Any, Protocol

from labmesh.errors import Cancelled, Expired, LabmeshError, OutcomeUnknown, TooLarge
from labmesh.instruments.exposure import BoundCall
from labmesh.instruments.failures import unsendable_result
from labmesh.instruments.jobs import BatchJob, Interrupted, Job, Outcome, Runner, StreamJob
from labmesh.instruments.ownership import is_unshared
from labmesh.instruments.thread_runner import RunningCall
from labmesh.protocol import batches
from labmesh.protocol.codec import Buffer, Codec
from labmesh.protocol.messages import BatchResult, Item, Message, Result
from labmesh.protocol.open_call import OpenCall, Owner
from labmesh.protocol.packs import encode_result
from labmesh.serving.callers import Callers

__all__ = [
    "AnyServed",
    "Served",
    "ServedBatch",
    "ServedCall",
    "ServedStream",
    "kept_value",
    "overdue",
]

#: How often a stream that waits for its reader lets a poll through.
_POLL_S = 0.05
#: A caller gives a call up of which it has heard nothing for 4 s: from a little earlier on it must
#: not begin.
_GIVEN_UP_S = 3.5
#: Why a call is ended while it runs.
TAKEN_BACK = "its caller took it back"
CALLER_IS_GONE = "its caller is gone"
LEASE_ENDED = "the lease that it ran under has ended"
SHUTTING_DOWN = "its relay is shutting down"
KEY_ENDED = "the key of its caller is no longer good"
_SCALARS = frozenset({type(None), bool, int, float, str})
#: What the jobs of open calls have: found quicker than in a dictionary.
_OWN_SLOTS = ("desk", "fence", "opened", "read_only", "unshared")


class Desk(Protocol):
    """What an open call needs of its desk."""

    lock: threading.RLock
    callers: Callers

    def end(self, opened: OpenCall, outcome: Outcome) -> None: ...

    def say(self, opened: OpenCall, frames: list[Buffer]) -> bool: ...

    def check_write(self, owner: Owner, fence: int, now: float) -> None: ...


class _Encoders(threading.local):
    """One for each thread."""

    def __init__(self) -> None:
        self.own = Codec((Result, BatchResult))


_encoders = _Encoders()


def overdue(method: str, running: RunningCall | None = None, now: float = 0.0) -> Expired:
    """What the caller of a call is told that waited for too long.

    :param running: what it waited for, as far as that is known.
    :param now: monotonic seconds.
    """
    behind = "" if running is None else f" behind {running.told(now)},"
    return Expired(
        f"{method} waited in the queue{behind} until its deadline passed; it was not run and will "
        "not be"
    )


def is_given_up(opened: OpenCall, now: float) -> bool:
    """Whether the caller of a call that waits has heard nothing of it for so long that it must have
    given it up: it is gone, or this relay stood still."""
    return opened.kept and now - max(opened.accepted_at, opened.heard_at) > _GIVEN_UP_S


def given_up(method: str) -> Expired:
    """What is noted of a call that its caller no longer waits for."""
    return Expired(
        f"{method} waited in the queue, and its caller heard nothing of it for {_GIVEN_UP_S:g} s; "
        "it was not run and will not be"
    )


def taken_back(method: str) -> Cancelled:
    """What the caller of a call is told that took it back in time."""
    return Cancelled(f"{method} was taken back by its caller before it began; it did not run")


def abandoned(relay_id: str, method: str) -> OutcomeUnknown:
    """What the caller of a call is told that its relay did not see to its end."""
    return OutcomeUnknown(
        f"{relay_id} was stopped while {method} was running: its outcome is unknown; look at the "
        "instrument before you send it again"
    )


class Served:
    """What jobs of open calls have in common: their end, in the driver's thread, at the desk."""

    on_loop = False

    desk: Desk
    opened: OpenCall
    fence: int
    read_only: bool
    #: nobody else has the buffers of its result
    unshared: bool

    def open_at(self, desk: Desk, opened: OpenCall, fence: int, read_only: bool) -> None:
        """What every one of them is given."""
        self.desk, self.opened = desk, opened
        self.fence, self.read_only = fence, read_only
        self.unshared = False

    @property
    def client(self) -> Owner:
        """Whose it is."""
        return self.opened.owner

    @property
    def caller(self) -> str:
        """Who called it, for people."""
        return self.desk.callers.name_of(self.opened)

    def refusal(self, now: float) -> LabmeshError | None:
        """Asked in the driver's thread, right before it runs."""
        error = self.why_not(now)
        if error is None:
            self.opened.begun_at = now
        return error

    def why_not(self, now: float) -> LabmeshError | None:
        """Why it may not begin now; None: it may. In any thread."""
        opened = self.opened
        if now >= opened.deadline:
            return overdue(opened.method)
        if now - opened.accepted_at > _GIVEN_UP_S and is_given_up(opened, now):
            return given_up(opened.method)
        return self.why_no_write(now)

    def why_no_write(self, now: float) -> LabmeshError | None:
        """Why it may not write now; None: it may, or does not."""
        if not self.read_only:
            try:
                self.desk.check_write(self.opened.owner, self.fence, now)
            except LabmeshError as exc:
                return exc
        return None

    def prepare(self, value: Any) -> list[Buffer]:
        """The frames of its result."""
        return self.frames(Result(id=self.opened.id, value=value))

    def frames(self, message: Message) -> list[Buffer]:
        """The frames of a message of this call."""
        return self._encoded(message, json=self.opened.origin.json)

    def _encoded(self, message: Message, *, json: bool) -> list[Buffer]:
        frames = _encoders.own.encode(message, json=json)
        if len(frames) > 1 and not self.unshared:
            # A driver may use its buffers again at once.
            frames[1:] = [bytes(frame) for frame in frames[1:]]
        return frames

    def done(self, outcome: Outcome) -> None:
        """Its caller is told."""
        self.desk.end(self.opened, outcome)

    def reader_is_gone(self) -> None:
        """Nobody takes what it says any more. What it does is done to its end all the same."""


class ServedCall(Served, Job):
    """An open call of one method."""

    __slots__ = _OWN_SLOTS

    def refusal(self, now: float) -> LabmeshError | None:
        """Asked in the driver's thread, right before it runs."""
        opened = self.opened
        if now >= opened.deadline or now - opened.accepted_at > _GIVEN_UP_S:
            return super().refusal(now)
        if not self.read_only:
            check_write = self.desk.check_write
            try:
                check_write(opened.owner, self.fence, now)
            except LabmeshError as exc:
                return exc
        opened.begun_at = now
        return None

    def execute(self, runner: Runner) -> Any:
        """Run the driver."""
        call = self.call
        value = call.function(*call.args, **call.kwargs)
        if type(value) in _SCALARS:
            return value
        value = runner.settle(value, self)
        if type(value) not in _SCALARS:
            self.unshared = is_unshared(value)
        return value

    def prepare(self, value: Any) -> list[Buffer]:
        """The frames of its result."""
        opened = self.opened
        if not opened.origin.json:
            frame = encode_result(opened.id, value)
            if frame is not None:
                return [frame]
        return self.frames(Result(id=opened.id, value=value))


class ServedBatch(Served, BatchJob):
    """An open batch."""

    __slots__ = _OWN_SLOTS

    def may_go_on(self) -> bool:
        """Each entry begins before the deadline, and under the lease of its batch.

        One that began under no lease goes on: who acquires one waits for the end of all of it.
        """
        now = time.monotonic()
        return now < self.opened.deadline and not (self.fence and self.why_no_write(now))

    def kept(self, entry: BoundCall, value: Any, unshared: bool) -> Outcome:
        """As it is now: the next call of the batch may change what this one returned.

        A result that cannot be sent is an error of its call alone.
        """
        if type(value) in _SCALARS:
            return Outcome(value)
        self.unshared = unshared
        try:
            frames = self._encoded(Result(id=self.opened.id, value=value), json=False)
            copied: Any = _encoders.own.decode(frames).message
            return Outcome(copied.value)
        except BaseException as exc:
            # As in the worker: encoding may run code of the driver's objects.
            return Outcome(error=self._unsendable(exc, entry, value))

    def prepare(self, value: Any) -> list[Buffer]:
        """The frames of its outcomes. Results for which there is no room are errors, too."""
        self.unshared = True  # they are our own copies
        outcomes = list(value)
        while True:
            try:
                return self.frames(self._answer(outcomes))
            except TooLarge as exc:
                left = [index for index, each in enumerate(outcomes) if each.error is None]
                if not left:
                    raise
                largest = max(left, key=lambda index: (self._room(outcomes[index]), index))
                entry, value = self.entries[largest], outcomes[largest].value
                outcomes[largest] = Outcome(error=self._unsendable(exc, entry, value))

    def _answer(self, outcomes: list[Outcome]) -> BatchResult:
        written = batches.write_outcomes(
            batches.Outcome(each.value, each.error) for each in outcomes
        )
        return BatchResult(id=self.opened.id, outcomes=written)

    def _room(self, outcome: Outcome) -> float:
        """What it takes of a header, bytes."""
        try:
            return len(self.frames(self._answer([outcome]))[0])
        except TooLarge:
            return math.inf

    def _unsendable(self, exc: BaseException, entry: BoundCall, value: Any) -> LabmeshError:
        return unsendable_result(exc, value, method=entry.method, relay_id=self.relay_id)


class ServedStream(Served, StreamJob):
    """An open call of a method that yields.

    :param credit: items that its reader takes at first.
    """

    __slots__ = (*_OWN_SLOTS, "credit", "index")

    def __init__(self, bound: BoundCall, credit: int) -> None:
        super().__init__(bound)
        self.credit = threading.Semaphore(credit)
        self.index = 0

    def grant(self, items: int) -> None:
        """Its reader can take so many more."""
        self.credit.release(items)

    def put(self, item: Any, runner: Runner) -> None:
        """Send one item, as soon as its reader can take it."""
        runner.pause()
        while not self.credit.acquire(blocking=False):
            if self.is_set:
                break
            if not runner.rest(_POLL_S) and self.credit.acquire(timeout=_POLL_S):
                break
        frames = self.frames(Item(id=self.opened.id, index=self.index, value=item))
        self.index += 1
        with self.desk.lock:
            taken = not self.is_set and self.desk.say(self.opened, frames)
        if not taken:
            raise Interrupted(self.why or CALLER_IS_GONE)

    def reader_is_gone(self) -> None:
        """A generator without a reader is closed, and the driver is free for others."""
        self.interrupt(CALLER_IS_GONE)


AnyServed = ServedCall | ServedBatch | ServedStream


def kept_value(opened: OpenCall) -> Any:
    """What a call returned, read from the reply that was kept."""
    message: Any = _encoders.own.decode(opened.reply or []).message
    return message.outcomes if isinstance(message, BatchResult) else message.value
