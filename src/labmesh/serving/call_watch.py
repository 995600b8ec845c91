"""What the loop of a relay looks after while its driver's thread is busy: time, and stuck calls."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Any

from labmesh.errors import LabmeshError, OutcomeUnknown
from labmesh.instruments.jobs import Job, Outcome
from labmesh.instruments.worker import DriverWorker
from labmesh.protocol.open_call import OpenCall
from labmesh.serving.served import Served

__all__ = ["CallWatch", "StuckWatch"]

log = logging.getLogger(__name__)

#: How often the loop looks after calls while the driver's thread is busy, and how long after.
_TICK_S = 0.005
_LINGER_S = 0.1
#: With so many calls since the last look the thread reads what arrives by itself, and each look of
#: the loop takes the interpreter away from it: then this often.
_SEVERAL = 3
_LIVELY_TICK_S = 0.02
#: Why a call is told to end that outlasts its time.
_OVER_TIME = "it has run for as long as it may"


class CallWatch:
    """Has the loop look after calls, again and again until it may rest.

    :param name: the relay's id, for the log.
    :param look: called on the loop, under the worker's lock, with the monotonic time; returns what
        :meth:`pause_s` says.
    """

    def __init__(self, name: str, look: Callable[[float], float | None]) -> None:
        self._name = name
        self._look = look
        self._loop = asyncio.get_running_loop()
        self._worker: DriverWorker | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False
        self._watching = False
        #: jobs until the last look
        self._begun = 0
        self._awake_until = 0.0

    def open(self, worker: DriverWorker) -> None:
        """Begin: this is whose calls they are."""
        self._worker = worker

    def close(self) -> None:
        """Look no more."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()

    def wake(self) -> None:
        """Somebody is busy: have the loop look after calls. In any thread, under the lock."""
        if not self._watching and not self._closed and self._worker is not None:
            self._watching = True
            self._worker.call_on_loop(self._tick)

    def pause_s(self, now: float, *, quiet: bool, due_at: float | None) -> float | None:
        """In how many seconds to look again; None: not before the next :meth:`wake`.

        :param quiet: nothing is open, and the driver's thread listens.
        :param due_at: when (monotonic) there is something to do even so.
        """
        assert self._worker is not None
        before, self._begun = self._begun, self._worker.begun
        is_lively = self._begun - before >= _SEVERAL
        if is_lively:
            # Calls come one after the other: waking up for each of them would cost more.
            self._awake_until = now + _LINGER_S
        if not quiet or now < self._awake_until:
            return _LIVELY_TICK_S if is_lively else _TICK_S
        self._watching = False
        return None if due_at is None else max(0.0, due_at - now)

    def _tick(self) -> None:
        assert self._worker is not None
        now = time.monotonic()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        try:
            with self._worker.lock:
                wake_in_s = self._look(now)
        except Exception:
            # A fault of our own in one call must not end the care for the others.
            log.exception("%s: looking after calls failed", self._name)
            wake_in_s = _TICK_S
        if wake_in_s is not None and not self._closed:
            self._timer = self._loop.call_later(wake_in_s, self._tick)


class StuckWatch:
    """Finds calls that outlast their time.

    :param end: ends an open call; its caller waits no longer for it.
    :param news: publishes (kind of the event, value), on the loop.
    """

    def __init__(
        self,
        relay_id: str,
        worker: DriverWorker,
        end: Callable[[OpenCall, Outcome], None],
        news: Callable[[str, Any], None],
    ) -> None:
        self._relay_id = relay_id
        self._worker = worker
        self._end = end
        self._news = news

    def look(self, now: float) -> None:
        """Tell of each of them, once. On the loop, under the lock."""
        for running in self._worker.running_calls:
            job = running.job
            is_over = now >= job.may_run_until(running.since)
            # Once: a coroutine that cleans up must not be cancelled again in the middle of that.
            if is_over and isinstance(job, Served) and job.opened.ended is None:
                self._end(job.opened, Outcome(error=_stuck(self._relay_id, job.method)))
                job.interrupt(_OVER_TIME)
            if not job.told_stuck and _is_stuck(job, running.since, now):
                job.told_stuck = True
                log.warning("%s: its driver is stuck in %s", self._relay_id, job.method)
                running_s = round(now - running.since, 3)
                self._news("stuck", {"method": job.method, "running_s": running_s})

    def found(self, now: float) -> bool:
        """Does the driver run something longer than it may, or than its caller waits?"""
        return any(_is_stuck(each.job, each.since, now) for each in self._worker.running_calls)


def _is_stuck(job: Job, since: float, now: float) -> bool:
    return now >= job.may_run_until(since) or (
        isinstance(job, Served) and now >= job.opened.deadline
    )


def _stuck(relay_id: str, method: str) -> LabmeshError:
    return OutcomeUnknown(
        f"{method} has run for as long as it may, and {relay_id} cannot stop it: look at the "
        "instrument; until it ends other calls wait",
        state="running",
    )
