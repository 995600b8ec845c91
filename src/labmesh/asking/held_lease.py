"""A lease as the program that holds it has it in its hands."""

from __future__ import annotations

import asyncio
import contextlib
import weakref
from collections.abc import Coroutine
from typing import Any, Protocol, Self, TypeVar

from labmesh.protocol.messages import Lease

__all__ = ["Grant", "HeldLease"]

T = TypeVar("T")


class Grant:
    """A lease as its client knows it: kept alive until it is released, or lost."""

    __slots__ = ("ends_at", "fence", "lost", "note", "over", "relay_id", "released", "ttl_s")

    def __init__(self, relay_id: str, granted: Lease, ends_at: float) -> None:
        self.relay_id = relay_id
        self.fence = granted.fence
        self.ttl_s = granted.ttl_s
        self.note = granted.note
        #: why it is no longer held, although nobody released it; empty: it is held
        self.lost = ""
        #: it was released here
        self.released = False
        #: the relay holds it at least until then (our monotonic clock)
        self.ends_at = ends_at
        #: it was released or lost
        self.over = asyncio.Event()


class _Holder(Protocol):
    """Keeps the leases of a client alive."""

    async def at_home(self, work: Coroutine[Any, Any, T]) -> T:
        """Run on the client's loop."""

    async def release(self, grant: Grant) -> None:
        """End it."""

    def object_lost(self, grant: Grant) -> None:
        """Nobody can release it any more; on the client's loop."""


class HeldLease:
    """A lease of a relay: while it is held, nobody but this client may write.

    It is the client's, and so covers every call that this client sends to the relay, from whatever
    task or thread. The client renews it on its own loop three times within its time to live, until
    :meth:`release`, or until the client is closed or ends. As an async context manager it is
    released at the end of the block. Keep a reference: one that nobody refers to any more is
    released as well, with a :class:`ResourceWarning`.

    When it cannot be renewed (the relay says that it is over, was restarted, or could not be
    reached in time) :attr:`lost` says so, and a warning is logged; what is written from then on is
    refused with :class:`~labmesh.errors.Locked`, until it is released or acquired anew.
    """

    __slots__ = ("__weakref__", "_grant", "_holder")

    def __init__(self, grant: Grant, holder: _Holder) -> None:
        self._grant, self._holder = grant, holder
        loop = asyncio.get_running_loop()
        # A program that ends gives its leases back when it closes its client.
        weakref.finalize(self, _object_lost, loop, holder, grant).atexit = False

    @property
    def relay_id(self) -> str:
        """Whose lease it is."""
        return self._grant.relay_id

    @property
    def fence(self) -> int:
        """It grows with each grant of the relay; each write carries it."""
        return self._grant.fence

    @property
    def ttl_s(self) -> float:
        """Seconds that it lives without being renewed."""
        return self._grant.ttl_s

    @property
    def note(self) -> str:
        """Why it is held, as others see it."""
        return self._grant.note

    @property
    def lost(self) -> str:
        """Why it is no longer held, although nobody released it; empty: it is held."""
        return self._grant.lost

    @property
    def released(self) -> bool:
        """It was released here."""
        return self._grant.released

    @property
    def ends_at(self) -> float:
        """The relay holds it at least until then (our monotonic clock)."""
        return self._grant.ends_at

    async def release(self) -> None:
        """End it. One that was lost or released before: nothing happens."""
        await self._holder.at_home(self._holder.release(self._grant))

    async def wait_ended(self) -> str:
        """Wait until it is lost, and why; or until it is released: an empty text."""
        await self._holder.at_home(self._grant.over.wait())
        return self.lost

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.release()

    def __repr__(self) -> str:
        state = "released" if self.released else (self.lost and f"LOST: {self.lost}") or "held"
        note = self.note and f", note {self.note!r}"
        return f"<lease of {self.relay_id}, fence {self.fence}{note}: {state}>"


def _object_lost(loop: asyncio.AbstractEventLoop, holder: _Holder, grant: Grant) -> None:
    """In whatever thread, in the middle of whatever it did."""
    with contextlib.suppress(RuntimeError):  # the loop has ended, and the client with it
        loop.call_soon_threadsafe(holder.object_lost, grant)
