"""Leases: one client writes, all others read."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from labmesh.protocol.messages.base import SHORT_TEXT, Reply
from labmesh.protocol.messages.calls import SessionRequest

__all__ = ["Acquire", "BreakLease", "Lease", "Release", "Renew"]


class Acquire(SessionRequest, frozen=True, kw_only=True, omit_defaults=True, tag="acquire"):
    """Have this client be the only one that may write → Lease; 423 while another one is.

    Answered when nobody else writes any more; 429 when a call of another client that runs does not
    end in time (its deadline, or 5 s).
    """

    ttl_s: Annotated[float, Meta(gt=0, le=86_400)] = 10.0
    #: why, for who finds it locked
    note: Annotated[str, SHORT_TEXT] = ""
    #: who, as they call themselves
    holder: Annotated[str, SHORT_TEXT] = ""


class Renew(SessionRequest, frozen=True, kw_only=True, omit_defaults=True, tag="renew"):
    """The holder lives → Lease, or 423: the lease is over."""

    fence: Annotated[int, Meta(ge=1, le=2**53)]


class Release(SessionRequest, frozen=True, kw_only=True, omit_defaults=True, tag="release"):
    """End a lease → Done. ``abandoned``: its holder ends in the middle of its work."""

    fence: Annotated[int, Meta(ge=1, le=2**53)]
    abandoned: bool = False


class BreakLease(SessionRequest, frozen=True, kw_only=True, omit_defaults=True, tag="break_lease"):
    """End somebody else's lease → Done; 404: there is none, 409: another one than ``fence``."""

    fence: Annotated[int, Meta(ge=0, le=2**53)] = 0
    reason: Annotated[str, SHORT_TEXT] = ""
    by: Annotated[str, SHORT_TEXT] = ""


class Lease(Reply, frozen=True, kw_only=True, omit_defaults=True, tag="lease"):
    """A lease as it stands. Fences grow with each grant of one relay's epoch."""

    fence: Annotated[int, Meta(ge=1, le=2**53)]
    ttl_s: Annotated[float, Meta(gt=0, le=86_400)]
    left_s: Annotated[float, Meta(ge=0)]
    holder: Annotated[str, SHORT_TEXT] = ""
    note: Annotated[str, SHORT_TEXT] = ""
    #: seconds since it was granted
    age_s: Annotated[float, Meta(ge=0)] = 0.0
