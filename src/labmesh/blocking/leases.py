"""Leases for scripts and notebooks."""

from __future__ import annotations

from typing import Self

from labmesh.asking.held_lease import HeldLease
from labmesh.asking.remote import RelayClient
from labmesh.blocking.session import Session

__all__ = ["Lease", "hold"]


class Lease:
    """A lease of an instrument: while it is held, nobody but this mesh may write.

    It covers every call of this mesh to the instrument, from whatever thread, and is renewed in the
    background until :meth:`release`, or until the mesh is closed or the program ends. Use it in a
    ``with`` statement, which releases it at its end, or keep it over several cells of a notebook
    (in a variable: one that nobody refers to is given back) and release it in the last.
    """

    __slots__ = ("_held", "_session")

    def __init__(self, session: Session, held: HeldLease) -> None:
        self._session = session
        self._held = held

    @property
    def relay_id(self) -> str:
        """Whose lease it is."""
        return self._held.relay_id

    @property
    def fence(self) -> int:
        """Its number; it grows with each lease of the relay."""
        return self._held.fence

    @property
    def note(self) -> str:
        """Why it is held, as others see it."""
        return self._held.note

    @property
    def lost(self) -> str:
        """Why it is no longer held, although it was not released; empty: it is held."""
        return self._held.lost

    def release(self) -> None:
        """End it. One that was lost or released before: nothing happens."""
        # A mesh that was closed has given it back.
        if not self._session.closed:
            self._session.run(self._held.release())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.release()

    def __repr__(self) -> str:
        return repr(self._held)


def hold(session: Session, relay: RelayClient, ttl: float, note: str) -> Lease:
    """Acquire the lease of a relay: see :meth:`RelayClient.acquire`.

    :raises Locked: somebody holds it; the detail says who, since when, and why.
    :raises Busy: somebody else's call runs on, and may write; the text says which, and whose.
    """
    return Lease(session, session.run(relay.acquire(ttl, note)))
