"""What waits for a driver's thread, and in which order it goes."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Hashable

from labmesh.errors import Busy
from labmesh.instruments.jobs import Job
from labmesh.instruments.thread_runner import RunningCall

__all__ = ["JobQueue", "busy"]


class JobQueue:
    """Calls in the order in which they came, at most one poll behind them, and urgent jobs ahead.

    It belongs to whoever holds the worker's lock.
    """

    def __init__(self) -> None:
        #: the calls that wait
        self.calls: OrderedDict[Job, None] = OrderedDict()
        self._urgent: deque[Job] = deque()
        #: the first of them runs, and is to be alone
        self._is_alone = False
        self._poll: Job | None = None
        self._poll_waits = False
        self._poll_is_due = False

    @property
    def is_empty(self) -> bool:
        """Nothing waits."""
        return not (self.calls or self._urgent or self._poll_waits)

    def push(self, job: Job) -> None:
        """A call, behind all others."""
        self.calls[job] = None

    def push_urgent(self, job: Job) -> None:
        """A job ahead of all calls."""
        self._urgent.append(job)

    def push_poll(self, job: Job) -> bool:
        """A poll behind the calls; False: the one before has not ended, and is due from now on."""
        if self._poll is not None:
            self._poll_is_due = True
            return False
        self._poll = job
        self._poll_waits = True
        self._poll_is_due = False
        return True

    def remove(self, job: Job) -> bool:
        """Take out a call; False: it does not wait."""
        if job not in self.calls:
            return False
        del self.calls[job]
        return True

    def ended(self, job: Job) -> None:
        """A job was delivered: if it is the poll, there can be another one."""
        if job is self._poll:
            self._poll = None

    def pop(self) -> Job | None:
        """What goes next: urgent jobs, a poll that is due, calls, a poll."""
        if self._urgent:
            # One that is to be alone stays there until its end: calls pay for this question only.
            return self._pop_urgent()
        if self._poll_waits and (self._poll_is_due or not self.calls):
            self._poll_waits = False
            return self._poll
        return self.calls.popitem(last=False)[0] if self.calls else None

    def pop_harmless(self) -> Job | None:
        """What may go in the middle of a long call: urgent jobs, which cannot wait for its end,
        the poll, and calls that change nothing."""
        if self._urgent:
            return self._pop_urgent()
        if self._poll_waits:
            self._poll_waits = False
            return self._poll
        return self._pop_reading()

    def _pop_urgent(self) -> Job | None:
        if self._is_alone:
            return self._pop_reading()
        if not self._urgent[0].alone:
            return self._urgent.popleft()
        self._is_alone = True
        return self._urgent[0]

    def was_alone(self, job: Job) -> bool:
        """Whether others waited for the end of this job, which has come."""
        if not self._is_alone or job is not self._urgent[0]:
            return False
        self._urgent.popleft()
        self._is_alone = False
        return True

    def _pop_reading(self) -> Job | None:
        """A call that changes nothing."""
        held_up: set[Hashable] = set()
        for job in self.calls:
            call, client = job.call, job.client
            # A stream would be a long call inside a long call; and a client that has written and
            # reads then means to read what it wrote.
            if call.read_only and not call.yields and client not in held_up:
                del self.calls[job]
                return job
            held_up.add(client)
        return None

    def clear(self) -> list[Job]:
        """Take out all that waits."""
        running = [self._urgent.popleft()] if self._is_alone else []
        waiting = [*self._urgent, *self.calls]
        if self._poll is not None and self._poll_waits:
            waiting.append(self._poll)
        self.calls.clear()
        self._urgent = deque(running)
        self._poll_waits = False
        return waiting


def busy(name: str, waiting: int, running: RunningCall | None, now: float) -> Busy:
    """What is said where so many calls wait that there is no room for another one.

    :param running: what they wait for.
    :param now: monotonic seconds.
    """
    text = f"{name} is busy: {waiting} calls wait, the limit"
    if running is None:
        return Busy(f"{text}; try again later", queued=waiting)
    return Busy(
        f"{text}, behind {running.told(now)}; try again later",
        queued=waiting,
        running=running.method,
        running_s=round(now - running.since, 3),
        running_by=running.job.caller,
    )
