"""The stream of a relay's states: the driver is polled on schedule, and what it says published."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Any, Final, Protocol

from labmesh.errors import LabmeshError, Stopping
from labmesh.events.reading import STALE_INTERVALS
from labmesh.instruments.exposure import BoundCall, MethodTable
from labmesh.instruments.jobs import Job, Outcome
from labmesh.instruments.worker import DriverWorker
from labmesh.protocol.codec import encode_value

__all__ = ["ON_CHANGE", "WHEN_POLLED", "StateStream"]

#: Which states are published: each, or those that differ from the one before.
WHEN_POLLED: Final = "poll"
ON_CHANGE: Final = "change"
#: A ``poll()`` that has run for so long, and for as long as makes a state stale, is stuck, if its
#: author names no other time.
POLL_LIMIT_S = 10.0

log = logging.getLogger(__name__)


class Publish(Protocol):
    """Publishes an encoded value."""

    def __call__(
        self, family: str, kind: str, payload: bytes, interval_s: float = 0.0, /
    ) -> bool: ...


class StateStream:
    """Polls a driver once an interval and publishes its state; on the loop of the worker.

    A driver without ``poll()``, or whose ``poll()`` has nothing to say, gives a sign of life
    instead. A ``poll()`` that fails is reported, and asked again at the next interval.

    :param name: the relay's id, for the log.
    :param keep_alive_s: publish a state only when it has changed, and after so many seconds in any
        case; None: publish each.
    """

    def __init__(
        self,
        name: str,
        table: MethodTable,
        worker: DriverWorker,
        interval_s: float,
        publish: Publish,
        keep_alive_s: float | None = None,
    ) -> None:
        self._name = name
        self._worker = worker
        #: seconds between two polls
        self.interval_s = interval_s
        self._publish = publish
        self._keep_alive_s = keep_alive_s
        #: what was published last, and when (monotonic); None: nothing that the broker has
        self._told: tuple[bytes, float] | None = None
        self._table = table
        self._poll_at_once = asyncio.Event()
        #: monotonic time of the last poll that succeeded
        self.polled_at: float | None = None
        #: what it gave, encoded; None: nothing
        self.last: bytes | None = None
        #: what is wrong with ``poll()``; empty: nothing
        self.error = ""

    async def run(self) -> None:
        """Go on until cancelled, on a schedule that does not drift."""
        began = time.monotonic()
        tick = 0
        while True:
            self._ask()
            tick = max(tick + 1, int((time.monotonic() - began) / self.interval_s))
            next_at = began + tick * self.interval_s
            self._poll_at_once.clear()
            try:
                async with asyncio.timeout(next_at - time.monotonic()):
                    await self._poll_at_once.wait()
                    tick -= 1
            except TimeoutError:
                continue

    @property
    def due_s(self) -> float:
        """Seconds within which the next state is published, as subscribers are told."""
        return max(self.interval_s, self._keep_alive_s or 0.0)

    def poll_at_once(self) -> None:
        """Somebody listens (again): do not have them wait for the next interval, or change."""
        self._told = None
        self._poll_at_once.set()

    def _ask(self) -> None:
        if not self._table.has_poll:
            self._sign_of_life()
            return
        try:
            limit_s = max(POLL_LIMIT_S, STALE_INTERVALS * self.interval_s)
            self._worker.submit_poll(_Poll(self._table.bind("poll"), limit_s, self._polled))
        except Stopping:
            log.debug("%s stops: its driver is not polled any more", self._name)

    def _polled(self, outcome: Outcome) -> None:
        error = outcome.error
        if isinstance(error, Stopping):
            return
        if error is None and outcome.value is not None:
            try:
                self._publish_state(outcome.value)
            except LabmeshError as exc:
                error = exc
        if error is not None:
            self._failed(error)
            return
        self.polled_at, self.last = time.monotonic(), outcome.value
        if self.error:
            log.info("%s: poll() works again", self._name)
        self.error = ""
        if outcome.value is None:
            self._sign_of_life()

    def _publish_state(self, state: bytes) -> None:
        now = time.monotonic()
        if self._keep_alive_s is not None and self._told is not None:
            told, told_at = self._told
            # Half an interval early rather than half an interval late.
            is_due = now - told_at >= self._keep_alive_s - self.interval_s / 2
            if state == told and not is_due:
                return
        is_sent = self._publish("state", "state", state, self.due_s)
        self._told = (state, now) if is_sent else None

    def _failed(self, error: LabmeshError) -> None:
        """The stream goes on; whoever watches is told."""
        kind = str(error.detail.get("exception_type") or type(error).__name__)
        text = str(error) if str(error).startswith(kind) else f"{kind}: {error}"
        if text != self.error:
            log.warning("%s: poll() failed: %s", self._name, text)
        self.error = text
        self._publish("event", "state_error", encode_value({"error": kind, "text": str(error)}))

    def _sign_of_life(self) -> None:
        self._publish("event", "alive", encode_value(None))


class _Poll(Job):
    """:param limit_s: how long it may run where its author does not say."""

    __slots__ = ("_done", "_limit_s")

    def __init__(self, call: BoundCall, limit_s: float, done: Callable[[Outcome], None]) -> None:
        super().__init__(call)
        self._limit_s = limit_s
        self._done = done

    def may_run_until(self, since: float) -> float:
        """Nobody waits for it with a deadline; but all calls wait behind it."""
        return since + (self.call.timeout_s or self._limit_s)

    def prepare(self, value: Any) -> bytes | None:
        """A state is a table; a bare reading becomes ``{"value": ...}``, None is no state."""
        if value is None:
            return None
        return encode_value(value if isinstance(value, dict) else {"value": value})

    def done(self, outcome: Outcome) -> None:
        self._done(outcome)
