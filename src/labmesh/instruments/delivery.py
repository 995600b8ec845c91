"""Outcomes of jobs on their way from a driver's threads to the event loop."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable

from labmesh.instruments.jobs import Job, Outcome

__all__ = ["Delivery"]

log = logging.getLogger(__name__)

#: Results that are delivered before the loop does something else.
_BATCH = 256


class Delivery:
    """Has the loop call ``done`` of jobs that ended in other threads.

    :param name: the relay's id, for the log.
    :param on_each: called on the loop with each job, before its ``done``.
    """

    def __init__(self, name: str, on_each: Callable[[Job], None]) -> None:
        self._name = name
        self._on_each = on_each
        self._loop: asyncio.AbstractEventLoop | None = None
        #: what has ended and was not delivered
        self._finished: deque[tuple[Job, Outcome]] = deque()
        self._wake_is_sent = False
        self._closed = False

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Deliver to this loop."""
        self._loop = loop

    def put(self, job: Job, outcome: Outcome) -> None:
        """Keep an outcome for the next delivery, without waking the loop for it."""
        self._finished.append((job, outcome))

    def report(self, job: Job, outcome: Outcome) -> bool:
        """Have an outcome delivered; False: the loop has ended. In any thread."""
        # The loop lowers the flag before it looks, this thread looks at it after it has appended:
        # so a result is never left without a wake-up behind it. A wake-up too many is harmless.
        self._finished.append((job, outcome))
        assert self._loop is not None
        if self._wake_is_sent and not self._loop.is_closed():
            return True
        self._wake_is_sent = True
        return self.call_on_loop(self._deliver)

    def call_on_loop(self, callback: Callable[[], None]) -> bool:
        """Have the loop call this; False: the loop has ended. In any thread."""
        assert self._loop is not None
        try:
            self._loop.call_soon_threadsafe(callback)
        except RuntimeError:  # asyncio's way to say that the loop is closed
            return False
        return True

    def deliver_all(self) -> None:
        """Deliver what there is, now; on the loop."""
        while self._finished:
            self._deliver()

    def close(self) -> None:
        """Deliver nothing more."""
        self._closed = True

    def _deliver(self) -> None:
        self._wake_is_sent = False
        for _ in range(min(len(self._finished), _BATCH)):
            job, outcome = self._finished.popleft()
            self._on_each(job)
            if self._closed:
                continue
            try:
                job.done(outcome)
            except (Exception, asyncio.CancelledError):
                # One callback must not cost the others of the batch their results.
                log.exception("%s: the result of %s was lost", self._name, job.method)
        if self._finished and self._loop is not None:
            self._wake_is_sent = True
            self._loop.call_soon(self._deliver)
