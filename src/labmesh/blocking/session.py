"""A client on a background thread: what the objects of one mesh share."""

from __future__ import annotations

import asyncio
import logging
import threading
import warnings
import weakref
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from labmesh.asking.remote import RelayClient
from labmesh.blocking.background import BackgroundLoop
from labmesh.blocking.calls import BlockingCalls
from labmesh.blocking.methods import Driver, changes
from labmesh.blocking.readings import Mailbox, Readings
from labmesh.client import DirectorClientAgent
from labmesh.errors import LabmeshError, NotFound
from labmesh.events.listening import Subscription
from labmesh.protocol.messages import Access, BatchResult, NodeRecord
from labmesh.protocol.topics import subscription

__all__ = ["DriverChangedWarning", "Session"]

log = logging.getLogger(__name__)

T = TypeVar("T")

#: A relay that is just joining is waited for so long.
_JOIN_S = 2.0
#: The last states are waited for so long.
_STATES_S = 2.0


class DriverChangedWarning(UserWarning):
    """A relay came back with a driver that is called differently."""


class Session:
    """One connection to a mesh. It ends with :meth:`close`, with the last object that uses it, or
    with the process.

    :param background: runs the client; ends with the session.
    :param client: connected, on the background loop.
    """

    def __init__(self, background: BackgroundLoop, client: DirectorClientAgent) -> None:
        self.client = client
        self._background = background
        self._calls = BlockingCalls(background, client)
        self._drivers: dict[str, Driver] = {}
        self._describing = threading.Lock()
        # It may run in any thread, and at the exit of the interpreter the loop closes by itself.
        weakref.finalize(self, background.request_close).atexit = False

    @property
    def closed(self) -> bool:
        """It was closed."""
        return self._background.closed

    def close(self) -> None:
        """End every subscription and connection; twice is fine.

        In the handler of a signal that came in the middle of a call it does not wait for the end,
        which comes after that of the call.
        """
        if self._calls.is_under_way_here():
            self._background.request_close()
        else:
            self._background.close()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run on the background loop and wait; see :meth:`BackgroundLoop.run`."""
        return self._background.run(work)

    def call(
        self,
        relay_id: str,
        method: str,
        args: list[Any],
        kwargs: dict[str, Any],
        *,
        timeout: float | None = None,
        access: Access = "call",
    ) -> Any:
        """Run a driver's method, or read (``get``) or write (``set``) one of its values, and wait.

        :param timeout: a hard deadline, seconds; None: as long as the relay shows that it runs.
        """
        return self._calls.call(relay_id, method, args, kwargs, timeout=timeout, access=access)

    def batch(
        self,
        relay_id: str,
        calls: list[Any],
        *,
        keep_going: bool = False,
        timeout: float | None = None,
    ) -> BatchResult:
        """Several calls, back to back, as of the message :class:`Batch`; wait for all of them."""
        return self._calls.batch(relay_id, calls, keep_going=keep_going, timeout=timeout)

    def subscribe(
        self,
        subscribe: Callable[..., Subscription],
        callback: Any,
        *arguments: Any,
        **options: Any,
    ) -> Subscription:
        """One of the client's ``on_...`` methods, on its loop."""

        async def begin() -> Subscription:
            return subscribe(callback, *arguments, **options)

        return self.run(begin())

    def watch(self, pattern: str, timeout: float | None) -> Readings:
        """The readings of the relays whose ids match."""
        subscription("state", pattern)  # it refuses what can be no pattern
        if timeout is not None and timeout <= 0:
            raise ValueError(f"timeout must be more than 0 seconds, or None; not {timeout}")
        mailbox = Mailbox()
        source = self.subscribe(self.client.on_reading, mailbox.put, pattern)
        source.on_end(mailbox.close)
        return Readings(mailbox, _Source(self, source), what=pattern, timeout=timeout)

    # ── relays and their drivers ────────────────────────────────────────────────────────────────

    def find_relay(self, relay_id: str) -> NodeRecord:
        """The line of a relay; one that is just joining is waited for.

        :raises NotFound: no such relay; the text names the closest ids.
        """
        record = self.client.known(relay_id)
        if record is not None and record.kind == "relay":
            return record
        self.run(self.client.get_relay_agent(relay_id, wait=_JOIN_S))
        record = self.client.known(relay_id)
        if record is None:
            raise NotFound(f"relay {relay_id!r} left just now")
        return record

    def learn(self, relay_id: str) -> None:
        """Fetch what a proxy shows: the driver's description, and the relay's last state.

        :raises ConnectionError: the relay cannot be reached.
        """
        record = self.client.known(relay_id)
        held = self._drivers.get(relay_id)
        if held is None or (record is not None and record.epoch != held.epoch):
            self._describe(relay_id, stacklevel=5)
        self._calls.warm(relay_id)
        if self.client.health().up:
            self.run(self._follow_states(relay_id))

    async def _follow_states(self, relay_id: str) -> None:
        try:
            async with asyncio.timeout(_STATES_S):
                await self.client.follow_states(relay_id)
        except TimeoutError:
            # Calls need no broker; states come as soon as it is back.
            log.info("no states yet: the broker does not answer")

    def driver(self, relay_id: str) -> Driver:
        """What is known of a relay's driver; fetched again when the relay was restarted."""
        record = self.client.known(relay_id)
        held = self._drivers[relay_id]
        if record is None or record.epoch == held.epoch or self.closed:
            return held
        try:
            return self._describe(relay_id, stacklevel=4)
        except LabmeshError as exc:
            log.debug("%s was restarted and does not describe its driver: %s", relay_id, exc)
            return held

    def held_driver(self, relay_id: str) -> Driver:
        """What is known of a relay's driver; asks nobody."""
        return self._drivers[relay_id]

    def _describe(self, relay_id: str, *, stacklevel: int) -> Driver:
        before = self._drivers.get(relay_id)
        with self._describing:
            held = self._drivers.get(relay_id)
            if held is not before and held is not None:
                return held  # another thread has fetched it meanwhile
            after = Driver.of(self.run(RelayClient(self.client, relay_id).describe()))
            self._drivers[relay_id] = after
        different = changes(before, after) if before is not None else []
        if different:
            warnings.warn(
                f"{relay_id} was restarted, and its driver has changed: {'; '.join(different)}",
                DriverChangedWarning,
                stacklevel=stacklevel,
            )
        return after


class _Source:
    """Keeps the session alive while somebody reads, and ends the subscription."""

    def __init__(self, session: Session, subscription: Subscription) -> None:
        self._session = session
        self._subscription = subscription

    def cancel(self) -> None:
        """Stop receiving; in any thread."""
        self._subscription.cancel()
