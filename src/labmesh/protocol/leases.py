"""One writer at a time: the lease that a relay grants.

The relay is the lock server and what is locked in one. So the fence, a number that grows with each
grant and that each write under a lease carries, is checked where the write happens, right before
it: a holder that was paused beyond the end of its lease cannot write late. (The fencing token of
M. Kleppmann, "How to do distributed locking", 2016.)
"""

from __future__ import annotations

import math
from collections.abc import Hashable
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

from labmesh.errors import Conflict, Locked, NotFound, ProtocolError
from labmesh.protocol.messages import Lease

__all__ = ["Ended", "Held", "Leases", "held_already"]

#: The longest time to live; that of :class:`labmesh.protocol.messages.Acquire`.
MAX_TTL_S = 86_400.0

#: How a lease ends. ``released``: by its holder, at the end of its work. ``abandoned``: by its
#: holder, in the middle of it. ``expired``: not renewed in time. ``broken``: by somebody else.
Ending = Literal["released", "abandoned", "expired", "broken"]


@dataclass(frozen=True, slots=True)
class Held:
    """A lease, as it stood after its grant or its last renewal."""

    fence: int
    #: not shown, and never told to anybody: whoever knows it can write under this lease
    owner: Hashable = field(repr=False)
    #: who, as they call themselves
    holder: str
    note: str
    ttl_s: float
    granted_at: float
    #: infinite while its holder waits for others to end what they have begun
    ends_at: float

    def facts(self, now: float) -> dict[str, Any]:
        """What everybody may know; ages are in seconds."""
        return {
            "fence": self.fence,
            "holder": self.holder,
            "note": self.note,
            "ttl_s": self.ttl_s,
            "age_s": round(now - self.granted_at, 3),
            "left_s": round(min(self.ttl_s, max(0.0, self.ends_at - now)), 3),
        }

    def news(self) -> dict[str, Any]:
        """The event's value for a grant."""
        return {
            "change": "granted",
            "fence": self.fence,
            "holder": self.holder,
            "note": self.note,
            "ttl_s": self.ttl_s,
        }


@dataclass(frozen=True, slots=True)
class Ended:
    """A lease that is over, and how it came to its end."""

    held: Held
    reason: Ending
    at: float
    #: of a broken one: who broke it, and why
    by: str = ""
    why: str = ""

    @property
    def safe_state(self) -> bool:
        """The driver is to go to its safe state, before anything else runs.

        Not after a broken lease: whoever breaks it is there and takes over.
        """
        return self.reason in ("abandoned", "expired")

    def news(self) -> dict[str, Any]:
        """The event's value for this end."""
        return {
            "change": self.reason,
            "fence": self.held.fence,
            "holder": self.held.holder,
            "note": self.held.note,
            "held_s": round(self.at - self.held.granted_at, 3),
            "by": self.by,
            "why": self.why,
        }


class _Standing(NamedTuple):
    """What is so at one moment."""

    held: Held | None = None
    #: the lease before it
    ended: Ended | None = None

    def in_force(self, owner: Hashable, fence: int, now: float) -> Held | None:
        """The lease, if it is this one, this owner's, and its time is not over."""
        held = self.held
        if held is None or held.fence != fence or held.owner != owner or now >= held.ends_at:
            return None
        return held


class Leases:
    """The lease of one relay: at most one at a time.

    Times are seconds of the relay's monotonic clock. A lease whose time is over is in nobody's
    favour: neither its holder nor anybody else may write until :meth:`expire` has reported its end,
    so that the driver's safe state comes first. Call it before each of the other methods but
    :meth:`check_write`.

    All of it belongs to the relay's loop, except that :meth:`check_write` may be called in any
    thread: what it needs is replaced as a whole, by one attribute store.

    :param relay_id: for the texts.
    :param require: without a lease nobody may write.
    """

    def __init__(self, relay_id: str, *, require: bool = False) -> None:
        self.relay_id = relay_id
        self.require = require
        self._last_fence = 0
        self._standing = _Standing()

    @property
    def held(self) -> Held | None:
        """The lease that is held, also when its time is over and nobody has called expire()."""
        return self._standing.held

    # ── changes ─────────────────────────────────────────────────────────────────────────────────

    def acquire(
        self,
        owner: Hashable,
        *,
        ttl_s: float,
        holder: str,
        note: str,
        now: float,
        waits: bool = False,
    ) -> Held:
        """Grant the lease to ``owner``: whatever stands for one client.

        :param waits: others write still: nobody else begins to from now on, and its time begins
            with the first :meth:`renew`.
        :raises Locked: it is held. Its holder is refused as well (with ``own=True`` in the detail):
            two parts of one program that each believe to hold it would end it for each other.
        :raises ProtocolError: ``ttl_s`` is no time between 0 and a day.
        """
        if not 0 < ttl_s <= MAX_TTL_S:
            raise ProtocolError(
                f"the ttl of a lease is more than 0 and at most {MAX_TTL_S:g} s, not {ttl_s}"
            )
        held = self._standing.held
        if held is not None:
            raise self._taken(held, owner, now)
        self._last_fence += 1
        ends_at = math.inf if waits else now + ttl_s
        granted = Held(self._last_fence, owner, holder, note, ttl_s, now, ends_at)
        self._standing = self._standing._replace(held=granted)
        return granted

    def renew(self, owner: Hashable, fence: int, now: float) -> Held:
        """The holder lives: its lease has its whole time again.

        :raises Locked: this lease is over.
        """
        held = self._standing.in_force(owner, fence, now)
        if held is None:
            raise self._refusal(self._standing, owner, fence, now)
        renewed = replace(held, ends_at=now + held.ttl_s)
        self._standing = self._standing._replace(held=renewed)
        return renewed

    def release(
        self, owner: Hashable, fence: int, now: float, *, abandoned: bool = False
    ) -> Ended | None:
        """The holder ends its lease; None: that lease is over already, and nothing changes."""
        held = self._standing.in_force(owner, fence, now)
        if held is None:
            return None
        return self._end(held, "abandoned" if abandoned else "released", now)

    def break_lease(self, fence: int, now: float, *, by: str, reason: str) -> Ended:
        """End the lease of whoever holds it.

        :param fence: of the lease that is meant; 0: any.
        :raises NotFound: nobody holds one.
        :raises Conflict: another lease than the one that is meant is held.
        """
        held = self._standing.held
        if held is None or now >= held.ends_at:
            raise NotFound(f"nobody holds a lease of {self.relay_id}: there is nothing to break")
        if fence not in (0, held.fence):
            raise Conflict(
                f"lease {fence} of {self.relay_id} is over; {self._held_by(held, now)} with fence "
                f"{held.fence}: give that one if it is meant",
                **held.facts(now),
            )
        return self._end(held, "broken", now, by=by, why=reason)

    def expire(self, now: float) -> Ended | None:
        """End the lease when its time is over; each end is reported once."""
        held = self._standing.held
        if held is None or now < held.ends_at:
            return None
        return self._end(held, "expired", now)

    def next_deadline(self) -> float | None:
        """When :meth:`expire` next wants to be called."""
        held = self._standing.held
        return None if held is None or held.ends_at == math.inf else held.ends_at

    def _end(self, held: Held, reason: Ending, now: float, by: str = "", why: str = "") -> Ended:
        ended = Ended(held, reason, now, by, why)
        self._standing = _Standing(ended=ended)
        return ended

    # ── questions ───────────────────────────────────────────────────────────────────────────────

    def check_write(self, owner: Hashable, fence: int, now: float) -> None:
        """May this client write, under this lease (0: under none)? In any thread.

        :raises Locked: somebody else holds it; or the lease under which this was sent is over, also
            when nobody holds one now; or there is none, where one is required.
        """
        standing = self._standing
        if standing.held is None and not fence and not self.require:
            return
        if standing.in_force(owner, fence, now) is None:
            raise self._refusal(standing, owner, fence, now)

    def facts(self, now: float) -> dict[str, Any] | None:
        """For the relay's status; None: nobody holds a lease."""
        held = self._standing.held
        return None if held is None else held.facts(now)

    def message(self, request_id: str, now: float) -> Lease:
        """The reply to who has just acquired or renewed it."""
        held = self._standing.held
        if held is None:
            raise ValueError("nobody holds a lease")
        return Lease(id=request_id, **held.facts(now))

    # ── refusals ────────────────────────────────────────────────────────────────────────────────

    def _taken(self, held: Held, owner: Hashable, now: float) -> Locked:
        if held.owner != owner:
            text = f"{self._held_by(held, now)}: wait, ask them, or end it with break_lease()"
            return Locked(text, **held.facts(now))
        text = held_already(self.relay_id, held.fence, held.note)
        return Locked(text, own=True, **held.facts(now))

    def _refusal(self, standing: _Standing, owner: Hashable, fence: int, now: float) -> Locked:
        """Why a write or a renewal is none, and what to do."""
        held = standing.held
        if held is None:
            over = fence and f"{self._over(standing, fence, now)}: acquire it again"
            return Locked(over or self._required())
        if (fence, owner) == (held.fence, held.owner):
            text = f"the lease of {self.relay_id} (fence {fence}) was not renewed in time"
        elif fence:
            text = f"{self._over(standing, fence, now)}, and {self._held_by(held, now)}"
        elif owner == held.owner:
            text = f"this was sent before this client had the lease of {self.relay_id}; send again"
        else:
            text = f"{self._held_by(held, now)}: until it ends nobody else may write, only read"
        return Locked(text, **held.facts(now))

    def _required(self) -> str:
        return (
            f"{self.relay_id} may be written only under a lease, and nobody holds it: take it, "
            "'with psu.lease(note=...):' or 'async with relay.lease(note=...):'"
        )

    def _over(self, standing: _Standing, fence: int, now: float) -> str:
        """How the lease with this fence came to its end, as far as that is known."""
        if fence > self._last_fence:
            return f"{self.relay_id} was restarted, and with that the lease (fence {fence}) ended"
        ended = standing.ended
        if ended is None or ended.held.fence != fence:
            return f"the lease of {self.relay_id} with fence {fence} is over"
        how = f"was {ended.reason}"
        if ended.reason == "expired":
            how = f"expired (not renewed for {ended.held.ttl_s:g} s)"
        elif ended.reason == "broken":
            how += f" by {ended.by or 'another client'} ({ended.why or 'no reason given'})"
        return f"the lease of {self.relay_id} with fence {fence} {how} {now - ended.at:.1f} s ago"

    def _held_by(self, held: Held, now: float) -> str:
        who = held.holder or "another client"
        note = held.note and f", note {held.note!r}"
        return (
            f"{who} has held the lease of {self.relay_id} for {now - held.granted_at:.1f} s{note}"
        )


def held_already(relay_id: str, fence: int, note: str) -> str:
    """What a client is told that acquires a lease twice, by whoever notices first."""
    return (
        f"this client holds the lease of {relay_id} already (fence {fence}, note {note!r}): "
        "release that one first; where its object is lost, break_lease() ends it"
    )
