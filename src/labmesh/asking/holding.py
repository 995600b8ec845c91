"""Leases as their holder has them: kept alive while its client runs, given back at its end."""

from __future__ import annotations

import asyncio
import getpass
import logging
import os
import socket
import time
import warnings
from collections.abc import Coroutine
from typing import Any, Protocol, TypeVar

from labmesh.asking.held_lease import Grant, HeldLease
from labmesh.errors import LabmeshError, LinkLost, Locked, NotSent, Stopping
from labmesh.node import seconds
from labmesh.protocol.leases import MAX_TTL_S, held_already
from labmesh.protocol.messages import (
    Acquire,
    BreakLease,
    Done,
    Lease,
    Release,
    Renew,
    Reply,
    Request,
)

__all__ = ["Fences", "holder_name"]

log = logging.getLogger(__name__)

T = TypeVar("T")
R = TypeVar("R", bound=Reply)

_MAX_NOTE = 256
#: One request about a lease is waited for so long, and asked again where that is harmless.
_REQUEST_S = 5.0
#: A renewal that failed is tried again after so long, or after a tenth of the time to live.
_AGAIN_S = 0.2
#: A renewal is waited for at least so long, however short the time to live.
_LEAST_S = 0.1
#: A client that closes tells the relays of its leases so long.
_CLOSE_S = 2.0


class Client(Protocol):
    """What this needs of a client."""

    node_id: str

    async def at_home(self, work: Coroutine[Any, Any, T]) -> T:
        """Run on the client's loop."""

    async def request(
        self,
        node_id: str,
        request: Request,
        reply: type[R],
        *,
        timeout: float | None = None,
        endpoint: str = "rpc",
    ) -> tuple[R, memoryview | None]:
        """One request to a node."""


class Fences:
    """The leases of one client, at most one of each relay.

    All of it belongs to the client's loop, but :meth:`of`, which may be called in any thread.
    """

    def __init__(self, client: Client) -> None:
        self.client = client
        self._held: dict[str, Grant] = {}
        self._acquiring: set[str] = set()
        self._renewing: dict[Grant, asyncio.Task[None]] = {}
        self._asking: set[asyncio.Task[Any]] = set()
        self._closing = False

    def of(self, relay_id: str) -> int:
        """The fence that a call to this relay carries; 0: this client has no lease of it.

        That of a lost lease counts until it is released: its holder may not write without one.
        """
        held = self._held.get(relay_id)
        return 0 if held is None else held.fence

    async def acquire(self, relay_id: str, *, ttl_s: float, note: str) -> HeldLease:
        """Have this client be the only one that may write. Who is cancelled in it gives it back.

        :raises Locked: somebody holds it; the detail says who, since when, and why.
        :raises Busy: a call of another client that may write runs on; the detail says which.
        """
        request = _acquisition(ttl_s, note)
        task = self._ask(self._acquire(relay_id, request), f"acquire {relay_id}")
        try:
            return HeldLease(await asyncio.shield(task), self)
        except asyncio.CancelledError:
            caller = asyncio.current_task()
            if caller is None or not caller.cancelling():
                raise Stopping(f"this client was closed; {relay_id} was not acquired") from None
            task.add_done_callback(self._give_back)
            raise

    async def at_home(self, work: Coroutine[Any, Any, T]) -> T:
        """Run on the client's loop."""
        return await self.client.at_home(work)

    async def release(self, lease: Grant) -> None:
        """End a lease; from here on calls do not carry its fence. Twice is fine."""
        await asyncio.shield(self._ask(self._release(lease), f"release {lease.relay_id}"))

    def object_lost(self, lease: Grant) -> None:
        """Nobody can release it any more: it is given back, where it is still held."""
        if lease.released or self._held.get(lease.relay_id) is not lease:
            return
        self._ask(self._release(lease), f"give back {lease.relay_id}")
        if not lease.lost:
            text = (
                f"the lease of {lease.relay_id} (fence {lease.fence}, note {lease.note!r}) is "
                "given back: nobody refers to it any more; keep what acquired it returned, or use "
                "it in a 'with' statement"
            )
            log.warning("%s: %s", self.client.node_id, text)
            warnings.warn(text, ResourceWarning, stacklevel=1)

    async def break_lease(self, relay_id: str, *, fence: int, reason: str) -> None:
        """End the lease of whoever holds it, also of this client.

        :raises NotFound: nobody does.
        :raises Conflict: another lease than ``fence`` (0: any) is held.
        """
        request = BreakLease(
            id="-",
            fence=fence,
            reason=_checked_note(reason, "reason"),
            by=holder_name(),
        )
        await self.client.request(relay_id, request, Done, timeout=_REQUEST_S)
        own = self._held.get(relay_id)
        if own is not None and not own.lost and fence in (0, own.fence):
            self._stop_renewing(own)
            self._lose(own, "this client broke it")

    async def close(self) -> None:
        """Abandon what is held, and tell the relays, as far as they can be reached in 2 s."""
        self._closing = True
        try:
            for lease in list(self._held.values()):
                self._ask(self._release(lease, abandoned=True), f"abandon {lease.relay_id}")
            if self._asking:
                await asyncio.wait(self._asking, timeout=_CLOSE_S)
        finally:
            for task in self._asking:
                task.cancel()
            await asyncio.gather(*self._asking, return_exceptions=True)
            self._closing = False

    # ── begin and end ───────────────────────────────────────────────────────────────────────────

    async def _acquire(self, relay_id: str, request: Acquire) -> Grant:
        held = self._held.get(relay_id)
        if held is not None and not held.lost:
            await self._look_again(held)
        self._refuse_a_second(relay_id)
        self._acquiring.add(relay_id)
        try:
            granted, asked_at = await self._granted(relay_id, request)
        finally:
            self._acquiring.discard(relay_id)
        before = self._held.get(relay_id)
        if before is not None:
            self._forget(before)
        # It has waited there until others had ended what they wrote.
        lease = Grant(relay_id, granted, asked_at + granted.age_s + granted.ttl_s)
        self._held[relay_id] = lease
        if self._closing:
            await self._release(lease)
            raise Stopping(f"this client was closed; {relay_id} was not acquired")
        self._renewing[lease] = self._task(self._renew(lease), f"lease of {relay_id}")
        return lease

    async def _look_again(self, lease: Grant) -> None:
        """Whoever was refused because it is over wants another one, before the next renewal."""
        try:
            await self.client.request(
                lease.relay_id, Renew(id="-", fence=lease.fence), Lease, timeout=_REQUEST_S
            )
        except Locked as exc:
            if not lease.lost:
                self._stop_renewing(lease)
                self._lose(lease, str(exc))

    def _refuse_a_second(self, relay_id: str) -> None:
        held = self._held.get(relay_id)
        if held is not None and not held.lost:
            raise Locked(
                held_already(relay_id, held.fence, held.note),
                own=True,
                fence=held.fence,
                note=held.note,
            )
        if relay_id in self._acquiring:
            raise Locked(f"this client is just acquiring the lease of {relay_id}", own=True)

    async def _granted(self, relay_id: str, request: Acquire) -> tuple[Lease, float]:
        """The relay's grant, and when it was asked for.

        A reply that was lost with its link leaves a lease that nobody knows of, here as well: it is
        given back, and asked for again.
        """
        deadline = time.monotonic() + _REQUEST_S
        while True:
            asked_at = time.monotonic()
            left_s = deadline - asked_at
            try:
                granted, _ = await self.client.request(relay_id, request, Lease, timeout=left_s)
            except Locked as exc:
                unknown_fence = exc.detail.get("fence")
                if not exc.detail.get("own") or type(unknown_fence) is not int:
                    raise
                await self._tell_the_end(relay_id, unknown_fence, abandoned=False, timeout=left_s)
            except LinkLost as exc:
                if isinstance(exc, NotSent | Stopping) or time.monotonic() >= deadline:
                    raise
            else:
                return granted, asked_at

    def _give_back(self, acquired: asyncio.Task[Grant]) -> None:
        """Nobody waits for this lease any more."""
        if not acquired.cancelled() and acquired.exception() is None and not self._closing:
            self._ask(self._release(acquired.result()), "give back a lease")

    async def _release(self, lease: Grant, *, abandoned: bool = False) -> None:
        self._forget(lease)
        if lease.lost or lease.released:
            return
        lease.released = True
        lease.over.set()
        relay_id, left_s = lease.relay_id, lease.ends_at - time.monotonic()
        limit_s = _CLOSE_S if self._closing else _REQUEST_S
        try:
            await self._tell_the_end(relay_id, lease.fence, abandoned=abandoned, timeout=limit_s)
        except LabmeshError as exc:
            log.warning(
                "%s: %s does not know that its lease (fence %d) was released, and will take its "
                "holder for vanished in %.1f s: %s",
                self.client.node_id,
                relay_id,
                lease.fence,
                max(0.0, left_s),
                exc,
            )

    async def _tell_the_end(
        self, relay_id: str, fence: int, *, abandoned: bool, timeout: float
    ) -> None:
        release = Release(id="-", fence=fence, abandoned=abandoned)
        await self.client.request(relay_id, release, Done, timeout=max(_LEAST_S, timeout))

    def _forget(self, lease: Grant) -> None:
        if self._held.get(lease.relay_id) is lease:
            del self._held[lease.relay_id]
        self._stop_renewing(lease)

    def _stop_renewing(self, lease: Grant) -> None:
        renewing = self._renewing.pop(lease, None)
        if renewing is not None:
            renewing.cancel()

    # ── meanwhile ───────────────────────────────────────────────────────────────────────────────

    async def _renew(self, lease: Grant) -> None:
        """Renew it for as long as that works; then say why not."""
        relay_id, third_s = lease.relay_id, lease.ttl_s / 3
        request = Renew(id="-", fence=lease.fence)
        pause_s = third_s
        while True:
            await asyncio.sleep(pause_s)
            asked_at = time.monotonic()
            timeout = max(_LEAST_S, min(third_s, lease.ends_at - asked_at))
            try:
                await self.client.request(relay_id, request, Lease, timeout=timeout)
            except Locked as exc:
                self._lose(lease, str(exc))
                return
            except LabmeshError as exc:
                if time.monotonic() >= lease.ends_at:
                    text = f"{relay_id} could not be reached for {lease.ttl_s:g} s: {exc}"
                    self._lose(lease, text)
                    return
                pause_s = min(_AGAIN_S, lease.ttl_s / 10)
            else:
                # Counted from the question: so it ends here no later than there.
                lease.ends_at = asked_at + lease.ttl_s
                pause_s = max(0.0, asked_at + third_s - time.monotonic())

    def _lose(self, lease: Grant, why: str) -> None:
        lease.lost = why
        lease.over.set()
        log.warning(
            "%s lost the lease of %s (fence %d): %s",
            self.client.node_id,
            lease.relay_id,
            lease.fence,
            why,
        )

    def _ask(self, work: Coroutine[Any, Any, T], name: str) -> asyncio.Task[T]:
        task = self._task(work, name)
        self._asking.add(task)
        task.add_done_callback(self._asking.discard)
        return task

    def _task(self, work: Coroutine[Any, Any, T], name: str) -> asyncio.Task[T]:
        loop = asyncio.get_running_loop()
        return loop.create_task(work, name=f"{self.client.node_id}: {name}")


def holder_name() -> str:
    """Who this is, for people who find an instrument leased: ``alice@lab-pc (pid 4711)``."""
    try:
        user = getpass.getuser()
    except (ImportError, KeyError, OSError):  # a container's user without a name
        user = "somebody"
    return f"{user[:64]}@{socket.gethostname()[:128]} (pid {os.getpid()})"


def _acquisition(ttl_s: float, note: str) -> Acquire:
    if seconds(ttl_s, "ttl") > MAX_TTL_S:
        raise ValueError(
            f"a lease lives at most a day without a renewal ({MAX_TTL_S:g} s), not {ttl_s:g} s; "
            "it is renewed by itself, for as long as this program runs"
        )
    return Acquire(
        id="-",
        ttl_s=float(ttl_s),
        note=_checked_note(note, "note"),
        holder=holder_name(),
    )


def _checked_note(text: str, what: str) -> str:
    if not isinstance(text, str):
        raise TypeError(f"the {what} is text, not {type(text).__name__}")
    if len(text) > _MAX_NOTE:
        raise ValueError(f"the {what} has at most {_MAX_NOTE} characters, not {len(text)}")
    return text
